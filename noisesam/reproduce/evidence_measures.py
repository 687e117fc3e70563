"""What every run of a setting measured, as one row: read from the tables of `noisesam.analysis` and from the manifest."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from noisesam.analysis import early_stopping, gradient_weight, memorisation, noise_fitting_onset, norms, weights_against_loss
from noisesam.analysis.comparison import per_run
from noisesam.analysis.inputs import Runs, Tables, as_tables, wide
from noisesam.experiments import at_chance
from noisesam.reproduce.evidence import COLUMNS, MAIN
from noisesam.runs import Run

LOSS_BINS = 4
"""The lowest and the highest quarter of the losses are compared."""
DECAY = 0.25
"""The decay of the clean/noisy ratio is looked at over the first quarter of training: later the paths cross."""

_PLAIN_LOSSES = ("cross_entropy", "logistic", "mse")
_SHARPNESS = {name: ("probe", "all", name) for name in ("sharpness", "batch_sharpness")}
_NORMS = ("hidden_activation_norm", "last_layer_norm")


_COUNTED: dict[str, int | None] = {}


def parameters_of(run: Run) -> int | None:
    """Return the number of trainable weights of a run's model, None if it is not a registered one. Loads torch."""
    model, data = run.config.get("model") or {}, run.manifest["data"]
    classes = 1 if _loss(run) == "logistic" else data.get("classes")
    classes = len(classes) if isinstance(classes, list) else classes
    key = json.dumps([model, data.get("input_shape"), classes], sort_keys=True)
    if key not in _COUNTED:
        from noisesam import models

        _COUNTED[key] = None
        if model.get("name") in models.names() and data.get("input_shape") and classes:
            shape = tuple(data["input_shape"])
            made = models.make(model["name"], input_shape=shape, classes=classes, **model.get("options", {}))
            _COUNTED[key] = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    return _COUNTED[key]


def _loss(run: Run) -> str:
    stated = run.config.get("method")
    return str(stated.get("loss", "cross_entropy")) if isinstance(stated, dict) else "cross_entropy"


def method_of(run: Run) -> str:
    """Return the method of a run, with the loss behind a plus sign where it is a robust one."""
    loss = _loss(run)
    return run.method if loss in _PLAIN_LOSSES else f"{run.method} + {loss}"


def measure(runs: Runs, classes: int | None = None) -> pd.DataFrame:
    r"""Return what the claims need of every run, from the tables of `noisesam.analysis`.

    Args:
        runs: Saved runs, or a tidy metrics table.
        classes: Number of classes; None takes it from the manifests.

    Returns:
        One row per run, the columns of `evidence.COLUMNS` (`variant` is "main" throughout): accuracies and fitted
        fractions at the three ends of training (oracle, noisy validation, last); excluded (the reason why the run
        does not count, or empty); train_examples, parameters, tracked_rho (the radius of weights and sharpness);
        fitted_before_noise (fraction of the correctly labelled training examples that is fitted at the onset of noise
        fitting, the highest fraction where the onset is never reached); log_weight_ratio (logarithm of the
        clean/noisy ratio of the method's own step terms, mean over the time of the first quarter of training,
        trapezoidal between the probes); low_loss_factor (logarithm of the logit weight of the quarter of the probe
        with the lowest loss over that of the quarter with the highest, mean over probes after step 0 up to early
        stopping); norms and sharpness at the last probe. NaN where something was not measured.
    """
    tables = as_tables(runs)
    numbers = per_run(tables)
    frame = pd.DataFrame({"run": numbers["run"], "variant": MAIN, "seed": numbers["seed"], "method": numbers["method"]})
    frame = frame.assign(
        options="", excluded="", rho=math.nan, tracked_rho=math.nan, train_examples=math.nan, parameters=math.nan
    )
    for name in COLUMNS:
        if name in numbers.columns and name not in frame.columns:
            frame[name] = numbers[name]
    if not isinstance(runs, pd.DataFrame):
        about = {run.id: _about(run) for run in ([runs] if isinstance(runs, Run) else runs)}
        for name in ("method", "options", "excluded", "rho", "tracked_rho", "train_examples", "parameters"):
            frame[name] = [about[run][name] for run in frame["run"]]
    final = _final(tables)
    columns = {
        "last_train_accuracy": _stops(tables, "last")["train_accuracy"],
        "fitted_before_noise": _fitted_before_noise(tables, classes),
        "log_weight_ratio": _log_weight_ratio(tables),
        "low_loss_factor": _low_loss_factor(tables),
        **{name: final[name] for name in (*_NORMS, *_SHARPNESS)},
    }
    for name, values in columns.items():
        frame[name] = frame["run"].map(values).astype("float64")
    return frame[[*COLUMNS]]


def _about(run: Run) -> dict[str, Any]:
    """Read from the manifest what no table holds."""
    stated = run.config.get("method")
    options = {key: value for key, value in (stated if isinstance(stated, dict) else {}).items() if key not in ("name", "loss")}
    rho = _number(options.get("rho"))
    tracked = _number((run.config.get("tracking") or {}).get("rho"))
    excluded = "did not finish" if run.status != "finished" else "stayed at chance" if _at_chance(run) else ""
    return {
        "method": method_of(run),
        "options": ", ".join(f"{key}={value}" for key, value in sorted(options.items())),
        "excluded": excluded,
        "rho": rho,
        "tracked_rho": tracked if tracked == tracked else rho,
        "train_examples": _number(run.manifest["data"].get("train")),
        "parameters": _number(parameters_of(run)),
    }


def _at_chance(run: Run) -> bool:
    """Say whether nothing was learnt; not to be told, and so not said, without validation examples."""
    return bool(run.manifest["data"].get("validation")) and at_chance(run)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _stops(tables: Tables, selection: str) -> pd.DataFrame:
    stops = early_stopping(tables)
    return stops[stops["selection"] == selection].set_index("run")


def _fitted_before_noise(tables: Tables, classes: int | None) -> dict[str, float]:
    """Return the fraction of correctly labelled examples fitted at the onset; the highest one where there is no onset."""
    if classes is None and not tables.facts["classes"].notna().all():
        return {}
    onset = noise_fitting_onset(tables, classes)
    highest = memorisation(tables).groupby("run")["clean_fitted"].max()
    found = {}
    for row in onset.to_dict("records"):
        resisted = row["noisy_count"] > 0 and not row["reached"]
        found[row["run"]] = float(highest.get(row["run"], math.nan)) if resisted else float(row["clean_fitted"])
    return found


def _log_weight_ratio(tables: Tables) -> dict[str, float]:
    """Return the time mean of the logarithm of clean/noisy, step terms on the method's own path, early in training."""
    weight = gradient_weight(tables)
    weight = weight[weight["ratio"] > 0]
    planned, measured = tables.facts.set_index("run")["epochs"], tables.metrics.groupby("run")["epoch"].max()
    found = {}
    for run, own in weight.groupby("run", sort=False):
        epochs = float(planned[run]) if planned[run] == planned[run] else float(measured[run])
        early = own[own["epoch"] <= DECAY * epochs + 1e-9]
        if len(early) < 2:
            continue
        times, logs = early["epoch"].to_numpy(dtype=float), np.log(early["ratio"].to_numpy(dtype=float))
        found[str(run)] = float(np.trapezoid(logs, times) / (times[-1] - times[0]))
    return found


def _low_loss_factor(tables: Tables) -> dict[str, float]:
    """Return the logarithm of the logit weight at the lowest losses over that at the highest, up to early stopping."""
    if tables.examples is None or tables.examples.empty:
        return {}
    weights = weights_against_loss(tables, bins=LOSS_BINS)
    weights = weights[(weights["group"] == "all") & (weights["step"] > 0) & (weights["logit_weight"] > 0)]
    ends = {
        name: weights[weights["bin"] == place].set_index(["run", "step", "epoch"])["logit_weight"].astype("float64")
        for name, place in (("low", 0), ("high", LOSS_BINS - 1))
    }
    factors = (ends["low"] / ends["high"]).dropna().map(math.log).rename("factor").reset_index()
    factors = factors.sort_values("step", kind="stable")
    stop = _stops(tables, "validation")["epoch"].fillna(_stops(tables, "oracle")["epoch"])
    found = {}
    for run, own in factors.groupby("run", sort=False):
        until = float(stop.get(run, math.nan))
        before = own[own["epoch"] <= until + 1e-9] if until == until else own
        chosen = before if len(before) else own.head(1)
        found[str(run)] = float(chosen["factor"].mean())
    return found


def _final(tables: Tables) -> pd.DataFrame:
    """Return the last measured norms and sharpness, by run."""
    rows = norms(tables).merge(wide(tables, _SHARPNESS), on=["run", "step"], how="outer", suffixes=("", "_again"))
    rows = rows.sort_values("step", kind="stable")
    return rows.groupby("run")[[*_NORMS, *_SHARPNESS]].last()
