"""One experiment as the findings see it: which settings are compared, with their numbers per run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd

from noisesam.analysis.comparison import by_seed
from noisesam.analysis.statistics import Interval, interval, paired_difference


@dataclasses.dataclass(frozen=True)
class Contest:
    """One experiment: the settings that are compared, and their numbers per run."""

    per_run: pd.DataFrame
    settings: Mapping[str, str]
    """Method -> the setting that stands for it."""
    stopping: str
    """The selection that early stopping goes by: validation, or oracle without a validation set."""
    baseline: str
    confidence: float

    def values_of(self, method: str, column: str) -> dict[int, float]:
        """Return a column by seed."""
        return by_seed(self.per_run, method, self.settings[method], column)

    def mean(self, method: str, column: str) -> Interval:
        """Return the mean over seeds with its interval."""
        return interval(self.values_of(method, column).values(), self.confidence)

    def gain(self, method: str, column: str, over: str | None = None) -> Interval:
        """Return the difference to another method, paired by seed."""
        return paired_difference(self.values_of(method, column), self.values_of(over or self.baseline, column), self.confidence)

    def name(self, method: str) -> str:
        """Return the method with its setting, if it has one."""
        setting = self.settings[method]
        return f"{method} ({setting})" if setting else method
