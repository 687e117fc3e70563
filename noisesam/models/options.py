"""Options of the models: what each one means, and the check that a value from a file or a call must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from noisesam.errors import nearest_name

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
"""Activation functions by name; all act on single numbers, so none mixes examples, and none works in place."""


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels, at every pixel of every example on its own.

    The statistics never leave a pixel, so that no example sees another. The channels are moved last and handed to
    `torch.nn.LayerNorm`, whose parameters therefore reach `torch.nn.functional.layer_norm` as they are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images of shape (n, channels, height, width)."""
        return self.norm(images.movedim(1, -1)).movedim(-1, 1)


NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": ChannelLayerNorm,
    "groupnorm": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),  # noqa: ARG005
}
"""Normalisations by name, as functions of the number of channels; BatchNorm is left out because it mixes examples."""


@dataclass(frozen=True)
class Check:
    """What a value must be: `convert` returns the value in its final form, or None if it is not acceptable."""

    expected: str
    convert: Callable[[Any], Any]
    names: tuple[str, ...] = ()

    def nearest(self, value: Any) -> str | None:
        """Return the acceptable name closest to a value that is a name."""
        return nearest_name(value, self.names) if isinstance(value, str) else None


@dataclass(frozen=True)
class Option:
    """One option of a model: its default, its meaning and what its value must be."""

    default: Any
    meaning: str
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _counts(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and all(map(_is_count, value)) else None


def _three_counts(value: Any) -> tuple[int, ...] | None:
    counts = _counts(value)
    return counts if counts is not None and len(counts) == 3 else None


def _std(value: Any) -> Any:
    return value if value == "fan_in" or (_is_number(value) and value >= 0) else None


def choice(names: tuple[str, ...]) -> Check:
    """Accept one of `names`."""
    return Check(
        "one of: " + ", ".join(names), lambda value: value if isinstance(value, str) and value in names else None, names
    )


COUNT = Check("an integer of at least 1", lambda value: value if _is_count(value) else None)
COUNTS = Check("a list of integers of at least 1", _counts)
THREE_COUNTS = Check("a list of three integers of at least 1", _three_counts)
FLAG = Check("true or false", lambda value: value if isinstance(value, bool) else None)
PROBABILITY = Check("a number in [0, 1)", lambda value: value if _is_number(value) and 0 <= value < 1 else None)
INIT_STD = Check('a standard deviation of at least 0, or "fan_in"', _std)
ACTIVATION = choice(tuple(ACTIVATIONS))
NORMALISATION = choice(tuple(NORMALISATIONS))
ANYTHING = Check("any value", lambda value: value)
