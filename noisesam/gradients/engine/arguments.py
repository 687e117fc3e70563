"""The tensors among the arguments of a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in these values, and in the lists, tuples, dicts and slices among them, at any depth.

    It is asked at every function that a model calls, and mostly the first tensor decides.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
        elif isinstance(value, slice):
            yield from tensors_in((value.start, value.stop, value.step))
