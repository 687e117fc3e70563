"""The same model in words that Opacus can read: it sees a parameter only where a module's forward uses it on a batch.

Three kinds of modules of the timed models are not like that. They are exchanged in a copy of the model, with the same
parameters and the same outputs: nn.MultiheadAttention, and the class token and the positions of the vision transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.bench.models import Positions
from noisesam.errors import InputError
from noisesam.models.vision_transformer import Transformer


class FirstToken(nn.Module):
    """Put a token before those of every example."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, tokens: Float[Tensor, "n length dim"]) -> Float[Tensor, "n more dim"]:
        """Return the tokens, one more."""
        return torch.cat([self.weight.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)


class _ReadableTransformer(nn.Module):
    """`Transformer` whose class token and positions are applied by modules."""

    def __init__(self, other: Transformer) -> None:
        super().__init__()
        self.patches, self.embedding, self.blocks, self.norm = other.patches, other.embedding, other.blocks, other.norm
        _, length, dim = other.position.weight.shape
        self.class_token, self.position = FirstToken(dim), Positions(length, dim)
        self.class_token.weight = nn.Parameter(other.class_token.weight)
        self.position.weight = nn.Parameter(other.position.weight)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.position(self.class_token(self.embedding(self.patches(images))))
        return self.norm(self.blocks(tokens)[:, 0])


class SeparateAttention(nn.Module):
    """Self-attention of an encoder layer as four nn.Linear around torch's own attention kernel, examples first."""

    batch_first = True
    in_proj_bias = None  # what nn.TransformerEncoderLayer asks its attention for
    _qkv_same_embed_dim = False

    def __init__(self, other: nn.MultiheadAttention) -> None:
        super().__init__()
        weight, bias = other.in_proj_weight, other.in_proj_bias
        known = other.batch_first and not other.dropout and not other.add_zero_attn and other.bias_k is None
        if weight is None or bias is None or not known:
            raise InputError(
                "nn.MultiheadAttention with options for which Opacus has no words here",
                expected="batch_first=True, one packed projection with a bias, no dropout, no added keys",
            )
        self.heads, self.num_heads = other.num_heads, other.num_heads
        maps = [nn.Linear(other.embed_dim, other.embed_dim).to(weight) for _ in range(3)]
        with torch.no_grad():
            for part, (rows, shifts) in zip(maps, zip(weight.chunk(3), bias.chunk(3), strict=True), strict=True):
                part.weight.copy_(rows)
                part.bias.copy_(shifts)
        self.query, self.key, self.value = maps
        self.output = nn.Linear(other.embed_dim, other.embed_dim).to(weight)
        self.output.weight, self.output.bias = other.out_proj.weight, other.out_proj.bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        """Attend; masks are not read, so outputs are compared with the original's before anything is timed."""
        parts = [map_(x) for map_, x in ((self.query, query), (self.key, key), (self.value, value))]
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = nn.functional.scaled_dot_product_attention(*split)
        return self.output(mixed.transpose(1, 2).flatten(2)), None


def with_token_modules(model: nn.Module) -> bool:
    """Let modules apply class token and positions of the vision transformers in this model; say whether there were any."""
    return _exchange(model, Transformer, _ReadableTransformer)


def with_separate_attention(model: nn.Module) -> bool:
    """Exchange every nn.MultiheadAttention in this model; say whether there were any."""
    return _exchange(model, nn.MultiheadAttention, SeparateAttention)


def _exchange(model: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> bool:
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
    for parent, name, child in found:
        setattr(parent, name, by(child))
    return bool(found)


def register_samplers() -> None:
    """Tell Opacus the gradients of the modules that it would otherwise run once more under vmap."""
    from opacus.grad_sample import register_grad_sampler

    def positions(module: Positions, activations: list[Tensor], gradients: Tensor) -> dict[nn.Parameter, Tensor]:
        del activations
        return {module.weight: gradients.reshape(-1, *module.weight.shape)}

    def first_token(module: FirstToken, activations: list[Tensor], gradients: Tensor) -> dict[nn.Parameter, Tensor]:
        del activations
        return {module.weight: gradients[:, :1].reshape(-1, *module.weight.shape)}

    register_grad_sampler(Positions)(positions)
    register_grad_sampler(FirstToken)(first_token)
