"""A step whose numbers are not finite: skipped by a scaler, refused without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError, NoisesamError
from noisesam.methods.checks import shown
from noisesam.methods.result import Outcome


class NonFiniteLossError(NoisesamError, FloatingPointError):
    """A loss is NaN or infinite and no scaler was handed in to skip the step."""


def working(scaler: Any) -> torch.amp.GradScaler | None:
    """Return a scaler that scales and skips, None for one that is switched off: its step() would take what is not finite."""
    if scaler is None:
        return None
    if not isinstance(scaler, torch.amp.GradScaler):
        raise InputError(
            f"scaler={shown(scaler)} of type {type(scaler).__name__}",
            expected="a torch.amp.GradScaler, such as torch.amp.GradScaler(inputs.device.type)",
            remedy="Leave scaler out for the gradient itself, and hand that to a scaler of another kind.",
        )
    return scaler if scaler.is_enabled() else None


def scale_of(scaler: torch.amp.GradScaler | None, model: nn.Module) -> float:
    """Return the factor of a scaler, 1 without one."""
    if scaler is None:
        return 1.0
    # scaler.scale also creates the scaler's state on the device, which scaler.step asks for.
    device = next(model.parameters()).device
    return float(scaler.scale(torch.ones((), device=device)))


def is_finite(outcome: Outcome) -> bool:
    """Say whether every loss that was evaluated, the gradient and all that a step came by are finite.

    It is asked once at the end of a step: on a GPU every answer waits until all that was asked before has been computed.
    """
    device = outcome.losses.device
    numbers = [_evaluated_losses(outcome), *outcome.further_losses, *outcome.further_numbers]
    gradients = [values.coalesce().values() if values.is_sparse else values for values in outcome.gradient.values()]
    gradients = [values for values in gradients if values.numel()]
    # A finite sum is one of finite numbers, and on a CPU found 20 times as fast; of finite numbers the sum may be infinite.
    tellers = (_sums, _largest) if device.type == "cpu" else (_largest,)
    return any(_are_finite([*numbers, *_by_dtype(teller(gradients))], device) for teller in tellers)


def _sums(gradients: list[Tensor]) -> Sequence[Tensor]:
    return [values.sum() for values in gradients]


def _largest(gradients: list[Tensor]) -> Sequence[Tensor]:
    """Return the largest entry of each; one function finds all, which on a GPU are so many launches less."""
    return torch._foreach_norm(gradients, math.inf) if gradients else ()  # pyright: ignore[reportPrivateImportUsage]


def _by_dtype(numbers: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack([one for one in numbers if one.dtype == kind]) for kind in {one.dtype for one in numbers}]


def _are_finite(numbers: Sequence[Tensor], device: torch.device) -> bool:
    return bool(torch.cat([values.detach().reshape(-1).to(device) for values in numbers]).isfinite().all())


def _evaluated_losses(outcome: Outcome) -> Tensor:
    """Return the losses at w, 0 where none was evaluated."""
    return outcome.losses if outcome.evaluated is None else torch.where(outcome.evaluated, outcome.losses, 0)


def non_finite(outcome: Outcome) -> NonFiniteLossError:
    """Build the error of a step without a scaler: which rows, and where they were evaluated."""
    for where, losses in [
        ("w", _evaluated_losses(outcome)),
        *(("the perturbed weights", other) for other in outcome.further_losses),
    ]:
        rows = (~losses.isfinite()).nonzero().flatten().tolist()
        if rows:
            named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            return NonFiniteLossError(
                f"The loss at {where} is not finite at row(s) {named} of the batch",
                expected="finite losses",
                remedy="Look at these inputs for NaN or infinite values, lower the learning rate or rho, or pass a scaler.",
            )
    ascent = not all(bool(values.isfinite().all()) for values in outcome.further_numbers)
    return NonFiniteLossError(
        "The ascent gradient is not finite" if ascent else "The losses are finite, and their gradient is not",
        expected="finite gradients",
        remedy="Lower the learning rate, or pass a scaler; of a loss of your own look for sqrt(0) and torch.where.",
    )
