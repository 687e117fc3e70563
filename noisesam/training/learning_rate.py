"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state. No torch import."""

from __future__ import annotations

import math
from collections.abc import Callable

from noisesam.training.values import SCHEDULES, check_choice


def _constant(step: int, total_steps: int) -> float:  # noqa: ARG001
    return 1.0


def _cosine(step: int, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


_FACTORS: dict[str, Callable[[int, int], float]] = {"constant": _constant, "cosine": _cosine}
assert tuple(_FACTORS) == SCHEDULES


def learning_rate(schedule: str, base: float, step: int, total_steps: int) -> float:
    """Return the learning rate of one step.

    "constant" is `base` at every step; "cosine" is base (1 + cos(pi step / total_steps)) / 2, which starts at `base` and would
    reach zero one step after the last.

    Args:
        schedule: "constant" or "cosine".
        base: learning rate of the first step.
        step: steps taken before this one, 0 <= step < total_steps.
        total_steps: steps of the whole run.

    Returns:
        The learning rate.

    Raises:
        ConfigurationError: an unknown schedule.

    Example:
        >>> [round(learning_rate("cosine", 0.1, step, 4), 4) for step in range(4)]
        [0.1, 0.0854, 0.05, 0.0146]
    """
    check_choice("optimizer.schedule", schedule, SCHEDULES)
    return base * _FACTORS[schedule](step, total_steps)
