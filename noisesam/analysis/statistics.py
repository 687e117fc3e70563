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


def share_of_gain(
    values: Mapping[int, float], base: Mapping[int, float], best: Mapping[int, float], confidence: float = 0.95
) -> Interval:
    r"""Return the share of the gain of `best` over `base` that a method has, with Fieller's interval over seeds.

    The share k is in the interval if the mean of (value - base) - k (best - base) cannot be told from 0 by a t-test: the exact
    interval for a ratio of two normal means, where a bootstrap over three seeds would be far too narrow. It is finite if
    and only if the interval of the gain itself lies on one side of 0.

    Args:
        values: Seed -> accuracy of the method.
        base: Seed -> accuracy of the baseline, whose share is 0.
        best: Seed -> accuracy of the method whose share is 1.
        confidence: Of the interval.

    Returns:
        The share; the bounds are NaN where the gain of `best` cannot be told from 0.

    Example:
        >>> found = share_of_gain({0: 0.85, 1: 0.86}, {0: 0.8, 1: 0.8}, {0: 0.9, 1: 0.91})
        >>> round(found.mean, 3), found.low < found.mean < found.high
        (0.524, True)

    References:
        E. C. Fieller (1954), "Some problems in interval estimation", Journal of the Royal Statistical Society B 16(2).
    """
    seeds = sorted(set(values) & set(base) & set(best))
    own = np.array([values[seed] - base[seed] for seed in seeds], dtype=float)
    full = np.array([best[seed] - base[seed] for seed in seeds], dtype=float)
    usable = np.isfinite(own) & np.isfinite(full)
    own, full = own[usable], full[usable]
    n = len(own)
    if n == 0 or full.mean() == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0)
    ratio = float(own.mean() / full.mean())
    if n == 1:
        return Interval(ratio, math.nan, math.nan, math.nan, 1)
    scale = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) ** 2 / n
    spread, joint = float(full.var(ddof=1)), float(np.cov(own, full)[0, 1])
    # The shares k with a k^2 - 2 b k + c <= 0; b^2 - a c is written without the squares of the means, which would cancel.
    a = float(full.mean()) ** 2 - scale * spread
    b = float(own.mean() * full.mean()) - scale * joint
    if a <= 0:
        return Interval(ratio, math.nan, math.nan, math.nan, n)
    around_ratio = float((own - ratio * full).var(ddof=1))
    around_slope = float((own - joint / spread * full).var(ddof=1)) if spread > 0 else 0.0
    half = math.sqrt(max(scale * float(full.mean()) ** 2 * around_ratio - scale**2 * spread * around_slope, 0.0)) / a
    return Interval(ratio, math.nan, b / a - half, b / a + half, n)
