"""Claims on gains: who is ahead, where the gain shows, and on what it depends (C1, C2, C9, C10, C11, C13)."""

from __future__ import annotations

import itertools
import math

from noisesam.analysis import Interval, interval
from noisesam.reproduce.decisions import CONFIDENCE, REFUTED, Part, above, not_below, untested
from noisesam.reproduce.evidence import MAIN, NO_NOISE, Evidence
from noisesam.reproduce.findings import (
    GAIN,
    ONE_SAM,
    SAM,
    SGD,
    Finding,
    conclude,
    gain_above,
    gains_beside,
    open_because,
    shows_nothing,
)

CONVERGED = 0.95
"""Of the training labels, wrong ones included: what a method that has converged fits."""


def one_sam_gains(evidence: Evidence) -> Finding:
    """C1: 1-SAM over SGD at early stopping."""
    gain = gain_above(evidence, ONE_SAM, SGD)
    return conclude(gain, *gains_beside(evidence, ONE_SAM, SGD), *_without_noise(evidence, ONE_SAM))


def sam_gains_less(evidence: Evidence) -> Finding:
    """C2: 1-SAM over batch SAM at early stopping; both over SGD beside."""
    beside = [Part(f"{name} over sgd", evidence.gain(name, SGD)) for name in (ONE_SAM, SAM)]
    return conclude(gain_above(evidence, ONE_SAM, SAM), *beside)


def _without_noise(evidence: Evidence, method: str) -> list[Part]:
    return [Part("without wrong labels", evidence.gain(method, SGD, variant=NO_NOISE))]


def grows_with_size(evidence: Evidence) -> Finding:
    """C9: the gain of 1-SAM at the largest training set over that at the smallest; no step down in between."""
    sizes, refused = [], []
    for variant in [MAIN, *evidence.variants("size")]:
        own = evidence.runs.loc[evidence.runs["variant"] == variant, "train_examples"].dropna()
        size = float(own.iloc[0]) if len(own) else math.nan
        why = "the number of training examples is not known" if math.isnan(size) else ""
        why = why or evidence.lacking([ONE_SAM], variant) or shows_nothing(evidence, variant)
        if why:
            refused.append(f"{variant} left out: {why}")
        else:
            sizes.append((size, _gains(evidence, variant)))
    sizes.sort(key=lambda pair: pair[0])
    beside = [Part(f"gain with {size:.0f} examples", interval(gains.values(), CONFIDENCE)) for size, gains in sizes]
    if len(sizes) < 2:
        return open_because("; ".join([*refused, "fewer than two sizes of the training set"]), *beside)
    (small, first), (large, last) = sizes[0], sizes[-1]
    parts = [above(f"gain with {large:.0f} over gain with {small:.0f} examples", _difference(last, first), GAIN)]
    if len(sizes) > 2:
        for (low, before), (high, after) in itertools.pairwise(sizes):
            parts.append(not_below(f"from {low:.0f} to {high:.0f} examples", _difference(after, before), GAIN))
    found = conclude(*parts, *beside)
    return Finding(found.verdict, found.parts, "; ".join(text for text in (found.reason, *refused) if text))


def _gains(evidence: Evidence, variant: str, column: str = "early_test_accuracy") -> dict[int, float]:
    """Return seed -> accuracy of 1-SAM minus accuracy of SGD."""
    ours, theirs = evidence.values(ONE_SAM, column, variant), evidence.values(SGD, column, variant)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _difference(left: dict[int, float], right: dict[int, float]) -> Interval:
    return interval([left[seed] - right[seed] for seed in left if seed in right], CONFIDENCE)


def on_the_trajectory(evidence: Evidence) -> Finding:
    """C10: the gain of 1-SAM at early stopping over that at the end, where both methods have converged."""
    what = "gain at early stopping over gain at the end"
    lacking = evidence.lacking([ONE_SAM])
    if lacking:
        return open_because(lacking)
    early, last = _gains(evidence, MAIN), _gains(evidence, MAIN, "last_test_accuracy")
    found = _difference(early, last)
    beside = [Part("early", interval(early.values(), CONFIDENCE)), Part("last", interval(last.values(), CONFIDENCE))]
    fitted = {name: evidence.mean(name, "last_train_accuracy") for name in (SGD, ONE_SAM)}
    for name, share in fitted.items():
        if not share.n:
            return open_because(f"not measured: training accuracy of {name}", untested(what, "", found), *beside)
        if share.mean < CONVERGED:
            fits = f"it fits {100 * share.mean:.0f}% of the training labels, {100 * CONVERGED:.0f}% needed"
            why = f"{name} has not converged: {fits}"
            return open_because(why, untested(what, why, found), *beside)
    if gain_above(evidence, ONE_SAM, SGD).verdict == REFUTED:
        why = "1-sam has no gain at early stopping that could vanish"
        return open_because(why, untested(what, why, found), *beside)
    return conclude(above(what, found, GAIN), *beside)


def under_parameterised(evidence: Evidence) -> Finding:
    """C11: the gain of 1-SAM in models with fewer weights than training examples."""
    parts, beside = [], []
    for variant in [*evidence.variants("narrow", "wide"), MAIN]:
        own = evidence.rows(SGD, variant)
        weights, examples = own["parameters"], own["train_examples"]
        if not len(own) or not float(weights.iloc[0]) < float(examples.iloc[0]):
            continue
        name = f"{float(weights.iloc[0]):.0f} weights, {float(examples.iloc[0]):.0f} examples"
        lacking = evidence.lacking([ONE_SAM], variant)
        what = f"1-sam over sgd with {name}"
        parts.append(untested(what, lacking) if lacking else above(what, evidence.gain(ONE_SAM, SGD, variant=variant), GAIN))
        beside.append(Part("training labels fitted by sgd", evidence.mean(SGD, "last_train_accuracy", variant), "share"))
    if not parts:
        return open_because("no model with fewer weights than training examples")
    return conclude(*parts, *beside)


def beside_robust_losses(evidence: Evidence) -> Finding:
    """C13: 1-SAM with the plain loss is not below SGD with the best robust loss."""
    robust = [name for name in evidence.methods() if name.startswith(f"{SGD} + ")]
    lacking = evidence.lacking([ONE_SAM])
    if lacking or not robust:
        return open_because(lacking or "no robust loss was run")
    column = f"{evidence.selection}_validation_accuracy" if evidence.selection == "validation" else "oracle_test_accuracy"
    best = max(robust, key=lambda name: (_or_least(evidence.mean(name, column).mean), name))
    beside = [Part(f"1-sam over {name}", evidence.gain(ONE_SAM, name)) for name in robust if name != best]
    beside.append(Part(f"1-sam over {best} at the end", evidence.gain(ONE_SAM, best, "last_test_accuracy")))
    for name in robust:
        both = name.replace(f"{SGD} + ", f"{ONE_SAM} + ", 1)
        if both in evidence.methods():
            beside.append(Part(f"{both} over {name}", evidence.gain(both, name)))
    return conclude(not_below(f"1-sam over {best}", evidence.gain(ONE_SAM, best), GAIN), *beside)


def _or_least(value: float) -> float:
    return value if value == value else -math.inf
