"""Models without spatial structure: linear, two-layer linear, deep linear and the multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from noisesam.models.classifier import Classifier
from noisesam.models.initialisation import initialise
from noisesam.models.options import ACTIVATION, ACTIVATIONS, COUNT, COUNTS, FLAG, INIT_STD, PROBABILITY
from noisesam.models.registry import register

_BIAS = ("whether the linear layers have biases; false in the toy settings", FLAG)
_INIT_STD = (
    "None: torch's default distributions; a number: weights ~ N(0, init_std^2); "
    '"fan_in": weights ~ N(0, 1/inputs); biases are zero in the last two',
    INIT_STD,
)
_WIDTH = ("units of a hidden layer", COUNT)

InitStd = float | int | str | None


@register("linear", title="f(x) = V x + c on the flattened input.", options={"bias": _BIAS, "init_std": _INIT_STD})
def linear(
    input_shape: tuple[int, ...], classes: int, generator: torch.Generator, *, bias: bool = True, init_std: InitStd = None
) -> Classifier:
    """Build a linear model; its hidden activation is the flattened input itself."""
    return _dense(input_shape, classes, generator, widths=(), activation="identity", bias=bias, init_std=init_std)


@register(
    "two-layer-linear",
    title="f(x) = V W x, two linear layers with nothing between.",
    options={"width": _WIDTH, "bias": _BIAS, "init_std": _INIT_STD},
)
def two_layer_linear(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    width: int = 64,
    bias: bool = True,
    init_std: InitStd = None,
) -> Classifier:
    """Build a two-layer linear model, on which the step of J-SAM has a closed form."""
    return _dense(input_shape, classes, generator, widths=(width,), activation="identity", bias=bias, init_std=init_std)


@register(
    "deep-linear",
    title="A chain of linear layers with nothing between.",
    options={"width": _WIDTH, "depth": ("linear layers, the last one counted", COUNT), "bias": _BIAS, "init_std": _INIT_STD},
)
def deep_linear(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    width: int = 64,
    depth: int = 3,
    bias: bool = True,
    init_std: InitStd = None,
) -> Classifier:
    """Build a linear model of any depth."""
    return _dense(
        input_shape, classes, generator, widths=(width,) * (depth - 1), activation="identity", bias=bias, init_std=init_std
    )


@register(
    "mlp",
    title="Multilayer perceptron on the flattened input.",
    options={
        "hidden": ("units of each hidden layer, first to last", COUNTS),
        "activation": ("function after each hidden layer", ACTIVATION),
        "dropout": ("probability with which a hidden unit is dropped in training", PROBABILITY),
        "bias": _BIAS,
        "init_std": _INIT_STD,
    },
)
def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    hidden: tuple[int, ...] = (128, 128),
    activation: str = "relu",
    dropout: float | int = 0.0,
    bias: bool = True,
    init_std: InitStd = None,
) -> Classifier:
    """Build a multilayer perceptron."""
    return _dense(
        input_shape, classes, generator, widths=hidden, activation=activation, dropout=dropout, bias=bias, init_std=init_std
    )


def _dense(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    widths: tuple[int, ...],
    activation: str,
    bias: bool,
    init_std: InitStd,
    dropout: float | int = 0.0,
) -> Classifier:
    sizes = (math.prod(input_shape), *widths)
    body = nn.Sequential(nn.Flatten())
    for inputs, outputs in pairwise(sizes):
        body.append(nn.Linear(inputs, outputs, bias=bias))
        if activation != "identity":
            body.append(ACTIVATIONS[activation]())
        if dropout > 0:  # a module that drops nothing would still ask for randomness under vmap
            body.append(nn.Dropout(dropout))
    model = Classifier(body, features=sizes[-1], classes=classes, input_shape=input_shape, bias=bias)
    return initialise(model, generator, init_std=init_std)
