"""Which methods keep 1-SAM's gain: one row per method, from runs with and without wrong labels. No torch."""

from __future__ import annotations

import math

import pandas as pd

from noisesam.analysis.comparison import per_run
from noisesam.analysis.inputs import as_tables
from noisesam.analysis.statistics import Interval, interval, paired_difference, share_of_gain
from noisesam.runs import RunCollection

ENDS = ("early", "last")
SOURCES = {"early": "validation_test_accuracy", "last": "last_test_accuracy"}
"""Early stopping is selected on noisy validation labels; no test label takes part."""


def scoreboard(
    noisy: RunCollection,
    clean: RunCollection | None = None,
    mechanism: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
    *,
    base: str = "sgd",
    best: str = "1-sam",
) -> pd.DataFrame:
    """Return one row per method: accuracies, gain kept, mechanism, norms and cost.

    Args:
        noisy: Runs with wrong labels, one setting, several seeds.
        clean: The same without wrong labels.
        mechanism: Table of `mechanism_at_equal_weights`, one row per method, group and (repeated) weights.
        costs: Table of `noisesam.bench.setting.step_costs`: seconds timed side by side in one process. Without it they are
            those of the runs, which may have shared their cores.
        base: The method whose gain is 0.
        best: The method whose gain is 1.

    Returns:
        method, seeds; early and last: accuracy on clean test labels (mean, sd), difference to `base` with its paired 95%
        interval, gain kept with Fieller's 95% interval, NaN where the gain of `best` itself cannot be told from nothing;
        clean_early, clean_last; wrong_labels_fitted at the end; logit and Jacobian weight on clean and noisy examples; norms
        at the end; passes, seconds per step and their ratio to `base`.
    """
    runs = per_run(noisy)
    plain = None if clean is None else per_run(clean)
    norms = _last_norms(noisy)
    rows = []
    base_seconds = runs.loc[runs["method"] == base, "step_seconds"].median()
    for method, own in runs.groupby("method", sort=False):
        row: dict[str, object] = {"method": method, "seeds": len(own)}
        for end in ENDS:
            column = SOURCES[end]
            values, bases, bests = (_by_seed(runs, name, column) for name in (str(method), base, best))
            over = interval(values.values())
            difference = paired_difference(values, bases)
            kept = share_of_gain(values, bases, bests)
            gain = paired_difference(bests, bases)
            if not gain.mean > 0 or gain.low <= 0:  # of what may be no gain no share can be kept
                kept = Interval(math.nan, math.nan, math.nan, math.nan, 0)
            row |= {f"{end}_mean": over.mean, f"{end}_sd": over.sd}
            row |= {f"{end}_difference": difference.mean, f"{end}_difference_low": difference.low}
            row |= {f"{end}_difference_high": difference.high}
            row |= {f"{end}_gain": kept.mean, f"{end}_gain_low": kept.low, f"{end}_gain_high": kept.high}
            if plain is not None:
                row[f"clean_{end}"] = interval(_by_seed(plain, str(method), column).values()).mean
        row["wrong_labels_fitted"] = float(own["last_noisy_fitted"].mean())
        row |= {name: norms.get((str(method), name), math.nan) for name in ("hidden_activation_norm", "last_layer_norm")}
        row |= _mechanism(mechanism, str(method))
        forward, backward = float(own["forward_passes"].mean()), float(own["backward_passes"].mean())
        row |= {"forward_passes": forward, "backward_passes": backward, "passes": (forward + 2 * backward) / 3}
        seconds = float(own["step_seconds"].median())
        row |= {"step_seconds": seconds, "seconds_ratio": seconds / base_seconds if base_seconds else math.nan}
        if costs is not None:
            timed = costs[costs["method"] == method]
            row |= {name: float(timed[name].iloc[0]) if len(timed) else math.nan for name in ("step_seconds", "seconds_ratio")}
        rows.append(row)
    return pd.DataFrame(rows)


def _by_seed(runs: pd.DataFrame, method: str, column: str) -> dict[int, float]:
    own = runs[runs["method"] == method]
    return {int(seed): float(value) for seed, value in zip(own["seed"], own[column], strict=True)}


def _last_norms(runs: RunCollection) -> dict[tuple[str, str], float]:
    """Return the mean over seeds of the last measured norms on the probe set."""
    tables = as_tables(runs)
    metrics = tables.metrics
    found: dict[tuple[str, str], float] = {}
    kept = metrics[metrics["metric"].isin(["hidden_activation_norm", "last_layer_norm"]) & (metrics["group"] == "all")]
    methods = tables.facts.set_index("run")["method"]
    last = kept.sort_values("step").groupby(["run", "metric"])["value"].last().reset_index()
    last["method"] = last["run"].map(methods)
    for (method, name), value in last.groupby(["method", "metric"])["value"].mean().items():  # pyright: ignore[reportGeneralTypeIssues]
        found[str(method), str(name)] = float(value)
    return found


def _mechanism(table: pd.DataFrame | None, method: str) -> dict[str, float]:
    columns = [(quantity, group) for quantity in ("logit_weight", "jacobian_weight") for group in ("clean", "noisy")]
    if table is None:
        return {f"{quantity}_{group}": math.nan for quantity, group in columns}
    own = table[table["method"] == method]
    return {f"{quantity}_{group}": float(own.loc[own["group"] == group, quantity].mean()) for quantity, group in columns}
