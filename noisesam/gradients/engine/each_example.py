"""A function of one example's weights, for all examples: vectorised, or in a loop where vmap has no rule for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap


def each(function: Callable[..., Any], *arguments: tuple[Tensor, bool]) -> Any:
    """Return function(...) for every example, stacked along a new first axis.

    Args:
        function: Takes tensors, returns a tensor or a tuple of tensors.
        arguments: Each with whether its first axis is the examples'; at least one is. The others are the same for all.
    """
    places = tuple(0 if own else None for _, own in arguments)
    values = tuple(value for value, _ in arguments)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(function, in_dims=places)(*values)
    except (RuntimeError, NotImplementedError, ValueError):
        return _in_a_loop(function, values, places)


def _in_a_loop(function: Callable[..., Any], values: tuple[Tensor, ...], places: tuple[int | None, ...]) -> Any:
    examples = next(len(value) for value, place in zip(values, places, strict=True) if place == 0)
    rows = [
        function(*(value if place is None else value[i] for value, place in zip(values, places, strict=True)))
        for i in range(examples)
    ]
    if isinstance(rows[0], tuple):
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return torch.stack(rows)
