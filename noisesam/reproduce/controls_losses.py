"""The control of robust losses: where the methods stand beside them, and whether they add to them. No torch."""

from __future__ import annotations

from noisesam.analysis import Interval
from noisesam.reproduce.controls_rules import (
    EXPECTATION,
    NEAR,
    Judged,
    Ruling,
    above_or_below,
    advantages,
    decide,
    present,
    ruling,
)
from noisesam.reproduce.controls_runs import CHANCE, STOPS, ControlRuns
from noisesam.reproduce.findings import ONE_SAM, SGD

PLAIN = "cross_entropy"
GCE, SMOOTHING, LOGITS = "generalised_cross_entropy", "label_smoothing", "logit_norm_penalty"
SHORT = {GCE: "gce", "mean_absolute_error": "mae", SMOOTHING: "smoothing", LOGITS: "logit norm"}

_OVER_ONE_SAM = {
    (GCE, "last"): ("above",),
    **{(loss, stop): ("below",) for loss in (SMOOTHING, LOGITS) for stop in STOPS},
}
"""Generalised cross-entropy was expected to be at least as good: where the two cannot be told apart, that stays open."""


def robust_losses(runs: ControlRuns) -> Judged:
    """Judge experiments/control-robust-losses.toml."""
    sgd, one_sam = runs.best_of(SGD, PLAIN), runs.best_of(ONE_SAM, PLAIN)
    families = [loss for loss in dict.fromkeys(runs.runs["loss"].str.partition("(")[0]) if loss != PLAIN]
    best = {loss: runs.best_of(SGD, loss) for loss in families}
    named = {loss: f"sgd + {SHORT.get(loss, loss)}" for loss in families}
    rulings: list[Ruling] = []
    for loss, label in best.items():
        for stop in STOPS:
            over_one_sam, over_sgd = _OVER_ONE_SAM.get((loss, stop), ()), ("above",) if loss in (SMOOTHING, LOGITS) else ()
            rulings += [
                _over(runs, named[loss], label, ONE_SAM, one_sam, stop, over_one_sam),
                _over(runs, named[loss], label, SGD, sgd, stop, over_sgd),
            ]
    both = _both(runs)
    for (method, loss), (label, alone) in both.items():
        rulings += [one for stop in STOPS for one in _adds(runs, method, loss, label, alone, stop)]
    plain = [runs.best_of(method, PLAIN) for method in runs.methods]
    shown = present([*dict.fromkeys([*plain, *best.values(), *(label for pair in both.values() for label in pair)])])
    chosen = present([sgd, *plain, *best.values(), *(label for label, _ in both.values())])
    return Judged(rulings, advantages(runs, shown, over=sgd), {*chosen})


def _over(
    runs: ControlRuns, name: str, label: str, other: str, other_label: str, stop: str, expected: tuple[str, ...]
) -> Ruling:
    """Rank a robust loss against a method with cross-entropy; runs at chance are named and not ranked."""
    return ruling(
        f"{name} over {other}", stop, runs.gain(label, other_label, f"{stop}_test_accuracy"),
        lambda found: above_or_below(found, "above", "below"), expected=expected, beside=_told(runs, label),
    )  # fmt: skip


def _told(runs: ControlRuns, label: str) -> str:
    """Name what was chosen, and how many of its runs stayed at chance."""
    own = runs.runs[runs.runs["label"] == label]
    lost = sorted(int(seed) for seed in own.loc[own["excluded"] == CHANCE, "seed"])
    at_chance = f", at chance with seed {', '.join(map(str, lost))}" if lost else ""
    return f"{runs.options(label) or 'no point'}{at_chance}"


def _both(runs: ControlRuns) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (method, loss with its parameter) -> the method's best point on that loss, and SGD's point on it."""
    found = {}
    for method in runs.methods:
        own = runs.runs[(runs.runs["method"] == method) & (runs.runs["loss"] != PLAIN)]
        for loss in dict.fromkeys(own["loss"]):
            alone = runs.best_of(SGD, str(loss))
            if alone:
                found[method, str(loss)] = (runs.best_of(method, str(loss)), alone)
    return found


def _adds(runs: ControlRuns, method: str, loss: str, label: str, alone: str, stop: str) -> list[Ruling]:
    """Decide whether a method adds to a loss: against SGD with the same loss at the same parameter."""
    family = loss.partition("(")[0]
    short = SHORT.get(family, family)
    found = runs.gain(label, alone, f"{stop}_test_accuracy")
    expected = ("adds",) if method == ONE_SAM and family in (SMOOTHING, LOGITS) else ()
    beside = f"{_told(runs, label)} against sgd"
    rulings = [
        ruling(
            f"{method} adds to {short}", stop, found, lambda one: above_or_below(one, "adds", "lowers"),
            expected=expected, beside=beside,
        )
    ]  # fmt: skip
    if method == ONE_SAM and family == GCE:
        rulings.append(ruling(f"{method} adds little to {short}", stop, found, _little, expected=("little",), by=EXPECTATION))
    return rulings


def _little(found: Interval) -> tuple[str, str]:
    return decide(found, ("little", found.high < NEAR), ("more than 2 points", found.low > NEAR))
