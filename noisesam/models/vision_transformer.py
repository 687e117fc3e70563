"""A tiny vision transformer whose every weight is a linear map, a normalisation or a token."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.models.classifier import Classifier
from noisesam.models.initialisation import Tokens, initialise
from noisesam.models.options import COUNT, PROBABILITY
from noisesam.models.registry import register


class Patches(nn.Module):
    """Cut images into square patches and lay the pixels of each out as one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n patches pixels"]:
        """Return the patches row by row; a patch runs over channels, then rows, then columns."""
        n, channels, height, width = images.shape
        size = self.size
        grid = images.reshape(n, channels, height // size, size, width // size, size)
        patches = (height // size) * (width // size)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, patches, channels * size * size)


class Attention(nn.Module):
    """Multi-head self-attention `softmax(Q K^T / sqrt(d)) V`, written out.

    The fused kernel has no vmap rule on the CPU and a non-deterministic backward on some GPUs; at these sizes the formula
    costs nothing that matters.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "n positions dim"]) -> Float[Tensor, "n positions dim"]:
        """Let every position of an example attend to all positions of the same example."""
        query, key, value = (self._split(map_(tokens)) for map_ in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        mixed = scores.softmax(dim=-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Float[Tensor, "n positions dim"]) -> Float[Tensor, "n heads positions part"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each on normalised tokens and added to what came in (pre-norm)."""

    def __init__(self, dim: int, heads: int, mlp_width: int, dropout: float | int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_width), nn.GELU(), nn.Linear(mlp_width, dim))
        # A dropout module that drops nothing would still ask for randomness under vmap.
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, tokens: Float[Tensor, "n positions dim"]) -> Float[Tensor, "n positions dim"]:
        """Apply the block."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


class Transformer(nn.Module):
    """Patches -> linear map -> class token and positions -> blocks -> normalised class token."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_width: int,
        dropout: float | int,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.patches = Patches(patch)
        self.embedding = nn.Linear(channels * patch * patch, dim)
        self.class_token = Tokens(1, dim)
        self.position = Tokens(1 + (height // patch) * (width // patch), dim)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, mlp_width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n dim"]:
        """Return the class token of every image after the last block."""
        tokens = self.embedding(self.patches(images))
        class_token = self.class_token.weight.expand(tokens.shape[0], -1, -1)
        # The weights stay float32 under autocast, the tokens do not; cat wants one type.
        tokens = torch.cat([class_token.to(tokens.dtype), tokens], dim=1) + self.position.weight
        return self.norm(self.blocks(tokens)[:, 0])


@register(
    "vit",
    title="Tiny vision transformer: patches, a class token and pre-norm blocks.",
    images=True,
    options={
        "patch": ("side of a patch in pixels; divides height and width", COUNT),
        "dim": ("length of a token", COUNT),
        "depth": ("number of blocks", COUNT),
        "heads": ("attention heads; divides dim", COUNT),
        "mlp_ratio": ("hidden width of a block's perceptron, in multiples of dim", COUNT),
        "dropout": ("probability with which a unit is dropped after attention and perceptron in training", PROBABILITY),
    },
    reference="Dosovitskiy et al. (2021), An Image is Worth 16x16 Words, arXiv 2010.11929",
)
def vit(
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: int = 4,
    dropout: float | int = 0.0,
) -> Classifier:
    """Build a vision transformer."""
    if input_shape[1] % patch or input_shape[2] % patch:
        common = math.gcd(input_shape[1], input_shape[2])
        divisors = [str(d) for d in range(2, common + 1) if common % d == 0] or ["1"]
        raise InputError(
            f"input_shape is {input_shape} and patch is {patch}",
            expected="a patch that divides height and width",
            remedy=f"Possible here: patch={', '.join(divisors)}.",
        )
    if dim % heads:
        raise InputError(
            f"dim is {dim} and heads is {heads}",
            expected="heads that divide dim",
            remedy=f"Type dim={heads * max(1, dim // heads)}.",
        )
    body = Transformer(input_shape, patch=patch, dim=dim, depth=depth, heads=heads, mlp_width=mlp_ratio * dim, dropout=dropout)
    return initialise(Classifier(body, features=dim, classes=classes, input_shape=input_shape), generator)
