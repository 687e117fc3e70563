"""The small convolutional network."""

from __future__ import annotations

import torch
from torch import nn

from noisesam.errors import InputError
from noisesam.models.classifier import Classifier
from noisesam.models.initialisation import initialise
from noisesam.models.options import (
    ACTIVATION,
    ACTIVATIONS,
    NORMALISATION,
    NORMALISATIONS,
    PROBABILITY,
    THREE_COUNTS,
)
from noisesam.models.registry import register


@register(
    "small-cnn",
    title="Three 3x3 convolutions, each followed by 2x2 max pooling, and a linear layer on the flattened maps.",
    images=True,
    options={
        "channels": ("channels of the three convolutions", THREE_COUNTS),
        "activation": ("function after each convolution", ACTIVATION),
        "normalisation": (
            "between convolution and activation; none by default: three layers train without, and then fit wrong labels soon",
            NORMALISATION,
        ),
        "dropout": ("probability with which a unit of the last hidden activation is dropped in training", PROBABILITY),
    },
)
def small_cnn(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    channels: tuple[int, ...] = (32, 64, 64),
    activation: str = "relu",
    normalisation: str = "none",
    dropout: float | int = 0.0,
) -> Classifier:
    """Build a network of three convolutions for images of at least 8x8 pixels."""
    previous, height, width = input_shape
    if min(height, width) < 8:
        raise InputError(
            f"input_shape is {input_shape}",
            expected="at least 8x8 pixels, which 'small-cnn' halves three times",
            remedy="Use 'mlp' or 'resnet8', or larger images.",
        )
    body = nn.Sequential()
    for outputs in channels:
        body.append(nn.Conv2d(previous, outputs, 3, padding=1, bias=normalisation == "none"))
        if normalisation != "none":
            body.append(NORMALISATIONS[normalisation](outputs))
        body.append(ACTIVATIONS[activation]())
        body.append(nn.MaxPool2d(2))
        previous = outputs
    body.append(nn.Flatten())
    if dropout > 0:  # a module that drops nothing would still ask for randomness under vmap
        body.append(nn.Dropout(dropout))
    features = previous * (height // 8) * (width // 8)
    return initialise(Classifier(body, features=features, classes=classes, input_shape=input_shape), generator)
