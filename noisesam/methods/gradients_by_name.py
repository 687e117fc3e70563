"""Gradients by parameter name: from a residual through the network, and into `.grad`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import sparse_gradient


def pull_back(output: Tensor, residual: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return sum_i J_i^T residual_i by parameter name, without touching `.grad`; parameters that play no part are absent."""
    if not output.requires_grad:
        return {}
    with torch.autocast(output.device.type, enabled=False), refusing_reentrant_checkpoints():
        gradients = torch.autograd.grad(output, list(parameters.values()), residual.to(output.dtype), allow_unused=True)
    return dense_only({name: value for name, value in zip(parameters, gradients, strict=True) if value is not None})


@contextmanager
def refusing_reentrant_checkpoints() -> Iterator[None]:
    """Say in our own words what autograd cannot do: a re-entrant checkpoint adds to `.grad` and returns nothing."""
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise InputError(
            "Activation checkpointing with use_reentrant=True",
            expected="checkpoints that return their gradients",
            remedy="Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False), which torch recommends, too.",
        ) from error


def dense_only(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients by name, or refuse a sparse one by its name."""
    for name, value in found.items():
        if value.layout != torch.strided:
            raise sparse_gradient(name)
    return found


def add_to_grad(parameters: Mapping[str, nn.Parameter], gradient: Mapping[str, Tensor]) -> None:
    """Add to `.grad` once everything has been computed, so that an exception leaves no half of a gradient behind."""
    taken: set[int] = set()
    with torch.no_grad():
        for name, value in gradient.items():
            parameter = parameters[name]
            value = value.detach().to(parameter.dtype)
            if parameter.grad is None:
                # Autograd may hand one tensor to two parameters; in-place clipping would then act twice.
                own = value.is_contiguous() and value.data_ptr() not in taken
                parameter.grad = value if own else value.clone(memory_format=torch.contiguous_format)
                taken.add(value.data_ptr())
            else:
                parameter.grad.add_(value)


def infinite(parameters: Mapping[str, nn.Parameter], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a gradient of inf of the same names, or of all where there is none, at which a scaler skips its step."""
    names = gradient or parameters
    return {name: torch.full_like(parameters[name], torch.inf) for name in names}
