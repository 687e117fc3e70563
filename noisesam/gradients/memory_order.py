"""In which order images and kernels lie in memory: oneDNN computes in the order it is given, and changing it costs a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def channels_last(values: Tensor) -> bool:
    """Whether images (n, C, H, W), or a kernel, lie in memory with their channels last, and not both ways."""
    return values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)


def order_of(values: Tensor) -> torch.memory_format:
    """Return the order in which to allocate what is to lie as these images or this kernel do."""
    return torch.channels_last if channels_last(values) else torch.contiguous_format


def settled(images: Tensor) -> Tensor:
    """Return the same images with the strides that go with their order, where an axis of length one leaves these open."""
    if 1 not in images.shape or images.dim() != 4:
        return images
    if images.is_contiguous():
        return images.reshape(-1).view(images.shape)
    if images.is_contiguous(memory_format=torch.channels_last):
        rows = images.permute(0, 2, 3, 1)
        return rows.reshape(-1).view(rows.shape).permute(0, 3, 1, 2)
    return images


def reordered(images: Tensor, order: torch.memory_format) -> Tensor:
    """Return the same images in another memory order; their gradient comes back in the order in which they lay before."""
    if images.is_contiguous(memory_format=order):
        return images
    return _Reordered.apply(images, order)  # pyright: ignore[reportReturnType]


class _Reordered(Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, order: torch.memory_format) -> Tensor:
        ctx.before = order_of(images)
        return images.contiguous(memory_format=order)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].contiguous(memory_format=ctx.before), None


def laid_out(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return the same values with their axes in the order of memory that these strides tell; themselves if they lie so."""
    if len(strides) != values.dim() or _order(values.shape, strides) == _order(values.shape, values.stride()):
        return values
    return _LaidOut.apply(values, strides)  # pyright: ignore[reportReturnType]


def _order(shape: torch.Size, strides: tuple[int, ...]) -> list[int]:
    """Return the axes that have more than one entry, the one whose entries are furthest apart first."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    return sorted(axes, key=lambda axis: -strides[axis])


class _LaidOut(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strides: tuple[int, ...]) -> Tensor:
        del ctx
        outer_first = sorted(range(values.dim()), key=lambda axis: -strides[axis])
        dense = values.permute(outer_first).contiguous()
        return dense.permute([outer_first.index(axis) for axis in range(values.dim())])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grad_outputs[0], None
