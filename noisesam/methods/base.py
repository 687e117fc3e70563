"""What every method is: it takes the place of `loss.backward()` and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.accumulation import add_part, joined
from noisesam.gradients.batch import Batch, ChunkSize, Inputs, call_model, check_chunk_size, trainable
from noisesam.gradients.decomposition import decompose_batch
from noisesam.gradients.losses import PerExampleLoss, resolve
from noisesam.gradients.memory import check_memory_budget, chunk_for
from noisesam.methods.checks import check_flag, check_number, refuse_data_parallel, saved_count
from noisesam.methods.finiteness import NonFiniteLossError, is_finite, non_finite, scale_of, working
from noisesam.methods.gradients_by_name import add_to_grad, dense_only, infinite, pull_back
from noisesam.methods.parameter_groups import as_groups, radii_by_name
from noisesam.methods.result import Outcome, StepCall, StepResult, StepTerms
from noisesam.methods.unchanged import unchanged

__all__ = ["Method", "NonFiniteLossError", "dense_only", "pull_back", "unchanged"]


class Method(ABC):
    """A rule that turns a batch into a gradient in `.grad`.

        optimizer.zero_grad()
        result = method.backward(inputs, targets, index=index)
        optimizer.step()

    The gradient is that of the mean over the batch handed in. The weights are afterwards what they were, to the last bit.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    rule: ClassVar[str]
    cost: ClassVar[str]
    passes: ClassVar[tuple[str, str]]
    """Forward and backward passes over the batch per step."""
    reference: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, str]] = {}
    """What each hyper-parameter means; the defaults stand in the signature."""
    inherited: ClassVar[Mapping[str, str]] = {}
    """Further hyper-parameters, which a class shares with its relatives."""
    perturbs: ClassVar[bool] = True
    """Whether the rule moves weights by a radius, so that groups of parameters may have a rho of their own."""
    limits: ClassVar[tuple[str, ...]] = ()
    spans_training: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that are the number of epochs of the whole run: the training loop fills them in."""
    rho: float | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | PerExampleLoss = "cross_entropy",
        chunk_size: ChunkSize = None,
        memory_budget: int | None = None,
        parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"A model of type {type(model).__name__}",
                expected="a torch.nn.Module",
                remedy="Pass the module itself, not its name.",
            )
        refuse_data_parallel(model)
        self.model = model
        self.loss = resolve(loss)
        self.chunk_size: ChunkSize = check_chunk_size(chunk_size)
        self.memory_budget = check_memory_budget(memory_budget)
        self.parameter_groups = as_groups(parameter_groups)
        self.steps = 0
        if self.parameter_groups and not self.perturbs:
            raise InputError(
                f"parameter_groups for {self.name!r}",
                expected="none: its rule perturbs no weights, so there is no rho to set",
                remedy="Leave parameter_groups out; learning rates by group belong to the optimizer.",
            )
        self._group_radii = radii_by_name(self.parameter_groups, model)

    # ------------------------------------------------------------------ the step

    def backward(
        self,
        inputs: Inputs,
        targets: Tensor,
        *,
        index: Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
        scale: float = 1.0,
        new_step: bool = True,
    ) -> StepResult:
        """Add the method's gradient of the mean loss of this batch to `.grad`.

        Args:
            inputs: (b, ...), or a tuple or dict passed as model(*inputs) or model(**inputs); the first axis is the example.
            targets: (b,) labels, or what the loss takes.
            index: (b,) stable indices of the examples; needed by methods that remember examples.
            scaler: A GradScaler: `.grad` then receives its scale times the gradient, as after scaler.scale(loss).backward().
                If any pass is not finite, `.grad` is filled with inf, so that scaler.step skips, and no state advances.
                A scaler that is switched off (enabled=False) skips nothing: it counts as none.
            scale: Multiplies the final gradient, never eps: b_i / total for ragged micro-batches.
            new_step: False for every micro-batch after the first of one step: counters and caches do not move again.

        Returns:
            Losses, logits and counts of this call.

        Raises:
            InputError: The batch, the model or the scaler does not fit the method.
            FloatingPointError: A loss is not finite and there is no scaler; `.grad` is as before.
        """
        batch = Batch.of(inputs, targets, index)
        parameters = trainable(self.model)
        scaler = working(scaler)
        loss_scale = scale_of(scaler, self.model)
        final = check_number("scale", scale, remedy="It is the share of a micro-batch in its step: scale=len(inputs) / total")
        check_flag("new_step", new_step)
        with torch.enable_grad():
            outcome = self._step(batch, parameters, StepCall(loss_scale, final, new_step))
        finite = is_finite(outcome)
        if not finite and scaler is None:
            raise non_finite(outcome)
        if not outcome.gradient:
            raise InputError(
                f"No trainable parameter of {type(self.model).__name__} takes part in its output",
                expected="an output that depends on at least one parameter with requires_grad=True",
                remedy="Check what is frozen, detached or run under torch.no_grad().",
            )
        add_to_grad(parameters, outcome.gradient if finite else infinite(parameters, outcome.gradient))
        if finite:
            outcome.remember()
            if new_step:
                self.steps += 1
                outcome.commit()
        evaluated = torch.ones_like(outcome.losses, dtype=torch.bool) if outcome.evaluated is None else outcome.evaluated
        return StepResult(
            loss=(outcome.losses if outcome.evaluated is None else outcome.losses[evaluated]).mean().detach(),
            logits=outcome.logits.detach(),
            losses=outcome.losses.detach(),
            evaluated=evaluated,
            gradient_norms=None if outcome.gradient_norms is None else outcome.gradient_norms.detach(),
            forward_examples=outcome.forward_examples,
            backward_examples=outcome.backward_examples,
        )

    @abstractmethod
    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        """Compute the gradient, times `call.total`, and change nothing but torch's generators and the model's buffers."""

    # ------------------------------------------------------------------ what can be asked of a method

    def perturbation(
        self,
        inputs: Inputs,
        targets: Tensor,
        index: Tensor | None = None,
    ) -> dict[str, Tensor] | None:
        """Return eps for this batch: by parameter name, of the parameter's shape (shared) or (b, *shape); None without one."""
        del inputs, targets, index
        return None

    def step_terms(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> StepTerms:
        """Return the norms of the method's own J_i(theta_J)^T r_i(theta_L), one row per example; nothing is changed.

        They are terms of single examples, so a module that mixes the examples (BatchNorm in training mode) is refused here
        also by methods whose step allows it.
        """
        eps = self.perturbation(inputs, targets, index)
        batch = Batch.of(inputs, targets, index)
        with unchanged(self.model):
            parts = decompose_batch(self.model, batch, self.loss, perturbation=eps, chunk_size=self._chunk(batch))
        if parts.perturbed_residual_norm is None or parts.perturbed_gradient_norm is None:
            return StepTerms(parts.residual_norm, parts.gradient_norm)
        return StepTerms(parts.perturbed_residual_norm, parts.perturbed_gradient_norm)

    def step_gradient(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return the gradient that `backward` would add, by parameter name; nothing is changed."""
        with torch.enable_grad(), unchanged(self.model):
            outcome = self._step(Batch.of(inputs, targets, index), trainable(self.model), StepCall())
        return {name: value.detach() for name, value in outcome.gradient.items()}

    def start_epoch(self, epoch: int) -> None:
        """Tell the method that an epoch starts; methods without epoch rules ignore it."""
        del epoch

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the method's own state: counters and caches, no weights."""
        return {"method": self.name, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the run then goes on to the bit."""
        given = state.get("method") if isinstance(state, Mapping) else None
        if given != self.name:
            raise InputError(
                f"State of the method {given!r}" if isinstance(state, Mapping) else f"State of type {type(state).__name__}",
                expected=f"state of {self.name!r}",
                remedy="Build the method with the configuration of the run that saved it.",
            )
        self.steps = saved_count(state, "steps")

    # ------------------------------------------------------------------ shared parts

    def _step_number(self, call: StepCall) -> int:
        """Return the number of the step that this call belongs to, from 0: micro-batches share their step's."""
        return self.steps if call.new_step else max(self.steps - 1, 0)

    def radii(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """Return rho of every parameter: its group's where it has one."""
        default = 0.0 if self.rho is None else self.rho
        return {name: self._group_radii.get(name, default) for name in parameters}

    def _mean_gradient(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        scale: float,
        *,
        weights: Tensor | None = None,
        further_residual: Callable[[Tensor, slice], Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return scale times the gradient of the mean loss at the present weights, with logits and losses.

        `weights` (b,) multiply the examples' terms; `further_residual` gives what is added to the residual of the loss for
        the logits of some rows.
        """
        chunk_size = self._chunk(batch)
        if chunk_size is not None and chunk_size < batch.size:
            self._refuse_chunked_batch_normalisation()
        gradient: dict[str, Tensor] = {}
        rows: list[tuple[Tensor, Tensor]] = []
        for part, chunk in batch.chunks(chunk_size):
            output = call_model(self.model, chunk.inputs)
            residual = self.loss.residual(output, chunk.targets)
            if further_residual is not None:
                residual = residual + further_residual(output.detach(), part).to(residual.dtype)
            if weights is not None:
                residual = residual * weights[part].to(residual.dtype).view(-1, *[1] * (residual.dim() - 1))
            residual = residual * (scale / batch.size)
            rows.append((output.detach(), self.loss(output.detach(), chunk.targets)))
            add_part(gradient, pull_back(output, residual, parameters))
        logits, losses = (joined(column) for column in zip(*rows, strict=True))
        return gradient, logits, losses

    def _evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits and losses at the present weights, without a graph."""
        chunk_size = self._chunk(batch)
        if chunk_size is not None and chunk_size < batch.size:
            self._refuse_chunked_batch_normalisation()
        with torch.no_grad():
            logits = torch.cat([call_model(self.model, chunk.inputs) for _, chunk in batch.chunks(chunk_size)])
        return logits, self.loss(logits, batch.targets)

    def _chunk(self, batch: Batch) -> int | None:
        """Return how many examples of this batch are computed at once, None for all."""
        return chunk_for(self.model, batch.inputs, self.chunk_size, self.memory_budget)

    def _refuse_chunked_batch_normalisation(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise InputError(
                    f"chunk_size={self.chunk_size} with {name!r} ({type(module).__name__}) in training mode",
                    expected="the whole batch at once: chunks would be normalised by their own statistics",
                    remedy="Leave chunk_size out, use another normalisation, or freeze that layer with .eval().",
                )
