"""Adaptive SAM: the perturbation of every weight in proportion to its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.gradients.losses import accurate
from noisesam.methods.checks import check_flag, check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class ASAM(SharedPerturbation):
    """The gradient of the batch loss at w + eps, eps = rho T^2 g/||T g|| with T = |w| + eta, entry by entry.

    Args:
        model: Any module.
        rho: Radius of the perturbation relative to the weights' size: ||T^-1 eps|| = rho. Ten times SAM's is usual.
        eta: Added to |w|, so that a weight of zero moves too.
        adapt_biases: False for T = 1 on parameters of one axis and fewer. The paper's rule states no exception; its code
            makes one for biases.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> ASAM(model, rho=0.5).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        Kwon, Kim, Park, Choi 2021, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks", arXiv 2102.11600.
    """

    name = "asam"
    title = "Adaptive SAM"
    rule = "mean_i J_i(w+eps)^T r_i(w+eps), eps = rho T^2 g/||T g||, T = |w| + eta"
    reference = "Kwon et al. 2021, arXiv 2102.11600"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, relative to the size of the weights",
        "eta": "added to |w|, in the units of the weights",
        "adapt_biases": "False for T = 1 on parameters of one axis and fewer",
    }

    def __init__(
        self, model: nn.Module, *, rho: float = 0.5, eta: float = 0.01, adapt_biases: bool = True, **options: Any
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.eta = check_number("eta", eta, at_least=0)
        self.adapt_biases = check_flag("adapt_biases", adapt_biases)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        scales = {name: self._scale(parameters[name]) for name in clean}
        eps = ascent(_times(clean, scales), self.radii(parameters))
        return Planned(_times(eps, scales))

    def _scale(self, parameter: nn.Parameter) -> Tensor | None:
        """Return T of one parameter, None where it is 1."""
        if parameter.dim() <= 1 and not self.adapt_biases:
            return None
        return accurate(parameter.detach()).abs() + self.eta


def _times(tensors: Mapping[str, Tensor], scales: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value if (scale := scales[name]) is None else value * scale for name, value in tensors.items()}
