"""The tensors among the arguments of a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in these values, and in the lists, tuples and dicts among them, at any depth.

    The bounds of a slice are read as numbers, whatever they are given as, and no tensors. It is asked at every function that a
    model calls, and mostly the first tensor decides.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
