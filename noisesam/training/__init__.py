"""Training runs from a configuration: loading, seeding, the loop, evaluation and checkpoints.

Reading and checking a configuration needs no torch; everything else here is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from noisesam.training.config import CheckpointConfig as CheckpointConfig
from noisesam.training.config import Config as Config
from noisesam.training.config import DataConfig as DataConfig
from noisesam.training.config import MethodConfig as MethodConfig
from noisesam.training.config import ModelConfig as ModelConfig
from noisesam.training.config import NoiseConfig as NoiseConfig
from noisesam.training.config import OptimizerConfig as OptimizerConfig
from noisesam.training.config import TrackingConfig as TrackingConfig
from noisesam.training.config import TrainingConfig as TrainingConfig
from noisesam.training.load import config_to_dict as config_to_dict
from noisesam.training.load import load_config as load_config
from noisesam.training.seeding import PURPOSES as PURPOSES
from noisesam.training.seeding import seed_for as seed_for

if TYPE_CHECKING:
    from noisesam.training.batches import BatchOrder as BatchOrder
    from noisesam.training.equal_weights import mechanism_at_equal_weights as mechanism_at_equal_weights
    from noisesam.training.evaluation import evaluate as evaluate
    from noisesam.training.fitting import default_directory as default_directory
    from noisesam.training.fitting import fit as fit
    from noisesam.training.preparation import Prepared as Prepared
    from noisesam.training.preparation import prepare as prepare
    from noisesam.training.stacked import train_stacked as train_stacked
    from noisesam.training.validation import validate as validate

_LAZY = {
    "BatchOrder": "batches",
    "Prepared": "preparation",
    "default_directory": "fitting",
    "evaluate": "evaluation",
    "fit": "fitting",
    "mechanism_at_equal_weights": "equal_weights",
    "prepare": "preparation",
    "train_stacked": "stacked",
    "validate": "validation",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"noisesam.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'noisesam.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
