"""noisesam: why do sharpness-aware methods resist label noise, and which part of the mechanism does each method keep?

Everything here is loaded on first use, so that reading and analysing saved runs needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "analysis", "data", "experiments", "gradients", "methods", "models", "plotting", "regularizers", "reproduce", "runs",
    "testing", "tracking", "training",
)  # fmt: skip

_ATTRIBUTES = {
    "SGD": "methods",
    "SAM": "methods",
    "MSAM": "methods",
    "OneSAM": "methods",
    "LSAM": "methods",
    "JSAM": "methods",
    "RegularizedSGD": "methods",
    "ESAM": "methods",
    "LookSAM": "methods",
    "LookLayerSAM": "methods",
    "SAF": "methods",
    "MESA": "methods",
    "FisherSparseSAM": "methods",
    "DynamicSparseSAM": "methods",
    "FriendlySAM": "methods",
    "AUSAM": "methods",
    "ASAM": "methods",
    "GSAM": "methods",
    "SANER": "methods",
    "VaSSO": "methods",
    "GNP": "methods",
    "RandomSAM": "methods",
    "Method": "methods",
    "StepResult": "methods",
    "decompose": "gradients",
    "per_example_gradients": "gradients",
    "mixed_point_gradient": "gradients",
    "GradientDecomposition": "gradients",
    "JSAMRegularizer": "regularizers",
    "Tracker": "tracking",
    "fit": "training",
    "load_config": "training",
    "open_run": "runs",
    "open_runs": "runs",
    "NoisesamError": "errors",
    "keep_freed_memory": "allocation",
}

if TYPE_CHECKING:
    from noisesam.allocation import keep_freed_memory as keep_freed_memory
    from noisesam.errors import NoisesamError as NoisesamError
    from noisesam.gradients import GradientDecomposition as GradientDecomposition
    from noisesam.gradients import decompose as decompose
    from noisesam.gradients import mixed_point_gradient as mixed_point_gradient
    from noisesam.gradients import per_example_gradients as per_example_gradients
    from noisesam.methods import ASAM as ASAM
    from noisesam.methods import AUSAM as AUSAM
    from noisesam.methods import ESAM as ESAM
    from noisesam.methods import GNP as GNP
    from noisesam.methods import GSAM as GSAM
    from noisesam.methods import JSAM as JSAM
    from noisesam.methods import LSAM as LSAM
    from noisesam.methods import MESA as MESA
    from noisesam.methods import MSAM as MSAM
    from noisesam.methods import SAF as SAF
    from noisesam.methods import SAM as SAM
    from noisesam.methods import SANER as SANER
    from noisesam.methods import SGD as SGD
    from noisesam.methods import DynamicSparseSAM as DynamicSparseSAM
    from noisesam.methods import FisherSparseSAM as FisherSparseSAM
    from noisesam.methods import FriendlySAM as FriendlySAM
    from noisesam.methods import LookLayerSAM as LookLayerSAM
    from noisesam.methods import LookSAM as LookSAM
    from noisesam.methods import Method as Method
    from noisesam.methods import OneSAM as OneSAM
    from noisesam.methods import RandomSAM as RandomSAM
    from noisesam.methods import RegularizedSGD as RegularizedSGD
    from noisesam.methods import StepResult as StepResult
    from noisesam.methods import VaSSO as VaSSO
    from noisesam.regularizers import JSAMRegularizer as JSAMRegularizer
    from noisesam.runs import open_run as open_run
    from noisesam.runs import open_runs as open_runs
    from noisesam.tracking import Tracker as Tracker
    from noisesam.training import fit as fit
    from noisesam.training import load_config as load_config

__all__ = [*_ATTRIBUTES, *_SUBPACKAGES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(f"noisesam.{_ATTRIBUTES[name]}"), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"noisesam.{name}")
    if name[:1].isupper():  # a method that only the registry knows of
        return getattr(importlib.import_module("noisesam.methods"), name)
    raise AttributeError(f"module 'noisesam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
