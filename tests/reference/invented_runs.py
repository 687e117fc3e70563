"""Invented runs on disk, small, every number of which is an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from noisesam.runs import EXAMPLES_COLUMNS, Run, RunWriter, open_run

EPOCHS = 8
PROBE = 8


def invent(
    path: Path,
    method: str = "sgd",
    seed: int = 0,
    *,
    test: tuple[float, ...] = (0.1, 0.5, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5),
    validation: tuple[float, ...] | None = (0.1, 0.3, 0.5, 0.45, 0.4, 0.4, 0.4, 0.4, 0.4),
    clean: tuple[float, ...] = (0.1, 0.5, 0.8, 0.9, 0.95, 1.0, 1.0, 1.0, 1.0),
    noisy: tuple[float, ...] = (0.1, 0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9, 0.9),
    low_weight: tuple[float, ...] = (9.0, 2.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0),
    ratio: tuple[float, ...] = (1.0, 0.5, 0.25, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0),
    norm: float = 3.0,
    options: dict[str, Any] | None = None,
    sections: dict[str, Any] | None = None,
    sizes: dict[str, Any] | None = None,
    finish: bool = True,
) -> Run:
    """Write a run of eight epochs with one number per epoch, 0 to 8, for everything that is followed.

    The quarter of the probe with the lowest loss has the logit weight `low_weight`, the others 1; the step terms of correctly
    labelled examples are `ratio` times those of wrongly labelled ones.
    """
    config = {
        "data": {"name": "digits", "train_size": 1200, "validation_size": 200},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "mlp", "options": {"hidden": [16]}},
        "method": {"name": method, **(options or {})},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": EPOCHS},
        "tracking": {"rho": 0.1},
        "seed": seed,
    } | (sections or {})
    data = {"classes": 10, "train": 1000, "validation": 200, "test": 500, "input_shape": [1, 8, 8], **(sizes or {})}
    writer = RunWriter.create(path, config=config, seeds={"init": seed}, noise={"kind": "symmetric"}, data=data)
    for epoch in range(EPOCHS + 1):
        place = {"step": 10 * epoch, "epoch": float(epoch)}
        values: dict[tuple[str, str, str], float] = {
            ("test", "all", "accuracy"): test[epoch],
            ("train", "all", "accuracy"): 0.6 * clean[epoch] + 0.4 * noisy[epoch],
            ("train", "clean", "accuracy"): clean[epoch],
            ("train", "noisy", "predicts_observed"): noisy[epoch],
            ("train", "noisy", "count"): 400.0,
            ("probe", "clean", "step_gradient_norm"): ratio[epoch],
            ("probe", "noisy", "step_gradient_norm"): 1.0,
            ("probe", "all", "hidden_activation_norm"): norm * epoch / EPOCHS,
            ("probe", "all", "last_layer_norm"): norm,
            ("probe", "all", "sharpness"): 0.1 * norm,
            ("probe", "all", "batch_sharpness"): 0.01 * norm,
        }
        if validation is not None:
            values |= {("val", "all", "accuracy"): validation[epoch], ("val", "all", "count"): 200.0}
        writer.add_examples(_examples(place, low_weight[epoch]))
        writer.add_metrics(
            [{**place, "split": s, "group": g, "metric": m, "value": value} for (s, g, m), value in values.items()]
        )
    writer.flush(10 * EPOCHS)
    writer.finish() if finish else writer.close()
    return open_run(path)


def _examples(place: dict[str, float], low_weight: float) -> dict[str, np.ndarray]:
    columns = {column.name: np.ones(PROBE) for column in EXAMPLES_COLUMNS}
    label = np.arange(PROBE) % 10
    columns |= {"step": np.full(PROBE, int(place["step"])), "epoch": np.full(PROBE, place["epoch"])}
    columns |= {"example": np.arange(PROBE), "label": label, "clean_label": label, "predicted": label}
    columns["loss"] = np.arange(PROBE, dtype=float)
    columns["logit_weight"] = np.where(np.arange(PROBE) < PROBE // 4, low_weight, 1.0)
    return columns
