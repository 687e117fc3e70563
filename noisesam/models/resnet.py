"""Residual networks for small images, with normalisation that keeps examples apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.models.classifier import Classifier
from noisesam.models.initialisation import initialise
from noisesam.models.options import ACTIVATION, ACTIVATIONS, COUNT, NORMALISATION, NORMALISATIONS
from noisesam.models.registry import register

_OPTIONS = {
    "width": ("channels of the first stage; every later stage doubles them", COUNT),
    "activation": ("function after each normalisation", ACTIVATION),
    "normalisation": (
        "layernorm: over the channels at every pixel; groupnorm: over all channels and pixels of an image; none",
        NORMALISATION,
    ),
}
_REFERENCE = "He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, arXiv 1512.03385"


class PixelMean(nn.Module):
    """Average over the pixels; torch's own global pooling has no vmap rule where the channels lie last in memory."""

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels"]:
        """Return one number per channel."""
        return images.mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: `a(n(conv(a(n(conv(x))))) + shortcut(x))`.

    The shortcut is the identity, or a normalised 1x1 convolution where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, activation: str, normalisation: str) -> None:
        super().__init__()
        bias = normalisation == "none"  # a normalisation layer has a bias of its own
        norm = NORMALISATIONS[normalisation]
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias),
            norm(outputs),
            ACTIVATIONS[activation](),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias),
            norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias), norm(outputs))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, images: Float[Tensor, "n c_in h_in w_in"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Apply the block."""
        return self.activation(self.residual(images) + self.shortcut(images))


@register(
    "resnet8",
    title="Residual network of 8 layers: one block in each of three stages.",
    images=True,
    options=_OPTIONS,
    reference=_REFERENCE,
)
def resnet8(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    width: int = 16,
    activation: str = "relu",
    normalisation: str = "layernorm",
) -> Classifier:
    """Build the smallest member of the CIFAR residual networks."""
    return _resnet(
        input_shape, classes, generator, blocks=(1, 1, 1), width=width, activation=activation, normalisation=normalisation
    )


@register(
    "resnet18",
    title="Residual network of 18 layers for small images: a 3x3 stem without pooling, two blocks in each of four stages.",
    images=True,
    options=_OPTIONS,
    reference=_REFERENCE,
)
def resnet18(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    width: int = 64,
    activation: str = "relu",
    normalisation: str = "layernorm",
) -> Classifier:
    """Build ResNet-18 with the stem that is usual for CIFAR."""
    return _resnet(
        input_shape, classes, generator, blocks=(2, 2, 2, 2), width=width, activation=activation, normalisation=normalisation
    )


def _resnet(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    blocks: tuple[int, ...],
    width: int,
    activation: str,
    normalisation: str,
) -> Classifier:
    body = nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1, bias=normalisation == "none"),
        NORMALISATIONS[normalisation](width),
        ACTIVATIONS[activation](),
    )
    channels = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            body.append(ResidualBlock(channels, outputs, stride=stride, activation=activation, normalisation=normalisation))
            channels = outputs
    body.append(PixelMean())
    return initialise(Classifier(body, features=channels, classes=classes, input_shape=input_shape), generator)
