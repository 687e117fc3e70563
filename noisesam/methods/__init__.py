"""The SAM family behind one interface: a method takes the place of `loss.backward()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisesam.methods.base import Method, NonFiniteLossError
from noisesam.methods.registry import MethodDescription, class_named, controls, describe, make, names
from noisesam.methods.result import StepResult, StepTerms

if TYPE_CHECKING:
    from noisesam.methods.asam import ASAM
    from noisesam.methods.ausam import AUSAM
    from noisesam.methods.esam import ESAM
    from noisesam.methods.f_sam import FriendlySAM
    from noisesam.methods.gnp import GNP
    from noisesam.methods.gsam import GSAM
    from noisesam.methods.length_matched_sgd import LengthMatchedSGD
    from noisesam.methods.looklayersam import LookLayerSAM
    from noisesam.methods.looksam import LookSAM
    from noisesam.methods.m_sam import MSAM
    from noisesam.methods.mesa import MESA
    from noisesam.methods.per_example import JSAM, LSAM, OneSAM
    from noisesam.methods.random_sam import RandomSAM
    from noisesam.methods.reg_sgd import RegularizedSGD
    from noisesam.methods.saf import SAF
    from noisesam.methods.sam import SAM
    from noisesam.methods.saner import SANER
    from noisesam.methods.sgd import SGD
    from noisesam.methods.ssam_d import DynamicSparseSAM
    from noisesam.methods.ssam_f import FisherSparseSAM
    from noisesam.methods.vasso import VaSSO

__all__ = [
    "ASAM",
    "AUSAM",
    "ESAM",
    "GNP",
    "GSAM",
    "JSAM",
    "LSAM",
    "MESA",
    "MSAM",
    "SAF",
    "SAM",
    "SANER",
    "SGD",
    "DynamicSparseSAM",
    "FisherSparseSAM",
    "FriendlySAM",
    "LengthMatchedSGD",
    "LookLayerSAM",
    "LookSAM",
    "Method",
    "MethodDescription",
    "NonFiniteLossError",
    "OneSAM",
    "RandomSAM",
    "RegularizedSGD",
    "StepResult",
    "StepTerms",
    "VaSSO",
    "controls",
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
