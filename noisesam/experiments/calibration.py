"""Hyper-parameters chosen per method on noisy validation labels: what is tried, and what was chosen between what.

A radius copied from elsewhere says nothing about a method: values usual for batch SAM can hold a network without
normalisation at chance under 1-SAM. So each method is tried with a stated grid, on seeds that report nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CalibrationPlan:
    """What is tried for each method, on seeds that are not reported.

    Example:
        >>> plan = CalibrationPlan((100,), {"1-sam": ({"rho": 0.05}, {"rho": 0.1}), "sgd": ({},)})
        >>> plan.tried("1-sam", 1), plan.is_decided("sgd")
        ({'rho': 0.1}, True)
    """

    tuning_seeds: tuple[int, ...]
    grids: dict[str, tuple[dict[str, Any], ...]]
    """Method -> the tables of hyper-parameters that are tried, in the order of the file."""
    fixed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> hyper-parameters that stand beside every try."""

    def tried(self, method: str, number: int) -> dict[str, Any]:
        """Return the hyper-parameters of one try, the fixed ones among them."""
        return {**self.fixed.get(method, {}), **self.grids[method][number]}

    def is_decided(self, method: str) -> bool:
        """Whether there is nothing to choose between."""
        return len(self.grids[method]) == 1

    def digest(self, setting: Mapping[str, Any], method: str) -> str:
        """Return the SHA-256 of everything that a choice depends on: setting, seeds, grid and what is fixed.

        Checkpoints and tracked quantities do not count, since no run depends on them; how often is evaluated does, since the
        best epoch is one of those.
        """
        counted = {key: value for key, value in setting.items() if key not in ("tracking", "checkpoint")}
        counted["evaluate_every"] = setting.get("tracking", {}).get("evaluate_every", 1)
        content = [counted, list(self.tuning_seeds), list(self.grids[method]), self.fixed.get(method, {})]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Try:
    """One try: its hyper-parameters without the fixed ones, and what came of it on noisy validation labels."""

    options: dict[str, Any]
    validation_accuracy: float
    """At the best epoch, mean over the tuning seeds; NaN if a run of it did not finish."""
    best_epoch: float
    at_chance: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen for one method of one sweep, and between what.

    Example:
        >>> tries = (Try({"rho": 0.1}, 0.5, 3.0, False), Try({"rho": 1.0}, 0.1, 0.0, True))
        >>> choice = Choice("digits", "1-sam", {"rho": 0.1}, (100,), "-", tries, 0)
        >>> choice.at_chance, choice.at_the_edge
        (False, True)
    """

    sweep: str
    method: str
    options: dict[str, Any]
    """The hyper-parameters that were taken, the fixed ones among them."""
    tuning_seeds: tuple[int, ...]
    digest: str
    """See `CalibrationPlan.digest`."""
    tries: tuple[Try, ...]
    taken: int
    """Number of the try that was taken."""

    @property
    def at_chance(self) -> bool:
        """Whether even the try that was taken learnt nothing that shows."""
        return self.tries[self.taken].at_chance

    @property
    def at_the_edge(self) -> bool:
        """Whether the first or the last try was taken, so that a better one may lie outside of the grid."""
        return self.taken in (0, len(self.tries) - 1)
