"""The range of every value of a configuration, checked without torch; names that need a registry are checked by `validate`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from noisesam.errors import ConfigurationError, nearest_name
from noisesam.training.config import Config

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "float64")
AUGMENTATIONS = ("none", "crop-flip")
PRECISIONS = ("float32", "tf32", "bfloat16")
HUMAN_SOURCES = ("aggregate", "random1", "random2", "random3", "worst", "noisy")
WITHOUT_RATE = ("none", "human", "transition-matrix")
"""Kinds of label noise that bring their own rate, or none."""
LARGEST_INTEGER = 2**63 - 1
"""What a manifest and its readers hold."""
LARGEST_FLOAT32 = 3.4e38
LARGEST_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""

_AT_LEAST_ONE: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE: tuple[Callable[[Any], bool], str] = (lambda value: math.isfinite(value) and value >= 0, "0 or more")
_FLOAT32: tuple[Callable[[Any], bool], str] = (lambda value: 0 <= value <= LARGEST_FLOAT32, "0 or more, within float32")
_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda value: math.isfinite(value) and value > 0, "more than 0")
_NOT_EMPTY: tuple[Callable[[Any], bool], str] = (lambda value: bool(value.strip()), "a name")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.name": _NOT_EMPTY,
    "data.train_size": _AT_LEAST_ONE,
    "data.test_size": _AT_LEAST_ONE,
    "data.validation_size": _NOT_NEGATIVE,
    "noise.kind": _NOT_EMPTY,
    "noise.rate": (lambda value: 0 <= value <= 1, "a fraction between 0 and 1"),
    "model.name": _NOT_EMPTY,
    "method.name": _NOT_EMPTY,
    "method.loss": _NOT_EMPTY,
    "optimizer.lr": _FLOAT32,
    "optimizer.momentum": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "optimizer.weight_decay": _FLOAT32,
    "training.epochs": _AT_LEAST_ONE,
    "training.batch_size": _AT_LEAST_ONE,
    "training.device": (lambda value: re.fullmatch(r"cpu|(cuda|mps|xpu)(:\d+)?", value) is not None, "cpu, cuda or cuda:0"),
    "training.threads": _AT_LEAST_ONE,
    "tracking.evaluate_every": _AT_LEAST_ONE,
    "tracking.probe_size": _NOT_NEGATIVE,
    "tracking.probe_every": _AT_LEAST_ONE,
    "tracking.probe_dense": _NOT_NEGATIVE,
    "tracking.rho": _POSITIVE,
    "checkpoint.every": _AT_LEAST_ONE,
    "checkpoint.every_steps": _AT_LEAST_ONE,
    "checkpoint.keep": _NOT_NEGATIVE,
    "seed": (lambda value: 0 <= value <= LARGEST_SEED, "an integer between 0 and 2**53 - 1"),
}

_CHOICES = {
    "noise.source": HUMAN_SOURCES,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "training.dtype": DTYPES,
    "training.augmentation": AUGMENTATIONS,
    "training.precision": PRECISIONS,
}


def check_values(config: Config) -> None:
    """Refuse a configuration with a value out of its range, or with two values that contradict each other."""
    for key, (allowed, expected) in _RANGES.items():
        value = _value(config, key)
        if value is not None and not allowed(value):
            default = _value(Config(), key)
            remedy = f"Leave {key} out for its default, which is {'none' if default is None else repr(default)}."
            if key == "noise.rate":  # its default is no noise
                remedy = "Write 40% as 0.4."
            raise ConfigurationError(f"{key} = {value!r}", expected=expected, remedy=remedy)
    for key, choices in _CHOICES.items():
        value = _value(config, key)
        if value is not None:
            check_choice(key, value, choices)
    _check_pairs(config)


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices of its key."""
    if value in choices:
        return
    close = nearest_name(value.lower(), choices)
    raise ConfigurationError(
        f"{key} = {value!r}",
        expected="one of: " + ", ".join(choices),
        remedy=f"Did you mean {close!r}?" if close else "",
    )


def _check_pairs(config: Config) -> None:
    """Refuse two values that contradict each other: each would otherwise be ignored in silence."""
    data, noise, optimizer, training = config.data, config.noise, config.optimizer, config.training
    if data.train_size is not None and data.validation_size >= data.train_size:
        raise ConfigurationError(
            f"data.validation_size = {data.validation_size} with data.train_size = {data.train_size}",
            expected="a validation hold-out smaller than the training set it is taken from",
        )
    if noise.kind == "none" and noise.rate:
        raise ConfigurationError(
            f'noise.rate = {noise.rate} with noise.kind = "none"',
            expected="a rate of 0 without noise",
            remedy='Name the noise, for instance noise.kind = "symmetric".',
        )
    if noise.kind == "human" and noise.rate:
        raise ConfigurationError(
            f'noise.rate = {noise.rate} with noise.kind = "human"',
            expected="no rate, because human labels bring their own",
            remedy="Leave noise.rate out and choose noise.source.",
        )
    if noise.source is not None and noise.kind != "human":
        raise ConfigurationError(
            f'noise.source = "{noise.source}" with noise.kind = "{noise.kind}"',
            expected="a source with human labels only",
            remedy='Leave noise.source out, or write noise.kind = "human".',
        )
    if optimizer.name != "sgd" and (optimizer.momentum or optimizer.nesterov):
        raise ConfigurationError(
            f"optimizer.momentum = {optimizer.momentum}, optimizer.nesterov = {optimizer.nesterov}"
            f' with optimizer.name = "{optimizer.name}"',
            expected="momentum and nesterov with sgd only",
        )
    if optimizer.nesterov and not optimizer.momentum:
        raise ConfigurationError("optimizer.nesterov = true with optimizer.momentum = 0.0", expected="a momentum above 0")
    if training.precision == "tf32" and not training.device.startswith("cuda"):
        raise missing_tf32(training.device)
    if training.precision != "float32" and training.dtype != "float32":
        raise ConfigurationError(
            f'training.precision = "{training.precision}" with training.dtype = "{training.dtype}"',
            expected='training.dtype = "float32": float64 is computed in float64 whatever the precision says',
            remedy="Leave one of the two out.",
        )


def missing_tf32(device: str) -> ConfigurationError:
    """Build the error for TF32 on a device that has none."""
    return ConfigurationError(
        f'training.precision = "tf32" with training.device = "{device}"',
        expected="an NVIDIA device of compute capability 8.0 or above: TF32 is an arithmetic of its tensor cores",
        remedy='Use training.precision = "float32", or such a device with training.device = "cuda".',
    )


def _value(config: Config, key: str) -> Any:
    """Return the value behind a full key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
