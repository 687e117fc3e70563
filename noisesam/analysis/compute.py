"""Runs compared at equal compute: what each has learned by the time it has spent a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from noisesam.analysis.inputs import FRONT, SELECTIONS, TIME, Runs, Tables, as_tables, table, wide
from noisesam.analysis.statistics import paired_difference
from noisesam.analysis.stopping import EVALUATION
from noisesam.errors import InputError, unknown_name

COSTS = ("passes", "seconds")
PARTS = (0.25, 0.5, 0.75, 1.0)
"""Of the smallest compute that any run spent: the budgets where none are named."""

_METRICS = {name: ("train", "all", name) for name in ("forward_passes", "backward_passes", "step_seconds")}
_SPENT_AT_LEAST = 1 - 1e-9
"""Sums of as many numbers as there are evaluations: a budget that is a run's own total is not missed by rounding."""


def compute_spent(runs: Runs | Tables, cost: str = "passes") -> pd.DataFrame:
    r"""Return how much compute each run has spent at each of its evaluations.

    Passes: $\sum$ over the steps so far of (forward passes + 2 backward passes)/3, a backward pass counted as two forward
    ones. One step of SGD costs 1, so the unit is the step of SGD at the runs' batch size, whatever machine they ran on.
    Seconds: wall time of the training steps alone, without evaluations and probes; it holds for one machine at one load.

    Args:
        runs: A collection, a run, or the tidy metrics.
        cost: "passes" or "seconds".

    Returns:
        One row per run and evaluation: run, method, setting, seed, step, epoch, spent; NaN where a run did not measure it.

    Raises:
        InputError: An unknown cost.

    Example:
        >>> front = {"run": "a", "method": "sam", "setting": "", "seed": 0, "split": "train", "group": "all"}
        >>> rows = [{"metric": "accuracy", "step": s, "value": 0.5} for s in (0, 10, 20)]
        >>> rows += [{"metric": f"{way}_passes", "step": s, "value": 2.0} for s in (10, 20) for way in ("forward", "backward")]
        >>> compute_spent(pd.DataFrame([front | {"epoch": 1.0} | row for row in rows]))["spent"].tolist()
        [0.0, 20.0, 40.0]
    """
    tables = as_tables(runs)
    return _evaluations(tables, cost)[[*FRONT, *TIME, "spent"]]


def at_equal_compute(
    runs: Runs | Tables, budgets: Iterable[float | int] | None = None, *, cost: str = "passes"
) -> pd.DataFrame:
    """Return what each run has learned by the time it has spent a budget, by each of three selections within it.

    A method that takes two passes per step has taken half as many steps as SGD for the same price; at equal compute it has no
    more than its due. Compared are runs of one data set, model and batch size. A run with a falling learning rate that is cut
    here at half of its length is not a run planned at that length: compare constant learning rates.

    Args:
        runs: A collection, a run, or the tidy metrics.
        budgets: In units of `cost`; None takes a quarter, a half, three quarters and all of what the run that spent least
            spent, which every run can pay.
        cost: "passes" (steps of SGD) or "seconds", as in `compute_spent`.

    Returns:
        One row per run, budget and selection ("oracle", "validation", "last", each among the evaluations within the budget):
        run, method, setting, seed, cost, budget, selection, reached, step, epoch, spent, test_accuracy, validation_accuracy,
        train_accuracy, clean_fitted, noisy_fitted. `reached` says whether the run spent the budget at all; where it did not,
        or where what it spent was not measured, it has no value at that budget (NaN).

    Raises:
        InputError: An unknown cost, a budget that is not a positive number, or runs none of which measured its cost.

    Example:
        >>> front = {"method": "sgd", "setting": "", "split": "test", "group": "all", "metric": "accuracy"}
        >>> rows = [front | {"run": m, "method": m, "seed": 0, "step": s, "epoch": s / 10, "value": s / 100}
        ...         for m in ("sgd", "sam") for s in (0, 10, 20)]
        >>> rows += [row | {"split": "train", "metric": f"{way}_passes", "value": 1.0 + (row["method"] == "sam")}
        ...          for row in rows if row["step"] for way in ("forward", "backward")]
        >>> found = at_equal_compute(pd.DataFrame(rows), budgets=[20])
        >>> found[found["selection"] == "last"][["method", "step", "test_accuracy"]].values.tolist()
        [['sgd', 20.0, 0.2], ['sam', 10.0, 0.1]]
    """
    tables = as_tables(runs)
    evaluations = _evaluations(tables, cost)
    totals = evaluations.groupby("run")["spent"].max()
    chosen = _budgets(totals, budgets, cost)
    rows = []
    for front in tables.facts[FRONT].to_dict("records"):
        own = evaluations[evaluations["run"] == front["run"]]
        total = float(totals.get(front["run"], math.nan))
        for budget in chosen:
            reached = total >= budget * _SPENT_AT_LEAST
            paid = own[own["spent"] <= budget / _SPENT_AT_LEAST] if reached else own.head(0)
            for selection in SELECTIONS:
                place = _place(paid, selection)
                found = paid.iloc[place] if place is not None else pd.Series(math.nan, index=own.columns)
                values = {name: float(found[name]) for name in [*TIME, "spent", *EVALUATION]}
                stated = {"cost": cost, "budget": budget, "selection": selection, "reached": reached}
                rows.append({**front, **stated, **values})
    return table(rows, [*FRONT, "cost", "budget", "selection", "reached", *TIME, "spent", *EVALUATION])


def matched_differences(
    matched: pd.DataFrame, baseline: str = "sgd", confidence: float = 0.95, interval_method: str = "t"
) -> pd.DataFrame:
    """Return how much test accuracy each method gains over a baseline where the two are matched, seed by seed.

    Args:
        matched: From `at_equal_clean_accuracy` or `at_equal_compute`.
        baseline: Name of the method to compare with. A setting is compared with the baseline's of the same name, and with
            its only one where no name agrees.
        confidence: Of the intervals.
        interval_method: "t" or "bootstrap", see `interval`.

    Returns:
        One row per method and setting, and level or budget and selection: method, setting, baseline, baseline_setting, level
        (or cost, budget, selection), difference (mean of method minus baseline), sd, low, high, pairs: the seeds with which
        both reached it. NaN where no seed did.

    Raises:
        InputError: A table of another kind, or several settings of the baseline none of which bears the method's name.

    Example:
        >>> front = {"setting": "", "level": 0.9}
        >>> rows = [front | {"run": f"{m}{s}", "method": m, "seed": s, "test_accuracy": v + s / 100}
        ...         for m, v in [("sgd", 0.8), ("1-sam", 0.9)] for s in (0, 1)]
        >>> matched_differences(pd.DataFrame(rows))[["method", "level", "difference", "pairs"]].round(3).values.tolist()
        [['1-sam', 0.9, 0.1, 2]]
    """
    keys = [name for name in ("level", "cost", "budget", "selection") if name in matched.columns]
    if not keys or "test_accuracy" not in matched.columns:
        raise InputError(
            "A table without levels or budgets",
            expected="the table of at_equal_clean_accuracy or at_equal_compute",
            remedy="Use paired_differences for whole runs",
        )
    base = matched[matched["method"] == baseline]
    rows = []
    for (method, setting), own in matched[matched["method"] != baseline].groupby(["method", "setting"], sort=False):
        if base.empty:
            break
        other = _baseline_setting(str(method), str(setting), baseline, base["setting"].unique().tolist())
        for place, ours in own.groupby(keys, sort=False):
            at = place if isinstance(place, tuple) else (place,)
            theirs = base[(base["setting"] == other) & (base[keys] == list(at)).all(axis=1)]
            found = paired_difference(_by_seed(ours), _by_seed(theirs), confidence, interval_method)
            rows.append((method, setting, baseline, other, *at, *found))
    names = ["method", "setting", "baseline", "baseline_setting", *keys, "difference", "sd", "low", "high", "pairs"]
    return pd.DataFrame(rows, columns=names)


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows["test_accuracy"], strict=True)}


def _baseline_setting(method: str, setting: str, baseline: str, settings: list[str]) -> str:
    if setting in settings:
        return setting
    if len(settings) == 1:
        return settings[0]
    raise InputError(
        f"No setting of {baseline} is called {setting!r}, as one of {method} is",
        expected="one of: " + ", ".join(map(repr, settings)),
        remedy="Hand in the runs of one data set, noise and model at a time",
    )


def _evaluations(tables: Tables, cost: str) -> pd.DataFrame:
    """Return the evaluations of all runs with the column `spent`."""
    if cost not in COSTS:
        raise unknown_name("cost", cost, COSTS)
    found = wide(tables, EVALUATION | _METRICS)
    passes = (found["forward_passes"] + 2 * found["backward_passes"]) / 3
    price = passes if cost == "passes" else found["step_seconds"]
    found["spent"] = math.nan
    for _, own in found.groupby("run", sort=False):
        found.loc[own.index, "spent"] = _sum_over_steps(own["step"].to_numpy(dtype=float), price[own.index].to_numpy())
    return found[found[[*EVALUATION]].notna().any(axis=1)].reset_index(drop=True)


def _sum_over_steps(steps: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Return the price of all steps so far; a price is the mean since the one before it, NaN says that nothing was measured."""
    spent = np.full(len(steps), math.nan)
    spent[steps == 0] = 0.0
    last, total = 0.0, 0.0
    for place in np.flatnonzero(np.isfinite(price)):
        total += (steps[place] - last) * price[place]
        last = steps[place]
        spent[place] = total
    return spent


def _budgets(totals: pd.Series, budgets: Iterable[float | int] | None, cost: str) -> list[float]:
    known = totals[totals > 0]
    if known.empty:
        raise InputError(
            f"No run says what it spent in {cost}",
            expected="the metrics forward_passes and backward_passes" if cost == "passes" else "the metric step_seconds",
            remedy="Runs of noisesam.fit have them",
        )
    if budgets is None:
        return [part * float(known.min()) for part in PARTS]
    chosen = [float(budget) for budget in budgets]
    if not all(budget > 0 and math.isfinite(budget) for budget in chosen):
        raise InputError(f"budgets={chosen}", expected="positive numbers", remedy=f"They are {cost}, not parts of the whole")
    return chosen


def _place(paid: pd.DataFrame, selection: str) -> int | None:
    """Position of the selected evaluation among those that are paid for, None if there is none."""
    if paid.empty:
        return None
    if selection == "last":
        return len(paid) - 1
    column = {"oracle": "test_accuracy", "validation": "validation_accuracy"}[selection]
    values = paid[column].to_numpy(dtype=float)
    return int(np.nanargmax(values)) if np.isfinite(values).any() else None
