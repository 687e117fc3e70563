"""Perturb the weights, and put them back to the last bit whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisesam.gradients.losses import accurate
from noisesam.gradients.norms import norm_of


def global_norm(gradient: Mapping[str, Tensor]) -> Tensor:
    """Return the l2 norm over all tensors, accumulated in at least float32."""
    if not gradient:
        return torch.zeros(())
    norms = [norm_of(accurate(value)) for value in gradient.values()]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def ascent(gradient: Mapping[str, Tensor], radii: Mapping[str, float], *, normalize: bool = True) -> dict[str, Tensor]:
    """Return eps = rho g / ||g|| (or rho g), each parameter with its own radius; a zero gradient gives a zero eps."""
    if not normalize:
        return {name: radii[name] * value for name, value in gradient.items()}
    norm = global_norm(gradient)
    inverse = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)
    return {name: (accurate(value) * (radii[name] * inverse)).to(value.dtype) for name, value in gradient.items()}


def inner_product(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Return <first, second> over all tensors that both have, accumulated in at least float32."""
    shared = [name for name in first if name in second]
    if not shared:
        return torch.zeros(())
    products = [torch.sum(accurate(first[name]) * accurate(second[name])) for name in shared]
    return torch.stack([product.to(products[0].device) for product in products]).sum()


def orthogonal_part(gradient: Mapping[str, Tensor], along: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradient - (<gradient, along>/||along||^2) along over all tensors as one vector; all of it where along is zero."""
    norm = global_norm(along)
    inverse = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)
    # Divided twice by the norm: its square underflows for small gradients.
    share = inner_product(gradient, {name: accurate(value) * inverse for name, value in along.items()}) * inverse
    names = [*gradient, *(name for name in along if name not in gradient)]
    parts = {}
    for name in names:
        projected = share * along[name] if name in along else 0
        parts[name] = gradient[name] - projected if name in gradient else -projected
    return parts


@contextmanager
def moved_weights(parameters: Mapping[str, nn.Parameter], eps: Mapping[str, Tensor]) -> Iterator[None]:
    """Add eps to the weights for the length of a block.

    The weights are copied and copied back in place: adding and subtracting drifts in low precision, and replacing the
    storage breaks captured and compiled graphs.
    """
    moved = {name: parameters[name] for name in eps}
    with torch.no_grad():
        copies = {name: parameter.detach().clone() for name, parameter in moved.items()}
    try:
        with torch.no_grad():
            for name, parameter in moved.items():
                parameter.add_(eps[name])
        # Autocast keeps its low-precision copies of the weights for the whole block: the second pass would run at w.
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in moved.items():
                parameter.copy_(copies[name])
        torch.clear_autocast_cache()


@contextmanager
def placed_weights(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values into the weights for the length of a block, in place."""
    placed = {name: parameters[name] for name in values}
    with torch.no_grad():
        copies = {name: parameter.detach().clone() for name, parameter in placed.items()}
    try:
        with torch.no_grad():
            for name, parameter in placed.items():
                parameter.copy_(values[name])
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in placed.items():
                parameter.copy_(copies[name])
        torch.clear_autocast_cache()
