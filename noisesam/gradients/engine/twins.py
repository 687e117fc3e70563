"""Plain autograd's side of a proof: examples alone, their rows of the batch, and a sum over all rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.rounding import rounding_of
from noisesam.gradients.engine.terms import fixed_cotangent
from noisesam.gradients.losses import accurate
from noisesam.gradients.plain import named_plain_gradients, whole_norm
from noisesam.gradients.recomputation import evaluate

SMALLER = 1024
"""How much smaller a gradient is sent back to see if the reverse pass is linear: by a power of two roundings scale, too."""

ENTRIES_AT_A_TIME = 2**18
"""How many numbers of a gradient are compared at a time: a megabyte of float32 beside gradients as large as the model."""


@dataclass(frozen=True)
class Twin:
    """An example by plain autograd: its output when it is run alone, and the gradient norms of its row of the batch.

    The gradients are those of the batch and not of the example alone: an activation function with a kink turns a difference
    of one rounding in its input into another gradient, and a matrix product of one row rounds otherwise than one of many.
    """

    alone: Tensor
    norms: dict[str, float]


@dataclass(frozen=True)
class Twins:
    """Some examples, and the sum of all of them, each times `weights_of_rows`, by parameter."""

    of_rows: dict[int, Twin]
    total: dict[str, Tensor]


def twins_of(engine: FastEngine, inputs: Inputs, alone: dict[int, Tensor]) -> Twins:
    """Return the rows of these examples, whose outputs alone are given, and the sum of all rows.

    Raises:
        InputError: The reverse pass is not linear.
    """
    output = evaluate(engine.model, inputs)
    of_rows = {row: Twin(own, _norms_of_row(engine, output, row)) for row, own in alone.items()}
    if not output.requires_grad:
        return Twins(of_rows, {})
    cotangent = _weighted(output)
    found = named_plain_gradients(engine.parameters, output, cotangent, retain_graph=True)
    _refuse_reverse_pass_that_is_not_linear(engine, output, cotangent, found)
    return Twins(of_rows, {name: gradient for name, gradient in found.items() if gradient is not None})


def total_alone(engine: FastEngine, inputs: Inputs) -> Twins:
    """Return the sum of all rows, and nothing beside."""
    output = evaluate(engine.model, inputs)
    if not output.requires_grad:
        return Twins({}, {})
    found = named_plain_gradients(engine.parameters, output, _weighted(output))
    return Twins({}, {name: gradient for name, gradient in found.items() if gradient is not None})


def _weighted(output: Tensor) -> Tensor:
    """Return the fixed direction, every row times its weight."""
    aligned = weights_of_rows(output).to(output.dtype).view(-1, *[1] * (output.dim() - 1))
    return (fixed_cotangent(output) * aligned).detach()


def weights_of_rows(output: Tensor) -> Float[Tensor, " n"]:
    """Return a weight for every example by which no two of them can change places."""
    rows = torch.arange(len(output), device=output.device, dtype=torch.float64)
    return (1.5 + torch.sin(1.7 * rows + 0.3)).to(accurate(output).dtype)


def _refuse_reverse_pass_that_is_not_linear(
    engine: FastEngine, output: Tensor, cotangent: Tensor, found: Mapping[str, Tensor | None]
) -> None:
    """Refuse what clips, normalises or counts in the reverse pass: J^T r is then no product of a Jacobian with r."""
    if output.dtype == torch.float16:
        return  # its smallest number is 6e-8: a thousandth may not be there
    half = any(parameter.dtype == torch.float16 for parameter in engine.model.parameters())
    times = 2 if half else SMALLER  # a thousandth of such a number may not be there, a half is
    smaller = named_plain_gradients(engine.parameters, output, cotangent / times, retain_graph=True)
    sizes = {name: float(whole_norm(gradient)) for name, gradient in found.items() if gradient is not None}
    if not all(math.isfinite(size) for size in sizes.values()):
        return
    rounding = rounding_of(engine.model.parameters() if half else engine.parameters.values(), output)
    largest = max(sizes.values(), default=0.0)
    for name, size in sizes.items():
        first, second = found[name], smaller.get(name)
        gap = size if first is None or second is None else _gap(first, second, times)
        if math.isfinite(gap) and not gap <= rounding.allowed_difference(size, largest):
            raise InputError(
                f"The reverse pass of {type(engine.model).__name__} is not linear: a gradient {times} times as small does not "
                f"become {times} times as small at {name!r}",
                expected="a reverse pass that multiplies with a Jacobian, without clipping, signs or normalisation",
                remedy="Take such hooks out of the model; clip after the step, as torch.nn.utils.clip_grad_norm_ does.",
            )


def _gap(gradient: Tensor, smaller: Tensor, times: int) -> float:
    """Return the norm of what a gradient differs by from so many times another, part by part: a model has large weights.

    Not in place of the other: where parameters are only added, one piece of memory is the gradient of several.
    """
    if gradient.dim() == 0:
        return float(abs(gradient - smaller * times))
    rows = max(1, ENTRIES_AT_A_TIME * len(gradient) // max(1, gradient.numel()))
    parts = zip(gradient.split(rows), smaller.split(rows), strict=True)
    return float(whole_norm(torch.stack([whole_norm(one - other * times) for one, other in parts])))


def _norms_of_row(engine: FastEngine, output: Tensor, row: int) -> dict[str, float]:
    """Return the norms alone, so that the gradients of one row are gone before those of the next are there."""
    if not output.requires_grad:
        return {}
    cotangent = torch.zeros_like(output)
    cotangent[row] = fixed_cotangent(output)[row]
    found = named_plain_gradients(engine.parameters, output, cotangent, retain_graph=True)
    return {name: 0.0 if gradient is None else float(whole_norm(gradient)) for name, gradient in found.items()}
