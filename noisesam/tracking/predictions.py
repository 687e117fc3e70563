"""Predicted class and margin of a batch of logits, for one logit and for many."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from noisesam.errors import InputError
from noisesam.gradients.batch import logits_of

NO_CLASS = -1


def decision_threshold(loss_name: str) -> float:
    """Return the output above which one logit means class 1: half way between the targets 0 and 1 for the squared error."""
    return 0.5 if loss_name == "mse" else 0.0


def predicted_classes(logits: Float[Tensor, "n classes"], *, threshold: float = 0.0) -> Int[Tensor, " n"]:
    """Return the class with the largest logit; with one logit, class 1 where it lies above the threshold.

    Of logits with a NaN none is the largest: -1, which is no class, so that the answer counts as wrong.

    Args:
        logits: shape (n, classes), or (n, 1) for one logit.
        threshold: decision threshold of one logit.

    Returns:
        Classes of shape (n,), int64.

    Example:
        >>> predicted_classes(torch.tensor([[0.1, 2.0], [3.0, 1.0]])), predicted_classes(torch.tensor([[-0.3], [0.2]]))
        (tensor([1, 0]), tensor([0, 1]))
    """
    chosen = (logits[:, 0] > threshold).long() if logits.shape[1] == 1 else logits.argmax(1)
    return chosen.masked_fill(logits.isnan().any(1), NO_CLASS)


def margins(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, threshold: float = 0.0) -> Float[Tensor, " n"]:
    """Return the margin of the observed label: its logit minus the largest other one; t f for one logit, t = 2 label - 1.

    Args:
        logits: shape (n, classes), or (n, 1) for one logit.
        labels: observed classes, shape (n,).
        threshold: decision threshold of one logit; the margin is t (f - threshold).

    Returns:
        Margins in logits, shape (n,); negative where another class is predicted.

    Example:
        >>> margins(torch.tensor([[1.0, 3.0]]), torch.tensor([0])), margins(torch.tensor([[3.0]]), torch.tensor([0]))
        (tensor([-2.]), tensor([-3.]))
    """
    if logits.shape[1] == 1:
        return (2 * labels - 1) * (logits[:, 0] - threshold)
    observed = labels.unsqueeze(1)
    return logits.gather(1, observed)[:, 0] - logits.scatter(1, observed, -torch.inf).amax(1)


def as_logits(outputs: Any, count: int) -> Float[Tensor, "n classes"]:
    """Return what a model has returned as (n, classes); logits of shape (n,) are one of each."""
    outputs = logits_of(outputs)
    if outputs.dim() == 1:
        outputs = outputs.unsqueeze(1)
    if outputs.dim() != 2 or outputs.shape[0] != count:
        raise InputError(
            f"Outputs of shape {tuple(outputs.shape)} for {count} inputs",
            expected="logits of shape (n, classes), or (n, 1) for one logit",
        )
    return outputs
