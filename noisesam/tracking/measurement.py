"""One look at the probe set: everything that the quantities of one point in time share, each computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.substitution import WithWeights
from noisesam.tracking.predictions import as_logits, decision_threshold, margins, predicted_classes

if TYPE_CHECKING:
    from noisesam.data import NoisyDataset

_DECOMPOSED = {
    "loss": "losses",
    "residual_norm": "residual_norm",
    "gradient_norm": "gradient_norm",
    "perturbed_loss": "perturbed_losses",
    "perturbed_residual_norm": "perturbed_residual_norm",
    "one_sam_gradient_norm": "perturbed_gradient_norm",
    "l_sam_gradient_norm": "logit_perturbed_gradient_norm",
    "j_sam_gradient_norm": "jacobian_perturbed_gradient_norm",
}
"""Name of the per-example column -> field of the decomposition."""


@dataclass
class Measurement:
    """The model, the probe and what has been computed from them at one point in time.

    Used inside `undisturbed(model)`. Values are float64 on the CPU from here on, so that sums over the probe lose nothing.

    Args:
        model: the model, in evaluation mode.
        probe: the tracked examples, on the model's device.
        loss: a loss as `noisesam.gradients.losses.resolve` takes it.
        method: the method whose own step is looked at, or None for the plain gradient.
        rho: radius of the tracked per-example and batch perturbations.
        batch_size: examples per pass; changes memory, not results.
        initial: the weights at initialisation, by name.
    """

    model: nn.Module
    probe: NoisyDataset
    loss: Any
    method: Any
    rho: float
    batch_size: int
    initial: Mapping[str, Tensor]

    @cached_property
    def groups(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """Masks over the probe: `all`, and `clean` and `noisy` where the true labels are known."""
        masks = {"all": np.ones(len(self.probe), dtype=bool)}
        noisy = self.probe.is_noisy
        if noisy is not None:
            masks["noisy"] = noisy.cpu().numpy().astype(bool)
            masks["clean"] = ~masks["noisy"]
        return masks

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable weights by name, tied ones once, as everything else counts them."""
        return trainable(self.model)

    @cached_property
    def columns(self) -> dict[str, Float[np.ndarray, " n"]]:
        """One value per probe example of everything that the decomposition gives, and of the method's own step."""
        from noisesam.gradients import decompose
        from noisesam.gradients.memory import automatic_chunk
        from noisesam.methods import make

        probe, threshold = self.probe, decision_threshold(self.loss.name)
        at_once = min(self.batch_size, automatic_chunk(self.model, probe.inputs))
        found = decompose(self.model, probe.inputs, probe.labels, loss=self.loss, rho=self.rho, chunk_size=at_once)
        logits = as_logits(found.logits, len(probe))
        columns = {name: as_float64(getattr(found, field)) for name, field in _DECOMPOSED.items()}
        columns["margin"] = as_float64(margins(logits, probe.labels, threshold=threshold))
        columns["predicted"] = as_float64(predicted_classes(logits, threshold=threshold))
        columns["sharpness"] = columns.pop("perturbed_loss") - columns["loss"]
        if self.method is None:
            columns["step_residual_norm"] = columns["residual_norm"]
            columns["step_gradient_norm"] = columns["gradient_norm"]
        else:
            # The whole probe is one batch here: a shared perturbation belongs to the batch that it is drawn from.
            terms = self.method.step_terms(self.probe.inputs, self.probe.labels, self.probe.index)
            columns["step_residual_norm"] = as_float64(terms.residual_norm)
            columns["step_gradient_norm"] = as_float64(terms.gradient_norm)
        batch_sam = make("sam", self.model, loss=self.loss, rho=self.rho, chunk_size=self.batch_size)
        terms = batch_sam.step_terms(self.probe.inputs, self.probe.labels)
        columns["sam_gradient_norm"] = as_float64(terms.gradient_norm)
        # A residual of exactly zero has no weight; so has an example whose gradient is exactly zero.
        columns["logit_weight"] = quotient(columns["perturbed_residual_norm"], columns["residual_norm"])
        columns["jacobian_weight"] = quotient(columns["j_sam_gradient_norm"], columns["gradient_norm"])
        return columns

    @cached_property
    def group_gradients(self) -> dict[str, Float[Tensor, " weights"] | None]:
        """The mean gradient J(w)^T r(w) of every group as one float64 vector, None for an empty group."""
        sums: dict[str, Tensor] = {}
        parts = {name: mask for name, mask in self.groups.items() if name != "all" or len(self.groups) == 1}
        for start, (inputs, labels) in zip(self._starts(), self._batches(), strict=True):
            for name, mask in parts.items():
                rows = torch.from_numpy(mask[start : start + len(labels)]).to(labels.device)
                if rows.any():
                    gradient = self._sum_gradient(inputs[rows], labels[rows])
                    sums[name] = sums[name] + gradient if name in sums else gradient
        if len(self.groups) > 1:
            sums["all"] = torch.stack(list(sums.values())).sum(0)
        return {name: sums[name] / int(mask.sum()) if name in sums else None for name, mask in self.groups.items()}

    @cached_property
    def step_gradient(self) -> Float[Tensor, " weights"]:
        """The gradient of the method's step with the probe as its batch, as one float64 vector."""
        if self.method is None:
            gradient = self.group_gradients["all"]
            assert gradient is not None
            return gradient
        step = self.method.step_gradient(self.probe.inputs, self.probe.labels, self.probe.index)
        return flat({name: step[name] if name in step else torch.zeros_like(value) for name, value in self.parameters.items()})

    @cached_property
    def batch_sharpness(self) -> float:
        """loss(w + rho g/||g||) - loss(w), the probe set as one batch; 0 where the gradient is zero."""
        gradient = self.group_gradients["all"]
        assert gradient is not None
        norm = gradient.norm()
        if not norm > 0:
            return 0.0 if norm == 0 else float("nan")
        moved, start = {}, 0
        for name, value in self.parameters.items():
            direction = gradient[start : start + value.numel()].view(value.shape).to(value)
            moved[name] = value.detach() + self.rho / norm.to(value) * direction
            start += value.numel()
        with torch.no_grad():
            losses = [
                self.loss(as_logits(WithWeights(self.model, moved)(inputs), len(labels)), labels)
                for inputs, labels in self._batches()
            ]
        return float(as_float64(torch.cat(losses)).mean() - self.columns["loss"].mean())

    @cached_property
    def last_layer(self) -> nn.Module | None:
        """The last Linear layer, None for a model that has none."""
        from noisesam.regularizers import last_linear_layer

        try:
            return last_linear_layer(self.model)[1]
        except ValueError:  # it has none
            return None

    @cached_property
    def hidden(self) -> Float[np.ndarray, "n features"] | None:
        """The inputs of the last Linear layer, flattened per example; None for a model that has none."""
        if self.last_layer is None:
            return None
        seen: list[Tensor] = []
        handle = self.last_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        parts: list[np.ndarray] = []
        try:
            with torch.no_grad():
                for inputs, labels in self._batches():
                    seen.clear()
                    self.model(inputs)
                    if len(seen) != 1 or seen[0].shape[0] != len(labels):
                        return None  # a layer that is not called once per example has no activation to follow
                    parts.append(as_float64(seen[0].flatten(1)))
        finally:
            handle.remove()
        return np.concatenate(parts)

    def _starts(self) -> range:
        return range(0, len(self.probe), self.batch_size)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the probe in order, in views of at most `batch_size` examples."""
        stops = ((start, start + self.batch_size) for start in self._starts())
        return [(self.probe.inputs[start:stop], self.probe.labels[start:stop]) for start, stop in stops]

    def _sum_gradient(self, inputs: Tensor, labels: Tensor) -> Float[Tensor, " weights"]:
        """Return sum_i J_i(w)^T r_i(w) of some examples, with the residual in closed form."""
        with torch.enable_grad():
            logits = as_logits(self.model(inputs), len(labels))
            residual = self.loss.residual(logits.detach(), labels).to(logits.dtype)
            gradients = torch.autograd.grad(
                logits, list(self.parameters.values()), residual, allow_unused=True, materialize_grads=True
            )
        return flat(dict(zip(self.parameters, gradients, strict=True)))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable weights of a model by name, tied ones once."""
    parameters: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise InputError("A model without trainable weights", expected="at least one parameter with requires_grad=True")
    return parameters


def flat(tensors: Mapping[str, Tensor]) -> Float[Tensor, " weights"]:
    """Return all entries as one float64 vector on the CPU."""
    return torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in tensors.values()])


def as_float64(values: Tensor) -> Float[np.ndarray, ...]:
    """Return a tensor's values as a float64 array."""
    return values.detach().to("cpu", torch.float64).numpy()


def quotient(above: Float[np.ndarray, " n"], below: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the ratio of every row, NaN where the denominator is zero."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
