"""One perturbation for the whole batch: clean pass, ascent, perturbed pass, and what the step makes of both gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, Inputs, devices_of, trainable
from noisesam.gradients.losses import accurate
from noisesam.gradients.mixed_point import check_rho
from noisesam.gradients.module_state import buffers_kept
from noisesam.gradients.randomness import RandomState
from noisesam.methods.base import Method, unchanged
from noisesam.methods.checks import check_number
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.weights import global_norm, moved_weights

Tensors = dict[str, Tensor]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Planned:
    """Tensors by parameter name, and what changes in the method's state once the step is taken."""

    tensors: Tensors
    commit: Callable[[], None] = _nothing


class SharedPerturbation(Method):
    """Base of the methods with two passes and one eps for the batch: a member states its ascent, and its descent if it mixes.

    Both gradients reach `_ascent` and `_descent` without the loss scale and in at least float32. BatchNorm's running
    statistics move in the clean pass alone, and both passes draw the same dropout masks.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        loss: A name or a callable (logits, targets) -> losses (n,).
        weight_decay: lambda of a penalty (lambda/2) ||w||^2 inside the loss of both passes, so that it takes part in eps, as in
            the first published code. 0 by default: weight decay then belongs to the base optimizer, which applies it at w.
        chunk_size: Examples per chunk; one sweep sums the ascent gradient, a second the step.
        parameter_groups: [{"params": ..., "rho": ...}]: eps_g = rho_g g_g/||g|| with one global norm.
    """

    passes = ("2", "2")
    cost = "2F + 2B"
    hyperparameters = {"rho": "radius of the perturbation, in the units of the weights"}  # noqa: RUF012
    inherited = {  # noqa: RUF012
        "weight_decay": "penalty inside the loss of both passes; 0 leaves weight decay to the base optimizer"
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(model, **options)
        self.rho = check_rho(rho)
        self.weight_decay = check_number("weight_decay", weight_decay, at_least=0)

    @abstractmethod
    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        """Return eps from the gradient of the batch at w; nothing is changed until `commit`."""

    def _descent(self, clean: Mapping[str, Tensor], moved: Mapping[str, Tensor], call: StepCall) -> Planned:
        """Return the step's gradient from those at w and at w + eps; by default the latter."""
        del clean, call
        return Planned(dict(moved))

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        return self._two_passes(batch, parameters, call)

    def _two_passes(
        self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall, *, weights: Tensor | None = None
    ) -> Outcome:
        """Return the step of one batch (or of one shard, whose share of the batch is in the call)."""
        devices = devices_of(self.model)
        state = RandomState.capture(devices)
        clean, logits, losses = self._mean_gradient(batch, parameters, call.loss, weights=weights)
        clean = self._penalised(unscaled(clean, call.loss), parameters)
        length = global_norm(clean)
        after = RandomState.capture(devices)
        up = self._ascent(clean, parameters, call)
        state.restore()
        with buffers_kept(self.model), moved_weights(parameters, up.tensors):
            moved, _, moved_losses = self._mean_gradient(batch, parameters, call.loss, weights=weights)
            moved = self._penalised(unscaled(moved, call.loss), parameters)
        after.restore()
        down = self._descent(clean, moved, call)

        def commit() -> None:
            up.commit()
            down.commit()

        return Outcome(
            rescaled(down.tensors, call.total, parameters), logits, losses, 2 * batch.size, 2 * batch.size,
            further_losses=[moved_losses], further_numbers=[length], commit=commit,
        )  # fmt: skip

    def _one_pass(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> tuple[Tensors, Tensor, Tensor]:
        """Return the clean pass alone: the gradient without the loss scale, logits and losses."""
        clean, logits, losses = self._mean_gradient(batch, parameters, call.loss)
        return self._penalised(unscaled(clean, call.loss), parameters), logits, losses

    def _penalised(self, gradient: Tensors, parameters: dict[str, nn.Parameter]) -> Tensors:
        """Return the gradient plus that of (weight_decay/2) ||w||^2 at the parameters as they stand."""
        if self.weight_decay == 0.0:
            return gradient
        return {name: value + self.weight_decay * parameters[name].detach().to(value.dtype) for name, value in gradient.items()}

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> Tensors | None:
        """Return the eps that the next step on this batch would take, by parameter name."""
        parameters = trainable(self.model)
        with torch.enable_grad(), unchanged(self.model):
            clean, _, _ = self._one_pass(Batch.of(inputs, targets, index), parameters, StepCall())
            return self._ascent(clean, parameters, StepCall()).tensors


def unscaled(gradient: Mapping[str, Tensor], loss_scale: float) -> Tensors:
    """Return the gradient in at least float32, without the loss scale."""
    if loss_scale == 1.0:
        return {name: accurate(value) for name, value in gradient.items()}
    return {name: accurate(value) / loss_scale for name, value in gradient.items()}


def rescaled(gradient: Mapping[str, Tensor], scale: float, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return scale times the gradient in the parameters' own precision."""
    if scale == 1.0:
        return {name: value.to(parameters[name].dtype) for name, value in gradient.items()}
    return {name: (value * scale).to(parameters[name].dtype) for name, value in gradient.items()}
