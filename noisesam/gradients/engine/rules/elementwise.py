"""Free parameters: scales, shifts, class tokens and positional tables that meet the activations by broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.layout import tape_of_rows
from noisesam.gradients.engine.lifting import aligned, each_row, lift
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse

_NAMES = (
    "add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where", "addcmul", "addcdiv", "lerp", "clamp",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__pow__", "__rpow__",
    "subtract", "multiply", "divide", "hypot", "atan2", "arctan2", "logaddexp", "fmax", "fmin", "xlogy", "copysign",
    "add_", "sub_", "mul_", "div_", "addcmul_", "addcdiv_", "lerp_", "__iadd__", "__isub__", "__imul__", "__itruediv__",
)  # fmt: skip
_FUNCTIONS = [getattr(place, name) for place in (torch, torch.Tensor) for name in _NAMES if hasattr(place, name)]


@register_rule(*_FUNCTIONS, needs_activation=True)
def elementwise_rule(tape: Tape, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """Combine activations with parameters that are broadcast over the examples."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and not tape.tracks(value)]
    if not tensors:
        raise UnsupportedParameterUse("arithmetic of a parameter without an activation")
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))

    def lifted(value: Any) -> Any:
        return over_activations(tape, value, shape) if tape.tracks(value) else value

    return function(*map(lifted, args), **{name: lifted(value) for name, value in kwargs.items()})


def over_activations(tape: Tape, parameter: Tensor, shape: torch.Size) -> Tensor:
    """Return the lifted parameter, its axes where broadcasting with the activations' shape would have put them."""
    n, dims = tape.examples, len(shape)
    inner = parameter.shape
    if dims >= 2 and len(inner) <= dims and shape[1] == n and (shape[0] % n or tape.prefers_second):  # positions first
        whole = (*[1] * (dims - len(inner)), *inner)
        if whole[1] == 1:
            return lift(tape, parameter).reshape(n, *whole).squeeze(2).transpose(0, 1)
    if len(inner) == dims and inner[0] == 1:
        inner = inner[1:]
    if dims == 0 or shape[0] % n or len(inner) >= dims:
        raise UnsupportedParameterUse(f"a parameter of shape {tuple(parameter.shape)} meets a tensor of shape {tuple(shape)}")
    return each_row(lift(tape, parameter).view(n, *[1] * (dims - 1 - len(inner)), *inner), shape[0])


@register_rule(torch.Tensor.expand, torch.Tensor.broadcast_to, torch.broadcast_to, torch.Tensor.expand_as)
def expand_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """Expand a parameter of shape (1, ...), or one without the examples' axis, over the examples."""
    size = _size(*sizes, **named)
    return _over_examples(tape, parameter, size, "expand").expand(*size)


@register_rule(torch.Tensor.repeat, torch.Tensor.tile, torch.tile)
def repeat_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """Repeat a parameter of shape (1, ...), or one without the examples' axis, over the examples."""
    size = _size(*sizes, **named)
    return _over_examples(tape, parameter, size, "repeat").repeat(1, *size[1:])


def _size(*sizes: Any, **named: Any) -> tuple[int, ...]:
    """Return the sizes of however `expand` or `repeat` was called; those of a tensor that is to be expanded like."""
    given = (*sizes, *(value for name, value in named.items() if name != "implicit"))
    if len(given) == 1 and isinstance(given[0], Tensor):
        return tuple(given[0].shape)
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given


def _over_examples(tape: Tape, parameter: Tensor, size: tuple[int, ...], what: str) -> Tensor:
    """Return the lifted parameter, (n, ...), with as many axes as there are sizes."""
    inner = parameter.shape
    if len(inner) == len(size) and inner[:1] == (1,):
        inner = inner[1:]
    elif tape.prefers_second:
        size = ()  # as many positions as examples: the other guess is that these are positions
    if size[:1] != (tape.examples,) or len(inner) >= len(size):
        raise UnsupportedParameterUse(
            f"{what!r} of a parameter of shape {tuple(parameter.shape)} over other axes than examples"
        )
    return lift(tape, parameter).reshape(tape.examples, *[1] * (len(size) - 1 - len(inner)), *inner)


@register_rule(torch.nn.functional.prelu, torch.prelu, needs_activation=True)
def prelu_rule(tape: Tape, _: Callable[..., Any], input: Tensor, weight: Tensor) -> Tensor:
    """Apply max(0, x) + a min(0, x) with the example's own slopes."""
    tape = tape_of_rows(tape, input, "'prelu'")
    return torch.where(input > 0, input, aligned(lift(tape, weight), 1, input.dim()) * input)
