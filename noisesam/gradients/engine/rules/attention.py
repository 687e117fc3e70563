"""nn.MultiheadAttention (and with it the nn.Transformer layers), decomposed into its linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.lifting import each_row, lift
from noisesam.gradients.engine.rules.linear import apply_linear, autocast_input
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse


@register_rule(torch.nn.functional.multi_head_attention_forward, needs_activation=True)
def multi_head_attention_rule(
    tape: Tape,
    _: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend with sequence-first tensors (L, n, E), as torch's function does."""
    if bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise UnsupportedParameterUse("multi-head attention with added or static keys")
    if query.dim() != 3 or query.shape[1] != tape.examples:
        shape = tuple(query.shape)
        raise UnsupportedParameterUse(f"multi-head attention sees a query of shape {shape} for {tape.examples} examples")
    size = embed_dim_to_check
    if use_separate_proj_weight:
        if q_proj_weight is None or k_proj_weight is None or v_proj_weight is None:
            raise UnsupportedParameterUse("multi-head attention without its projections")
        if in_proj_bias is not None:
            raise UnsupportedParameterUse("multi-head attention with one bias for three separate projections")
        projected = [
            _project(tape, values, weight, None)
            for values, weight in ((query, q_proj_weight), (key, k_proj_weight), (value, v_proj_weight))
        ]
    else:
        assert in_proj_weight is not None
        projected = _packed(tape, (query, key, value), in_proj_weight, in_proj_bias, size)
    heads = [values.unflatten(2, (num_heads, size // num_heads)).transpose(1, 2) for values in projected]
    mask = _mask(attn_mask, key_padding_mask, heads[0], heads[1].shape[2])
    if mask is None and is_causal and need_weights:
        raise UnsupportedParameterUse("causal attention without its mask")
    rate = dropout_p if training else 0.0
    if need_weights:
        scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(size // num_heads)
        weights = (scores if mask is None else scores + mask).softmax(3)
        weights = torch.nn.functional.dropout(weights, rate) if rate > 0 else weights
        attended = weights @ heads[2]
        returned = weights.mean(1) if average_attn_weights else weights
    else:
        attended = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=rate)
        returned = None
    merged = attended.transpose(1, 2).flatten(2)
    return apply_linear(tape, merged, out_proj_weight, out_proj_bias).transpose(0, 1), returned


@register_rule(torch.nn.functional.scaled_dot_product_attention, needs_activation=True)
def biased_attention_rule(
    tape: Tape,
    function: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    """Attend with a bias that is learned for pairs of positions, (heads, L, S) or (1, heads, L, S), at w or w + eps_i."""
    alone = attn_mask is not None and not any(tape.tracks(values) for values in (query, key, value))
    shape = tuple(attn_mask.shape) if attn_mask is not None else ()
    inner = shape[1:] if len(shape) == query.dim() and shape[:1] == (1,) else shape
    if attn_mask is None or not alone or query.shape[0] % tape.examples or len(inner) >= query.dim():
        raise UnsupportedParameterUse("'scaled_dot_product_attention' uses a parameter as query, key or value")
    ones = [1] * (query.dim() - 1 - len(inner))
    bias = each_row(lift(tape, attn_mask).view(tape.examples, *ones, *inner), query.shape[0])
    return function(query, key, value, bias.to(query.dtype), *options, **named)


def _project(tape: Tape, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Project (L, n, E) to (n, L, E'): here the layout is known, whatever the lengths are."""
    return apply_linear(tape, autocast_input(values).transpose(0, 1).contiguous(), weight, bias)


def _packed(tape: Tape, inputs: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor | None, size: int) -> list[Tensor]:
    """Project query, key and value by one packed weight; equal inputs are projected once."""
    done: dict[int, tuple[Tensor, ...]] = {}
    for values in inputs:
        if id(values) not in done:
            # Unbound rather than sliced: three slices' gradients would be padded with zeros and added up.
            done[id(values)] = _project(tape, values, weight, bias).unflatten(2, (3, size)).unbind(2)
    return [done[id(values)][k] for k, values in enumerate(inputs)]


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, queries: Tensor, keys: int) -> Tensor | None:
    """Return both masks as one additive mask that broadcasts over (n, heads, L, S)."""
    n, heads, length, _ = queries.shape
    total: Tensor | None = None
    if attn_mask is not None:
        mask = _additive(attn_mask, queries)
        total = mask.view(n, heads, length, keys) if mask.dim() == 3 else mask.view(1, 1, length, keys)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, queries).view(n, 1, 1, keys)
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
