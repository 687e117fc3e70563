"""Sharpness-aware training for free: the loss may not have fallen too fast since some epochs ago."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Batch
from noisesam.gradients.losses import accurate
from noisesam.methods.checks import check_count, check_flag, check_number
from noisesam.methods.distillation import divergence_residual
from noisesam.methods.epochs import EpochMethod
from noisesam.methods.example_store import STORE_BUDGET, ExampleStore, require_index
from noisesam.methods.result import Outcome, StepCall


class SAF(EpochMethod):
    """The gradient of the loss + lam KL(p(z_then/tau) || p(z/tau)), z_then the example's own logits `lag` epochs ago.

    From the first epoch after `start_epoch` on, one pass a step. The logits of every example are kept under its index in the
    data set (a number from 0 to 16,777,215: the table is dense), with the epoch they belong to; an example that was not
    visited `lag` epochs ago has no teacher. An example visited twice in one epoch has the same teacher both times, and
    becomes the later teacher with the logits of its last visit: lag + 1 epochs are kept.

    Args:
        model: Any module.
        lam: Weight of the divergence; 0 is SGD.
        temperature: tau, by which logits are divided.
        start_epoch: The divergence counts in epochs after this one, from 0.
        lag: Age of the teacher's logits, in epochs.
        tau_squared: True to multiply the divergence by tau^2, as the authors' code does and their text does not.
        half_precision: True to keep the logits in float16.
        store_budget: Bytes of kept logits above which they lie in a temporary file.
        options: loss, chunk_size, memory_budget, as of `Method`.

    Example:
        >>> import torch
        >>> method = SAF(torch.nn.Linear(3, 2))
        >>> method.start_epoch(0)
        >>> method.backward(torch.randn(2, 3), torch.tensor([0, 1]), index=torch.tensor([8, 3])).forward_examples
        2

    References:
        Du, Zhou, Feng, Tan, Zhou 2022, "Sharpness-Aware Training for Free", arXiv 2205.14083.
    """

    name = "saf"
    title = "Sharpness-aware training for free"
    rule = "grad of L + lam KL(p(z_then/tau) || p(z/tau)), z_then the same example's logits lag epochs ago"
    perturbs = False
    cost = "F + B"
    passes = ("1", "1")
    reference = "Du et al. 2022, arXiv 2205.14083"
    limits = ("needs index and start_epoch", "keeps the logits of lag + 1 epochs of every example")
    hyperparameters = {  # noqa: RUF012
        "lam": "weight of the divergence from the earlier logits; 0 is SGD",
        "temperature": "tau, by which logits are divided",
        "start_epoch": "the divergence counts in epochs after this one",
        "lag": "age of the teacher's logits, in epochs",
        "tau_squared": "True to multiply the divergence by tau^2 (the authors' code), False for the text's formula",
        "half_precision": "True to keep the logits in float16",
        "store_budget": "bytes of kept logits above which they lie in a temporary file",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        lam: float = 0.3,
        temperature: float = 5.0,
        start_epoch: int = 5,
        lag: int = 3,
        tau_squared: bool = True,
        half_precision: bool = False,
        store_budget: int = STORE_BUDGET,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.lam = check_number("lam", lam, at_least=0)
        self.temperature = check_number("temperature", temperature, above=0)
        self.first_epoch = check_count("start_epoch", start_epoch, at_least=0)
        self.lag = check_count("lag", lag)
        self.tau_squared = check_flag("tau_squared", tau_squared)
        self.half_precision = check_flag("half_precision", half_precision)
        self.store_budget = check_count("store_budget", store_budget, at_least=0, remedy="It counts bytes.")
        self._logits: ExampleStore | None = None
        self._epochs = self._epoch_store()

    @property
    def slots(self) -> int:
        """How many epochs are kept: the present one must not take the place of its own teacher."""
        return self.lag + 1

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        index, epoch = require_index("SAF", batch.index, batch.size), self.epoch
        further: Callable[[Tensor, slice], Tensor] | None = None
        if epoch > self.first_epoch and self.lam > 0 and self._logits is not None:
            slot = (epoch - self.lag) % self.slots
            teacher = self._logits.read(index, batch.targets.device)[:, slot]
            known = self._epochs.read(index, batch.targets.device)[:, slot] == epoch - self.lag
            known &= epoch >= self.lag  # before, the epoch sought is the -1 of a slot that holds no logits yet

            def divergence(logits: Tensor, rows: slice) -> Tensor:
                return divergence_residual(
                    logits, teacher[rows], known[rows],
                    lam=self.lam, temperature=self.temperature, tau_squared=self.tau_squared,
                )  # fmt: skip

            further = divergence

        gradient, logits, losses = self._mean_gradient(batch, parameters, call.total, further_residual=further)
        return Outcome(gradient, logits, losses, batch.size, batch.size, remember=lambda: self._remember(index, logits, epoch))

    def _remember(self, index: Tensor, logits: Tensor, epoch: int) -> None:
        shape = (self.slots, *logits.shape[1:])
        if self._logits is None:
            self._logits = self._logit_store(shape, logits.dtype)
        if shape != self._logits.row_shape:
            raise InputError(
                f"Logits of shape {tuple(logits.shape[1:])} for one example",
                expected=f"{self._logits.row_shape[1:]} as before",
                remedy="Build a new method for a model with other outputs.",
            )
        rows, epochs = self._logits.read(index, "cpu"), self._epochs.read(index, "cpu")
        kept = logits.detach()
        if rows.dtype == torch.float16:  # a large logit would be kept as infinite, and its teacher be NaN
            kept = accurate(kept).clamp(-torch.finfo(rows.dtype).max, torch.finfo(rows.dtype).max)
        rows[:, epoch % self.slots] = kept.to("cpu", rows.dtype)
        epochs[:, epoch % self.slots] = epoch
        self._logits.write(index, rows)
        self._epochs.write(index, epochs)

    def _logit_store(self, shape: tuple[int, ...], dtype: torch.dtype) -> ExampleStore:
        kept = torch.float16 if self.half_precision else torch.promote_types(dtype, torch.float32)
        return ExampleStore(shape, dtype=kept, memory_budget=self.store_budget)

    def _epoch_store(self) -> ExampleStore:
        return ExampleStore((self.slots,), dtype=torch.int32, fill=-1.0, memory_budget=self.store_budget)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the kept logits with their epochs."""
        kept = {} if self._logits is None else {"logits": self._logits.state_dict()["rows"]}
        return {**super().state_dict(), "epochs": self._epochs.state_dict()["rows"], **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        epochs, logits = self._epoch_store(), None
        epochs.load_state_dict({"rows": state.get("epochs")})
        if "logits" in state:
            rows = state["logits"]
            shape = tuple(rows.shape[1:]) if isinstance(rows, Tensor) else ()
            if shape[:1] != (self.slots,) or len(rows) != len(epochs):
                raise InputError(
                    "Kept logits in a method's state",
                    expected=f"(examples, {self.slots}, ...) as lag={self.lag}",
                    remedy="Build the method with the configuration of the run that saved it.",
                )
            logits = self._logit_store(shape, rows.dtype)
            logits.load_state_dict({"rows": rows})
        super().load_state_dict(state)
        self._epochs, self._logits = epochs, logits
