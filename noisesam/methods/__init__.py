"""The SAM family behind one interface: a method takes the place of `loss.backward()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisesam.methods.base import Method, NonFiniteLossError
from noisesam.methods.registry import MethodDescription, class_named, describe, make, names
from noisesam.methods.result import StepResult, StepTerms

if TYPE_CHECKING:
    from noisesam.methods.m_sam import MSAM
    from noisesam.methods.per_example import JSAM, LSAM, OneSAM
    from noisesam.methods.reg_sgd import RegularizedSGD
    from noisesam.methods.sam import SAM
    from noisesam.methods.sgd import SGD

__all__ = [
    "JSAM",
    "LSAM",
    "MSAM",
    "SAM",
    "SGD",
    "Method",
    "MethodDescription",
    "NonFiniteLossError",
    "OneSAM",
    "RegularizedSGD",
    "StepResult",
    "StepTerms",
    "describe",
    "make",
    "names",
]


def __getattr__(name: str) -> Any:
    """Find a method's class by the registry, so that a new method needs no line here."""
    found = class_named(name)
    if found is None:
        raise AttributeError(f"module 'noisesam.methods' has no attribute {name!r}")
    return found
