"""SANER: SAM with the entries damped that fit wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.methods.checks import check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class SANER(SharedPerturbation):
    """SAM's gradient g_s with alpha g_s where it points as g does and is smaller: 0 < g_s/g < 1, entry by entry.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        alpha: Factor on those entries; 1 is SAM. The default is this project's choice.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> SANER(model, alpha=0.5).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        arXiv 2411.17132 (2024), a SAM for label noise.
    """

    name = "saner"
    title = "SAM with damped noisy entries"
    rule = "grad L(w+eps), times alpha where it has the sign of grad L(w) and a smaller size"
    reference = "SANER 2024, arXiv 2411.17132"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "alpha": "factor on the entries that shrink without changing sign; 1 is SAM",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(model, rho=rho, **options)
        self.alpha = check_number("alpha", alpha, at_least=0)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters)))

    def _descent(self, clean: Mapping[str, Tensor], moved: Mapping[str, Tensor], call: StepCall) -> Planned:
        return Planned({name: self._damped(value, clean[name]) for name, value in moved.items()})

    def _damped(self, moved: Tensor, clean: Tensor) -> Tensor:
        # Signs are compared, not the product's: it underflows for small gradients.
        shrinks = (moved.sign() * clean.sign() > 0) & (moved.abs() < clean.abs())
        return torch.where(shrinks, self.alpha * moved, moved)
