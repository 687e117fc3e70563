"""Stochastic gradient descent: the baseline, and the cost of one pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from noisesam.gradients.batch import Batch
from noisesam.gradients.engine.selection import check_engine
from noisesam.methods.base import Method
from noisesam.methods.checks import check_flag
from noisesam.methods.per_example import per_example_outcome
from noisesam.methods.result import Outcome, StepCall


class SGD(Method):
    """The gradient of the mean loss at w: mean_i J_i(w)^T r_i(w).

    Args:
        model: Any module.
        gradient_norms: True to return the gradient norm of every example, at the weights at which it is visited, from the
            same pass (examples must not mix then).
        engine: "auto", "fast" or "reference", for the gradient norms.
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
    perturbs = False
    cost = "F + B"
    passes = ("1", "1")
    reference = "Robbins, Monro 1951, A Stochastic Approximation Method"

    hyperparameters = {  # noqa: RUF012
        "gradient_norms": "True to return every example's gradient norm from the same pass",
        "engine": "auto, fast or reference, for the gradient norms",
    }

    def __init__(self, model: nn.Module, *, gradient_norms: bool = False, engine: str = "auto", **options: Any) -> None:
        super().__init__(model, **options)
        self.gradient_norms = check_flag("gradient_norms", gradient_norms)
        self.engine = check_engine(engine)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        if self.gradient_norms:
            return per_example_outcome(
                self.model, batch, self.loss, self.radii(parameters), call.total, jacobian=False, residual=False,
                engine=self.engine, chunk_size=self._chunk(batch),
            )  # fmt: skip
        gradient, logits, losses = self._mean_gradient(batch, parameters, call.total)
        return Outcome(gradient, logits, losses, batch.size, batch.size)
