"""Invented runs of the controls: six evaluations each, every number of which is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from noisesam.reproduce.controls_runs import ABOUT, ControlRuns, control_runs

SEEDS = (0, 1, 2)
CLEAN = (0.1, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Correctly labelled images fitted at steps 0, 10, ..., 50; the epoch that validation chooses is step 40."""

Point = dict[str, Any]


def point(label: str, method: str, early: float, last: float | None = None, **more: Any) -> Point:
    """Return one point: test accuracy at early stopping and at the last epoch, and what else is invented about it.

    Args:
        label: Its name.
        method: Its method.
        early: Test accuracy at the epoch with the highest noisy validation accuracy.
        last: At the last epoch; `early` if not given.
        **more: validation (accuracy at the best epoch), last_validation, fits (wrong labels at the end), clean70, clean80,
            clean90 (test accuracy where so much is fitted), place, loss, rho, activation, weight, seeds, spread (of a
            seed's own deviation), excluded (seed -> why), rate.
    """
    return {"label": label, "method": method, "early": early, "last": early if last is None else last, **more}


def control(name: str, points: Iterable[Point]) -> ControlRuns:
    """Return the runs of an invented control."""
    about, metrics = [], []
    for number, one in enumerate(points):
        generator = np.random.default_rng(number)
        seeds = one.get("seeds", SEEDS)
        wiggle = generator.permutation(len(seeds)) - (len(seeds) - 1) / 2
        for place, seed in enumerate(seeds):
            run = f"{one['label']}-seed{seed}"
            moved = 0.01 * seed + one.get("spread", 0.002) * float(wiggle[place])
            about.append(_about(one, run, seed))
            metrics += [(run, *row) for row in _rows(one, moved)]
    columns = ["run", "step", "epoch", "split", "group", "metric", "value"]
    return control_runs(name, pd.DataFrame(about, columns=[*ABOUT]), pd.DataFrame(metrics, columns=columns))


def _about(one: Mapping[str, Any], run: str, seed: int) -> dict[str, Any]:
    numbers = {name: float(one.get(name, math.nan)) for name in ("place", "rho", "activation", "weight")}
    return {
        "run": run,
        "label": one["label"],
        "method": one["method"],
        "loss": one.get("loss", "cross_entropy"),
        **numbers,
        "seed": seed,
        "excluded": one.get("excluded", {}).get(seed, ""),
        "realised_rate": one.get("rate", 0.4),
    }


def _rows(one: Mapping[str, Any], moved: float) -> list[tuple[int, float, str, str, str, float]]:
    """Return step, epoch, split, group, metric, value: six evaluations, and a price of one pass for SGD and two for others."""
    validation = one.get("validation", 0.6)
    at_validation = (0.1, validation - 0.04, validation - 0.03, validation - 0.02, validation, one.get("last_validation", 0.3))
    at_test = (0.1, *(one.get(f"clean{level}", one["early"]) + moved for level in (70, 80, 90)))
    at_test += (one["early"] + moved, one["last"] + moved)
    price = 1.0 if one["method"] == "sgd" else 2.0
    rows = []
    for place, clean in enumerate(CLEAN):
        at = (10 * place, float(place))
        rows += [
            (*at, "test", "all", "accuracy", at_test[place]),
            (*at, "val", "all", "accuracy", at_validation[place]),
            (*at, "train", "clean", "accuracy", clean),
            (*at, "train", "noisy", "predicts_observed", one.get("fits", 0.9) * place / 5),
        ]
        if place:
            costs = {"forward_passes": price, "backward_passes": price, "step_seconds": 0.01 * price}
            rows += [(*at, "train", "all", name, value) for name, value in costs.items()]
    return rows


def factor(
    name: str,
    gains: Mapping[float, float],
    *,
    methods: Iterable[str] = ("1-sam", "l-sam", "j-sam"),
    fits: Mapping[float, float] | None = None,
    **more: Any,
) -> ControlRuns:
    """Return a control over a factor: at each place SGD, and every method so much above it at both stops."""
    points = []
    for place, gain in gains.items():
        share = (fits or {}).get(place, 0.9)
        points.append(point(f"sgd-{place:g}", "sgd", 0.6, 0.5, place=place, fits=share, rate=place if place < 1 else 0.4))
        for method in methods:
            own = 0.0 if method == "l-sam" else gain
            points.append(
                point(
                    f"{method}-{place:g}",
                    method,
                    0.6 + own,
                    0.5 + own,
                    **{"clean90": 0.55 + own, "rho": 0.1, "place": place, "rate": place if place < 1 else 0.4, **more},
                )
            )
    return control(name, points)
