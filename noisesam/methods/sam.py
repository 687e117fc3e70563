"""Sharpness-aware minimisation, for the whole batch or for shards of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.accumulation import add_part
from noisesam.gradients.batch import Batch, Inputs, call_model, devices_of, trainable
from noisesam.gradients.engine.selection import check_engine
from noisesam.gradients.module_state import buffers_kept
from noisesam.gradients.randomness import RandomState
from noisesam.methods.base import unchanged
from noisesam.methods.checks import check_flag
from noisesam.methods.per_example import per_example_outcome, per_example_perturbation
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation, unscaled
from noisesam.methods.weights import ascent


class SAM(SharedPerturbation):
    """The gradient of the batch loss at w + eps, eps = rho g/||g||, g the gradient of the batch loss at w.

    With `examples_per_shard` = m the batch is cut into consecutive shards of m examples, each with its own eps; the
    shards' gradients are averaged by their size, so that a ragged last shard counts for what it holds. m = 1 is 1-SAM,
    computed by the per-example engine; m = the batch is SAM. eps is a constant: nothing is differentiated through it.

    Args:
        model: Any module. BatchNorm in training mode is allowed: its running statistics move once per step, from the clean
            pass over the whole batch.
        rho: Radius of the perturbation, in the units of the weights.
        examples_per_shard: Examples that share one eps; None for the whole batch.
        normalize: False for eps = rho g, the unnormalised rule.
        weight_decay: As of `SharedPerturbation`: a penalty inside the loss of both passes; not with one example per shard.
        engine: "auto", "fast" or "reference", for examples_per_shard=1.
        loss: A name or a callable (logits, targets) -> losses (n,).
        chunk_size: Examples per chunk; changes memory, not the result beyond rounding.
        parameter_groups: [{"params": ..., "rho": ...}]: eps_g = rho_g g_g/||g|| with one global norm.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = SAM(model, rho=0.05).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> result.forward_examples, result.backward_examples
        (8, 8)

    References:
        Foret, Kleiner, Mobahi, Neyshabur 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        arXiv 2010.01412. Unnormalised: Andriushchenko, Flammarion 2022, arXiv 2206.06232.
    """

    name = "sam"
    title = "Sharpness-aware minimisation"
    rule = "mean_i J_i(w+eps)^T r_i(w+eps), eps = rho g/||g||"
    reference = "Foret et al. 2021, arXiv 2010.01412"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "examples_per_shard": "examples that share one eps; None for the whole batch",
        "normalize": "False for eps = rho g",
        "engine": "auto, fast or reference, for one example per shard",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        examples_per_shard: int | None = None,
        normalize: bool = True,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        whole = isinstance(examples_per_shard, int) and not isinstance(examples_per_shard, bool)
        if examples_per_shard is not None and not (whole and examples_per_shard >= 1):
            raise InputError(
                f"examples_per_shard={examples_per_shard!r}",
                expected="a positive number of examples, or None for the whole batch",
                remedy="It counts the examples of a shard, not the shards.",
            )
        self.examples_per_shard = examples_per_shard
        self.normalize = check_flag("normalize", normalize)
        self.engine = check_engine(engine)
        if self.weight_decay and self._per_example:
            raise InputError(
                f"weight_decay={self.weight_decay:g} with one example per shard",
                expected="weight_decay=0: a penalty of the weights has no per-example form here",
                remedy="Give weight decay to the optimizer, which applies it at w.",
            )

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        radii = self.radii(parameters)
        if self._per_example:
            return per_example_outcome(
                self.model, batch, self.loss, radii, call.total, jacobian=True, residual=True,
                engine=self.engine, chunk_size=self._chunk(batch),
            )  # fmt: skip
        shards = [shard for _, shard in batch.chunks(self.examples_per_shard)]
        if len(shards) == 1:
            return self._two_passes(batch, parameters, call)
        statistics_pass = self._normalises_over_the_batch()
        if statistics_pass:
            self._update_statistics(batch)
        gradient: dict[str, Tensor] = {}
        outcomes = []
        for shard in shards:
            part = replace(call, final=call.final * shard.size / batch.size)
            with buffers_kept(self.model) if statistics_pass else nullcontext():
                outcomes.append(self._two_passes(shard, parameters, part))
            add_part(gradient, outcomes[-1].gradient)
        forwards = (3 if statistics_pass else 2) * batch.size
        return Outcome(
            gradient, torch.cat([o.logits for o in outcomes]), torch.cat([o.losses for o in outcomes]),
            forwards, 2 * batch.size, further_losses=[torch.cat([o.further_losses[0] for o in outcomes])],
            further_numbers=[number for o in outcomes for number in o.further_numbers],
        )  # fmt: skip

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters), normalize=self.normalize))

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return the batch's eps by parameter name, or (b, *shape) where shards have their own."""
        batch = Batch.of(inputs, targets, index)
        parameters = trainable(self.model)
        radii = self.radii(parameters)
        if self._per_example:
            with unchanged(self.model):
                return per_example_perturbation(self.model, batch, self.loss, radii, self.engine, self._chunk(batch))
        found = []
        with torch.enable_grad(), unchanged(self.model):
            for _, shard in batch.chunks(self.examples_per_shard):
                gradient = self._penalised(unscaled(self._mean_gradient(shard, parameters, 1.0)[0], 1.0), parameters)
                eps = ascent(gradient, radii, normalize=self.normalize)
                found.append((shard.size, eps))
        if len(found) == 1:
            return found[0][1]
        return {name: torch.cat([eps[name].expand(size, *eps[name].shape) for size, eps in found]) for name in found[0][1]}

    @property
    def _per_example(self) -> bool:
        return self.examples_per_shard == 1 and self.normalize

    def _normalises_over_the_batch(self) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.model.modules())

    def _update_statistics(self, batch: Batch) -> None:
        """Move the running statistics once, from the whole batch: shards would move them once each."""
        state = RandomState.capture(devices_of(self.model))
        with torch.no_grad():
            call_model(self.model, batch.inputs)
        state.restore()
