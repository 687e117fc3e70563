"""Convolutions in which every example has a kernel of its own, four ways, and the fixed choice between them.

grouped   one convolution with n times the groups: right for small kernels over many positions
loop      one convolution per example: right for large kernels on a CPU, keeps channels-last images as they are
unfolded  patches written out and one batched product: right for few input channels, and on a GPU, where both others are slow
phases    one batched product, summed up by residues of the stride: right for most strided input gradients on a CPU

The choice depends on shapes and device alone, never on a clock, so that two runs compute the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import fold

from noisesam.gradients.engine.patches import Geometry, written_patches
from noisesam.gradients.engine.strided import pull_back_by_phases
from noisesam.gradients.engine.torch_rounding import torch_rounding
from noisesam.gradients.factors import Dense
from noisesam.gradients.memory_order import channels_last, order_of

# Nanoseconds on one core, measured on convolutions from 16 to 512 channels and 4 to 32 pixels a side; only ratios matter.
PER_PRODUCT = 0.008
CALL = 70_000.0
LOOP_PER_WEIGHT = 0.4
# Kernels up to this size cost nothing extra in a grouped convolution.
SMALL_KERNEL = 18_000
GROUPED_PER_WEIGHT = 1.0
GROUPED_GRADIENT_PER_WEIGHT = 5.0
SHIFT_PER_ENTRY = 3.5
# Input gradients with a stride: products cost so many times more, one by one and by phases, and phases are summed.
STRIDED_LOOP = 4.0
PHASES = 2.6
PHASES_PER_ENTRY = 1.1
REORDERING = 2.0
# On a GPU a Gram matrix is cheap up to this many positions; above it patches are written out.
GPU_GRAM_POSITIONS = 256
# Images of so few pixels whose channels lie last meet so large a kernel by a few rows at a time; from so many images on.
FEW_POSITIONS, LARGE_KERNEL, SOME_IMAGES = 25, 2**19, 4
# oneDNN reads sixteen channels at a time; images of colours leave most of them empty.
FEW_INPUTS = 4
# Patches written out at once, in numbers: on a CPU what stays in a core's cache.
UNFOLDED_ON_CPU = 2**18
UNFOLDED_AT_ONCE = 2**27


class OwnKernels:
    """The kernel weight + eps_i of every example, formed when and as far as it is needed."""

    def __init__(self, weight: Tensor, eps: Dense) -> None:
        self.weight, self.eps = weight, eps
        self._all: Tensor | None = None

    def all(self) -> Tensor:
        """Return all kernels, (n, *shape)."""
        if self._all is None:
            self._all = self.eps.added_to(self.weight)
        return self._all

    def each(self, examples: int) -> Iterator[tuple[int, Tensor]]:
        """Yield one kernel after the other, in one buffer that stays in the cache."""
        if self._all is not None:
            yield from enumerate(self._all)
            return
        # As the gradients lie: a sum across two memory orders is slow.
        weight = self.weight.contiguous(memory_format=self.eps.order_of_each)
        buffer = torch.empty_like(weight)
        for i in range(examples):
            yield i, self.eps.one_added_to(weight, i, buffer)


def prefers_patch_products(dy: Tensor, weight: Tensor, geometry: Geometry, *, perturbed: bool = True) -> bool:
    """Whether the kernel's gradient is better left as products of patches than multiplied out.

    As a perturbation it is met three times, by the norm, the outputs and the input gradients; else by the norm alone.
    """
    if geometry.groups != 1 or dy.dim() != 4:
        return False
    positions, outputs, inputs = dy.shape[2:].numel(), weight.shape[0], weight.shape[1]
    if dy.device.type != "cpu":
        return positions <= GPU_GRAM_POSITIONS
    products = positions * weight.numel() * PER_PRODUCT
    phases = 1
    for step, size in zip(geometry.stride, geometry.kernel, strict=True):
        phases *= min(step, size)
    channels = weight.shape[1:].numel() if geometry.dilated else inputs * phases
    gram = (3 if perturbed else 1) * positions**2 * ((channels + outputs) * PER_PRODUCT + SHIFT_PER_ENTRY * phases)
    later = 0 if not perturbed else 1 if geometry.strided else 2  # uses of the kernels after their gradient
    grouped = products + max(0, weight.numel() - SMALL_KERNEL) * (GROUPED_GRADIENT_PER_WEIGHT + later * GROUPED_PER_WEIGHT)
    loop = products + (1 + later) * (CALL + weight.numel() * LOOP_PER_WEIGHT)
    strided = min(_strided_costs(dy, weight.numel(), geometry)) if geometry.strided and perturbed else 0.0
    return gram < min(grouped, loop) + strided


def quicker_in_planes(images: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution gains by writing out images whose channels lie last, few pixels each, channel by channel."""
    if images.dtype != torch.float32 or images.device.type != "cpu" or not channels_last(images) or torch_rounding():
        return False
    if geometry.pointwise or geometry.groups != 1 or weight.numel() < LARGE_KERNEL or len(images) < SOME_IMAGES:
        return False
    # One pixel lies both ways, and a kernel whose channels lie last has torch convolve in that order all the same.
    return not channels_last(weight) and 1 < math.prod(geometry.positions(images)) <= FEW_POSITIONS


def _way(like: Tensor, weight_size: int, per_weight: float, *, few_inputs: bool = False) -> str:
    if like.device.type != "cpu":
        return "unfolded" if like.dim() == 4 else "grouped"
    if few_inputs:
        return "unfolded"
    grouped = max(0, weight_size - SMALL_KERNEL) * per_weight + _reordering(like)
    return "loop" if CALL + weight_size * LOOP_PER_WEIGHT < grouped else "grouped"


def _way_back(dy: Tensor, x: Tensor, weight_size: int, geometry: Geometry) -> str:
    if not geometry.strided or x.device.type != "cpu":
        return _way(x, weight_size, GROUPED_PER_WEIGHT)
    phases, loop = _strided_costs(dy, weight_size, geometry)
    return "loop" if loop < phases + _reordering(x) else "phases"


def _strided_costs(dy: Tensor, weight_size: int, geometry: Geometry) -> tuple[float, float]:
    """Return what the input gradient of a strided convolution costs by phases, and one by one."""
    positions = dy.shape[2:].numel()
    products = positions * weight_size * PER_PRODUCT
    entries = positions * (weight_size // dy.shape[1]) * geometry.groups
    phases = PHASES * products + PHASES_PER_ENTRY * entries + max(0, weight_size - SMALL_KERNEL) * GROUPED_PER_WEIGHT
    return phases, STRIDED_LOOP * products + CALL + weight_size * LOOP_PER_WEIGHT


def _reordering(images: Tensor) -> float:
    """Return what it costs where images, and their results, lie with the channels last, which grouped forms cannot read."""
    return 2 * images.shape[1:].numel() * REORDERING if channels_last(images) else 0.0


def _few_inputs(images: Tensor, geometry: Geometry) -> bool:
    return images.dim() == 4 and images.shape[1] <= FEW_INPUTS and geometry.groups == 1


def kernel_gradients(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the kernel's gradient of every example, (n, *weight.shape)."""
    n = x.shape[0]
    way = _way(x, weight.numel(), GROUPED_GRADIENT_PER_WEIGHT, few_inputs=_few_inputs(x, geometry))
    if way == "unfolded" and geometry.groups == 1:
        outputs = dy.flatten(2)
        found = x.new_empty(n, outputs.shape[1], weight.shape[1:].numel())
        for rows, columns in _columns(x, geometry):
            torch.bmm(outputs[rows], columns.transpose(1, 2), out=found[rows])
        return found.view(n, *weight.shape)
    if way == "loop":
        # Only the kernel's shape and memory order matter; in the order of the images it is not written out at every call.
        kernel = torch.empty_like(weight, memory_format=order_of(x))
        pieces = [geometry.pull_back(dy[i : i + 1], x[i : i + 1], kernel, (False, True))[1] for i in range(n)]
        return torch.stack([piece for piece in pieces if piece is not None])
    kernels = weight.new_empty(n * weight.shape[0], *weight.shape[1:])  # of them, too, only the shape matters
    merged = geometry.pull_back(_merged(dy), _merged(x), kernels, (False, True), n * geometry.groups)[1]
    assert merged is not None
    return merged.view(n, *weight.shape)


def convolve_each(x: Tensor, own: OwnKernels, geometry: Geometry) -> Tensor:
    """Convolve every example with its own kernel."""
    n = x.shape[0]
    if geometry.pointwise and geometry.groups == 1:
        seen, kernels = strided_pixels(x, geometry), own.all()
        return torch.bmm(kernels.flatten(2), seen.flatten(2)).view(n, kernels.shape[1], *seen.shape[2:])
    way = _way(x, own.weight.numel(), GROUPED_PER_WEIGHT, few_inputs=_few_inputs(x, geometry))
    if way == "loop":
        return _stacked(x, n, (geometry.convolve(x[i : i + 1], kernel, None) for i, kernel in own.each(n)))
    kernels = own.all()
    if way == "unfolded" and geometry.groups == 1:
        flat = kernels.flatten(2)
        found = x.new_empty(n, flat.shape[1], *geometry.positions(x))
        for rows, columns in _columns(x, geometry):
            torch.bmm(flat[rows], columns, out=found[rows].flatten(2))
        return found
    merged = geometry.convolve(_merged(x), kernels.flatten(0, 1), None, n * geometry.groups)
    return merged.view(n, kernels.shape[1], *merged.shape[2:])


def pull_back_each(dy: Tensor, x: Tensor, own: OwnKernels, geometry: Geometry) -> Tensor:
    """Return the input gradient of every example through its own kernel."""
    n, size = x.shape[0], own.weight.numel()
    if geometry.pointwise and geometry.groups == 1:
        kernels = own.all()
        found = torch.bmm(kernels.flatten(2).transpose(1, 2), dy.flatten(2)).view(n, x.shape[1], *dy.shape[2:])
        return add_strided(torch.zeros_like(x), found, geometry) if geometry.strided else found
    way = _way_back(dy, x, size, geometry)
    if way == "phases":
        return pull_back_by_phases(dy, own.all(), tuple(x.shape[2:]), geometry)
    if way == "loop":
        return _stacked(
            x, n, (geometry.pull_back(dy[i : i + 1], x[i : i + 1], kernel, (True, False))[0] for i, kernel in own.each(n))
        )
    kernels = own.all()
    if way == "unfolded" and geometry.groups == 1:
        flat, outputs = kernels.flatten(2), dy.flatten(2)
        pieces = []
        for rows in _pieces(x, flat.shape[2] * outputs.shape[2]):
            columns = torch.bmm(flat[rows].transpose(1, 2), outputs[rows])
            pieces.append(
                fold(columns, tuple(x.shape[2:]), geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
            )
        return torch.cat(pieces)
    shape = x.new_empty(1, n * x.shape[1], *x.shape[2:])  # of the inputs, only the shape matters
    merged = geometry.pull_back(_merged(dy), shape, kernels.flatten(0, 1), (True, False), n * geometry.groups)[0]
    assert merged is not None
    return merged.view(x.shape)


def _stacked(like: Tensor, n: int, rows: Iterable[Tensor | None]) -> Tensor:
    """Stack images computed one after the other, in the memory order of `like`: the next layer expects it."""
    stacked: Tensor | None = None
    for i, row in enumerate(rows):
        assert row is not None
        if stacked is None:
            stacked = torch.empty((n, *row.shape[1:]), dtype=row.dtype, device=row.device, memory_format=order_of(like))
        stacked[i : i + 1].copy_(row)
    assert stacked is not None
    return stacked


def strided_pixels(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the pixels that a pointwise convolution sees."""
    return x[(slice(None), slice(None), *(slice(None, None, step) for step in geometry.stride))]


def add_strided(dx: Tensor, added: Tensor, geometry: Geometry) -> Tensor:
    """Add to the pixels that a pointwise convolution sees."""
    view = strided_pixels(dx, geometry)
    view += added
    return dx


def _merged(images: Tensor) -> Tensor:
    """Return (1, n * C, ...): the examples as groups of channels, by way of one axis, which leaves no doubt of the order.

    Images of one pixel lie both ways, and torch would take a kernel's gradient to lie as their strides happen to say.
    """
    return images.reshape(-1).view(1, -1, *images.shape[2:])


def _pieces(images: Tensor, numbers: int) -> list[slice]:
    """Return the examples, in parts whose patches of so many numbers each are written out together."""
    n, together = len(images), UNFOLDED_ON_CPU if images.device.type == "cpu" else UNFOLDED_AT_ONCE
    size = max(1, together // max(numbers, 1))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _columns(x: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Yield the patches written out, a bounded number of examples at a time."""
    per_example = x.shape[1:].numel() * math.prod(geometry.kernel)
    for rows in _pieces(x, per_example):
        yield rows, written_patches(x[rows], geometry)
