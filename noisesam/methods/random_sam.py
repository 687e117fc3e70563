"""A perturbation in a random direction: what remains of SAM without its direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, Inputs, trainable
from noisesam.gradients.losses import accurate
from noisesam.gradients.mixed_point import check_rho
from noisesam.methods.base import Method
from noisesam.methods.drawing import check_seed, generator_at
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import rescaled, unscaled
from noisesam.methods.weights import ascent, moved_weights


class RandomSAM(Method):
    """The gradient of the batch loss at w + eps, eps = rho n/||n||, n ~ N(0, I) over all trainable parameters.

    There is one pass, at w + eps: no example is evaluated at w, so losses and logits of the result are NaN, and BatchNorm's
    running statistics come from the perturbed pass.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        seed: Seed of the directions, a function of the step's number and of the seed alone.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> RandomSAM(model, rho=0.05).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).forward_examples
        4

    References:
        A control of this toolkit; as a baseline in Foret et al. 2021, arXiv 2010.01412, and Wen et al. 2018,
        "SmoothOut", arXiv 1805.07898.
    """

    name = "random-sam"
    title = "SAM in a random direction"
    rule = "mean_i J_i(w+eps)^T r_i(w+eps), eps = rho n/||n||, n ~ N(0, I)"
    cost = "F + B"
    passes = ("1", "1")
    reference = "Foret et al. 2021, arXiv 2010.01412 (the direction replaced)"
    limits = ("no example is evaluated at w: losses and logits are NaN",)
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "seed": "seed of the directions",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, seed: int = 0, **options: Any) -> None:
        super().__init__(model, **options)
        self.rho = check_rho(rho)
        self.seed = check_seed(seed)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        with moved_weights(parameters, self._direction(parameters, call)):
            gradient, logits, losses = self._mean_gradient(batch, parameters, call.loss)
        gradient = rescaled(unscaled(gradient, call.loss), call.total, parameters)
        unknown = torch.full_like(losses, torch.nan)
        return Outcome(
            gradient, torch.full_like(logits, torch.nan), unknown, batch.size, batch.size,
            evaluated=torch.zeros_like(losses, dtype=torch.bool), further_losses=[losses],
        )  # fmt: skip

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return the eps of the next step, by parameter name; the batch plays no part."""
        Batch.of(inputs, targets, index)
        return self._direction(trainable(self.model), StepCall())

    def _direction(self, parameters: Mapping[str, nn.Parameter], call: StepCall) -> dict[str, Tensor]:
        devices = {parameter.device for parameter in parameters.values()}
        generators = {device: generator_at(self.seed, self._step_number(call), device) for device in devices}
        drawn = {
            name: torch.randn(p.shape, dtype=accurate(p.detach()).dtype, device=p.device, generator=generators[p.device])
            for name, p in parameters.items()
        }
        return ascent(drawn, self.radii(parameters))
