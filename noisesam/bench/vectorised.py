"""1-SAM by torch.func.vmap, in the two forms that it allows; both hold one copy of the weights per example."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisesam.bench.case import RHO, Case, Step

Weights = dict[str, Tensor]


def nested(case: Case, chunk: int | None = None) -> Step:
    """Vectorise the whole term of one example: grad at w, then grad at w + eps_i."""
    alone = _loss_alone(case)
    parameters = dict(case.model.named_parameters())

    def step() -> None:
        weights = {name: parameter.detach() for name, parameter in parameters.items()}

        def term(one: Tensor, target: Tensor) -> Weights:
            gradient = grad(alone)(weights, one, target)
            norm = torch.sqrt(sum((g.square().sum() for g in gradient.values()), torch.zeros((), device=one.device)))
            return grad(alone)({name: weights[name] + RHO / norm * g for name, g in gradient.items()}, one, target)

        for rows in _chunks(case, chunk):
            with _attention_that_vmap_knows():
                found = vmap(term)(case.inputs[rows], case.targets[rows])
            for name, parameter in parameters.items():
                share = found[name].sum(0) / case.size
                parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)

    return step


def materialised(case: Case, chunk: int | None = None) -> Step:
    """Per-example gradients by vmap(grad), w + eps_i materialised, then plain backward through the vmapped forward."""
    alone = _loss_alone(case)
    parameters = dict(case.model.named_parameters())

    def step() -> None:
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        for rows in _chunks(case, chunk):
            inputs, targets = case.inputs[rows], case.targets[rows]
            with _attention_that_vmap_knows():
                gradients = vmap(grad(alone), in_dims=(None, 0, 0))(weights, inputs, targets)
                norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
                moved = {
                    name: parameter + (RHO / norms).view(-1, *[1] * parameter.dim()) * gradients[name]
                    for name, parameter in parameters.items()
                }
                losses = vmap(alone)(moved, inputs, targets)
            (losses.sum() / case.size).backward()

    return step


def _loss_alone(case: Case):
    def alone(weights: Weights, one: Tensor, target: Tensor) -> Tensor:
        with case.autocast():
            logits = functional_call(case.model, weights, (one.unsqueeze(0),))
        logits = logits.float() if logits.dtype != torch.float64 else logits
        return torch.nn.functional.cross_entropy(logits, target.unsqueeze(0))

    return alone


def _chunks(case: Case, chunk: int | None) -> list[slice]:
    step = chunk or case.size
    return [slice(start, min(start + step, case.size)) for start in range(0, case.size, step)]


def _attention_that_vmap_knows() -> AbstractContextManager[object]:
    """Without this vmap would run the fused attention kernels, for which it has no rule, one example at a time."""
    return sdpa_kernel(SDPBackend.MATH)
