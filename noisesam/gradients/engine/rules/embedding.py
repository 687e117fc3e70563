"""Embeddings: the positions are tokens, and two positions meet where their tokens are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.layout import examples_first
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Factor, GramFactor, Shared
from noisesam.gradients.losses import accurate


@register_rule(torch.nn.functional.embedding)
def embedding_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Look tokens up at w or w + eps_i."""
    del norm_type
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise UnsupportedParameterUse("'embedding' with max_norm, scale_grad_by_freq or sparse")
    if _shared(tape, input):
        # Positions: every example has rows of its own for them, which meet its activations as the one table would.
        places = input if input.dim() == 1 else input[0]
        tokens, back = places.reshape(1, -1).expand(tape.examples, -1), lambda out: out.unflatten(1, places.shape)
    elif input.dim() == 1:  # one each, or merged with positions
        tokens, back = input.view(tape.examples, -1), lambda out: out.flatten(0, 1)
    else:
        tokens, back = examples_first(tape, input, 0, "'embedding'")
    return back(_Embedding.apply(tokens, weight, _row(padding_idx, weight), tape, tape.perturbation(weight)))


def _shared(tape: Tape, tokens: Tensor) -> bool:
    """Whether the tokens have no example axis: (1, ...) or (T,). Where T is a multiple of n the two guesses take turns.

    Numbers that no example changes, such as arange(T), have none.
    """
    if tokens in tape.constants and (tokens.dim() == 1 or tokens.shape[:1] == (1,)):
        return True
    if tape.examples == 1:
        return tokens.dim() == 1 and tokens.shape[0] > 1
    if tokens.dim() == 1:
        return tokens.shape[0] % tape.examples != 0 or tape.prefers_second
    return tokens.dim() > 1 and tokens.shape[0] == 1 and not (tokens.shape[1] == tape.examples and tape.prefers_second)


def _row(padding_idx: int | None, weight: Tensor) -> int:
    """Return the padding token as a row number, -1 for none."""
    if padding_idx is None:
        return -1
    return padding_idx if padding_idx >= 0 else weight.shape[0] + padding_idx


class TokenRows(GramFactor):
    """The gradient of an embedding: row `tokens[t]` receives dy_t."""

    def __init__(self, tokens: Int[Tensor, "n T"], dy: Float[Tensor, "n T d"], rows: int) -> None:
        self.tokens, self.dy, self.rows = tokens, dy, rows

    def gram_products(self) -> Float[Tensor, "n T T"]:
        """Return the products of output gradients at equal tokens."""
        dy = accurate(self.dy)
        equal = self.tokens.unsqueeze(2) == self.tokens.unsqueeze(1)
        return torch.bmm(dy, dy.transpose(1, 2)).mul_(equal)

    def dense(self) -> Tensor:
        """Return the whole table's gradient, (n, rows, d)."""
        n, _, size = self.dy.shape
        table = self.dy.new_zeros(n, self.rows, size)
        return table.scatter_add_(1, self.tokens.unsqueeze(2).expand_as(self.dy), self.dy)

    def scaled(self, scale: Float[Tensor, " n"]) -> TokenRows:
        """Return the rows times their example's scale."""
        return TokenRows(self.tokens, self.dy * scale.to(self.dy.dtype).view(-1, 1, 1), self.rows)

    def of(self, rows: slice) -> TokenRows:
        """Return the tokens of some of the examples."""
        return TokenRows(self.tokens[rows], self.dy[rows], self.rows)

    def in_double(self) -> TokenRows:
        """Return the same rows in float64."""
        return TokenRows(self.tokens, self.dy.double(), self.rows)

    def bytes_kept(self) -> int:
        """Return the memory of the rows."""
        return self.dy.numel() * self.dy.element_size()

    def looked_up(self, tokens: Int[Tensor, "n S"]) -> Float[Tensor, "n S d"]:
        """Return the rows of other tokens."""
        equal = tokens.unsqueeze(2) == self.tokens.unsqueeze(1)
        return torch.bmm(equal.to(self.dy.dtype), self.dy)


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int, tape: Tape, eps: Factor | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding, ctx.tape = weight, padding, tape
        output = torch.embedding(weight, tokens)
        if isinstance(eps, TokenRows):
            return output + eps.looked_up(tokens).to(output.dtype)
        if isinstance(eps, Shared):
            return output + torch.embedding(eps.tensor.to(output.dtype), tokens)
        if eps is not None:
            table = eps.dense().to(output.dtype)
            return output + table.gather(1, tokens.unsqueeze(2).expand(-1, -1, table.shape[2]))
        return output

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        (tokens,) = ctx.saved_tensors
        rows = ctx.weight.shape[0]
        if ctx.tape.records(ctx.weight):
            kept = dy if ctx.padding < 0 else dy * (tokens != ctx.padding).unsqueeze(2)
            ctx.tape.record(ctx.weight, TokenRows(tokens, kept, rows))
        if not ctx.tape.shares(ctx.weight):
            return (None,) * 5
        gradient = torch.ops.aten.embedding_dense_backward(dy, tokens, rows, ctx.padding, False)
        return None, gradient, None, None, None
