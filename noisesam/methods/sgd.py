"""Stochastic gradient descent: the baseline, and the cost of one pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from noisesam.gradients.batch import Batch
from noisesam.methods.base import Method
from noisesam.methods.result import Outcome, Scales


class SGD(Method):
    """The gradient of the mean loss at w: mean_i J_i(w)^T r_i(w).

    Args:
        model: Any module.
        loss: A name or a callable (logits, targets) -> losses (n,).
        chunk_size: Examples per chunk; changes memory, not the result beyond rounding.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = SGD(model).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> model.weight.grad.shape, result.forward_examples
        (torch.Size([2, 3]), 4)
    """

    name = "sgd"
    title = "Stochastic gradient descent"
    rule = "mean_i J_i(w)^T r_i(w)"
    cost = "F + B"
    passes = ("1", "1")
    reference = "Robbins, Monro 1951, A Stochastic Approximation Method"

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], scales: Scales) -> Outcome:
        gradient, logits, losses = self._mean_gradient(batch, parameters, scales.total)
        return Outcome(gradient, logits, losses, batch.size, batch.size)
