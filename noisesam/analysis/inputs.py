"""What every analysis starts from: one tidy table of all runs, and the facts about each run that no row holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from noisesam.errors import InputError
from noisesam.runs.collection import RUN_COLUMNS, RunCollection
from noisesam.runs.manifest import flatten
from noisesam.runs.reader import Run
from noisesam.runs.schema import METRICS_COLUMNS

FRONT = [*RUN_COLUMNS]
TIME = ["step", "epoch"]
SELECTIONS = ("oracle", "validation", "last")

_EXPERIMENT = ("data", "noise", "model")
_MEASUREMENT = ("tracking", "checkpoint", "seed")

Runs = RunCollection | Run | pd.DataFrame
"""What every public function of this room accepts."""


@dataclasses.dataclass(frozen=True)
class Tables:
    """The runs as tables.

    Attributes:
        metrics: FRONT and the metrics columns.
        examples: FRONT and the examples columns; None where only the metrics were handed in.
        facts: One row per run: FRONT, classes and epochs (NaN if unknown), status, experiment (what the data, the noise and
            the model are), experiment_label (what sets it apart here), protocol (all but method and seed).
    """

    metrics: pd.DataFrame
    examples: pd.DataFrame | None
    facts: pd.DataFrame


def as_tables(runs: Runs | Tables) -> Tables:
    """Bring a collection, one run or a tidy metrics table into `Tables`.

    Raises:
        InputError: Nothing there, a column missing, or two runs with one method, setting and seed.
    """
    if isinstance(runs, Tables):
        return runs
    if isinstance(runs, pd.DataFrame):
        return _from_frame(runs)
    collection = RunCollection([runs]) if isinstance(runs, Run) else runs
    if not len(collection):
        raise InputError(
            "No run to analyse", expected="at least one saved run", remedy="See the collection's .problems for those left out"
        )
    facts = pd.DataFrame([_facts(run, collection.setting(run)) for run in collection])
    _refuse_doubles(facts, "Open them together with noisesam.open_runs, which leaves the second of two copies out")
    facts["experiment_label"] = _experiment_labels(facts)
    return Tables(_finite(collection.metrics), _finite(collection.examples), facts)


def _from_frame(frame: pd.DataFrame) -> Tables:
    needed = [*FRONT, *(column.name for column in METRICS_COLUMNS)]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InputError(
            f"The table lacks the column {missing[0]!r}",
            expected=", ".join(needed),
            remedy="Hand in RunCollection.metrics, or the collection",
        )
    facts = frame[FRONT].drop_duplicates().reset_index(drop=True)
    if facts.empty:
        raise InputError("The table has no rows", expected="the metrics of at least one run")
    _refuse_doubles(facts, "Name what differs in the column setting")
    facts = facts.assign(
        classes=float("nan"), epochs=float("nan"), status="unknown", experiment="", experiment_label="", protocol=""
    )
    return Tables(_finite(frame), None, facts)


def _refuse_doubles(facts: pd.DataFrame, remedy: str) -> None:
    """Refuse two runs that are one: counted as two seeds they would make every interval too narrow."""
    for names in (["run"], ["method", "setting", "seed"]):
        doubled = facts[facts.duplicated(names)]
        if len(doubled):
            value = ", ".join(str(doubled.iloc[0][name]) for name in names)
            raise InputError(
                f"Two runs share {' and '.join(names)} ({value})",
                expected="one run per method, setting and seed",
                remedy=remedy,
            )


def _finite(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn infinite values, which a run leaves where it diverged, into NaN: no mean and no difference can be taken of them."""
    numbers = [name for name in frame.columns if frame[name].dtype == "float64"]
    return frame.assign(**{name: frame[name].mask(np.isinf(frame[name].to_numpy())) for name in numbers})


def _facts(run: Run, setting: str) -> dict[str, Any]:
    config = run.manifest["configuration"]
    training = config.get("training")
    epochs = training.get("epochs") if isinstance(training, dict) else None
    file = run.manifest.get("data_file")
    identity = {"file": str(file.get("sha256"))[:12]} if isinstance(file, dict) else {}
    experiment = {name: config.get(name) for name in _EXPERIMENT} | identity
    protocol = {name: value for name, value in config.items() if name not in (*_MEASUREMENT, "method")} | identity
    return {
        "run": run.id,
        "method": run.method,
        "setting": setting,
        "seed": run.seed,
        "classes": _classes(run.manifest),
        "epochs": float(epochs) if isinstance(epochs, (int, float)) else float("nan"),
        "status": run.status,
        "experiment": json.dumps(experiment, sort_keys=True),
        "protocol": json.dumps(protocol, sort_keys=True),
    }


def _classes(manifest: Mapping[str, Any]) -> float:
    stated = manifest["data"].get("classes")
    if isinstance(stated, list):
        return float(len(stated))
    if isinstance(stated, int) and not isinstance(stated, bool):
        return float(stated)
    matrix = (manifest.get("noise") or {}).get("transition_matrix")
    return float(len(matrix)) if isinstance(matrix, list) and matrix else float("nan")


def _experiment_labels(facts: pd.DataFrame) -> list[str]:
    """Name each experiment by the keys in which the experiments differ."""
    leaves = {text: dict(flatten(json.loads(text))) for text in facts["experiment"].unique()}
    keys = sorted({key for own in leaves.values() for key in own})
    different = [key for key in keys if len({json.dumps(own.get(key)) for own in leaves.values()}) > 1]
    labels = {
        text: ", ".join(f"{key}={own[key]}" for key in different if own.get(key) is not None) for text, own in leaves.items()
    }
    return [labels[text] for text in facts["experiment"]]


def wide(tables: Tables, columns: Mapping[str, tuple[str, str, str]]) -> pd.DataFrame:
    """Turn rows of the tidy table into columns.

    Args:
        tables: The runs.
        columns: Name of the new column -> (split, group, metric).

    Returns:
        FRONT, step, epoch and the new columns, NaN where not measured: one row per run and step at which at least one of
        them was measured, in the order of the runs and by step.
    """
    wanted = pd.DataFrame([(*key, name) for name, key in columns.items()], columns=["split", "group", "metric", "column"])
    picked = tables.metrics[["run", *TIME, "split", "group", "metric", "value"]].merge(wanted, on=["split", "group", "metric"])
    picked = picked.drop_duplicates(["run", "step", "column"], keep="last")
    values = picked.pivot(index=["run", "step"], columns="column", values="value").reindex(columns=[*columns])  # noqa: PD010
    values = values.rename_axis(columns=None).reset_index()
    times = picked.drop_duplicates(["run", "step"])[["run", *TIME]]
    return in_front(tables, values.merge(times, on=["run", "step"]), [*columns])


def in_front(tables: Tables, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Join the columns of FRONT to a table with run, step and epoch; runs in their order, steps ascending."""
    order = tables.facts[FRONT].assign(order=range(len(tables.facts)))
    joined = frame.merge(order, on="run").sort_values(["order", "step"], kind="stable")
    return joined[[*FRONT, *TIME, *columns]].reset_index(drop=True)


def table(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Make a table of rows with its columns, also where there is no row."""
    return pd.DataFrame(rows, columns=columns)
