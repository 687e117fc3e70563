"""Look-LayerSAM: LookSAM with a perturbation in proportion to every layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.gradients.losses import accurate
from noisesam.gradients.norms import norm_of
from noisesam.methods.checks import check_flag
from noisesam.methods.looksam import LookSAM
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned
from noisesam.methods.weights import ascent


class LookLayerSAM(LookSAM):
    """LookSAM with eps_j = rho (||w_j||/||g_j||) g_j for every tensor j.

    Args:
        model: Any module.
        rho: Length of every tensor's perturbation relative to the tensor.
        renormalize: True to scale all eps_j together so that ||eps|| = rho. The source leaves open which is meant; the
            default follows the formula as it is printed.
        options: k, alpha, per_tensor as of `LookSAM`; others as of `SharedPerturbation`. A parameter group's rho takes the
            place of rho for its tensors.

    Example:
        >>> import torch
        >>> method = LookLayerSAM(torch.nn.Linear(3, 2), k=2)
        >>> [method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples for _ in range(4)]
        [8, 4, 8, 4]

    References:
        Liu et al. 2022, arXiv 2203.02714 (section on large-batch training).
    """

    name = "looklayersam"
    title = "LookSAM, layer-wise"
    rule = "LookSAM with eps_j = rho (||w_j||/||g_j||) g_j"
    hyperparameters = {  # noqa: RUF012
        "rho": "length of every tensor's perturbation relative to the tensor",
        "k": "steps from one SAM step to the next",
        "alpha": "length of the reused direction relative to the gradient",
        "per_tensor": "True for norms and projection within every tensor",
        "renormalize": "True to scale all eps_j together to the length rho (not settled by the source)",
    }

    def __init__(self, model: nn.Module, *, rho: float = 0.05, renormalize: bool = False, **options: Any) -> None:
        super().__init__(model, rho=rho, **options)
        self.renormalize = check_flag("renormalize", renormalize)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        radii = self.radii(parameters)
        eps: dict[str, Tensor] = {}
        for name, value in clean.items():
            size = float(norm_of(accurate(parameters[name].detach())))
            eps |= ascent({name: value}, {name: size if self.renormalize else size * radii[name]})
        return Planned(ascent(eps, radii) if self.renormalize else eps)
