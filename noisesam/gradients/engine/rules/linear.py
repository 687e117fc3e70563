"""Linear maps y = x W^T + b with T positions per example.

Per-example gradient of W: sum_t dy_t x_t^T, kept as its factors. Perturbed output: x W^T + (x right^T) left, where eps_i =
left^T right; the pull-back is the same with the roles exchanged. Where the factors outgrow the weight they are multiplied
out, and the perturbed weights run as one batched product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine import products
from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.layout import examples_first
from noisesam.gradients.engine.lifting import lift
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Dense, Factor, OuterProducts, Shared, known_form

LARGEST_PRODUCT = (1.0, 4 / 3, 5 / 3)
"""Size of the product, in that of its factors T (d + p), up to which it is formed: for the norm, for one later use, for two.

Beyond, a step is slower with it; and it takes more memory than factors, which are about what a layer keeps for its reverse
pass: with two thirds more a step stays below 2.5 times the memory of one of SGD.
"""
LARGEST_BESIDE_ONEDNN = 3 / 2
"""The same on a CPU where oneDNN is the quicker library, whose code takes memory of its own: more gains nothing there."""


@register_rule(torch.nn.functional.linear, needs_activation=True)
def linear_rule(tape: Tape, _: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Evaluate a linear map at w or w + eps_i, recording or sharing its gradients on the way back."""
    input = autocast_input(input)
    if weight.dim() == 1:
        if bias is not None:
            raise UnsupportedParameterUse("'linear' of a vector with a bias")
        return apply_vector(tape, input, weight, "'linear'")
    if input.dim() == 2 and input.shape[0] == tape.examples:
        return apply_linear(tape, input, weight, bias)
    positions, back = examples_first(tape, input, 1, "'linear'")
    return back(apply_linear(tape, positions, weight, bias))


def apply_linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False) -> Tensor:
    """Apply the map to (n, d) or (n, T, d); a transposed weight is stored (d, p)."""
    eps, bias_eps = known_form(tape.perturbation(weight), Dense, Shared, OuterProducts), tape.perturbation(bias)
    return _Linear.apply(x, weight, bias, tape, eps, bias_eps, transposed)  # pyright: ignore[reportReturnType]


def apply_vector(tape: Tape, x: Tensor, vector: Tensor, what: str) -> Tensor:
    """Multiply (..., d) by every example's own vector (d,): so few numbers are no product of factors."""
    positions, back = examples_first(tape, x, 1, what)
    return back(torch.matmul(positions, lift(tape, vector).unsqueeze(2))).squeeze(-1)


def autocast_input(values: Tensor) -> Tensor:
    """Cast a layer's input as autocast would, by an operation that autograd sees."""
    kind = values.device.type
    if torch.is_autocast_enabled(kind) and values.is_floating_point() and values.dtype != torch.float64:
        return values.to(torch.get_autocast_dtype(kind))
    return values


def product_factors(left: Tensor, right: Tensor, shape: tuple[int, ...] | None = None, *, later_uses: int = 2) -> Factor:
    """Keep sum_t left_t right_t^T as factors while that is cheaper than the product, which is a fixed rule of the shapes.

    Factors take T^2 (d + p) multiplications for the norm and as many for every later use. The product takes T d p once, and a
    perturbed pass with it no more than one with the shared map, but its d p numbers are written and read again and again.

    Args:
        left: Output gradients by position.
        right: Inputs by position.
        shape: The weight's own shape, where it is not (p, d).
        later_uses: Uses after the norm: the passes at w + eps_i that follow, or 2 where the batch's gradient is to be the sum.
    """
    positions, outputs, inputs = left.shape[1], left.shape[2], right.shape[2]
    largest = LARGEST_PRODUCT[later_uses]
    if left.device.type == "cpu" and not products.mkl_is_at_home():
        largest = min(largest, LARGEST_BESIDE_ONEDNN)
    if positions == 1 or inputs * outputs > largest * positions * (inputs + outputs):
        return OuterProducts(left, right, shape)
    return Dense(torch.bmm(left.transpose(1, 2), right).view(-1, *(shape or (outputs, inputs))))


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tape: Tape,
        eps: Factor | None,
        bias_eps: Factor | None,
        transposed: bool,
    ) -> Tensor:
        ctx.weight, ctx.bias, ctx.tape, ctx.transposed = weight, bias, tape, transposed
        plain_weight, plain_bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if transposed:
            plain_weight = plain_weight.t()
        outputs = plain_weight.shape[0]
        moved = None
        if isinstance(eps, Dense):
            moved = eps.added_to(weight.to(x.dtype))
            moved = moved.transpose(1, 2) if transposed else moved
            shift = _per_example_bias(plain_bias, bias_eps)
            bias_eps = None
            product = _affine_each(_positions(x), moved, shift)
            output = product.view(*x.shape[:-1], outputs)
        elif isinstance(eps, Shared):
            moved = plain_weight + (eps.tensor.t() if transposed else eps.tensor).to(x.dtype)
            output = products.linear(x, moved, plain_bias)
        else:
            use = (weight, bias, transposed)
            reused = tape.recall_first(use, x)
            if reused is None and isinstance(eps, OuterProducts):
                output = _perturbed(x, plain_weight, _per_example_bias(plain_bias, bias_eps), eps, transposed)
                bias_eps = None
            else:
                output = not_a_view(products.linear(x, plain_weight, plain_bias)) if reused is None else reused
                if reused is None and eps is None:
                    tape.remember_first(use, x, output)
                if isinstance(eps, OuterProducts):
                    seen, written = _seen_and_written(eps, x.dtype, transposed)
                    output = _add_low_rank(output, x, seen, written, eps.scale, fresh=False)
                elif reused is not None:
                    output = output.clone()
        if bias_eps is not None:
            shift = bias_eps.dense().to(x.dtype)
            output.add_(shift.view(shift.shape[0], *[1] * (output.dim() - 2), shift.shape[1]))
        ctx.low_rank = eps if isinstance(eps, OuterProducts) else None
        ctx.save_for_backward(x, weight, moved)
        return not_a_view(output)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        x, weight, moved = ctx.saved_tensors
        tape, eps = ctx.tape, ctx.low_rank
        weight_gradient = bias_gradient = input_gradient = factor = None
        if tape.records(ctx.bias):
            tape.record(ctx.bias, Dense(dy if dy.dim() == 2 else _positions(dy).sum(1)))
        if tape.records(ctx.weight):
            pair = (_positions(x.detach()), _positions(dy)) if ctx.transposed else (_positions(dy), _positions(x.detach()))
            uses = later_uses(tape, ctx.weight, of_data=not ctx.needs_input_grad[0])
            factor = product_factors(*pair, later_uses=uses)
            tape.record(ctx.weight, factor)
        if ctx.needs_input_grad[1] and tape.shares(ctx.weight):
            if isinstance(factor, Dense) and factor.in_full_precision:
                weight_gradient = factor.total()  # the batch's gradient is the sum of what is there
            else:
                pair = (x, dy) if ctx.transposed else (dy, x)
                weight_gradient = products.transposed_matmul(pair[0].flatten(0, -2), pair[1].flatten(0, -2))
        if ctx.needs_input_grad[2] and tape.shares(ctx.bias):
            bias_gradient = dy.flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            if moved is not None and moved.dim() == 3:
                input_gradient = torch.bmm(_positions(dy), moved).view(x.shape)
            elif moved is not None:
                input_gradient = products.matmul(dy, moved)
            else:
                plain = weight.to(dy.dtype)
                input_gradient = products.matmul(dy, plain.t() if ctx.transposed else plain)
                if eps is not None:
                    written, seen = _seen_and_written(eps, dy.dtype, ctx.transposed)
                    input_gradient = _add_low_rank(input_gradient, dy, seen, written, eps.scale, fresh=True)
        return input_gradient, weight_gradient, bias_gradient, None, None, None, None


def later_uses(tape: Tape, weight: Tensor, *, of_data: bool = False) -> int:
    """Return how often this pull-back's per-example gradient of a weight is used after its norm.

    Of a map of the data, whose outputs at w are there and whose inputs have no gradient, one use as factors is left, and that
    is the cheaper one: it counts as none.
    """
    if tape.shares(weight):
        return 2
    return 0 if of_data else tape.perturbed_passes


def _seen_and_written(eps: OuterProducts, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    """Return the factors, without their scale, that meet the input and that write the output."""
    seen, written = (eps.unscaled_left, eps.right) if transposed else (eps.right, eps.unscaled_left)
    return seen.to(dtype), written.to(dtype)


def _per_example_bias(bias: Tensor | None, eps: Factor | None) -> Tensor | None:
    """Return the bias of every example, (n or 1, p), None where the map has none."""
    if bias is None:
        return None
    if eps is None:
        return bias[None]
    return bias + eps.dense().to(bias.dtype)


def _affine_each(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Return x_i W_i^T + b_i in one product."""
    if bias is None:
        return torch.bmm(x, weights.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weights.transpose(1, 2))


def _positions(values: Tensor) -> Tensor:
    """Return (n, T, features)."""
    return values.unsqueeze(1) if values.dim() == 2 else values


def not_a_view(output: Tensor) -> Tensor:
    """Return the tensor without its record of being a view: the in-place activation that may follow refuses views."""
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


def _perturbed(x: Tensor, weight: Tensor, bias: Tensor | None, eps: OuterProducts, transposed: bool) -> Tensor:
    """Return x W^T + b_i + c (x seen^T) written: the correction and the bias first, so that no further pass adds them."""
    seen, written = _seen_and_written(eps, x.dtype, transposed)
    inner = _inner_products(x, seen, eps.scale)
    output = torch.bmm(inner, written) if bias is None else torch.baddbmm(bias.unsqueeze(1), inner, written)
    output = products.add_linear_(output.flatten(0, 1), x.flatten(0, -2), weight)
    return output.view(*x.shape[:-1], weight.shape[0])


def _inner_products(x: Tensor, seen: Tensor, scale: Tensor | None) -> Tensor:
    """Return c x seen^T, (n, T, T)."""
    inner = torch.bmm(_positions(x), seen.transpose(1, 2))
    return inner if scale is None else inner.mul_(scale.to(x.dtype).view(-1, 1, 1))


def _add_low_rank(output: Tensor, x: Tensor, seen: Tensor, written: Tensor, scale: Tensor | None, *, fresh: bool) -> Tensor:
    """Return output + c (x seen^T) written, per example; `seen` and `written` hold the factors by position.

    `fresh` says that the output belongs to the caller alone and may be added to in place.
    """
    if x.dim() == 2 and seen.shape[1] == 1:
        inner = torch.linalg.vecdot(x, seen[:, 0])
        inner = (inner if scale is None else inner * scale.to(x.dtype)).unsqueeze(1)
        return output.addcmul_(inner, written[:, 0]) if fresh else torch.addcmul(output, inner, written[:, 0])
    inner = _inner_products(x, seen, scale)
    if fresh and output.is_contiguous():
        _positions(output).baddbmm_(inner, written)
        return output
    return torch.baddbmm(_positions(output), inner, written).view(output.shape)
