"""Efficient SAM: part of the weights is perturbed, part of the examples takes the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, Inputs, devices_of, trainable
from noisesam.gradients.mixed_point import check_rho
from noisesam.gradients.module_state import buffers_kept
from noisesam.gradients.randomness import RandomState
from noisesam.methods.base import Method, unchanged
from noisesam.methods.checks import check_choice, check_number
from noisesam.methods.drawing import check_seed, generator_at
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import rescaled, unscaled
from noisesam.methods.weights import ascent, global_norm, moved_weights


class ESAM(Method):
    """The gradient at w + eps over the gamma b examples whose loss eps raises most, eps = (rho/beta) a g/||g||.

    Stochastic weight perturbation: a ~ Bernoulli(beta), independent for every weight, or for every tensor
    (`mask="tensor"`, at least one tensor; the gradients of the others are not computed, and the norm is that of the computed
    ones). Sharpness-sensitive data selection: the max(1, floor(gamma b)) examples with the largest l_i(w+eps) - l_i(w), found
    by a forward pass of the batch, which gamma = 1 leaves out. gamma = 1 is the first part alone, beta = 1 the second.

    Args:
        model: Any module. Dropout draws the same masks in both passes over the batch; the pass over the selected examples
            starts from the same generator state, but its rows are others.
        rho: Radius of the perturbation, in the units of the weights.
        beta: Probability that a weight (or a tensor) is perturbed; 1 for all.
        gamma: Share of the batch that takes the step; 1 for all.
        mask: "element", unbiased and as published, or "tensor", which saves the gradients of tensors left out.
        seed: Seed of the masks, a function of the step's number and of the seed alone.
        options: loss, chunk_size, memory_budget, parameter_groups, as of `Method`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = ESAM(model, gamma=0.5).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> result.forward_examples, result.backward_examples
        (10, 6)

    References:
        Du et al. 2022, "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks", arXiv 2110.03141.
    """

    name = "esam"
    title = "Efficient SAM"
    rule = (
        "mean over the top gamma b of l_i(w+eps) - l_i(w) of grad l_i(w+eps), eps = (rho/beta) a g/||g||, a ~ Bernoulli(beta)"
    )
    cost = "(2+gamma)F + (1+gamma)B"
    passes = ("2+gamma", "1+gamma")
    reference = "Du et al. 2022, arXiv 2110.03141"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "beta": "probability that a weight is perturbed; 1 for all",
        "gamma": "share of the batch that takes the step; 1 for all, which also saves a forward pass",
        "mask": "element (as published) or tensor (gradients of tensors left out are not computed)",
        "seed": "seed of the masks",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        beta: float = 0.6,
        gamma: float = 0.5,
        mask: str = "element",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.rho = check_rho(rho)
        self.beta = check_number("beta", beta, above=0, at_most=1, remedy="It is the share of weights that are perturbed.")
        self.gamma = check_number("gamma", gamma, above=0, at_most=1, remedy="It is the share of examples that are kept.")
        self.mask = check_choice("mask", mask, ("element", "tensor"))
        self.seed = check_seed(seed)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        devices = devices_of(self.model)
        state = RandomState.capture(devices)
        clean, logits, losses = self._mean_gradient(batch, self._perturbed(parameters, call), call.loss)
        clean = unscaled(clean, call.loss)
        length = global_norm(clean)
        after = RandomState.capture(devices)
        kept, moved_losses = batch, None
        state.restore()
        with buffers_kept(self.model), moved_weights(parameters, self._eps(clean, parameters, call)):
            if self.gamma < 1:
                moved_losses = self._evaluate(batch)[1]
                kept = batch.take(self._selected(moved_losses - losses))
                state.restore()
            moved, _, kept_losses = self._mean_gradient(kept, parameters, call.loss)
        after.restore()
        forwards = 2 * batch.size + (kept.size if self.gamma < 1 else 0)
        return Outcome(
            rescaled(unscaled(moved, call.loss), call.total, parameters), logits, losses, forwards, batch.size + kept.size,
            further_losses=[kept_losses if moved_losses is None else moved_losses], further_numbers=[length],
        )  # fmt: skip

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return the eps that the next step on this batch would take, by parameter name."""
        parameters = trainable(self.model)
        with torch.enable_grad(), unchanged(self.model):
            perturbed = self._perturbed(parameters, StepCall())
            clean, _, _ = self._mean_gradient(Batch.of(inputs, targets, index), perturbed, 1.0)
            return self._eps(unscaled(clean, 1.0), parameters, StepCall())

    def _selected(self, rises: Tensor) -> Tensor:
        """Return the rows with the largest rise of the loss; by position, so that ties do not change their number."""
        count = max(1, int(self.gamma * len(rises) + 1e-9))
        return torch.argsort(rises.nan_to_num(torch.inf), descending=True, stable=True)[:count].sort().values

    def _perturbed(self, parameters: dict[str, nn.Parameter], call: StepCall) -> dict[str, nn.Parameter]:
        """Return the tensors whose gradients are computed."""
        if self.mask == "element" or self.beta == 1:
            return parameters
        generator = generator_at(self.seed, self._step_number(call))
        drawn = torch.rand(len(parameters), generator=generator) < self.beta
        forced = int(torch.randint(len(parameters), (), generator=generator))
        if not bool(drawn.any()):
            drawn[forced] = True
        return {name: parameter for (name, parameter), kept in zip(parameters.items(), drawn.tolist(), strict=True) if kept}

    def _eps(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> dict[str, Tensor]:
        radii = {name: radius / self.beta for name, radius in self.radii(parameters).items()}
        eps = ascent(clean, radii)
        if self.mask == "tensor" or self.beta == 1:
            return eps
        devices = {value.device for value in eps.values()}
        generators = {device: generator_at(self.seed, self._step_number(call), device) for device in devices}
        masked = {}
        for name, value in eps.items():
            drawn = torch.rand(value.shape, device=value.device, generator=generators[value.device])
            masked[name] = value * (drawn < self.beta)
        return masked
