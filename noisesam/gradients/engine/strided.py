"""Input gradients of strided convolutions in which every example has a kernel of its own.

A convolution with stride s splits its input into s residue classes along each axis, and each offset of the kernel meets one
of them. So what all offsets contribute is one batched matrix product, and for every residue class a sum of a few of its
shifted parts, written between those of the other classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.gradients.engine.patches import Geometry

# Numbers of these products that are there at once: beside the batch's images they are small.
AT_ONCE = 2**24


def pull_back_by_phases(
    dy: Float[Tensor, "n outputs ..."],
    kernels: Float[Tensor, "n outputs _ ..."],
    sides: tuple[int, ...],
    geometry: Geometry,
) -> Float[Tensor, "n inputs ..."]:
    """Return the input gradient, of images with these sides, through one kernel for each example."""
    n, channels = dy.shape[0], geometry.groups * kernels.shape[2]
    images = dy.new_empty(n, channels, *sides)
    together = max(1, AT_ONCE // (channels * math.prod(geometry.kernel) * dy.shape[2:].numel()))
    for start in range(0, n, together):
        rows = slice(start, start + together)
        offsets = _offsets(dy[rows], kernels[rows], geometry)
        for residues in product(*map(range, geometry.stride)):
            classes = (slice(first, None, step) for first, step in zip(residues, geometry.stride, strict=True))
            pixels = images[(rows, slice(None), *classes)]
            pixels.copy_(_phase(offsets, residues, tuple(pixels.shape[2:]), geometry))
    return images


def _offsets(dy: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Return what every offset of the kernel pulls back from every position, (n, inputs, *kernel, *positions)."""
    n, groups = dy.shape[0], geometry.groups
    each = (n * groups, dy.shape[1] // groups, -1)
    products = torch.bmm(kernels.reshape(each).transpose(1, 2), dy.reshape(each))
    return products.view(n, groups * kernels.shape[2], *geometry.kernel, *dy.shape[2:])


def _phase(offsets: Tensor, residues: tuple[int, ...], sides: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Return what reaches the pixels of one residue class, (n, inputs, *sides)."""
    axes = len(sides)
    positions = tuple(offsets.shape[-axes:])
    total: Tensor | None = None
    parts = []
    for offset, shift in _meeting(residues, geometry):
        part = offsets[(slice(None), slice(None), *offset)]
        if total is None and not any(shift) and positions == sides:
            total = part  # met once and then gone, so it is summed into
        else:
            parts.append((part, shift))
    if total is None:
        total = offsets.new_zeros(*offsets.shape[:2], *sides)
    for part, shift in parts:
        overlaps = [(max(0, move), min(side, count + move)) for move, side, count in zip(shift, sides, positions, strict=True)]
        if all(start < stop for start, stop in overlaps):
            seen = (slice(start - move, stop - move) for (start, stop), move in zip(overlaps, shift, strict=True))
            total[(..., *(slice(*overlap) for overlap in overlaps))].add_(part[(..., *seen)])
    return total


def _meeting(residues: tuple[int, ...], geometry: Geometry) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the kernel offsets that meet a residue class, and how many of its pixels position 0 lies from its first."""
    per_axis = []
    sides = zip(residues, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    for residue, size, step, padding, dilation in sides:
        pixels = [(offset, dilation * offset - padding - residue) for offset in range(size)]
        per_axis.append([(offset, pixel // step) for offset, pixel in pixels if pixel % step == 0])
    for pairs in product(*per_axis):
        yield tuple(offset for offset, _ in pairs), tuple(shift for _, shift in pairs)
