"""Methods compared over seeds: one row per setting, and differences to a baseline paired by seed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from noisesam.analysis.inputs import FRONT, SELECTIONS, Runs, Tables, as_tables, wide
from noisesam.analysis.statistics import interval, paired_difference
from noisesam.analysis.stopping import early_stopping, noise_fitting_onset
from noisesam.analysis.weights import gradient_weight

EARLY_FRACTION = 0.1
"""Early is the first tenth of training; step 0, before any step was taken, does not count."""
EARLY_LIMIT = 0.2
"""If no probe falls into the first tenth, the first one up to a fifth of training stands for early."""

_SELECTED = ("test_accuracy", "epoch", "clean_fitted", "noisy_fitted")
_COST = ("forward_passes", "backward_passes", "step_seconds")
QUANTITIES = (
    *(f"{selection}_{name}" for selection in SELECTIONS for name in _SELECTED),
    "early_ratio",
    "oracle_ratio",
    "validation_ratio",
    "onset_epoch",
)
"""What `summary` gives as _mean, _sd, _low, _high."""


def per_run(runs: Runs | Tables) -> pd.DataFrame:
    """Return the numbers that `summary` averages: one row per run, FRONT, QUANTITIES, onset_reached and the cost."""
    tables = as_tables(runs)
    stopping = early_stopping(tables)
    result = tables.facts[FRONT].copy()
    for selection in SELECTIONS:
        chosen = stopping[stopping["selection"] == selection].set_index("run")
        for name in (*_SELECTED, "validation_accuracy"):
            result[f"{selection}_{name}"] = result["run"].map(chosen[name])
    weight = gradient_weight(tables)
    epochs = _epochs(tables)
    by_run = dict(iter(weight.groupby("run")))
    result["early_ratio"] = [early_ratio(by_run.get(run), epochs[run]) for run in result["run"]]
    for selection in ("oracle", "validation"):
        result[f"{selection}_ratio"] = [
            _nearest_ratio(by_run.get(run), epoch)
            for run, epoch in zip(result["run"], result[f"{selection}_epoch"], strict=True)
        ]
    known = tables.facts["classes"].notna()
    onset = noise_fitting_onset(_subset(tables, known)).set_index("run") if known.any() else None
    result["onset_epoch"] = result["run"].map(onset["epoch"]) if onset is not None else math.nan
    result["onset_reached"] = result["run"].map(onset["reached"]) if onset is not None else math.nan
    costs = wide(tables, {name: ("train", "all", name) for name in _COST}).groupby("run")
    result["forward_passes"] = result["run"].map(costs["forward_passes"].mean())
    result["backward_passes"] = result["run"].map(costs["backward_passes"].mean())
    result["step_seconds"] = result["run"].map(costs["step_seconds"].median())
    return result


def _subset(tables: Tables, chosen: pd.Series) -> Tables:
    facts = tables.facts[chosen]
    return Tables(tables.metrics[tables.metrics["run"].isin(facts["run"])], None, facts)


def _epochs(tables: Tables) -> dict[str, float]:
    """The planned length of each run; the last epoch measured where the plan is not known."""
    measured = tables.metrics.groupby("run")["epoch"].max()
    return {
        run: planned if planned == planned else float(measured.get(run, math.nan))
        for run, planned in zip(tables.facts["run"], tables.facts["epochs"], strict=True)
    }


def early_ratio(weight: pd.DataFrame | None, epochs: float, *, kind: str = "ratio") -> float:
    """Return clean/noisy early in training, as the ratio of the means over the early probes of one run.

    Args:
        weight: Rows of one run (and one rule) with step, epoch, clean, noisy; None if there are none.
        epochs: Length of training.
        kind: "ratio", or "relative_ratio" for the mean of that column over the same probes.
    """
    if weight is None:
        return math.nan
    probes = weight[(weight["step"] > 0) & weight[["clean", "noisy"]].notna().all(axis=1)].sort_values("step")
    early = probes[probes["epoch"] <= EARLY_FRACTION * epochs + 1e-9]
    if early.empty:
        early = probes[probes["epoch"] <= EARLY_LIMIT * epochs + 1e-9].head(1)
    if early.empty:
        return math.nan
    if kind == "relative_ratio":
        return float(early["relative_ratio"].mean())
    noisy = float(early["noisy"].mean())
    return float(early["clean"].mean()) / noisy if noisy > 0 else math.nan


def _nearest_ratio(weight: pd.DataFrame | None, epoch: float) -> float:
    if weight is None or math.isnan(epoch):
        return math.nan
    probes = weight[weight["ratio"].notna()].sort_values("step")
    if probes.empty:
        return math.nan
    return float(probes["ratio"].iloc[int(np.argmin((probes["epoch"] - epoch).abs().to_numpy()))])


def summary(runs: Runs | Tables, confidence: float = 0.95, interval_method: str = "t") -> pd.DataFrame:
    """Return one row per method and setting, over its seeds.

    Args:
        runs: A collection, a run, or the tidy metrics.
        confidence: Of the intervals.
        interval_method: "t" or "bootstrap", see `interval`.

    Returns:
        method, setting, seeds (number of runs), then for every quantity of `QUANTITIES` the columns <quantity>_mean, _sd,
        _low, _high: test accuracy, epoch, clean and wrong labels fitted at each of the three selections; the clean/noisy ratio
        of `step_gradient_norm` early (probes of the first tenth of training without step 0; if there is none, the first probe
        up to a fifth) and at the probe nearest to the selected epoch; the epoch of the noise-fitting onset over the runs that
        reached it. Then onset_reached (number of runs, NaN if the number of classes is unknown), forward_passes,
        backward_passes (batch passes per step, mean) and step_seconds (median over seeds of each run's median).
        NaN where something was not measured, and in sd and bounds for a single seed.

    Raises:
        InputError: No runs, or an unknown interval method.

    Example:
        >>> front = {"method": "sgd", "setting": "", "split": "test", "group": "all", "metric": "accuracy"}
        >>> rows = [{"run": f"run{s}", "seed": s, "step": 1, "epoch": 1.0, "value": v} for s, v in enumerate([0.8, 0.9])]
        >>> curves = pd.DataFrame([front | row for row in rows])
        >>> table = summary(curves)
        >>> int(table["seeds"].iloc[0]), round(float(table["last_test_accuracy_mean"].iloc[0]), 3)
        (2, 0.85)
    """
    values = per_run(runs)
    rows = []
    for (method, setting), own in values.groupby(["method", "setting"], sort=False):
        row: dict[str, object] = {"method": method, "setting": setting, "seeds": len(own)}
        for name in QUANTITIES:
            found = interval(own[name], confidence, interval_method)
            row |= {f"{name}_mean": found.mean, f"{name}_sd": found.sd, f"{name}_low": found.low, f"{name}_high": found.high}
        row["onset_reached"] = float(own["onset_reached"].astype(float).sum(min_count=1))
        row["forward_passes"] = float(own["forward_passes"].mean())
        row["backward_passes"] = float(own["backward_passes"].mean())
        row["step_seconds"] = float(own["step_seconds"].median())
        rows.append(row)
    return pd.DataFrame(rows)


def paired_differences(
    runs: Runs | Tables, baseline: str = "sgd", confidence: float = 0.95, interval_method: str = "t"
) -> pd.DataFrame:
    """Return how much test accuracy each method gains over a baseline, seed by seed.

    A setting is compared with the baseline's setting that agrees in everything but the method; if there is none, with every
    setting of the baseline on the same data, noise and model, one row each.

    Args:
        runs: A collection, a run, or the tidy metrics (paired by their column setting, or with the baseline's only setting).
        baseline: Name of the method to compare with.
        confidence: Of the intervals.
        interval_method: "t" or "bootstrap", see `interval`.

    Returns:
        One row per setting, setting of the baseline and selection: method, setting, baseline, baseline_setting, selection,
        difference (mean of method minus baseline), sd, low, high, pairs. Empty without runs of the baseline.

    Example:
        >>> front = {"setting": "", "split": "test", "group": "all", "metric": "accuracy", "step": 1, "epoch": 1.0}
        >>> rows = [front | {"run": f"{m}{s}", "method": m, "seed": s, "value": v + s / 100}
        ...         for m, v in [("sgd", 0.8), ("1-sam", 0.9)] for s in (0, 1)]
        >>> last = paired_differences(pd.DataFrame(rows)).iloc[-1]
        >>> last["selection"], round(float(last["difference"]), 3), int(last["pairs"])
        ('last', 0.1, 2)
    """
    tables = as_tables(runs)
    values = per_run(tables)
    facts = tables.facts.drop_duplicates(["method", "setting"])
    candidates = facts[facts["method"] == baseline]
    rows = []
    for own in facts[facts["method"] != baseline].itertuples():
        for other in _counterparts(own, candidates).itertuples():
            for selection in SELECTIONS:
                column = f"{selection}_test_accuracy"
                ours = by_seed(values, str(own.method), str(own.setting), column)
                theirs = by_seed(values, baseline, str(other.setting), column)
                found = paired_difference(ours, theirs, confidence, interval_method)
                rows.append((own.method, own.setting, baseline, other.setting, selection, *found))
    names = ["method", "setting", "baseline", "baseline_setting", "selection", "difference", "sd", "low", "high", "pairs"]
    return pd.DataFrame(rows, columns=names)


def _counterparts(own: object, candidates: pd.DataFrame) -> pd.DataFrame:
    protocol, experiment, setting = (getattr(own, name) for name in ("protocol", "experiment", "setting"))
    if protocol:
        exact = candidates[candidates["protocol"] == protocol]
        return exact if len(exact) else candidates[candidates["experiment"] == experiment]
    named = candidates[candidates["setting"] == setting]
    return named if len(named) else candidates


def by_seed(values: pd.DataFrame, method: str, setting: str, column: str) -> dict[int, float]:
    """Return seed -> value of one column of `per_run` for one setting."""
    own = values[(values["method"] == method) & (values["setting"] == setting)]
    return {int(seed): float(value) for seed, value in zip(own["seed"], own[column], strict=True)}
