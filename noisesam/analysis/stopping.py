"""Early stopping as three numbers, the onset of noise fitting, and runs compared at equal clean accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from noisesam.analysis.inputs import FRONT, SELECTIONS, TIME, Runs, Tables, as_tables, table, wide
from noisesam.errors import InputError

EVALUATION = {
    "test_accuracy": ("test", "all", "accuracy"),
    "validation_accuracy": ("val", "all", "accuracy"),
    "train_accuracy": ("train", "all", "accuracy"),
    "clean_fitted": ("train", "clean", "accuracy"),
    "noisy_fitted": ("train", "noisy", "predicts_observed"),
}
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def early_stopping(runs: Runs | Tables) -> pd.DataFrame:
    """Return where each run stops, and what it has learned there, by each of three selections.

    oracle: the first evaluation with the highest test accuracy, an upper bound that no one can select in practice;
    validation: the first with the highest accuracy on the noisy validation examples; last: the last evaluation.

    Args:
        runs: A collection, a run, or the tidy metrics.

    Returns:
        One row per run and selection: run, method, setting, seed, selection, step, epoch, test_accuracy,
        validation_accuracy, train_accuracy, clean_fitted, noisy_fitted, gap (the oracle's test accuracy minus this one's).
        A selection that was not possible has NaN throughout.

    Raises:
        InputError: No runs, or a table without the needed columns.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "split": "test", "group": "all"}
        >>> rows = [{"metric": "accuracy", "step": s, "epoch": float(s), "value": v} for s, v in enumerate([0.1, 0.9, 0.7])]
        >>> curve = pd.DataFrame([front | row for row in rows])
        >>> early_stopping(curve)[["selection", "step", "test_accuracy"]].values.tolist()
        [['oracle', 1.0, 0.9], ['validation', nan, nan], ['last', 2.0, 0.7]]
    """
    tables = as_tables(runs)
    evaluations = wide(tables, EVALUATION)
    rows = []
    for run, front in _fronts(tables):
        own = evaluations[evaluations["run"] == run]
        own = own[own[["test_accuracy", "validation_accuracy", "train_accuracy"]].notna().any(axis=1)]
        chosen = {
            "oracle": _argmax(own, "test_accuracy"),
            "validation": _argmax(own, "validation_accuracy"),
            "last": len(own) - 1,
        }
        best = own["test_accuracy"].max()
        for selection in SELECTIONS:
            place = chosen[selection]
            found = own.iloc[place] if place >= 0 else pd.Series(math.nan, index=own.columns)
            values = {name: float(found[name]) for name in [*TIME, *EVALUATION]}
            rows.append({**front, "selection": selection, **values, "gap": best - values["test_accuracy"]})
    return table(rows, [*FRONT, "selection", *TIME, *EVALUATION, "gap"])


def _fronts(tables: Tables) -> list[tuple[str, dict]]:
    return [(row["run"], row) for row in tables.facts[FRONT].to_dict("records")]


def _argmax(frame: pd.DataFrame, column: str) -> int:
    """Position of the first highest value, -1 if there is none."""
    values = frame[column].to_numpy(dtype=float)
    return int(np.nanargmax(values)) if np.isfinite(values).any() else -1


def noise_fitting_onset(runs: Runs | Tables, classes: int | None = None) -> pd.DataFrame:
    r"""Return when each run begins to fit the wrong labels.

    The onset is the first of two successive evaluations at which the fraction of wrongly labelled training examples that are
    given their wrong label exceeds chance by two binomial standard errors: $p + 2\sqrt{p(1-p)/n}$, $p = 1/K$.

    Args:
        runs: A collection, a run, or the tidy metrics.
        classes: K; None takes it from the manifests.

    Returns:
        One row per run: run, method, setting, seed, reached, step, epoch, noisy_fitted, clean_fitted, test_accuracy, chance,
        threshold, noisy_count. NaN where the onset was not reached or no wrong label is known.

    Raises:
        InputError: The number of classes is not known, or below two.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "split": "train", "group": "noisy"}
        >>> rows = [front | {"metric": "predicts_observed", "step": s, "epoch": float(s), "value": v}
        ...         for s, v in enumerate([0.1, 0.3, 0.1, 0.2, 0.4])]
        >>> rows += [front | {"metric": "count", "step": s, "epoch": float(s), "value": 400.0} for s in range(5)]
        >>> float(noise_fitting_onset(pd.DataFrame(rows), classes=10)["step"].iloc[0])
        3.0
    """
    tables = as_tables(runs)
    columns = EVALUATION | {"noisy_count": ("train", "noisy", "count")}
    evaluations = wide(tables, columns)
    known = dict(zip(tables.facts["run"], tables.facts["classes"], strict=True))
    rows = []
    for run, front in _fronts(tables):
        count_of_classes = float(classes) if classes is not None else known[run]
        if not count_of_classes >= 2:
            number = "unknown" if math.isnan(count_of_classes) else int(count_of_classes)
            raise InputError(
                f"The number of classes of run {run!r} is {number}",
                expected="at least 2",
                remedy="Hand in classes=",
            )
        own = evaluations[(evaluations["run"] == run) & evaluations["noisy_fitted"].notna()]
        chance = 1 / count_of_classes
        count = float(own["noisy_count"].iloc[-1]) if len(own) else math.nan
        threshold = chance + 2 * math.sqrt(chance * (1 - chance) / count) if count > 0 else math.nan
        above = own["noisy_fitted"].to_numpy(dtype=float) > threshold
        onset = np.flatnonzero(above[:-1] & above[1:])
        found = own.iloc[onset[0]] if len(onset) else pd.Series(math.nan, index=evaluations.columns)
        at = {name: float(found[name]) for name in [*TIME, "noisy_fitted", "clean_fitted", "test_accuracy"]}
        rows.append({**front, "reached": len(onset) > 0, **at, "chance": chance, "threshold": threshold, "noisy_count": count})
    last = ["noisy_fitted", "clean_fitted", "test_accuracy", "chance", "threshold", "noisy_count"]
    return table(rows, [*FRONT, "reached", *TIME, *last])


def at_equal_clean_accuracy(runs: Runs | Tables, levels: Iterable[float] = LEVELS) -> pd.DataFrame:
    """Return what each run has learned when it first fits a given fraction of the correctly labelled training examples.

    A method that fits slowly has fitted less of everything at any one epoch; at equal clean accuracy that excuse is gone.

    Args:
        runs: A collection, a run, or the tidy metrics.
        levels: Training accuracies in [0, 1].

    Returns:
        One row per run and level: run, method, setting, seed, level, group ("clean", or "all" for a run without true labels),
        reached, step, epoch, fitted (the accuracy there, at least the level), test_accuracy, validation_accuracy,
        noisy_fitted; NaN where the level was not reached.

    Raises:
        InputError: A level outside [0, 1].

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "split": "train", "group": "clean"}
        >>> rows = [{"metric": "accuracy", "step": s, "epoch": float(s), "value": v} for s, v in enumerate([0.1, 0.8, 1.0])]
        >>> curve = pd.DataFrame([front | row for row in rows])
        >>> at_equal_clean_accuracy(curve, levels=[0.5])[["step", "fitted"]].values.tolist()
        [[1.0, 0.8]]
    """
    chosen = [float(level) for level in levels]
    if not all(0 <= level <= 1 for level in chosen):
        raise InputError(f"levels={chosen}", expected="training accuracies between 0 and 1", remedy="Write 0.9 for 90%")
    tables = as_tables(runs)
    evaluations = wide(tables, EVALUATION)
    rows = []
    for run, front in _fronts(tables):
        own = evaluations[evaluations["run"] == run]
        group = "clean" if own["clean_fitted"].notna().any() else "all"
        fitted = own["clean_fitted"] if group == "clean" else own["train_accuracy"]
        for level in chosen:
            places = np.flatnonzero(fitted.to_numpy(dtype=float) >= level)
            found = own.iloc[places[0]] if len(places) else pd.Series(math.nan, index=own.columns)
            at = {name: float(found[name]) for name in [*TIME, "test_accuracy", "validation_accuracy", "noisy_fitted"]}
            there = float(fitted.iloc[places[0]]) if len(places) else math.nan
            rows.append({**front, "level": level, "group": group, "reached": len(places) > 0, "fitted": there, **at})
    last = ["fitted", "test_accuracy", "validation_accuracy", "noisy_fitted"]
    return table(rows, [*FRONT, "level", "group", "reached", *TIME, *last])
