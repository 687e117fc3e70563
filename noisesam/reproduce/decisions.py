"""From an interval to a verdict: the few rules by which every claim is decided. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from noisesam.analysis import Interval

SUPPORTED = "supported"
REFUTED = "not supported"
MIXED = "mixed"
UNDECIDED = "undecided"
UNTESTED = "not tested"
VERDICTS = (SUPPORTED, REFUTED, MIXED, UNDECIDED, UNTESTED)

CONFIDENCE = 0.95
"""Of every interval: Student's t over seeds, differences paired by seed."""
MIN_SEEDS = 3
"""With fewer seeds nothing is decided, whatever the numbers are."""

NOTHING = Interval(math.nan, math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        what: What is compared, in words.
        found: The number with its interval over seeds.
        scale: How it is written: "points" (a fraction as percentage points), "factor" (a logarithm as a ratio), "share"
            (a fraction as a percentage), "plain".
        verdict: One of SUPPORTED, REFUTED, UNDECIDED, UNTESTED; empty for a number that stands beside and decides nothing.
        reason: Why the verdict is not SUPPORTED; empty where the number says it all.
    """

    what: str
    found: Interval
    scale: str = "points"
    verdict: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.what} {written(self.found, self.scale)}"


def above(what: str, found: Interval, margin: float, scale: str = "points") -> Part:
    """Decide "more": whether a difference is above 0 and large enough to count.

    Supported if the interval lies above 0 and its middle at or above `margin`, the smallest difference that counts. Not
    supported if the whole interval lies below the margin. Undecided otherwise. An interval that shrinks around its middle can
    end an open question but never change a verdict.

    Example:
        >>> found = [Interval(0.02, 0.01, low, high, 5) for low, high in [(0.01, 0.03), (-0.02, 0.06)]]
        >>> [above("", one, 0.01).verdict for one in [*found, Interval(0.002, 0.001, 0.001, 0.003, 5)]]
        ['supported', 'undecided', 'not supported']
    """
    return _part(what, found, scale, supported=found.low > 0 and found.mean >= margin, refuted=found.high < margin)


def within(what: str, found: Interval, low: float, high: float, scale: str = "points") -> Part:
    """Decide "as much as": supported if the whole interval lies inside (low, high), not supported if it lies outside.

    Example:
        >>> bounds = [(-0.01, 0.01), (0.03, 0.05), (0.0, 0.04)]
        >>> [within("", Interval(0.0, 0.01, a, b, 5), -0.02, 0.02).verdict for a, b in bounds]
        ['supported', 'not supported', 'undecided']
    """
    outside = found.low > high or found.high < low
    return _part(what, found, scale, supported=low < found.low and found.high < high, refuted=outside)


def not_below(what: str, found: Interval, margin: float, scale: str = "points") -> Part:
    """Decide "no worse": supported if the whole interval lies above -margin, not supported if it lies below.

    Example:
        >>> [not_below("", Interval(0.0, 0.01, a, b, 5), 0.01).verdict for a, b in [(-0.005, 0.2), (-0.2, -0.1), (-0.1, 0.1)]]
        ['supported', 'not supported', 'undecided']
    """
    return _part(what, found, scale, supported=found.low > -margin, refuted=found.high < -margin)


def untested(what: str, reason: str, found: Interval = NOTHING, scale: str = "points") -> Part:
    """Return a part on which these runs cannot say anything."""
    return Part(what, found, scale, UNTESTED, reason)


def _part(what: str, found: Interval, scale: str, *, supported: bool, refuted: bool) -> Part:
    if found.n == 0 or math.isnan(found.mean):
        return untested(what, f"not measured: {what}")
    if found.n < MIN_SEEDS:
        count = "1 seed" if found.n == 1 else f"{found.n} seeds"
        return Part(what, found, scale, UNDECIDED, f"only {count}, {MIN_SEEDS} needed: {what}")
    if math.isnan(found.low):
        return Part(what, found, scale, UNDECIDED, f"no finite interval: {what}")
    if supported:
        return Part(what, found, scale, SUPPORTED)
    if refuted:
        return Part(what, found, scale, REFUTED)
    return Part(what, found, scale, UNDECIDED, f"interval too wide: {what}")


def together(parts: Sequence[Part]) -> tuple[str, str]:
    """Return the verdict of a claim that holds only if all of its parts do, with the parts that fail or stay open.

    One part that is not supported is enough; with a part that is open or was not tested nothing is supported.

    Example:
        >>> together([Part("a", NOTHING, verdict=SUPPORTED), Part("b", NOTHING, verdict=REFUTED)])
        ('not supported', 'fails: b')
    """
    deciding = [part for part in parts if part.verdict]
    verdicts = {part.verdict for part in deciding}
    open_ = "; ".join(dict.fromkeys(part.reason for part in deciding if part.reason and part.verdict in (UNDECIDED, UNTESTED)))
    if verdicts <= {UNTESTED}:
        return UNTESTED, open_
    if REFUTED in verdicts:
        failing = [part.reason or part.what for part in deciding if part.verdict == REFUTED]
        return REFUTED, "fails: " + "; ".join(failing) if len(deciding) > 1 else ""
    if verdicts == {SUPPORTED}:
        return SUPPORTED, ""
    return UNDECIDED, open_


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [5.0, 7.0, 6.0])
        0.5
    """
    first, second = stats.rankdata(left), stats.rankdata(right)
    first, second = first - first.mean(), second - second.mean()
    size = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > 0 else math.nan


def written(found: Interval, scale: str) -> str:
    """Write a number with its interval.

    Example:
        >>> written(Interval(0.091, 0.01, 0.072, 0.11, 5), "points")
        '+9.1 [7.2, 11.0] points'
        >>> written(Interval(0.0, 0.1, math.log(0.5), math.log(2), 3), "factor")
        '1.00 [0.50, 2.00]x'
    """
    if found.n == 0 or math.isnan(found.mean):
        return "not measured"
    unit = {"points": " points", "share": "%", "factor": "x", "plain": ""}[scale]
    mean = _number(found.mean, scale)
    sign = "+" if scale in ("points", "plain") and not mean.startswith("-") else ""
    if math.isnan(found.low):
        return f"{sign}{mean}{unit}" + (" (one seed)" if found.n == 1 else " (no finite interval)")
    return f"{sign}{mean} [{_number(found.low, scale)}, {_number(found.high, scale)}]{unit}"


def _number(value: float, scale: str) -> str:
    text = {
        "points": lambda: f"{100 * value:.1f}",
        "share": lambda: f"{100 * value:.0f}",
        "factor": lambda: f"{math.exp(value):.2f}",
        "plain": lambda: f"{value:.2f}",
    }[scale]()
    return text[1:] if text in ("-0.0", "-0", "-0.00") else text
