"""The obvious twins: plain autograd, one example at a time, in-place weights. Slow; nothing of the engines is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PLACES = {"sgd": ("w", "w"), "1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}
"""Where each method takes the Jacobian and the residual."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def logistic(logits: Tensor, targets: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid((2 * targets - 1) * logits.reshape(-1))


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def norm(gradients: dict[str, Tensor]) -> Tensor:
    return torch.sqrt(sum((g.double().square().sum() for g in gradients.values()), torch.zeros(()).double()))


def _pull(model: nn.Module, output: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    parameters = parameters_of(model)
    found = torch.autograd.grad(output, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def residual_at(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target).sum(), leaf)[0]


def example_terms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    rho: float,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> list[dict[str, dict[str, Tensor]]]:
    """For every example alone: the terms J(theta_J)^T r(theta_L) of sgd, 1-sam, l-sam and j-sam."""
    rows = []
    parameters = parameters_of(model)
    for i in range(len(inputs)):
        x, y = inputs[i : i + 1], targets[i : i + 1]
        output = model(x)
        r = residual_at(loss, output, y)
        g = _pull(model, output, r)
        size = norm(g)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, value in g.items():
                if size > 0:
                    parameters[name].add_(rho * value / size)
        moved = model(x)
        moved_r = residual_at(loss, moved, y)
        terms = {"sgd": g, "1-sam": _pull(model, moved, moved_r), "j-sam": _pull(model, moved, r)}
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
        terms["l-sam"] = _pull(model, model(x), moved_r)
        rows.append(terms)
    return rows


def mean_term(rows: list[dict[str, dict[str, Tensor]]], method: str) -> dict[str, Tensor]:
    names = rows[0][method]
    return {name: sum((row[method][name] for row in rows), torch.zeros_like(names[name])) / len(rows) for name in names}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, over all parameters."""
    assert set(found) == set(expected)
    difference = {name: found[name].double() - expected[name].double() for name in expected}
    return float(norm(difference) / norm(expected))
