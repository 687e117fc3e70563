"""When to measure. A schedule names the measuring point that an observation belongs to, or None; each is measured once."""

from __future__ import annotations

import math
from collections.abc import Callable

from noisesam.errors import InputError

Schedule = Callable[[int, float | int], int | None]
"""(steps taken, epochs passed) -> number of the measuring point that this observation belongs to, or None.

The tracker measures at the first observation of every point, so `observe` may be called once per step or once per epoch.
"""


def every_epochs(every: int = 1, *, dense: int = 0) -> Schedule:
    """Measure in every one of the first `dense` epochs (epoch 0 always), and in every `every`-th after them.

    Args:
        every: epochs between measurements.
        dense: number of epochs at the start that are all measured.

    Returns:
        A schedule.

    Raises:
        InputError: `every` below 1 or `dense` below 0.

    Example:
        >>> schedule = every_epochs(5, dense=2)
        >>> [epoch for epoch in range(12) if schedule(100 * epoch, epoch) is not None]
        [0, 1, 2, 5, 10]
    """
    if every < 1 or dense < 0:
        raise InputError(f"every={every}, dense={dense}", expected="every at least 1 and dense at least 0")

    def schedule(step: int, epoch: float | int) -> int | None:  # noqa: ARG001
        # Epochs are a quotient of steps: 2.9999999999 is the end of epoch 3.
        whole = math.floor(epoch + 1e-9)
        return whole if whole <= dense or whole % every == 0 else None

    return schedule


def every_steps(every: int) -> Schedule:
    """Measure at the first observation in each block of `every` steps.

    Args:
        every: steps between measurements.

    Returns:
        A schedule.

    Raises:
        InputError: `every` below 1.

    Example:
        >>> [step for step in range(0, 10) if every_steps(4)(step, 0.0) is not None and step % 4 == 0]
        [0, 4, 8]
    """
    if every < 1:
        raise InputError(f"every={every}", expected="at least 1 step")
    return lambda step, epoch: step // every  # noqa: ARG005


def log_spaced(per_decade: int = 8) -> Schedule:
    """Measure at steps spaced evenly in log(step), step 0 included: dense early, where the trajectories part.

    Args:
        per_decade: measurements per factor of ten.

    Returns:
        A schedule.

    Raises:
        InputError: `per_decade` below 1.

    Example:
        >>> schedule, points = log_spaced(2), {}
        >>> for step in range(1001):
        ...     _ = points.setdefault(schedule(step, 0.0), step)
        >>> list(points.values())
        [0, 1, 4, 10, 32, 100, 317, 1000]
    """
    if per_decade < 1:
        raise InputError(f"per_decade={per_decade}", expected="at least 1")
    # The point of a step is fixed even when not every step is observed. The small number guards log10(1000) = 2.9999...
    return lambda step, epoch: -1 if step == 0 else math.floor(per_decade * math.log10(step) + 1e-9)  # noqa: ARG005
