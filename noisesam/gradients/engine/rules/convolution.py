"""Convolutions over one, two or three axes.

The positions of a convolution are its patches. Per layer, by a fixed rule of the shapes, either the per-example gradient is
kept as input and output gradient, and all products go through the Gram matrix of the patches (many channels, few
positions), or it is multiplied out and the perturbed kernels run as one grouped convolution (few channels, many positions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.kernels import (
    OwnKernels,
    add_strided,
    convolve_each,
    kernel_gradients,
    prefers_patch_products,
    pull_back_each,
    quicker_in_planes,
    strided_pixels,
)
from noisesam.gradients.engine.layout import tape_of_rows
from noisesam.gradients.engine.patches import Geometry, patch_adjoint, patch_products, writes_patches
from noisesam.gradients.engine.rules.linear import autocast_input, later_uses, not_a_view, product_factors
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Dense, Factor, GramFactor, OuterProducts, Shared, known_form
from noisesam.gradients.losses import accurate
from noisesam.gradients.memory_order import channels_last, reordered


@register_rule(
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    needs_activation=True,
)
def convolution_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve at w or w + eps_i."""
    axes = weight.dim() - 2
    if input.dim() != axes + 2:
        raise UnsupportedParameterUse(f"a convolution sees an input of shape {tuple(input.shape)} without an example axis")
    tape = tape_of_rows(tape, input, "a convolution")
    input = autocast_input(input)
    kernel = tuple(weight.shape[2:])
    step, holes = _per_axis(stride, axes), _per_axis(dilation, axes)
    if isinstance(padding, str):
        input, around = _named_padding(input, padding, kernel, holes)
    else:
        around = _per_axis(padding, axes)
    geometry = Geometry(kernel, step, around, holes, groups)
    eps = known_form(tape.perturbation(weight), Dense, Shared, OuterProducts, PatchProducts)
    if isinstance(eps, OuterProducts) and not geometry.pointwise:
        raise UnsupportedParameterUse("a convolution shares its weight with a linear layer")
    if isinstance(eps, PatchProducts) and not eps.fits(input, geometry):
        eps = Dense(eps.dense())  # recorded where the same kernel met other images, or met them otherwise
    images = reordered(input, torch.contiguous_format) if quicker_in_planes(input, weight, geometry) else input
    output: Any = _Convolution.apply(images, weight, bias, geometry, tape, eps, tape.perturbation(bias))
    return output if images is input else reordered(output, torch.channels_last)


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    values = tuple(int(v) for v in value)
    return values * axes if len(values) == 1 else values


def _named_padding(
    input: Tensor, padding: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    if padding == "valid":
        return input, (0,) * len(kernel)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    extra: list[int] = []
    for amount in reversed(total):  # torch pads the odd pixel at the end
        extra += [0, amount % 2]
    return (pad(input, extra) if any(extra) else input), tuple(amount // 2 for amount in total)


class PatchProducts(GramFactor):
    """The gradient of a kernel as input and output gradient: G_i = sum_t dy_t patch_t(x)^T."""

    def __init__(self, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        self.dy, self.x, self.weight, self.geometry = dy, x, weight, geometry

    def fits(self, images: Tensor, geometry: Geometry) -> bool:
        """Whether the patches of these images correspond to those of the recorded ones."""
        return geometry == self.geometry and images.shape[2:] == self.x.shape[2:]

    def gram_products(self) -> Float[Tensor, "n T T"]:
        """Return the Gram matrices of patches and output gradients, multiplied entry by entry."""
        x, dy = accurate(self.x), accurate(self.dy).flatten(2)
        products = patch_products(x, x, self.geometry, _sides(self.dy))
        return products.mul_(torch.bmm(dy.transpose(1, 2), dy))

    def dense(self) -> Tensor:
        """Return the kernels' gradients, (n, p, d, ...)."""
        return kernel_gradients(self.dy, self.x, self.weight.to(self.x.dtype), self.geometry)

    def bytes_kept(self) -> int:
        """Return the memory of both images, of their Gram matrices while they are summed and of patches that are formed."""
        positions, examples = self.dy.shape[2:].numel(), self.dy.shape[0]
        images = self.x.numel() + self.dy.numel()
        patches = 2 * self.weight.shape[1:].numel() * positions if writes_patches(self.x, self.geometry) else 0
        return (images + examples * (4 * positions**2 + patches)) * self.dy.element_size()

    def scaled(self, scale: Float[Tensor, " n"]) -> PatchProducts:
        """Return the products with the scale in the output gradient."""
        aligned = scale.to(self.dy.dtype).view(-1, *[1] * (self.dy.dim() - 1))
        return PatchProducts(self.dy * aligned, self.x, self.weight, self.geometry)

    def of(self, rows: slice) -> PatchProducts:
        """Return the images of some of the examples."""
        return PatchProducts(self.dy[rows], self.x[rows], self.weight, self.geometry)

    def in_double(self) -> PatchProducts:
        """Return the same images in float64."""
        return PatchProducts(self.dy.double(), self.x.double(), self.weight, self.geometry)


def kernel_factors(tape: Tape, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Factor:
    """Choose the form of the per-example gradient from the shapes, and from what follows in the step."""
    if geometry.pointwise and geometry.groups == 1:
        columns = strided_pixels(x, geometry).flatten(2)
        outputs, seen = dy.flatten(2).transpose(1, 2), columns.transpose(1, 2)
        return product_factors(outputs, seen, tuple(weight.shape), later_uses=later_uses(tape, weight))
    if prefers_patch_products(dy, weight, geometry, perturbed=tape.perturbed_passes > 0):
        return PatchProducts(dy, x, weight, geometry)
    return Dense(kernel_gradients(dy, x, weight.to(x.dtype), geometry))


def _sides(dy: Tensor) -> tuple[int, int]:
    return dy.shape[2], dy.shape[3]


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        tape: Tape,
        eps: Factor | None,
        bias_eps: Factor | None,
    ) -> Tensor:
        plain, plain_bias = _kernel(weight, x, tape), None if bias is None else bias.to(x.dtype)
        moved = own = None
        if isinstance(eps, Dense):
            own = OwnKernels(plain.detach(), eps)
            output = convolve_each(x, own, geometry)
            if plain_bias is not None:
                shift = plain_bias[None] if bias_eps is None else plain_bias + bias_eps.dense().to(x.dtype)
                output += _channels(shift, output)
                bias_eps = None
        elif isinstance(eps, Shared):
            moved = plain + eps.tensor.to(x.dtype)
            output = geometry.convolve(x, moved, plain_bias)
        else:
            use = (weight, bias, geometry)
            reused = tape.recall_first(use, x)
            output = not_a_view(geometry.convolve(x, plain, plain_bias)) if reused is None else reused
            if reused is None and eps is None:
                tape.remember_first(use, x, output)
            if isinstance(eps, PatchProducts):
                products = patch_products(eps.x, x, geometry, _sides(eps.dy))
                output = _add_products(output, eps.dy.flatten(2), products, fresh=reused is None)
            elif isinstance(eps, OuterProducts):
                output = output + _low_rank(strided_pixels(x, geometry), eps.right, eps.left)
            elif reused is not None:
                output = output.clone()
        if bias_eps is not None:
            output.add_(_channels(bias_eps.dense().to(x.dtype), output))
        ctx.own = own
        ctx.low_rank = eps if isinstance(eps, (PatchProducts, OuterProducts)) else None
        ctx.weight, ctx.bias, ctx.geometry, ctx.tape = weight, bias, geometry, tape
        ctx.save_for_backward(x, weight, moved)
        return not_a_view(output)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        x, weight, moved = ctx.saved_tensors
        tape, geometry, eps = ctx.tape, ctx.geometry, ctx.low_rank
        dx = dw = db = factor = None
        if tape.records(ctx.bias):
            tape.record(ctx.bias, Dense(dy.flatten(2).sum(2)))
        if tape.records(ctx.weight):
            factor = kernel_factors(tape, dy, x.detach(), weight, geometry)
            tape.record(ctx.weight, factor)
        if ctx.needs_input_grad[2] and tape.shares(ctx.bias):
            db = dy.transpose(0, 1).flatten(1).sum(1)
        wants_input, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and tape.shares(ctx.weight)
        if wants_weight and isinstance(factor, Dense) and factor.in_full_precision:  # the batch's is the sum of what is there
            dw, wants_weight = factor.total(), False
        plain = _kernel(weight, x, tape)
        if moved is None and ctx.own is None:
            if wants_input or wants_weight:
                dx, shared = geometry.pull_back(dy, x, plain, (wants_input, wants_weight))
                dw = shared if dw is None else dw
            if wants_input and isinstance(eps, PatchProducts):
                mixing = torch.bmm(eps.dy.flatten(2).transpose(1, 2), dy.flatten(2))
                dx = patch_adjoint(eps.x, mixing, geometry, _sides(dy), onto=dx)
            elif wants_input and isinstance(eps, OuterProducts):
                dx = add_strided(dx, _low_rank(dy, eps.left, eps.right), geometry)  # pyright: ignore[reportArgumentType]
        else:
            if wants_weight:
                dw = geometry.pull_back(dy, x, plain, (False, True))[1]
            if wants_input and ctx.own is None:
                dx = geometry.pull_back(dy, x, moved, (True, False))[0]
            elif wants_input:
                dx = pull_back_each(dy, x, ctx.own, geometry)
        return dx, dw, db, *[None] * 4


def _kernel(weight: Tensor, x: Tensor, tape: Tape) -> Tensor:
    """Return the kernel in the type and, on a CPU, the memory order of the images: oneDNN would write it out at every call."""
    if x.device.type == "cpu" and channels_last(x):
        return tape.channels_last(weight, x.dtype)
    return weight.to(x.dtype)


def _add_products(output: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> Tensor:
    """Return output + left right per example; in place where the output is this function's own."""
    if fresh and output.is_contiguous():
        output.flatten(2).baddbmm_(left, right)
        return output
    return torch.baddbmm(output.flatten(2), left, right).view(output.shape)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """View (n or 1, C) for broadcasting over (n, C, ...)."""
    return values.view(*values.shape, *[1] * (like.dim() - 2))


def _low_rank(values: Tensor, seen: Tensor, written: Tensor) -> Tensor:
    """Return written^T (seen values) over positions, of the values' shape with other channels."""
    products = torch.bmm(seen.to(values.dtype), values.flatten(2))
    return torch.bmm(written.to(values.dtype).transpose(1, 2), products).view(
        values.shape[0], written.shape[2], *values.shape[2:]
    )
