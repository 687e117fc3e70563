"""The SAM family behind one interface: a method takes the place of `loss.backward()`."""

from noisesam.methods.base import Method, NonFiniteLossError
from noisesam.methods.m_sam import MSAM
from noisesam.methods.per_example import JSAM, LSAM, OneSAM
from noisesam.methods.reg_sgd import RegularizedSGD
from noisesam.methods.registry import MethodDescription, describe, make, names
from noisesam.methods.result import StepResult, StepTerms
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
