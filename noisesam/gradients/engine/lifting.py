"""A parameter as a per-example tensor: for scales, shifts and free parameters that are broadcast over the batch.

`lift` returns p (or p + eps_i) as (n, *shape), ordinary tensors follow, and what comes back is the parameter's per-example
gradient. Its memory is n times the parameter, so it serves vectors and positional tables, not matrices.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.factors import Dense, Factor


def lift(tape: Tape, parameter: Tensor) -> Tensor:
    """Return the parameter for every example, (n, *shape)."""
    if not tape.tracks(parameter):
        return parameter.expand(tape.examples, *parameter.shape)
    return _Lift.apply(parameter, tape, tape.perturbation(parameter))  # pyright: ignore[reportReturnType]


def aligned(lifted: Tensor, axis: int, dims: int) -> Tensor:
    """Return (n, C) viewed for broadcasting over a tensor of `dims` axes, its C on `axis`."""
    shape = [1] * dims
    shape[0], shape[axis] = lifted.shape
    return lifted.view(shape)


def each_row(lifted: Tensor, rows: int) -> Tensor:
    """Return (n, ...) with every example's tensor as often as it has rows: where windows are merged with the examples."""
    return lifted if len(lifted) == rows else lifted.repeat_interleave(rows // len(lifted), 0)


class _Lift(Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, tape: Tape, eps: Factor | None) -> Tensor:
        ctx.parameter, ctx.tape = parameter, tape
        if eps is None:
            return parameter.expand(tape.examples, *parameter.shape).clone()
        return parameter + eps.dense().to(parameter.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        if ctx.tape.records(ctx.parameter):
            ctx.tape.record(ctx.parameter, Dense(dy))
        return dy.sum(0) if ctx.tape.shares(ctx.parameter) else None, None, None
