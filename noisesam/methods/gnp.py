"""Penalising the gradient norm: between the gradients at w and at w + eps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.methods.checks import check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class GNP(SharedPerturbation):
    """(1 - alpha) g + alpha g_s: the gradient of L + lambda ||grad L|| to first order, lambda = alpha rho.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        alpha: Share of the gradient at w + eps; 1 is SAM, 0 is SGD at the price of SAM.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> GNP(model, alpha=0.8).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        Zhao, Zhang, Hu 2022, "Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning",
        arXiv 2202.03599.
    """

    name = "gnp"
    title = "Gradient-norm penalty"
    rule = "(1 - alpha) grad L(w) + alpha grad L(w+eps), eps = rho g/||g||"
    reference = "Zhao et al. 2022, arXiv 2202.03599"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "alpha": "share of the gradient at the perturbed weights; 1 is SAM",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, alpha: float = 0.8, **options: Any) -> None:
        super().__init__(model, rho=rho, **options)
        self.alpha = check_number("alpha", alpha, at_least=0, at_most=1)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters)))

    def _descent(self, clean: Mapping[str, Tensor], moved: Mapping[str, Tensor], call: StepCall) -> Planned:
        mixed = {name: self.alpha * value for name, value in moved.items()}
        for name, value in clean.items():
            mixed[name] = (1 - self.alpha) * value + mixed[name] if name in mixed else (1 - self.alpha) * value
        return Planned(mixed)
