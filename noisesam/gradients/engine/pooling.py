"""Pooling of images in the memory order in which torch is quick, with torch's own functions.

On a CPU torch pools images that lie channel by channel one number at a time, far slower than images whose channels lie last
in memory. Writing them out in that order first, and the result back, costs less than is gained. Before and after it the
images lie as convolutions with a kernel per example want them. The most common pooling of all, the largest of two by two pixels
of a large image, is quicker still without that.
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
FEWEST_PIXELS = 256
"""From so many pixels per image on, two by two of them are sooner compared where they are than written out."""
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
    function: Callable[..., Any],
    pool: Callable[..., Tensor],
    read: Callable[..., tuple[Any, ...]],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Pool in the quick order what gains, as long as the options are plain numbers; all else is torch's to judge."""
    if args and _gains(args[0]):
        try:
            options = read(*args[1:], **kwargs)
        except TypeError:
            return function(*args, **kwargs)
        return pool(args[0], *options)
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


class _MaxOfFour(Function):
    """The largest of two by two pixels, next to next, of images that stay as they lie: first of each row, then of the rows.

    Of equal ones torch means the first: the other is chosen where it is larger by something, and that is kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        left, right = x[..., ::2], x[..., 1::2]
        in_rows = torch.maximum(left, right)
        above, below = in_rows[..., ::2, :], in_rows[..., 1::2, :]
        if ctx.needs_input_grad[0]:
            across = right - left
            if not bool(across.sum().isfinite()):  # equal infinities differ by no number, and what is none has rules of its own
                raise _NotFiniteError
            ctx.save_for_backward(across, below - above)
        return torch.maximum(above, below)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (dy,) = grad_outputs
        across, down = ctx.saved_tensors
        n, channels, height, width = dy.shape
        below = torch.ops.aten.threshold_backward(dy, down, 0)
        in_rows = torch.stack([dy - below, below], 3).view(n, channels, 2 * height, width)
        right = torch.ops.aten.threshold_backward(in_rows, across, 0)
        return _interleaved(in_rows - right, right).view(n, channels, 2 * height, 2 * width)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return both with an entry of one after an entry of the other: as the parts of a complex number, which is quicker."""
    if even.dtype in (torch.float32, torch.float64):
        return torch.view_as_real(torch.complex(even, odd))
    return torch.stack([even, odd], -1)


class _NotFiniteError(Exception):
    """A maximum among numbers that are not finite."""


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


def _max_pool(x: Tensor, *options: Any) -> Tensor:
    height, width = x.shape[2:]
    large = height * width >= FEWEST_PIXELS and x.dtype in (torch.float32, torch.float64)
    if large and options in _FOUR and height % 2 == 0 and width % 2 == 0:
        try:
            return _MaxOfFour.apply(x)  # pyright: ignore[reportReturnType]
        except _NotFiniteError:
            pass
    return _MaxPool.apply(x, *options)  # pyright: ignore[reportReturnType]


_FOUR = [([2, 2], step, [0, 0], [1, 1], ceil) for step in ([], [2, 2]) for ceil in (False, True)]
"""The options of a maximum over two by two pixels, next to next."""


_STAND_INS: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.functional.max_pool2d: partial(_quick, nn.functional.max_pool2d, _max_pool, _options_of_max_pool2d),
    torch.max_pool2d: partial(_quick, torch.max_pool2d, _max_pool, _options_of_max_pool2d),
    nn.functional.avg_pool2d: partial(_quick, nn.functional.avg_pool2d, _AveragePool.apply, _options_of_avg_pool2d),
}


def _with_channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _in_planes(images: Tensor) -> Tensor:
    """Return the images channel by channel, with the strides of that order: images of one pixel lie both ways."""
    return torch.ops.aten._unsafe_view(images.reshape(-1), images.shape)
