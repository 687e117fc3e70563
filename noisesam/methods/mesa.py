"""Memory-efficient SAF: the teacher is an average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, devices_of
from noisesam.gradients.losses import accurate
from noisesam.gradients.module_state import buffers_kept
from noisesam.gradients.randomness import RandomState
from noisesam.methods.averages import loaded_tensors, saved_tensors
from noisesam.methods.checks import check_count, check_flag, check_number
from noisesam.methods.distillation import divergence_residual
from noisesam.methods.epochs import EpochMethod
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.weights import placed_weights


class MESA(EpochMethod):
    """The gradient of the loss + lam KL(p(z_v/tau) || p(z/tau)), z_v the logits at an exponential average v of the weights.

    v_t = ema_decay v_{t-1} + (1 - ema_decay) w_t, v_0 = w_0. From the first epoch after `start_epoch` on, a step has one
    forward pass more than SGD's, at v with the same dropout masks; running statistics come from the pass at w alone.

    Args:
        model: Any module.
        lam: Weight of the divergence; 0 is SGD.
        temperature: tau, by which logits are divided.
        start_epoch: The divergence counts in epochs after this one, from 0.
        ema_decay: Decay of the weights' average, by step.
        epochs: Epochs over which lam rises linearly from the start (this project's option; 0 for none, as published).
        tau_squared: True to multiply the divergence by tau^2, as the authors' code does and their text does not.
        options: loss, chunk_size, memory_budget, as of `Method`.

    Example:
        >>> import torch
        >>> method = MESA(torch.nn.Linear(3, 2), start_epoch=0)
        >>> method.start_epoch(1)
        >>> method.backward(torch.randn(2, 3), torch.tensor([0, 1])).forward_examples
        4

    References:
        Du et al. 2022, "Sharpness-Aware Training for Free", arXiv 2205.14083.
    """

    name = "mesa"
    title = "SAF with averaged weights as teacher"
    rule = "grad of L + lam KL(p(z_v/tau) || p(z/tau)), v = ema_decay v + (1 - ema_decay) w"
    perturbs = False
    cost = "2F + B"
    passes = ("2", "1")
    reference = "Du et al. 2022, arXiv 2205.14083"
    limits = ("needs start_epoch", "one forward pass only until the divergence counts")
    hyperparameters = {  # noqa: RUF012
        "lam": "weight of the divergence from the averaged weights' outputs; 0 is SGD",
        "temperature": "tau, by which logits are divided",
        "start_epoch": "the divergence counts in epochs after this one",
        "ema_decay": "decay of the weights' average, by step",
        "epochs": "epochs over which lam rises linearly; 0 for none",
        "tau_squared": "True to multiply the divergence by tau^2 (the authors' code), False for the text's formula",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        lam: float = 0.8,
        temperature: float = 5.0,
        start_epoch: int = 5,
        ema_decay: float = 0.9998,
        epochs: int = 0,
        tau_squared: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.lam = check_number("lam", lam, at_least=0)
        self.temperature = check_number("temperature", temperature, above=0)
        self.first_epoch = check_count("start_epoch", start_epoch, at_least=0)
        self.ema_decay = check_number(
            "ema_decay",
            ema_decay,
            at_least=0,
            below=1,
            remedy="At 1 the teacher would stay what it was; type ema_decay=0.9998.",
        )
        self.epochs = check_count("epochs", epochs, at_least=0)
        self.tau_squared = check_flag("tau_squared", tau_squared)
        self._average: dict[str, Tensor] = {}

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        epoch, forwards = self.epoch, batch.size
        further: Callable[[Tensor, slice], Tensor] | None = None
        average = self._next_average(parameters, call)
        lam = self.lam * (min(1.0, (epoch - self.first_epoch) / self.epochs) if self.epochs else 1.0)
        if epoch > self.first_epoch and lam > 0:
            state = RandomState.capture(devices_of(self.model))
            with buffers_kept(self.model), placed_weights(parameters, average):
                teacher, _ = self._evaluate(batch)
            state.restore()
            forwards += batch.size
            known = torch.ones(batch.size, dtype=torch.bool, device=teacher.device)

            def divergence(logits: Tensor, rows: slice) -> Tensor:
                return divergence_residual(
                    logits, teacher[rows], known[rows], lam=lam, temperature=self.temperature, tau_squared=self.tau_squared
                )

            further = divergence

        gradient, logits, losses = self._mean_gradient(batch, parameters, call.total, further_residual=further)

        def commit() -> None:
            self._average = average

        return Outcome(gradient, logits, losses, forwards, batch.size, commit=commit)

    def _next_average(self, parameters: Mapping[str, nn.Parameter], call: StepCall) -> dict[str, Tensor]:
        if self._average and not call.new_step:
            return self._average
        present = {name: accurate(parameter.detach()) for name, parameter in parameters.items()}
        return {
            name: torch.lerp(self._average[name], value, 1 - self.ema_decay) if name in self._average else value.clone()
            for name, value in present.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the weights' average."""
        return {**super().state_dict(), "average": saved_tensors(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        average = loaded_tensors(state.get("average"), self.model, "The average")
        super().load_state_dict(state)
        self._average = average
