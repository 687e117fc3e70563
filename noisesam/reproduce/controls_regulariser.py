"""The control of the regulariser's two coefficients: which does the work, and what share of the gap closes. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noisesam.analysis import Interval, interval, share_of_gain
from noisesam.analysis.statistics import RESAMPLES
from noisesam.reproduce.controls_rules import EXPECTATION, Judged, Ruling, above_or_below, advantages, present, ruling
from noisesam.reproduce.controls_runs import STOPS, ControlRuns
from noisesam.reproduce.decisions import CONFIDENCE, MIN_SEEDS, NOTHING, UNDECIDED, UNTESTED, written
from noisesam.reproduce.findings import J_SAM, ONE_SAM, REG_SGD, SGD

BY = "last_validation_accuracy"
"""The pair is chosen at the last epoch."""


def regulariser(runs: ControlRuns) -> Judged:
    """Judge experiments/control-regulariser.toml."""
    labels = runs.labels(REG_SGD)
    pairs = {label: _pair(runs, label) for label in labels}
    chosen = runs.best(labels, BY)
    activation = runs.best([label for label in labels if pairs[label][1] == 0], BY)
    weight = runs.best([label for label in labels if pairs[label][0] == 0], BY)
    sgd, one_sam = runs.best_of(SGD), runs.best_of(ONE_SAM)
    rulings = [_which(runs, activation, weight)]
    if chosen:
        rulings.append(_edge(runs, chosen, pairs))
    rulings += [_share(runs, stop, chosen, sgd, one_sam) for stop in STOPS]
    rulings += [
        ruling(
            f"the chosen pair over {name}", "last", runs.gain(chosen, other, "last_test_accuracy"),
            lambda found: above_or_below(found, "above", "below"), expected=(expected,), by=EXPECTATION,
        )
        for name, other, expected in ((SGD, sgd, "above"), (ONE_SAM, one_sam, "below"))
    ]  # fmt: skip
    rulings += _lines(runs, pairs, sgd)
    shown = present([*dict.fromkeys([chosen, activation, weight, one_sam, runs.best_of(J_SAM)])])
    return Judged(rulings, advantages(runs, shown), {*present([chosen, sgd, one_sam, runs.best_of(J_SAM)])})


def _pair(runs: ControlRuns, label: str) -> tuple[float, float]:
    row = runs.runs[runs.runs["label"] == label].iloc[0]
    return float(row["activation"]), float(row["weight"])


def _which(runs: ControlRuns, activation: str, weight: str) -> Ruling:
    """Decide which penalty does most of the work: the best pair without the other one."""
    return ruling(
        "which penalty does most of the work", "last", runs.gain(activation, weight, "last_test_accuracy"),
        lambda found: above_or_below(found, "the activation", "the weight"), expected=("the activation",),
        beside=f"activation alone: {runs.options(activation) or 'none'}; weight alone: {runs.options(weight) or 'none'}",
    )  # fmt: skip


def _edge(runs: ControlRuns, chosen: str, pairs: Mapping[str, tuple[float, float]]) -> Ruling:
    """Say whether the chosen pair lies on the edge of the grid."""
    ends = []
    for place, name in enumerate(("activation", "weight")):
        grid, value = [pair[place] for pair in pairs.values()], pairs[chosen][place]
        if value in (min(grid), max(grid)):
            ends.append(f"{name} {value:g} is the {'lowest' if value == min(grid) else 'highest'} of the grid")
    verdict = "on the edge of the grid" if ends else "inside the grid"
    accuracy = written(runs.mean(chosen, BY), "share")
    estimate = f"{runs.options(chosen)}: noisy validation accuracy {accuracy}"
    return Ruling("where the chosen pair lies", "last", verdict, estimate, reason="; ".join(ends))


def _share(runs: ControlRuns, stop: str, chosen: str, sgd: str, one_sam: str) -> Ruling:
    """Give the share of the gap between SGD and 1-SAM; the rule decides nothing by it."""
    column = f"{stop}_test_accuracy"
    own, base, best = (runs.values(label, column) for label in (chosen, sgd, one_sam))
    found = bootstrap_share(own, base, best)
    fieller = written(share_of_gain(own, base, best, CONFIDENCE), "share")
    reason = f"paired bootstrap, which is narrow with few seeds; Fieller's interval: {fieller}"
    verdict = "measured" if found.n >= MIN_SEEDS and found.low == found.low else UNDECIDED if found.n else UNTESTED
    return Ruling("share of 1-sam's gain that the pair has", stop, verdict, written(found, "share"), found, reason=reason)


def bootstrap_share(
    values: Mapping[int, float], base: Mapping[int, float], best: Mapping[int, float], *, seed: int = 0
) -> Interval:
    """Return mean(value - base) / mean(best - base) with the percentiles of its resamples, the seeds drawn together for all.

    The interval is NaN where `best` is not above `base` in more of the resamples than the interval leaves out on one side.

    Args:
        values: Seed -> accuracy of the method.
        base: Seed -> accuracy whose share is 0.
        best: Seed -> accuracy whose share is 1.
        seed: Of the resamples.

    Example:
        >>> found = bootstrap_share({0: 0.86, 1: 0.84}, {0: 0.8, 1: 0.8}, {0: 0.9, 1: 0.9})
        >>> [round(number, 3) for number in (found.mean, found.low, found.high)]
        [0.5, 0.4, 0.6]
    """
    seeds = sorted({*values} & {*base} & {*best})
    own = np.array([values[one] - base[one] for one in seeds], dtype=float)
    full = np.array([best[one] - base[one] for one in seeds], dtype=float)
    usable = np.isfinite(own) & np.isfinite(full)
    own, full = own[usable], full[usable]
    n = len(own)
    if n == 0 or not full.mean() > 0:
        return NOTHING
    ratio = Interval(float(own.mean() / full.mean()), float("nan"), float("nan"), float("nan"), n)
    drawn = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    gains = full[drawn].mean(axis=1)
    outside = (1 - CONFIDENCE) / 2
    if n == 1 or (gains <= 0).mean() > outside:
        return ratio
    shares = own[drawn].mean(axis=1)[gains > 0] / gains[gains > 0]
    low, high = np.quantile(shares, [outside, 1 - outside])
    return ratio._replace(low=float(low), high=float(high))


def _lines(runs: ControlRuns, pairs: Mapping[str, tuple[float, float]], sgd: str) -> list[Ruling]:
    """Hold the two axes of the grid against the expectation: a maximum inside along activation, less movement along weight."""
    axes = [
        {0.0: runs.values(sgd, "last_test_accuracy")}
        | {pair[place]: runs.values(label, "last_test_accuracy") for label, pair in pairs.items() if pair[1 - place] == 0}
        for place in (0, 1)
    ]
    along = [dict(sorted((value, own) for value, own in axis.items() if own)) for axis in axes]
    if any(len(axis) < 3 for axis in along):
        return []
    means = {value: float(np.mean([*own.values()])) for value, own in along[0].items()}
    top = max(means, key=lambda value: means[value])
    inside = top not in (min(means), max(means))
    estimate = ", ".join(f"{value:g}: {100 * mean:.1f}%" for value, mean in means.items())
    found = interval([_range(along[0], seed) - _range(along[1], seed) for seed in _common(along)], CONFIDENCE)
    return [
        Ruling(
            "highest accuracy along the activation", "last", "inside the grid" if inside else "at an end of the grid", estimate,
            NOTHING, ("inside the grid",), EXPECTATION, "means over seeds, without an interval",
        ),
        ruling(
            "range along activation over that along weight", "last", found,
            lambda one: above_or_below(one, "larger", "smaller"), expected=("larger",), by=EXPECTATION,
        ),
    ]  # fmt: skip


def _common(axes: list[dict[float, dict[int, float]]]) -> list[int]:
    return sorted(set.intersection(*({*own} for axis in axes for own in axis.values())))


def _range(axis: Mapping[float, Mapping[int, float]], seed: int) -> float:
    values = [own[seed] for own in axis.values()]
    return max(values) - min(values)
