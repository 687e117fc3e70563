"""How a finding is worded: verdicts by interval, points, shares and numbers of seeds."""

from __future__ import annotations

from noisesam.analysis.statistics import Interval


def verdict(found: Interval, *, up: str, down: str, open_: str, confidence: float, bounds: str = "") -> str:
    """Close a sentence by what the interval allows: up, down, or neither; a single seed gives no interval."""
    if found.n == 1:
        direction = up if found.mean > 0 else down if found.mean < 0 else "no difference"
        return f"{direction} (one seed, so no interval: not yet a finding)."
    text = up if found.low > 0 else down if found.high < 0 else open_
    span = bounds or f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{text} ({100 * confidence:g}% interval {span}, {seeds(found.n)})."


def spread(found: Interval) -> str:
    """Return the interval and the number of seeds."""
    return "one seed" if found.n == 1 else f"{100 * found.low:.1f} to {100 * found.high:.1f}, {seeds(found.n)}"


def seeds(n: int) -> str:
    """Return a number of seeds in words."""
    return "1 seed" if n == 1 else f"{n} seeds"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage."""
    return f"{100 * fraction:.1f}%"


def points(difference: float) -> str:
    """Return a difference of fractions in percentage points."""
    value = f"{100 * difference:.1f}"
    return f"{'0.0' if value == '-0.0' else value} points"


def signed(difference: float) -> str:
    """Return a difference in percentage points with its sign."""
    value = f"{100 * difference:+.1f}"
    return f"{'+0.0' if value == '-0.0' else value} points"


def share(share: float) -> str:
    """Return the share of a gain that is kept."""
    if share < -0.005:
        return f"none of it (it loses {-100 * share:.0f}% as much)"
    return f"{abs(100 * share):.0f}%"
