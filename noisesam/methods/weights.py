"""Perturb the weights, and put them back to the last bit whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisesam.gradients.losses import accurate


def global_norm(gradient: Mapping[str, Tensor]) -> Tensor:
    """Return the l2 norm over all tensors, accumulated in at least float32."""
    if not gradient:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(accurate(value)) for value in gradient.values()]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def ascent(gradient: Mapping[str, Tensor], radii: Mapping[str, float], *, normalize: bool = True) -> dict[str, Tensor]:
    """Return eps = rho g / ||g|| (or rho g), each parameter with its own radius; a zero gradient gives a zero eps."""
    if not normalize:
        return {name: radii[name] * value for name, value in gradient.items()}
    norm = global_norm(gradient)
    inverse = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)
    return {name: (accurate(value) * (radii[name] * inverse)).to(value.dtype) for name, value in gradient.items()}


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
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back after a block: running statistics belong to the clean pass alone."""
    copies = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in copies:
                buffer.copy_(copy)
