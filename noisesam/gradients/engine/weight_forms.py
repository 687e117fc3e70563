"""Weights that hold the entries of one parameter in another order: transposed, in a new shape, or just as they are.

Their perturbations and gradients are the parameter's in that order, so that low-rank factors stay factors.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisesam.gradients.factors import Dense, Factor, OuterProducts, Shared

Form = Literal["same", "transposed", "reshaped"]


def form_of(value: Tensor, before: Tensor, inherited: Form | None, copied: bool) -> Form | None:
    """Return how the entries of a weight lie to those of the parameter that it comes from.

    Args:
        value: What a function has made of `before`.
        before: The parameter, or a weight of the form `inherited`.
        inherited: The form of `before`, None where its entries are others.
        copied: Whether the function only copies, so that the same shape holds the same entries.
    """
    if inherited is None or value.device != before.device or not value.is_floating_point():
        return None
    if value.shape == before.shape and copied:
        return inherited
    if not _is_view_from_the_start(value, before):
        return None
    if value.shape == before.shape and value.stride() == before.stride():
        return inherited
    turned = value.dim() == 2 and value.shape == before.shape[::-1] and value.stride() == before.stride()[::-1]
    if turned and inherited != "reshaped":
        return "transposed" if inherited == "same" else "same"
    whole = value.numel() == before.numel() and value.is_contiguous() and before.is_contiguous()
    return "reshaped" if whole and inherited != "transposed" else None


def in_form(factor: Factor, form: Form, shape: torch.Size) -> Factor:
    """Return the tensors of a parameter for a weight of this form, or the other way round; `shape` is that of the result."""
    if form == "same":
        return factor
    if form == "reshaped":
        if isinstance(factor, Shared):
            return Shared(factor.tensor.reshape(shape), factor.examples)
        rows = factor.dense()
        return Dense(rows.reshape(len(rows), *shape))
    if isinstance(factor, Shared):
        return Shared(factor.tensor.t(), factor.examples)
    if isinstance(factor, OuterProducts) and len(factor.shape) == 2:
        return OuterProducts(factor.right, factor.unscaled_left, factor.shape[::-1], factor.scale)
    return Dense(factor.dense().transpose(1, 2))


def _is_view_from_the_start(value: Tensor, before: Tensor) -> bool:
    """Whether both show the same memory as the same kind of numbers: shape and stride then say which entry lies where."""
    kind = value.dtype == before.dtype and value.is_neg() == before.is_neg() and value.is_conj() == before.is_conj()
    return kind and _base(value) is _base(before) and value.storage_offset() == before.storage_offset()


def _base(value: Tensor) -> Tensor:
    base = value._base if value._is_view() else None
    return value if base is None else base
