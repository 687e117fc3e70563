"""Free parameters: scales, shifts, class tokens and positional tables that meet the activations by broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import UnsupportedParameterUse, register_rule
from noisesam.gradients.engine.lifting import aligned, lift
from noisesam.gradients.engine.tape import Tape

_BINARY = (
    torch.add, torch.sub, torch.mul, torch.div, torch.true_divide,
    torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul, torch.Tensor.div, torch.Tensor.true_divide,
    torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__sub__, torch.Tensor.__mul__, torch.Tensor.__rmul__,
    torch.Tensor.__truediv__, torch.Tensor.__rsub__, torch.Tensor.__rtruediv__,
)  # fmt: skip


@register_rule(*_BINARY)
def elementwise_rule(tape: Tape, function: Callable[..., Any], left: Any, right: Any, **options: Any) -> Tensor:
    """Combine an activation with a parameter that is broadcast over the examples."""
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or (tape.tracks(left) and tape.tracks(right)):
        raise UnsupportedParameterUse("arithmetic of a parameter without an activation")
    if tape.tracks(left):
        return function(_broadcast(tape, left, right), right, **options)
    return function(left, _broadcast(tape, right, left), **options)


def _broadcast(tape: Tape, parameter: Tensor, activation: Tensor) -> Tensor:
    """Return the lifted parameter, its axes where broadcasting would have put them."""
    n, dims = tape.examples, activation.dim()
    inner = parameter.shape
    if len(inner) == dims and inner[0] == 1:
        inner = inner[1:]
    if dims == 0 or activation.shape[0] != n or len(inner) >= dims:
        raise UnsupportedParameterUse(
            f"a parameter of shape {tuple(parameter.shape)} meets a tensor of shape {tuple(activation.shape)}"
        )
    return lift(tape, parameter).view(n, *[1] * (dims - 1 - len(inner)), *inner)


@register_rule(torch.Tensor.expand)
def expand_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, *sizes: Any) -> Tensor:
    """Expand a parameter of shape (1, ...) over the examples."""
    size = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    if len(size) != parameter.dim() or parameter.shape[0] != 1 or size[0] != tape.examples:
        raise UnsupportedParameterUse(f"'expand' of a parameter of shape {tuple(parameter.shape)} to {size}")
    return lift(tape, parameter).squeeze(1).expand(*size)


@register_rule(torch.Tensor.repeat)
def repeat_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, *sizes: Any) -> Tensor:
    """Repeat a parameter of shape (1, ...) over the examples."""
    size = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    if len(size) != parameter.dim() or parameter.shape[0] != 1 or size[0] != tape.examples:
        raise UnsupportedParameterUse(f"'repeat' of a parameter of shape {tuple(parameter.shape)} by {size}")
    return lift(tape, parameter).squeeze(1).repeat(1, *size[1:])


@register_rule(torch.Tensor.__getitem__, operator.getitem)
def slice_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, where: Any) -> Tensor:
    """Take a part of a parameter of shape (1, ...), all of its first axis: what stays is (n, ...)."""
    keys = where if isinstance(where, tuple) else (where,)
    plain = all(isinstance(key, (int, slice)) for key in keys)
    if parameter.dim() < 2 or parameter.shape[0] != 1 or not plain or keys[0] != slice(None):
        raise UnsupportedParameterUse(f"indexing of a parameter of shape {tuple(parameter.shape)}")
    return lift(tape, parameter).squeeze(1)[keys]


@register_rule(torch.nn.functional.prelu, torch.prelu)
def prelu_rule(tape: Tape, _: Callable[..., Any], input: Tensor, weight: Tensor) -> Tensor:
    """Apply max(0, x) + a min(0, x) with the example's own slopes."""
    if input.dim() < 2 or input.shape[0] != tape.examples:
        raise UnsupportedParameterUse(f"'prelu' sees a tensor of shape {tuple(input.shape)} for {tape.examples} examples")
    return torch.where(input > 0, input, aligned(lift(tape, weight), 1, input.dim()) * input)
