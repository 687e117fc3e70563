"""The control of price: methods at equal clean training accuracy and at equal compute. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from noisesam.analysis import (
    Interval,
    at_equal_clean_accuracy,
    at_equal_compute,
    compute_spent,
    matched_differences,
    paired_difference,
)
from noisesam.reproduce.controls_rules import (
    EXPECTATION,
    L_SAM_NEAR,
    Judged,
    Ruling,
    above_or_below,
    advantage_row,
    decide,
    near,
    present,
    ruling,
    within,
)
from noisesam.reproduce.controls_runs import LEVELS, STOPS, ControlRuns
from noisesam.reproduce.decisions import CONFIDENCE, NOTHING, UNDECIDED, UNTESTED, written
from noisesam.reproduce.findings import J_SAM, L_SAM, ONE_SAM, SAM, SGD

PARTS = {0.25: "a quarter", 0.5: "a half", 1.0: "all"}
"""Of what SGD's run takes."""
SELECTIONS = {"last": "last", "validation": "early"}
AT_LEVEL, AT_BUDGET = 0.05, 0.10
"""By how much 1-SAM and J-SAM were expected to stay above SGD at 90% and at the whole budget."""
SURVIVES, OWED = "survives", "owed to slowness or price"


def matched(runs: ControlRuns) -> Judged:
    """Judge experiments/control-matched.toml."""
    labels = {method: runs.best_of(method) for method in (SGD, *runs.methods)}
    metrics = runs.counting(present([*labels.values()]))
    if metrics.empty or not runs.values(labels[SGD], "last_test_accuracy"):
        return Judged([Ruling("the advantage survives matching", "", UNTESTED, "", reason="no run of sgd counts")], [])
    levels = at_equal_clean_accuracy(metrics, LEVELS)
    budgets = {cost: _at_budgets(metrics, cost) for cost in ("passes", "seconds")}
    tables = {"level": levels, **budgets}
    differences = {name: matched_differences(table) for name, table in tables.items()}
    rulings = []
    for method in runs.methods:
        for selection, at in SELECTIONS.items():
            expected = (SURVIVES,) if method in (ONE_SAM, J_SAM) and selection == "last" else ()
            rulings.append(_survives(method, at, differences, selection, expected))
    rulings += _expectations(differences, tables)
    rows = [row for method in runs.methods for row in _rows(runs, method, labels[method], differences)]
    return Judged(rulings, rows, {*present([*labels.values()])})


def _at_budgets(metrics: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return what every run has learned at three parts of what SGD's cheapest run spent; `budget` is the part."""
    spent = compute_spent(metrics[metrics["method"] == SGD], cost)
    whole = float(spent.groupby("run")["spent"].max().min())
    table = at_equal_compute(metrics, [part * whole for part in PARTS], cost=cost)
    parts = {part * whole: part for part in PARTS}
    return table.assign(budget=table["budget"].map(parts))


def _survives(
    method: str, at: str, differences: Mapping[str, pd.DataFrame], selection: str, expected: tuple[str, ...]
) -> Ruling:
    """Decide by two intervals: at 90% of the clean labels fitted, and at the whole of SGD's budget."""
    level = _level(differences, method)
    budget = _budget(differences, method, selection)
    pair = {"90% fitted": level, "whole budget": budget}
    estimate = "; ".join(f"{name}: {written(one, 'points')}" for name, one in pair.items())
    gates = [decide(one, ("decided", True)) for one in pair.values()]
    found = NOTHING._replace(n=min(level.n, budget.n))
    question = f"{method} at equal accuracy and compute"
    open_ = [f"{name}: {why}" for name, (verdict, why) in zip(pair, gates, strict=True) if verdict != "decided"]
    if open_:
        verdict = UNTESTED if all(verdict == UNTESTED for verdict, _ in gates) else UNDECIDED
        return Ruling(question, at, verdict, estimate, found, expected, reason="; ".join(open_))
    owed = [name for name, one in pair.items() if one.high < 0 or near(one)]
    if all(one.low > 0 for one in pair.values()):
        reason = f"within 2 points of zero too: {', '.join(owed)}" if owed else ""
        return Ruling(question, at, SURVIVES, estimate, found, expected, reason=reason)
    if owed:
        return Ruling(question, at, OWED, estimate, found, expected, reason="at " + ", ".join(owed))
    return Ruling(question, at, UNDECIDED, estimate, found, expected, reason="interval too wide")


def _level(differences: Mapping[str, pd.DataFrame], method: str, level: float = LEVELS[-1]) -> Interval:
    own = differences["level"]
    return _interval(own[(own["method"] == method) & (own["level"] == level)])


def _budget(
    differences: Mapping[str, pd.DataFrame], method: str, selection: str = "last", cost: str = "passes", part: float = 1.0
) -> Interval:
    own = differences[cost]
    return _interval(own[(own["method"] == method) & (own["budget"] == part) & (own["selection"] == selection)])


def _interval(rows: pd.DataFrame) -> Interval:
    if rows.empty:
        return NOTHING
    row = rows.iloc[0]
    return Interval(float(row["difference"]), float(row["sd"]), float(row["low"]), float(row["high"]), int(row["pairs"]))


def _expectations(differences: Mapping[str, pd.DataFrame], tables: Mapping[str, pd.DataFrame]) -> list[Ruling]:
    """Hold the sizes that were expected against the intervals."""
    rulings = []
    places = {"clean 0.9": (AT_LEVEL, "level"), "all passes": (AT_BUDGET, "passes")}
    for method in (ONE_SAM, J_SAM):
        for at, (margin, name) in places.items():
            found = _level(differences, method) if name == "level" else _budget(differences, method)
            question = f"{method} above sgd by {100 * margin:g} points"

            def enough(one: Interval, margin: float = margin) -> tuple[str, str]:
                return decide(one, ("by as much", one.low >= margin), ("by less", one.high < margin))

            rulings.append(ruling(question, at, found, enough, expected=("by as much",), by=EXPECTATION))
    for at, (_, name) in places.items():
        own = tables[name]
        kept = own[own["level"] == LEVELS[-1]] if name == "level" else own[(own["budget"] == 1) & (own["selection"] == "last")]
        found = paired_difference(_by_seed(kept, SAM), _by_seed(kept, ONE_SAM), CONFIDENCE)
        rulings.append(
            ruling(
                "sam over 1-sam", at, found, lambda one: above_or_below(one, "above", "below"),
                expected=("below",), by=EXPECTATION,
            )
        )  # fmt: skip
        found = _level(differences, L_SAM) if name == "level" else _budget(differences, L_SAM)
        rulings.append(
            ruling(
                "l-sam within 6 points of sgd", at, found, lambda one: within(one, "within", "outside", L_SAM_NEAR),
                expected=("within",), by=EXPECTATION,
            )
        )  # fmt: skip
    return rulings


def _by_seed(rows: pd.DataFrame, method: str) -> dict[int, float]:
    own = rows[rows["method"] == method]
    return {int(seed): float(value) for seed, value in zip(own["seed"], own["test_accuracy"], strict=True)}


def _rows(runs: ControlRuns, method: str, label: str, differences: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Return the advantages of a method: at equal clean accuracy, at equal passes and seconds, and over whole runs."""
    if not label:
        return []
    sgd = runs.best_of(SGD)
    found = {words: runs.gain(label, sgd, f"{stop}_test_accuracy") for stop, words in STOPS.items()}
    found |= {f"clean accuracy {level:g}": _level(differences, method, level) for level in LEVELS}
    for cost in ("passes", "seconds"):
        for part, words in PARTS.items():
            for selection, at in SELECTIONS.items():
                found[f"{words} of the {cost}, {STOPS[at]}"] = _budget(differences, method, selection, cost, part)
    return [advantage_row(runs, label, stop, one) for stop, one in found.items()]
