"""Variance-suppressed SAM: the perturbation follows an average of the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.methods.averages import loaded_tensors, saved_tensors
from noisesam.methods.checks import check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class VaSSO(SharedPerturbation):
    """The gradient at w + eps, eps = rho d_t/||d_t||, d_t = (1 - theta) d_{t-1} + theta g_t, d_{-1} = 0.

    Micro-batches after the first of a step are perturbed along the average as it stands.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        theta: Share of the present gradient in the average; 1 is SAM.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> VaSSO(model, theta=0.4).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        Li, Giannakis 2023, "Enhancing Sharpness-Aware Optimization Through Variance Suppression", arXiv 2309.15639.
    """

    name = "vasso"
    title = "Variance-suppressed SAM"
    rule = "grad L(w+eps), eps = rho d/||d||, d = (1 - theta) d + theta g"
    reference = "Li, Giannakis 2023, arXiv 2309.15639"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "theta": "share of the present gradient in the average; 1 is SAM",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, theta: float = 0.4, **options: Any) -> None:
        super().__init__(model, rho=rho, **options)
        self.theta = check_number("theta", theta, above=0, at_most=1)
        self._average: dict[str, Tensor] = {}

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        average = self._average
        if call.new_step or not average:
            average = {name: self.theta * value for name, value in clean.items()}
            for name, before in self._average.items():
                kept = (1 - self.theta) * before
                average[name] = average[name] + kept if name in average else kept

        def commit() -> None:
            self._average = average

        direction = {name: value for name, value in average.items() if name in parameters}  # others were frozen since
        return Planned(ascent(direction, self.radii(parameters)), commit)

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and the average."""
        return {**super().state_dict(), "average": saved_tensors(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        average = loaded_tensors(state.get("average"), self.model, "The average")
        super().load_state_dict(state)
        self._average = average
