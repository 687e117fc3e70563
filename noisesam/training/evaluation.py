"""Accuracy, loss, margin and the fate of the wrong labels, by split and group, without touching the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from noisesam.tracking.predictions import as_logits, decision_threshold, margins, predicted_classes
from noisesam.tracking.undisturbed import undisturbed

if TYPE_CHECKING:
    from noisesam.data import NoisyDataset

CHUNK_SIZE = 512


def evaluate(
    model: nn.Module,
    dataset: NoisyDataset,
    *,
    split: str,
    loss: Any = "cross_entropy",
    chunk_size: int = CHUNK_SIZE,
) -> list[dict[str, Any]]:
    """Measure a model on a data set in evaluation mode; the model, its modes and torch's generators are left as they were.

    Written for every group are accuracy (against the observed label), mean loss, mean margin and the count; on the noisy part
    of the training set also the fractions that predict the true class, the wrong observed label (memorised) and another one.
    Groups are `all` and, where the true labels are known, `clean` and `noisy`; a mean over no example is NaN.

    Args:
        model: the model.
        dataset: the examples, on the model's device.
        split: one of `noisesam.runs.schema.SPLITS`.
        loss: "cross_entropy", "logistic", "mse" or a callable (logits, targets) -> losses of shape (n,).
        chunk_size: examples per forward pass.

    Returns:
        Rows of `group`, `metric`, `value` and `split`, as in `noisesam.runs.schema.METRICS_COLUMNS`.

    Raises:
        InputError: labels out of range for the model's outputs, or outputs of a wrong shape.

    Example:
        >>> import noisesam
        >>> data = noisesam.data.gaussian(50, 4, signal=100.0, noise_std=0.1, seed=0)
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        >>> rows = evaluate(model, data, split="test", loss="logistic")
        >>> next(row["value"] for row in rows if row["metric"] == "accuracy" and row["group"] == "all")
        1.0
    """
    from noisesam.gradients import losses

    columns = _columns(model, dataset, losses.resolve(loss), chunk_size)
    labels = dataset.labels.cpu().numpy()
    columns["accuracy"] = (columns["predicted"] == labels).astype(np.float64)
    groups = {"all": np.ones(len(labels), dtype=bool)}
    noisy = dataset.is_noisy
    if noisy is not None:
        groups["noisy"] = noisy.cpu().numpy().astype(bool)
        groups["clean"] = ~groups["noisy"]
    values: dict[tuple[str, str], float] = {}
    for group, mask in sorted(groups.items()):
        for metric in ("accuracy", "loss", "margin"):
            values[metric, group] = _mean(columns[metric][mask])
        values["count", group] = float(mask.sum())
    if split == "train" and dataset.clean_labels is not None:
        predicted, wrong = columns["predicted"][groups["noisy"]], groups["noisy"]
        true, observed = dataset.clean_labels.cpu().numpy()[wrong], labels[wrong]
        values["predicts_true", "noisy"] = _mean((predicted == true).astype(np.float64))
        values["predicts_observed", "noisy"] = _mean((predicted == observed).astype(np.float64))
        values["predicts_other", "noisy"] = _mean(((predicted != true) & (predicted != observed)).astype(np.float64))
    return [{"split": split, "group": group, "metric": metric, "value": value} for (metric, group), value in values.items()]


def _columns(model: nn.Module, dataset: NoisyDataset, loss: Any, chunk_size: int) -> dict[str, np.ndarray]:
    """Return loss, margin and predicted class of every example, float64."""
    threshold = decision_threshold(loss.name)
    parts: dict[str, list[np.ndarray]] = {"loss": [], "margin": [], "predicted": []}
    with undisturbed(model), torch.no_grad():
        for start in range(0, len(dataset), chunk_size):
            rows = slice(start, start + chunk_size)
            labels = dataset.labels[rows]
            logits = as_logits(model(dataset.inputs[rows]), len(labels))
            for name, values in (
                ("loss", loss(logits, labels)),
                ("margin", margins(logits, labels, threshold=threshold)),
                ("predicted", predicted_classes(logits, threshold=threshold)),
            ):
                parts[name].append(values.to("cpu", torch.float64).numpy())
    return {name: np.concatenate([np.empty(0), *values]) for name, values in parts.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
