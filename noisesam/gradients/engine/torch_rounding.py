"""Evaluations that round as torch itself does: where the engine's outputs are to be torch's own to the bit.

Behind a kink (ReLU, a largest value) a difference of one rounding can be another gradient: with 100,000 activations one of
them lies within a rounding of zero every other time. Two evaluations whose gradients are compared should not differ by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WANTED: ContextVar[bool] = ContextVar("torch_rounding", default=False)


def torch_rounding() -> bool:
    """Whether products are to be those of the functions, and in the memory order, that the model itself has asked for."""
    return _WANTED.get()


@contextmanager
def with_torch_rounding() -> Iterator[None]:
    """For the length of a block, leave products that are the same numbers in another order of summation aside."""
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)
