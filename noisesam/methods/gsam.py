"""Surrogate-gap guided SAM: also down the part of the clean gradient that SAM's step does not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.methods.checks import check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent, orthogonal_part


class GSAM(SharedPerturbation):
    """g_s - alpha g_perp: g_s the gradient at w + eps, g_perp the part of the gradient at w that is orthogonal to g_s.

    Norms and projection run over all trainable parameters as one vector. The schedule of rho in the paper belongs to the
    training loop, not to the rule.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        alpha: Share of the orthogonal part; 0 is SAM.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> GSAM(model, alpha=0.4).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        Zhuang et al. 2022, "Surrogate Gap Minimization Improves Sharpness-Aware Training", arXiv 2203.08065.
    """

    name = "gsam"
    title = "Surrogate-gap guided SAM"
    rule = "g_s - alpha (g - (<g, g_s>/||g_s||^2) g_s), g_s = grad L(w+eps), eps = rho g/||g||"
    reference = "Zhuang et al. 2022, arXiv 2203.08065"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "alpha": "share of the clean gradient's part orthogonal to SAM's gradient; 0 is SAM",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, alpha: float = 0.4, **options: Any) -> None:
        super().__init__(model, rho=rho, **options)
        self.alpha = check_number("alpha", alpha, at_least=0)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters)))

    def _descent(self, clean: Mapping[str, Tensor], moved: Mapping[str, Tensor], call: StepCall) -> Planned:
        across = orthogonal_part(clean, moved)
        return Planned({name: moved[name] - self.alpha * across[name] for name in moved})
