"""What is chosen, and what is flagged, by the noisy validation labels alone: no test label and no true label takes part."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisesam.errors import InputError, NoisesamError, RunError
from noisesam.runs import Run, open_run

COLUMNS = ["method", "try", "tried", "validation_accuracy", "best_epoch", "at_chance", "chosen"]


def at_chance(run: Run) -> bool:
    r"""Say whether a run has learnt nothing that shows: its validation accuracy never stayed above chance.

    With $K$ classes and $n$ validation examples the bound is $p + 2\sqrt{p(1-p)/n}$, $p = 1/K$. Two successive evaluations
    after the start have to lie above it: of many evaluations of a network that knows nothing, one lies above it by luck. Where
    training was evaluated only once, that one has to. A perturbation too large for the network keeps it at chance for the whole
    of training.

    Args:
        run: A run with a validation split; its labels are as noisy as the training labels.

    Returns:
        True if no two successive evaluations were above the bound.

    Raises:
        InputError: The run has no validation accuracy, or does not say how many classes there are.

    Example:
        >>> import tempfile
        >>> from noisesam.training import fit
        >>> config = {"data": {"train_size": 300, "validation_size": 100}, "model": {"name": "linear"},
        ...           "training": {"epochs": 2, "threads": 1}, "tracking": {"probe_size": 0}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     at_chance(fit(config, Path(folder) / "learns"))
        ...     at_chance(fit(config | {"optimizer": {"lr": 0.0}}, Path(folder) / "stands still"))
        False
        True
    """
    metrics = run.metrics
    own = metrics[(metrics["split"] == "val") & (metrics["group"] == "all")].sort_values("step", kind="stable")
    accuracy = own[own["metric"] == "accuracy"].dropna(subset="value")
    classes = run.manifest["data"].get("classes")
    if accuracy.empty or not isinstance(classes, int) or classes < 2:
        raise InputError(
            f"The run {run.id} has {'no validation accuracy' if accuracy.empty else f'{classes} classes'}",
            expected="evaluations on a noisy validation split, of two classes or more",
            remedy="Set data.validation_size",
        )
    count = float(own.loc[own["metric"] == "count", "value"].iloc[-1])
    chance = 1 / classes
    trained = accuracy[accuracy["step"] > 0]  # before the first step there is nothing to judge
    bound = chance + 2 * math.sqrt(chance * (1 - chance) / count)
    above = (trained if len(trained) else accuracy)["value"].to_numpy(float) > bound
    return not bool(above.any() if len(above) == 1 else (above[:-1] & above[1:]).any())


def chosen_by_validation(
    tries: Mapping[tuple[str, int], Sequence[Path]], grids: Mapping[str, Sequence[Mapping[str, Any]]]
) -> pd.DataFrame:
    """Return every try of every method with its noisy validation accuracy, and which try is taken.

    The accuracy of a run is that of its best epoch; that of a try is the mean over its runs (the tuning seeds). The highest is
    taken, the first of equal ones. A try with a run that did not finish is not taken.

    Args:
        tries: (method, number of the try) -> the folders of its runs, one per tuning seed; none where a method has one try.
        grids: method -> what is tried.

    Returns:
        One row per method and try: method, try (number), tried (JSON), validation_accuracy (NaN without finished runs),
        best_epoch (mean over seeds), at_chance (bool: every run of the try is at chance), chosen (number of the try taken).

    Raises:
        InputError: A run without a validation split.
        RunError: No try of a method has finished.

    Example:
        >>> chosen_by_validation({}, {"sgd": [{}]})[["method", "tried", "chosen"]].values.tolist()
        [['sgd', '{}', 0]]
    """
    rows: list[dict[str, Any]] = []
    for method, grid in grids.items():
        own = [_result(tries.get((method, number), [])) for number in range(len(grid))]
        values = [result["validation_accuracy"] for result in own]
        known = [number for number, value in enumerate(values) if not math.isnan(value)]
        if not known and len(grid) > 1:
            raise RunError(
                f"No try of {method} has finished",
                expected="at least one that ends with a finite loss",
                remedy="Lower the values of its grid, or the learning rate",
            )
        best = max(known, key=lambda number: (values[number], -number), default=0)
        rows += [
            {"method": method, "try": number, "tried": json.dumps(grid[number], sort_keys=True), **result, "chosen": best}
            for number, result in enumerate(own)
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _result(folders: Sequence[Path]) -> dict[str, Any]:
    """Accuracy and epoch of one try, means over its runs."""
    accuracies, epochs, chance = [], [], []
    for folder in folders:
        try:
            run = open_run(folder)
        except NoisesamError:
            run = None
        if run is None or run.status != "finished":
            return {"validation_accuracy": math.nan, "best_epoch": math.nan, "at_chance": False}
        chance.append(at_chance(run))
        metrics = run.metrics
        own = metrics[(metrics["metric"] == "accuracy") & (metrics["split"] == "val") & (metrics["group"] == "all")]
        best = own.iloc[int(np.nanargmax(own["value"].to_numpy(float)))]
        accuracies.append(float(best["value"]))
        epochs.append(float(best["epoch"]))
    if not accuracies:
        return {"validation_accuracy": math.nan, "best_epoch": math.nan, "at_chance": False}
    return {
        "validation_accuracy": sum(accuracies) / len(accuracies),
        "best_epoch": sum(epochs) / len(epochs),
        "at_chance": all(chance),
    }
