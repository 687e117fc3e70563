"""Masks that leave part of the weights unperturbed: by entry, by tensor, or N of every M along the inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from noisesam.errors import InputError
from noisesam.methods.checks import shown

Masks = dict[str, Tensor]
PATTERNS = "'unstructured', 'structured' or 'N:M', such as '2:4'"


def check_pattern(pattern: Any, sparsity: float | None) -> tuple[str | tuple[int, int], float]:
    """Return the pattern and the share of weights that stay unperturbed.

    Example:
        >>> check_pattern("2:4", None)
        ((2, 4), 0.5)

    Raises:
        InputError: The pattern is not one, or contradicts the sparsity.
    """
    if isinstance(pattern, str) and pattern in ("unstructured", "structured"):
        share = 0.5 if sparsity is None else sparsity
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share < 1:
            raise InputError(
                f"sparsity={shown(sparsity)}",
                expected="a share of weights of at least 0 and below 1",
                remedy="sparsity=0 is SAM; at 1 nothing would be perturbed: use sgd.",
            )
        return pattern, float(share)
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(
            f"pattern={shown(pattern)}",
            expected=f"{PATTERNS} with 1 <= N <= M",
            remedy="Type pattern='2:4' to perturb two of every four weights of a row.",
        )
    kept, of = int(found[1]), int(found[2])
    if sparsity is not None and not (isinstance(sparsity, Real) and abs(sparsity - (1 - kept / of)) <= 1e-9):
        raise InputError(
            f"sparsity={shown(sparsity)} with pattern={pattern!r}",
            expected=f"sparsity={1 - kept / of:g}, which the pattern says",
            remedy="Leave sparsity out.",
        )
    return (kept, of), 1 - kept / of


def kept_count(total: int, sparsity: float) -> int:
    """Return how many of `total` weights are perturbed: at least one."""
    return max(1, total - int(sparsity * total + 1e-9))


def top_masks(scores: Mapping[str, Tensor], pattern: str | tuple[int, int], sparsity: float) -> Masks:
    """Return the masks of the highest scores, exactly as many as the density says (whole tensors: at least as many).

    Ties are broken by place, so that their number does not change the density.
    """
    if isinstance(pattern, tuple):
        return {name: _grouped_top(score, *pattern) for name, score in scores.items()}
    total = sum(score.numel() for score in scores.values())
    count = kept_count(total, sparsity)
    if pattern == "structured":
        masks, taken = {}, 0
        for name in sorted(scores, key=lambda key: -float(scores[key].double().mean())):
            masks[name] = torch.full_like(scores[name], taken < count, dtype=torch.bool)
            taken += scores[name].numel()
        return {name: masks[name] for name in scores}
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros(total, dtype=torch.bool, device=flat.device)
    chosen[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    return unflattened(chosen, scores)


def unflattened(flat: Tensor, like: Mapping[str, Tensor]) -> Masks:
    """Return a flat tensor as tensors by name, of the shapes of `like`."""
    pieces = flat.split([value.numel() for value in like.values()])
    return {name: piece.view(value.shape) for (name, value), piece in zip(like.items(), pieces, strict=True)}


def _grouped_top(score: Tensor, kept: int, of: int) -> Tensor:
    """Return N of every M along the second axis (the inputs of a weight); tensors of one axis are kept whole.

    A last group of fewer than M entries keeps its share, rounded up.
    """
    if score.dim() < 2:
        return torch.ones_like(score, dtype=torch.bool)
    mask = torch.zeros_like(score, dtype=torch.bool)
    for start in range(0, score.shape[1], of):
        group = score[:, start : start + of]
        count = -(-kept * group.shape[1] // of)
        rows = torch.argsort(group, dim=1, descending=True, stable=True)[:, :count]
        mask[:, start : start + of].scatter_(1, rows, True)
    return mask


def saved_masks(masks: Mapping[str, Tensor]) -> Masks:
    """Return copies for a state_dict."""
    return {name: mask.clone() for name, mask in masks.items()}
