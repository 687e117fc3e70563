"""The analyses once more, one run and one example at a time, from the raw tables of one run."""

from __future__ import annotations

import itertools
import math
import statistics

import pandas as pd


def curve(metrics: pd.DataFrame, split: str, group: str, metric: str) -> dict[int, float]:
    found = {}
    for row in metrics.to_dict("records"):
        if (row["split"], row["group"], row["metric"]) == (split, group, metric):
            found[row["step"]] = row["value"]
    return found


def first_highest(values: dict[int, float]) -> int | None:
    best = None
    for step in sorted(values):
        if not math.isnan(values[step]) and (best is None or values[step] > values[best]):
            best = step
    return best


def onset(metrics: pd.DataFrame, classes: int) -> int | None:
    fitted = curve(metrics, "train", "noisy", "predicts_observed")
    counts = curve(metrics, "train", "noisy", "count")
    steps = sorted(fitted)
    for first, second in itertools.pairwise(steps):
        p, n = 1 / classes, counts[first]
        if all(fitted[step] > p + 2 * math.sqrt(p * (1 - p) / n) for step in (first, second)):
            return first
    return None


def group_of(example: dict) -> str:
    return "clean" if example["label"] == example["clean_label"] else "noisy"


def share_of_sum(examples: pd.DataFrame, step: int, quantity: str, group: str) -> float:
    total = part = 0.0
    for example in examples.to_dict("records"):
        if example["step"] == step:
            total += example[quantity]
            part += example[quantity] if group_of(example) == group else 0.0
    return part / total


def cumulative_ratio(metrics: pd.DataFrame, quantity: str) -> list[float]:
    clean, noisy = (curve(metrics, "probe", group, quantity) for group in ("clean", "noisy"))
    epochs = {row["step"]: row["epoch"] for row in metrics.to_dict("records")}
    steps = sorted(clean)
    ratios = [clean[steps[0]] / noisy[steps[0]]]
    areas = {"clean": 0.0, "noisy": 0.0}
    for first, second in itertools.pairwise(steps):
        for name, values in (("clean", clean), ("noisy", noisy)):
            areas[name] += (epochs[second] - epochs[first]) * (values[first] + values[second]) / 2
        ratios.append(areas["clean"] / areas["noisy"])
    return ratios


def loss_bins(examples: pd.DataFrame, step: int, group: str, bins: int) -> dict[int, dict[str, float]]:
    """Bin k holds the losses from the k-th to the (k+1)-th of `bins` equally spaced quantiles, the lower edge included."""
    probed = [row for row in examples.to_dict("records") if row["step"] == step]
    ranked = sorted(row["loss"] for row in probed)

    def quantile(q: float) -> float:
        place = q * (len(ranked) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ranked) - 1)
        return ranked[below] + (place - below) * (ranked[above] - ranked[below])

    found: dict[int, dict[str, float]] = {}
    for k in range(bins):
        low, high = quantile(k / bins), quantile((k + 1) / bins)
        members = [
            row
            for row in probed
            if (group == "all" or group_of(row) == group)
            and low <= row["loss"]
            and (row["loss"] < high or (k == bins - 1 and row["loss"] <= high))
        ]
        if not members:
            continue
        alive = [row for row in members if row["residual_norm"] > 0]
        found[k] = {
            "count": len(members),
            "loss": statistics.fmean(row["loss"] for row in members),
            "left_out": len(members) - len(alive),
            "logit_weight": sum(r["logit_weight"] * r["residual_norm"] for r in alive) / sum(r["residual_norm"] for r in alive),
            "logit_weight_median": statistics.median(r["logit_weight"] for r in alive),
            "jacobian_weight": sum(r["j_sam_gradient_norm"] for r in alive) / sum(r["gradient_norm"] for r in alive),
            "jacobian_weight_median": statistics.median(r["jacobian_weight"] for r in alive),
        }
    return found
