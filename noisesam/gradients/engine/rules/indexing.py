"""Parameters that are indexed or written to a place: tables of tokens, parts of a class token, mask tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.lifting import each_row, lift
from noisesam.gradients.engine.rules.elementwise import over_activations
from noisesam.gradients.engine.rules.embedding import embedding_rule
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)  # eight bits without a sign are a mask


@register_rule(torch.Tensor.__getitem__, operator.getitem)
def index_rule(tape: Tape, _: Callable[..., Any], parameter: Tensor, where: Any) -> Tensor:
    """Look the data's tokens up, or take a part of a parameter of shape (1, ...), all of its first axis: that is (n, ...)."""
    keys = where if isinstance(where, tuple) else (where,)
    if len(keys) == 1 and isinstance(keys[0], Tensor):
        return _looked_up(tape, parameter, keys[0])
    plain = all(isinstance(key, (int, slice)) for key in keys)
    if parameter.dim() < 2 or parameter.shape[0] != 1 or not plain or keys[0] != slice(None):
        raise UnsupportedParameterUse(f"indexing of a parameter of shape {tuple(parameter.shape)}")
    return lift(tape, parameter).squeeze(1)[keys]


@register_rule(torch.index_select, torch.Tensor.index_select)
def index_select_rule(tape: Tape, _: Callable[..., Any], input: Tensor, dim: int, index: Tensor, **more: Any) -> Tensor:
    """Look the data's tokens up, which are one axis."""
    if not tape.tracks(input) or more or dim not in (0, -input.dim()) or index.dim() != 1:
        raise UnsupportedParameterUse(f"'index_select' from a parameter of shape {tuple(input.shape)}")
    return _looked_up(tape, input, index)


def _looked_up(tape: Tape, parameter: Tensor, tokens: Tensor) -> Tensor:
    """Return a row of the parameter for every token, of which there are some for every example."""
    if tokens.dtype not in _INTEGERS or not tokens.dim() or tokens in tape.constants or not parameter.dim():
        raise UnsupportedParameterUse(f"indexing of a parameter of shape {tuple(parameter.shape)}")
    rows = torch.where(tokens < 0, tokens + parameter.shape[0], tokens).long()  # from the end, which `embedding` does not know
    if parameter.dim() == 2:
        return embedding_rule(tape, torch.nn.functional.embedding, rows, parameter)
    if len(rows) != tape.examples:
        raise UnsupportedParameterUse(f"indexing of a parameter of shape {tuple(parameter.shape)} by merged tokens")
    examples = torch.arange(tape.examples, device=rows.device).view(-1, *[1] * (rows.dim() - 1))
    return lift(tape, parameter)[examples, rows]


@register_rule(torch.Tensor.__setitem__)
def write_rule(tape: Tape, _: Callable[..., Any], values: Tensor, where: Any, parameter: Any) -> None:
    """Write a parameter to the same places of all examples."""
    keys = where if isinstance(where, tuple) else (where,)
    plain = all(isinstance(key, (int, slice)) for key in keys)
    if tape.tracks(values) or not plain or keys[0] != slice(None):
        raise UnsupportedParameterUse("'__setitem__' of or with a parameter")
    values[keys] = over_activations(tape, parameter, values[keys].shape)


@register_rule(torch.masked_fill, torch.Tensor.masked_fill, torch.Tensor.masked_fill_)
def masked_fill_rule(tape: Tape, function: Callable[..., Any], input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Put a parameter that is a single number in the place of some activations."""
    if tape.tracks(input) or tape.tracks(mask) or not input.dim() or len(input) % tape.examples:
        raise UnsupportedParameterUse("'masked_fill' of a parameter")
    own = each_row(lift(tape, value), len(input)).view(-1, *[1] * (input.dim() - 1))
    filled = torch.where(mask, own.to(input.dtype), input)
    return input.copy_(filled) if function is torch.Tensor.masked_fill_ else filled
