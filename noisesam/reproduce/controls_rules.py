"""From an interval to the words of a control's rule, and whether that is what was expected. No torch.

A rule states its conditions in an order; the first that holds gives the verdict, and another that holds as well is said in
the reason. Parts of an expectation on which the rule is silent are held against the 95% interval in the same way and marked:
`decided_by` is "rule" or "expectation".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from noisesam.analysis import Interval, interval
from noisesam.reproduce.controls_runs import STOPS, ControlRuns
from noisesam.reproduce.decisions import CONFIDENCE, MIN_SEEDS, NOTHING, REFUTED, SUPPORTED, UNDECIDED, UNTESTED, written
from noisesam.reproduce.findings import FITTED, SGD

NEAR = 0.02
"""What the rules call within 0.02 of zero."""
L_SAM_NEAR = 0.06
"""How near to SGD the expectations place L-SAM."""

RULE, EXPECTATION = "rule", "expectation"
RULED = (
    "control", "question", "at", "verdict", "estimate", "value", "low", "high", "seeds", "expected", "as_expected",
    "decided_by", "reason",
)  # fmt: skip
ADVANTAGE = (
    "control", "place", "method", "loss", "chosen", "stop", "estimate", "low", "high", "seeds", "wrong_labels_fitted_by_sgd",
    "realised_rate", "left_out",
)  # fmt: skip

Words = tuple[str, ...]


@dataclass(frozen=True)
class Ruling:
    """One question of a control and its answer.

    Attributes:
        question: In short.
        at: The stop or the match: "early", "last", "clean 0.9" and the like.
        verdict: The word of the rule; or UNDECIDED, UNTESTED.
        estimate: The numbers in words.
        found: The number that decides; NOTHING where there are several.
        expected: The verdicts that were expected; none where nothing was.
        by: RULE or EXPECTATION.
        reason: Why it is open, and what was left out.
    """

    question: str
    at: str
    verdict: str
    estimate: str
    found: Interval = NOTHING
    expected: Words = ()
    by: str = RULE
    reason: str = ""

    @property
    def as_expected(self) -> str:
        """Return yes, no, or open where nothing was decided; empty where nothing was expected."""
        if not self.expected:
            return ""
        if self.verdict in self.expected:
            return "yes"
        return "open" if self.verdict in (UNDECIDED, UNTESTED) else "no"


@dataclass(frozen=True)
class Judged:
    """What a control says: its rulings, the rows of its table of advantages, and the points that were chosen for them."""

    rulings: list[Ruling]
    advantages: list[dict[str, object]]
    chosen: set[str] = field(default_factory=set)

    def table(self, control: str) -> pd.DataFrame:
        """Return one row per question, the columns of RULED."""
        rows = [
            (
                control, one.question, one.at, one.verdict, one.estimate, one.found.mean, one.found.low, one.found.high,
                one.found.n, " or ".join(one.expected), one.as_expected, one.by, one.reason,
            )
            for one in self.rulings
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=[*RULED])


def decide(found: Interval, *conditions: tuple[str, bool]) -> tuple[str, str]:
    """Return the word of the first condition that holds, and why it is open or what else holds.

    Example:
        >>> small = Interval(0.01, 0.0, 0.005, 0.015, 3)
        >>> decide(small, ("explains", -0.02 < small.low and small.high < 0.02), ("helps", small.low > 0))
        ('explains', 'helps holds too')
        >>> decide(small._replace(n=2), ("helps", True))
        ('undecided', 'only 2 seeds, 3 needed')
    """
    if found.n == 0 or math.isnan(found.mean):
        return UNTESTED, "not measured"
    if found.n < MIN_SEEDS:
        return UNDECIDED, f"only {found.n} seed{'s' if found.n > 1 else ''}, {MIN_SEEDS} needed"
    holding = [word for word, holds in conditions if holds]
    if not holding:
        return UNDECIDED, "interval too wide"
    return holding[0], "; ".join(f"{word} holds too" for word in holding[1:])


def above_or_below(found: Interval, up: str, down: str) -> tuple[str, str]:
    """Decide whether an interval lies above or below zero."""
    return decide(found, (up, found.low > 0), (down, found.high < 0))


def near(found: Interval, margin: float = NEAR) -> bool:
    """Say whether the whole interval lies within a margin of zero."""
    return -margin < found.low and found.high < margin


def within(found: Interval, inside: str, outside: str, margin: float) -> tuple[str, str]:
    """Decide whether a difference lies within a margin of zero: the whole interval inside, or outside."""
    return decide(found, (inside, near(found, margin)), (outside, found.low > margin or found.high < -margin))


Decide = Callable[[Interval], tuple[str, str]]


def ruling(
    question: str,
    at: str,
    found: Interval,
    decided: Decide,
    *,
    expected: Words = (),
    by: str = RULE,
    beside: str = "",
    unit: str = "",
) -> Ruling:
    """Return the ruling on one interval."""
    verdict, reason = decided(found)
    text = written(found, "points") + unit
    return Ruling(question, at, verdict, text, found, expected, by, "; ".join(part for part in (reason, beside) if part))


def everywhere(
    question: str,
    at: str,
    found: Mapping[str, Interval],
    decided: Decide,
    *,
    words: tuple[str, str] = (SUPPORTED, REFUTED),
    expected: Words = (),
    by: str = RULE,
    beside: str = "",
) -> Ruling:
    """Decide a statement on several places: supported if it is at all of them, not supported if it is refuted at one."""
    verdicts = {place: decided(one) for place, one in found.items()}
    against = [place for place, (verdict, _) in verdicts.items() if verdict == words[1]]
    still_open = [f"{place}: {why or verdict}" for place, (verdict, why) in verdicts.items() if verdict not in words]
    if not verdicts:
        verdict, reason = UNTESTED, "no place is left"
    elif against:
        verdict, reason = words[1], "at " + ", ".join(against)
    elif still_open:
        tested = any(verdict != UNTESTED for verdict, _ in verdicts.values())
        verdict, reason = UNDECIDED if tested else UNTESTED, "; ".join(still_open)
    else:
        verdict, reason = words[0], ""
    estimate = "; ".join(f"{place}: {written(one, 'points')}" for place, one in found.items())
    lowest = min((one.n for one in found.values()), default=0)
    whole = NOTHING._replace(n=lowest)
    return Ruling(question, at, verdict, estimate, whole, expected, by, "; ".join(part for part in (reason, beside) if part))


def slopes(by_place: Mapping[float, Mapping[int, float]]) -> Interval:
    """Return the slope of a number over log2 of the place, one per seed that has it at every place, with its interval.

    Example:
        >>> round(slopes({8.0: {0: 0.1, 1: 0.2}, 16.0: {0: 0.2, 1: 0.3}, 32.0: {0: 0.3, 1: 0.4}}).mean, 12)
        0.1
    """
    if len(by_place) < 2:
        return NOTHING
    seeds = set.intersection(*(set(own) for own in by_place.values()))
    places = np.log2([*by_place])
    lines = [np.polyfit(places, [own[seed] for own in by_place.values()], 1)[0] for seed in sorted(seeds)]
    return interval(lines, CONFIDENCE)


def left_out(runs: ControlRuns, name: Callable[[float], str]) -> dict[float, str]:
    """Return the places at which SGD's last model fits less than half of the wrong labels, each with what it fits."""
    found = {}
    for place in runs.places:
        share = runs.at(place).fitted()
        if not share >= FITTED:
            told = f"{100 * share:.0f}% of the wrong labels" if share == share else "no wrong labels that are known"
            found[place] = f"{name(place)} left out: SGD fits {told}"
    return found


def advantages(
    runs: ControlRuns,
    labels: Iterable[str],
    stops: Mapping[str, str] = STOPS,
    *,
    place: float = math.nan,
    over: str = "",
    reason: str = "",
) -> list[dict[str, object]]:
    """Return the advantage of some points over SGD at every stop, one row each, the columns of ADVANTAGE."""
    base = over or runs.best_of(SGD)
    return [
        advantage_row(
            runs, label, words, runs.gain(label, base, f"{stop}_test_accuracy"), place=place, reason=reason, over=base
        )
        for label in labels
        for stop, words in stops.items()
    ]


def advantage_row(
    runs: ControlRuns,
    label: str,
    stop: str,
    found: Interval,
    *,
    place: float = math.nan,
    reason: str = "",
    over: str = "",
) -> dict[str, object]:
    """Return one row of the table of advantages."""
    first = runs.runs[runs.runs["label"] == label].iloc[0]
    values = (
        runs.name, place, str(first["method"]), str(first["loss"]), runs.options(label), stop, found.mean, found.low,
        found.high, found.n, runs.fitted(over or None), float(runs.runs["realised_rate"].mean()), reason,
    )  # fmt: skip
    return dict(zip(ADVANTAGE, values, strict=True))


def present(labels: Sequence[str]) -> list[str]:
    """Return the points that there are: a method without a finished point has the empty one."""
    return [label for label in labels if label]
