"""The tensors among the arguments of a function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in these values, and in the lists, tuples and dicts among them, at any depth.

    The bounds of a slice are read as numbers, whatever they are given as, and no tensors.
    """
    found: list[Tensor] = []  # a list: it is asked at every function that a model calls, and generators are slower
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found
