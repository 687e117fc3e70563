"""The control of step length: SGD with every step at the length of L-SAM's. No torch."""

from __future__ import annotations

from noisesam.analysis import Interval
from noisesam.reproduce.controls_rules import (
    EXPECTATION,
    Judged,
    Ruling,
    above_or_below,
    advantages,
    decide,
    everywhere,
    near,
    present,
    ruling,
)
from noisesam.reproduce.controls_runs import STOPS, ControlRuns
from noisesam.reproduce.findings import J_SAM, L_SAM, ONE_SAM, SGD

CONTROL = "length-matched-sgd"
MATCHED = {**{stop: stop for stop in STOPS}, "clean90": "clean 0.9"}
_ADVANTAGES = {**STOPS, "clean90": "clean accuracy 0.9"}


def step_length(runs: ControlRuns) -> Judged:
    """Judge experiments/control-step-length.toml."""
    sgd = runs.best_of(SGD)
    radii = sorted(float(rho) for rho in runs.runs["rho"].dropna().unique())
    points = {rho: {method: _point(runs, method, rho) for method in runs.methods} for rho in radii}
    rulings: list[Ruling] = []
    for rho in radii:
        for stop, at in MATCHED.items():
            found = runs.gain(points[rho].get(L_SAM, ""), points[rho].get(CONTROL, ""), f"{stop}_test_accuracy")
            expected = ("explains l-sam",) if stop in ("last", "clean90") else ()
            rulings.append(ruling(f"step length at rho {rho:g}", at, found, _explains, expected=expected))
    for rho in radii:
        for stop, at in MATCHED.items():
            found = runs.gain(points[rho].get(CONTROL, ""), sgd, f"{stop}_test_accuracy")
            rulings.append(ruling(f"longer steps by themselves, rho {rho:g}", at, found, _lengthening))
    for rho in radii:
        for method in (L_SAM, CONTROL):
            own = points[rho]
            gaps = {
                f"over {other}": runs.gain(own.get(method, ""), own.get(other, ""), "last_test_accuracy")
                for other in (ONE_SAM, J_SAM)
            }
            rulings.append(
                everywhere(
                    f"{method} below 1-sam and j-sam, rho {rho:g}", "last", gaps,
                    lambda found: above_or_below(found, "above", "below"), words=("below", "above"),
                    expected=("below",), by=EXPECTATION,
                )
            )  # fmt: skip
    labels = present([label for own in points.values() for label in own.values()])
    chosen = present([sgd, *(runs.best_of(method) for method in runs.methods)])
    return Judged(rulings, advantages(runs, labels, _ADVANTAGES), {*chosen})


def _point(runs: ControlRuns, method: str, rho: float) -> str:
    own = runs.runs[(runs.runs["method"] == method) & (runs.runs["rho"] == rho)]
    return str(own["label"].iloc[0]) if len(own) else ""


def _explains(found: Interval) -> tuple[str, str]:
    conditions = (("explains l-sam", near(found)), ("weighing helps", found.low > 0), ("weighing hurts", found.high < 0))
    return decide(found, *conditions)


def _lengthening(found: Interval) -> tuple[str, str]:
    return decide(found, ("change nothing", near(found)), ("help", found.low > 0), ("hurt", found.high < 0))
