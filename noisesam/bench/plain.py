"""Steps in plain torch: the price of SGD and of batch SAM, and the exact per-example step that needs no library."""

from __future__ import annotations

import torch
from torch import Tensor

from noisesam.bench.case import RHO, Case, Step


def _loss(case: Case, rows: slice = slice(None)) -> Tensor:
    with case.autocast():
        logits = case.model(case.inputs[rows])
    return torch.nn.functional.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, case.targets[rows])


def sgd(case: Case) -> Step:
    """loss.backward(): the unit of every ratio."""

    def step() -> None:
        _loss(case).backward()

    return step


def batch_sam(case: Case) -> Step:
    """SAM as it is usually written: weights copied, moved along the batch gradient, and put back."""
    weights = case.parameters

    def step() -> None:
        kept = _move(weights, torch.autograd.grad(_loss(case), weights))[0]
        _loss(case).backward()
        _put_back(weights, kept)

    return step


def one_by_one(case: Case) -> Step:
    """1-SAM as a loop over batches of one; returns the norms of the gradients at w."""
    weights = case.parameters

    def step() -> Tensor:
        norms = []
        for i in range(case.size):
            row = slice(i, i + 1)
            kept, norm = _move(weights, torch.autograd.grad(_loss(case, row), weights))
            norms.append(norm)
            (_loss(case, row) / case.size).backward()
            _put_back(weights, kept)
        return torch.stack(norms)

    return step


# torch's optimizers use the same functions: one call for all parameters.
def _move(weights: list[Tensor], gradient: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """Move the weights by rho g/||g|| in place; return what they were, and ||g||."""
    norm = torch.stack(torch._foreach_norm(gradient)).norm()  # pyright: ignore[reportPrivateImportUsage]
    with torch.no_grad():
        kept = [weight.detach().clone() for weight in weights]
        eps = torch._foreach_mul(gradient, RHO / norm)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(weights, eps)  # pyright: ignore[reportPrivateImportUsage]
    return kept, norm


def _put_back(weights: list[Tensor], kept: list[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(weights, kept)  # pyright: ignore[reportPrivateImportUsage]
