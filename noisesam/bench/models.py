"""The models whose steps are timed, with their batches; every one has a tiny twin of the same kind for tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from noisesam import models
from noisesam.errors import unknown_name

CLASSES = 10


class Positions(nn.Module):
    """Add a vector of its own to every position; a module, so that libraries which look at modules can see it."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, dim))

    def forward(self, tokens: Float[Tensor, "n length dim"]) -> Float[Tensor, "n length dim"]:
        """Return the tokens, moved."""
        return tokens + self.weight


class TextTransformer(nn.Module):
    """A text classifier of torch's own encoder layers: tokens -> embedding + positions -> layers -> mean -> logits.

    Args:
        vocabulary: Number of token ids.
        length: Tokens per text.
        dim: Length of a token's vector.
        depth: Encoder layers, each with four heads and a perceptron of width 4 dim.
    """

    def __init__(self, *, vocabulary: int, length: int, dim: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = Positions(length, dim)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, batch_first=True) for _ in range(depth))
        )
        self.last_layer = nn.Linear(dim, CLASSES)

    def forward(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n classes"]:
        """Return the logits of every text."""
        return self.last_layer(self.layers(self.positions(self.embedding(tokens))).mean(dim=1))


@dataclass(frozen=True)
class BenchModel:
    """A model as it is timed: how it is built, and the batch of one step.

    `build` and `example` are called with True for the tiny twin. Inputs are drawn from a generator of their own.
    """

    name: str
    heading: str
    """At most seven characters, for a table that fits a terminal."""
    title: str
    batch: int
    build: Callable[[bool], nn.Module]
    example: Callable[[bool], tuple[int, ...]]
    cuda_batch: int | None = None
    vocabulary: Callable[[bool], int] | None = None
    """Number of token ids where the inputs are tokens."""

    def batch_on(self, device: str, *, quick: bool = False) -> int:
        """Return the number of examples of a step."""
        if quick:
            return 4
        return self.cuda_batch if device == "cuda" and self.cuda_batch is not None else self.batch

    def inputs(self, examples: int, *, quick: bool = False) -> tuple[Tensor, Tensor]:
        """Return inputs (n, ...) and labels (n,), the same ones at every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (examples, *self.example(quick))
        if self.vocabulary is not None:
            inputs = torch.randint(0, self.vocabulary(quick), shape, generator=generator)
        else:
            inputs = torch.randn(shape, generator=generator)
        return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


def _registered(name: str, shape: tuple[int, ...], tiny_shape: tuple[int, ...], tiny: dict[str, Any], **options: Any):
    def build(quick: bool) -> nn.Module:
        chosen = options | tiny if quick else options
        return models.make(name, input_shape=tiny_shape if quick else shape, classes=CLASSES, **chosen)

    return {"build": build, "example": lambda quick: tiny_shape if quick else shape}


def _text(quick: bool) -> nn.Module:
    sizes = {"vocabulary": 20, "length": 5, "dim": 8, "depth": 1} if quick else {"vocabulary": 5000, "length": 64}
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        model = TextTransformer(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
    return model


_IMAGE, _TINY_IMAGE = (3, 32, 32), (3, 8, 8)
_TINY_RESNET = {"width": 4}

MODELS: dict[str, BenchModel] = {
    one.name: one
    for one in (
        BenchModel(
            "mlp", "mlp", "MLP 3072-512-512-10", 128,
            **_registered("mlp", (3072,), (12,), {"hidden": (16, 16)}, hidden=(512, 512)),
        ),
        BenchModel(
            "small-cnn", "cnn", "CNN of 32, 64 and 64 channels, GroupNorm(1)", 64,
            **_registered("small-cnn", _IMAGE, _TINY_IMAGE, {"channels": (4, 4, 4)}, normalisation="groupnorm"),
        ),
        BenchModel(
            "resnet8", "resnet8", "ResNet-8 of width 16, channel LayerNorm", 64,
            **_registered("resnet8", _IMAGE, _TINY_IMAGE, _TINY_RESNET),
        ),
        BenchModel(
            "vit", "vit", "ViT, four blocks of dimension 64, patches of 4x4", 64,
            **_registered("vit", _IMAGE, _TINY_IMAGE, {"dim": 8, "depth": 1, "heads": 2}),
        ),
        BenchModel(
            "resnet18-groupnorm", "rn18-gn", "ResNet-18, GroupNorm(1)", 16, cuda_batch=128,
            **_registered("resnet18", _IMAGE, _TINY_IMAGE, _TINY_RESNET, normalisation="groupnorm"),
        ),
        BenchModel(
            "resnet18-layernorm", "rn18-ln", "ResNet-18, channel LayerNorm", 16, cuda_batch=128,
            **_registered("resnet18", _IMAGE, _TINY_IMAGE, _TINY_RESNET),
        ),
        BenchModel(
            "text", "text", "text Transformer, two nn.TransformerEncoderLayer of dimension 128, 5,000 tokens, length 64", 32,
            _text, lambda quick: (5,) if quick else (64,), vocabulary=lambda quick: 20 if quick else 5000,
        ),
    )
}  # fmt: skip


def chosen_models(names: list[str] | None) -> list[BenchModel]:
    """Return the models of these names, all without names.

    Example:
        >>> [one.batch for one in chosen_models(["mlp", "text"])]
        [128, 32]
    """
    for name in names or []:
        if name not in MODELS:
            raise unknown_name("bench model", name, MODELS)
    return [MODELS[name] for name in names or MODELS]
