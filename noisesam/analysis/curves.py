"""Curves over time: what is memorised, and how large activations and weights grow."""

from __future__ import annotations

import pandas as pd

from noisesam.analysis.inputs import Runs, Tables, as_tables, wide

MEMORISATION = {
    "predicts_true": ("train", "noisy", "predicts_true"),
    "predicts_observed": ("train", "noisy", "predicts_observed"),
    "predicts_other": ("train", "noisy", "predicts_other"),
    "clean_fitted": ("train", "clean", "accuracy"),
    "train_accuracy": ("train", "all", "accuracy"),
    "validation_accuracy": ("val", "all", "accuracy"),
    "test_accuracy": ("test", "all", "accuracy"),
}

NORMS = {
    "hidden_activation_norm": ("probe", "all", "hidden_activation_norm"),
    "hidden_activation_norm_clean": ("probe", "clean", "hidden_activation_norm"),
    "hidden_activation_norm_noisy": ("probe", "noisy", "hidden_activation_norm"),
    "last_layer_norm": ("probe", "all", "last_layer_norm"),
    "weight_norm": ("probe", "all", "weight_norm"),
    "distance_from_initialisation": ("probe", "all", "distance_from_initialisation"),
    "feature_rank": ("probe", "all", "feature_rank"),
}


def memorisation(runs: Runs | Tables) -> pd.DataFrame:
    """Return what becomes of the wrongly labelled training examples: true class, wrong label (memorised), or another.

    Args:
        runs: A collection, a run, or the tidy metrics.

    Returns:
        One row per run and evaluated step: run, method, setting, seed, step, epoch, predicts_true, predicts_observed,
        predicts_other (they sum to one; NaN without wrong labels), clean_fitted, train_accuracy, validation_accuracy,
        test_accuracy.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "step": 5, "epoch": 1.0, "split": "train"}
        >>> rows = [front | {"group": "noisy", "metric": "predicts_true", "value": 0.75}]
        >>> memorisation(pd.DataFrame(rows))["predicts_true"].tolist()
        [0.75]
    """
    return wide(as_tables(runs), MEMORISATION)


def norms(runs: Runs | Tables) -> pd.DataFrame:
    """Return the norms of the last hidden activation, of the last layer and of all weights over time.

    Args:
        runs: A collection, a run, or the tidy metrics.

    Returns:
        One row per run and probed step: run, method, setting, seed, step, epoch, hidden_activation_norm (mean over the probe
        set), hidden_activation_norm_clean, hidden_activation_norm_noisy, last_layer_norm, weight_norm,
        distance_from_initialisation, feature_rank.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "step": 5, "epoch": 1.0, "split": "probe"}
        >>> rows = [front | {"group": "all", "metric": "last_layer_norm", "value": 2.0}]
        >>> norms(pd.DataFrame(rows))["last_layer_norm"].tolist()
        [2.0]
    """
    return wide(as_tables(runs), NORMS)
