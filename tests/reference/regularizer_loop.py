"""The obvious twin of the adaptive regulariser: J-SAM one example at a time, by autograd and parameter dictionaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Residual = Callable[[Tensor, Tensor], Tensor]


def pulled_back(model: nn.Module, parameters: dict[str, Tensor], example: Tensor, residual: Tensor) -> dict[str, Tensor]:
    """Return J(theta)^T r of one example for every parameter that requires a gradient."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    logits = functional_call(model, leaves, (example.unsqueeze(0),))
    gradients = torch.autograd.grad(logits, list(leaves.values()), residual.unsqueeze(0), allow_unused=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), gradients, strict=True)}


def j_sam_gradient(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    residual: Residual,
    rho: float,
    perturbed: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    """Return mean_i J_i(w + eps_i)^T r_i(w), eps_i = rho g_i / ||g_i|| over trainable parameters that `perturbed` admits."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    total = {name: torch.zeros_like(weights[name]) for name in trainable}
    for example, target in zip(inputs, targets, strict=True):
        logits = functional_call(model, weights, (example.unsqueeze(0),)).detach()
        r = residual(logits, target.unsqueeze(0))[0]
        gradient = pulled_back(model, weights, example, r)
        moved = [name for name in trainable if perturbed(name)]
        norm = sum((gradient[name] ** 2).sum() for name in moved) ** 0.5
        at = dict(weights)
        for name in moved:
            if norm > 0:
                at[name] = weights[name] + rho * gradient[name] / norm
        step = pulled_back(model, at, example, r)
        for name in trainable:
            total[name] += step[name] / len(inputs)
    return total
