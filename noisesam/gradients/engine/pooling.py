"""Pooling of images in the memory order in which torch is quick, with torch's own functions.

On a CPU torch pools images that lie channel by channel one number at a time, far slower than images whose channels lie last
in memory. Writing them out in that order first, and the result back, costs less than is gained. Before and after it the
images lie as convolutions with a kernel per example want them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

FEWEST_CHANNELS, FEWEST_NUMBERS = 8, 2**14
"""With fewer channels torch's vectors stay half empty, with fewer numbers a call costs more than the pooling."""
_TYPES = (torch.float32, torch.float64, torch.bfloat16)


def in_quick_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands for a function: pooling where it gains, every other function as it is."""
    return _STAND_INS.get(function, function)


def _gains(images: Any) -> bool:
    if type(images) not in (Tensor, nn.Parameter) or images.dim() != 4 or images.device.type != "cpu":
        return False
    if images.shape[1] < FEWEST_CHANNELS or images.numel() < FEWEST_NUMBERS or images.dtype not in _TYPES:
        return False
    if images.layout != torch.strided or not images.is_contiguous():
        return False
    # Inside torch.func's transforms, which a model may call, there is no order to ask for.
    return not torch._C._functorch.is_functorch_wrapped_tensor(images)  # pyright: ignore[reportAttributeAccessIssue]


def _quick(
    function: Callable[..., Any], pool: type[Function], read: Callable[..., tuple[Any, ...]], *args: Any, **kwargs: Any
) -> Any:
    """Pool in the quick order what gains, as long as the options are plain numbers; all else is torch's to judge."""
    if args and _gains(args[0]):
        try:
            options = read(*args[1:], **kwargs)
        except TypeError:
            return function(*args, **kwargs)
        return pool.apply(args[0], *options)
    return function(*args, **kwargs)


def _options_of_max_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> tuple[Any, ...]:
    if return_indices:
        raise TypeError
    return _pair(kernel_size), _step(stride), _pair(padding), _pair(dilation), bool(ceil_mode)


def _options_of_avg_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> tuple[Any, ...]:
    if divisor_override is not None and type(divisor_override) is not int:
        raise TypeError
    return _pair(kernel_size), _step(stride), _pair(padding), bool(ceil_mode), bool(count_include_pad), divisor_override


def _pair(window: Any) -> list[int]:
    numbers = [window, window] if type(window) is int else list(window)
    if not numbers or not all(type(number) is int for number in numbers):
        raise TypeError
    return numbers


def _step(stride: Any) -> list[int]:
    return [] if stride is None or stride == () or stride == [] else _pair(stride)


class _MaxPool(Function):
    """The way back is quick as the images lie: torch puts the places of the maxima in order for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        largest, places = torch.ops.aten.max_pool2d_with_indices(_with_channels_last(x), *options)
        ctx.options = options
        ctx.save_for_backward(x, places)
        return _in_planes(largest)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, places = ctx.saved_tensors
        dx = torch.ops.aten.max_pool2d_with_indices_backward(grad_outputs[0], x, *ctx.options, places)
        return dx, *(None for _ in ctx.options)


class _AveragePool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        ctx.shape, ctx.options = x.shape, options
        return _in_planes(torch.ops.aten.avg_pool2d(_with_channels_last(x), *options))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy = _with_channels_last(grad_outputs[0])
        like = torch.empty(ctx.shape, dtype=dy.dtype, memory_format=torch.channels_last)  # only its shape and order are read
        return _in_planes(torch.ops.aten.avg_pool2d_backward(dy, like, *ctx.options)), *(None for _ in ctx.options)


_STAND_INS: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.functional.max_pool2d: partial(_quick, nn.functional.max_pool2d, _MaxPool, _options_of_max_pool2d),
    torch.max_pool2d: partial(_quick, torch.max_pool2d, _MaxPool, _options_of_max_pool2d),
    nn.functional.avg_pool2d: partial(_quick, nn.functional.avg_pool2d, _AveragePool, _options_of_avg_pool2d),
}


def _with_channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _in_planes(images: Tensor) -> Tensor:
    """Return the images channel by channel, with the strides of that order: images of one pixel lie both ways."""
    return torch.ops.aten._unsafe_view(images.reshape(-1), images.shape)
