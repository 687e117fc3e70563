"""Sparse SAM with a mask from the Fisher information."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.accumulation import add_part
from noisesam.gradients.batch import Batch, Inputs, devices_of, trainable
from noisesam.gradients.engine.selection import check_engine, engine_for
from noisesam.gradients.factors import Factor, OuterProducts
from noisesam.gradients.losses import accurate
from noisesam.gradients.memory import chunk_for
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.points import Engine, begun_again
from noisesam.gradients.randomness import RandomState
from noisesam.methods.averages import loaded_tensors, saved_tensors
from noisesam.methods.base import unchanged
from noisesam.methods.checks import check_count, saved_count
from noisesam.methods.epochs import EpochMethod
from noisesam.methods.masks import Masks, check_pattern, saved_masks, top_masks
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class FisherSparseSAM(SharedPerturbation, EpochMethod):
    """The gradient at w + eps, eps = rho (g/||g||) m: m keeps the 1 - sparsity of the weights with the largest Fisher entry.

    The norm is that of the full g. Every `update_freq` epochs the diagonal of the empirical Fisher matrix, the sum of the
    squared per-example gradients, is taken from the first `num_samples` examples that the epoch visits, by the per-example
    engine, before the step that visits them; until it is complete, the mask is that of the part seen so far. Micro-batches
    after the first of a step add nothing to the diagonal: the mask holds still within a step. There is no gain in time on
    dense hardware: the passes are SAM's, and the Fisher passes come on top (they are counted).

    Args:
        model: A module whose examples do not mix: no BatchNorm in training mode.
        rho: Radius of the perturbation before masking, in the units of the weights.
        sparsity: Share of the weights that stay unperturbed; 0.5 by default, given by N:M patterns.
        update_freq: Epochs from one mask to the next.
        num_samples: Examples whose gradients make the Fisher diagonal.
        pattern: "unstructured", "structured" (whole tensors, by their mean entry) or "N:M" along the inputs of each weight
            (parameters of one axis are then always perturbed).
        engine: "auto", "fast" or "reference", for the per-example gradients.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> method = FisherSparseSAM(torch.nn.Linear(3, 2), num_samples=4)
        >>> method.start_epoch(0)
        >>> [method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).forward_examples for _ in range(2)]
        [12, 8]

    References:
        Mi et al. 2022, "Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach", arXiv 2210.05177;
        2023, arXiv 2306.17504.
    """

    name = "ssam-f"
    title = "Sparse SAM, Fisher mask"
    rule = "grad L(w+eps), eps = rho (g/||g||) m, m the top 1 - sparsity of the Fisher diagonal"
    cost = "2F + 2B + Fisher"
    passes = ("2", "2")
    reference = "Mi et al. 2022, arXiv 2210.05177"
    limits = ("needs start_epoch", "examples must not mix: no BatchNorm in training mode", "no gain in time on dense hardware")
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation before masking, in the units of the weights",
        "sparsity": "share of the weights that stay unperturbed; 0 is SAM",
        "update_freq": "epochs from one mask to the next",
        "num_samples": "examples whose gradients make the Fisher diagonal",
        "pattern": "unstructured, structured (whole tensors) or N:M",
        "engine": "auto, fast or reference, for the per-example gradients",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        sparsity: float | None = None,
        update_freq: int = 1,
        num_samples: int = 128,
        pattern: str = "unstructured",
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.pattern, self.sparsity = check_pattern(pattern, sparsity)
        self.update_freq = check_count("update_freq", update_freq)
        self.num_samples = check_count("num_samples", num_samples)
        self.engine = check_engine(engine)
        self._fisher: dict[str, Tensor] = {}
        self._masks: Masks = {}
        self._seen = 0  # examples in the Fisher diagonal of the present mask

    def start_epoch(self, epoch: int) -> None:
        """Start an epoch; every `update_freq` epochs a new Fisher diagonal."""
        same = epoch == self._epoch  # told again, as a loop does that resumes in the middle of an epoch
        super().start_epoch(epoch)
        if not same and epoch % self.update_freq == 0:
            self._fisher, self._seen = {}, 0

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        _ = self.epoch
        found = self._gathered(batch, parameters, call)
        if found is None:
            return self._two_passes(batch, parameters, call)
        with self._using(found[0]):
            outcome = self._two_passes(batch, parameters, call)
        wanted = found[2] - self._seen

        def commit() -> None:
            self._masks, self._fisher, self._seen = found

        outcome.forward_examples += wanted
        outcome.backward_examples += wanted
        outcome.commit = commit
        return outcome

    def _gathered(
        self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall
    ) -> tuple[Masks, dict[str, Tensor], int] | None:
        """Return mask, Fisher diagonal and number of its examples with those of this batch; None where none is wanted."""
        wanted = min(self.num_samples - self._seen, batch.size) if call.new_step or not self._masks else 0
        if wanted <= 0 or self.sparsity == 0:
            return None
        fisher = dict(self._fisher)
        add_part(fisher, self._squares(batch.take(slice(0, wanted))))
        scores = {name: fisher.get(name, torch.zeros_like(accurate(p.detach()))) for name, p in parameters.items()}
        return top_masks(scores, self.pattern, self.sparsity), fisher, self._seen + wanted

    @contextmanager
    def _using(self, masks: Masks) -> Iterator[None]:
        before, self._masks = self._masks, masks
        try:
            yield
        finally:
            self._masks = before

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return the eps that the next step on this batch would take, with the mask that it would gather first."""
        with torch.enable_grad(), unchanged(self.model):
            found = self._gathered(Batch.of(inputs, targets, index), trainable(self.model), StepCall())
        with self._using(self._masks if found is None else found[0]):
            return super().perturbation(inputs, targets, index)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        eps = ascent(clean, self.radii(parameters))
        return Planned({name: value * self._masks[name] if name in self._masks else value for name, value in eps.items()})

    def _squares(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over examples of their squared gradients; the generators that dropout uses do not move."""
        total: dict[str, Tensor] = {}
        devices = devices_of(self.model)
        state = RandomState.capture(devices)
        for _, chunk in batch.chunks(chunk_for(self.model, batch.inputs, self.chunk_size or "auto", self.memory_budget)):
            chosen = engine_for(self.model, chunk.inputs, self.engine)

            def gradient(chosen: Engine = chosen, chunk: Batch = chunk) -> PerExampleGradient:
                point = chosen.at(chunk.inputs)
                return point.per_example_gradient(self.loss.residual(point.logits, chunk.targets))

            for name, factor in begun_again(RandomState.capture(devices), gradient).factors.items():
                squares = _squared_sum(factor)
                total[name] = total[name] + squares if name in total else squares
        state.restore()
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, the masks and the Fisher diagonal while it is gathered."""
        own = {"seen": self._seen, "masks": saved_masks(self._masks), "fisher": saved_tensors(self._fisher)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        masks = loaded_tensors(state.get("masks"), self.model, "The mask")
        fisher = loaded_tensors(state.get("fisher"), self.model, "The Fisher diagonal")
        seen = saved_count(state, "seen")
        super().load_state_dict(state)
        self._masks, self._fisher, self._seen = masks, fisher, seen


def _squared_sum(factor: Factor) -> Tensor:
    """Return sum_i G_i^2, entry by entry; for outer products of one position without forming them."""
    if isinstance(factor, OuterProducts) and factor.left.shape[1] == 1:
        left, right = accurate(factor.left[:, 0]).square(), accurate(factor.right[:, 0]).square()
        return (left.t() @ right).view(factor.shape)
    return accurate(factor.dense()).square().sum(0)
