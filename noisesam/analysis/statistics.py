"""Means over seeds with their spread: the only place where an interval is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from noisesam.errors import InputError, unknown_name

METHODS = ("t", "bootstrap")
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean over `n` values, their standard deviation (n-1), and the bounds of an interval for the mean."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def interval(values: Iterable[float], confidence: float = 0.95, method: str = "t", seed: int = 0) -> Interval:
    r"""Return mean, standard deviation and a confidence interval of the mean.

    Method "t" takes $\bar x \pm t_{n-1} s / \sqrt n$, which supposes roughly normal values. Method "bootstrap" takes the
    percentiles of the means of 10,000 resamples; below about ten values it is too narrow, so "t" is the default.

    Args:
        values: One number per seed; NaN (not measured) and infinities are left out and not counted.
        confidence: Between 0 and 1.
        method: "t" or "bootstrap".
        seed: Of the bootstrap's generator; equal seeds give equal bounds.

    Returns:
        The interval; sd and bounds are NaN for a single value, everything is NaN for none.

    Raises:
        InputError: A confidence outside (0, 1) or an unknown method.

    Example:
        >>> low, high = interval([0.94, 0.95, 0.96])[2:4]
        >>> f"{low:.4f} {high:.4f}"
        '0.9252 0.9748'
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}", expected="a number between 0 and 1", remedy="Write 0.95 for 95%")
    if method not in METHODS:
        raise unknown_name("interval method", method, METHODS)
    numbers = np.asarray([float(value) for value in values], dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    n = len(numbers)
    nan = math.nan
    if n == 0:
        return Interval(nan, nan, nan, nan, 0)
    mean = float(numbers.mean())
    if n == 1:
        return Interval(mean, nan, nan, nan, 1)
    sd = float(numbers.std(ddof=1))
    if method == "t":
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
        return Interval(mean, sd, mean - half, mean + half, n)
    draws = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(numbers[draws].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(mean, sd, float(low), float(high), n)


def paired_difference(
    values: Mapping[int, float],
    baseline: Mapping[int, float],
    confidence: float = 0.95,
    method: str = "t",
    seed: int = 0,
) -> Interval:
    """Return the interval of values minus baseline over the seeds that both have.

    The same seed means the same data, noise and initialisation, so what the seed does to both cancels in the difference.

    Args:
        values: Seed -> value.
        baseline: Seed -> value.
        confidence: As in `interval`.
        method: As in `interval`.
        seed: As in `interval`.

    Returns:
        The interval of the differences; n is the number of pairs without NaN.

    Example:
        >>> paired_difference({0: 0.96, 1: 0.97, 2: 0.9}, {0: 0.94, 1: 0.95}).n
        2
    """
    common = [key for key in values if key in baseline]
    return interval([values[key] - baseline[key] for key in common], confidence, method, seed)
