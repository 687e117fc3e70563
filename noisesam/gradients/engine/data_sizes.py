"""Functions whose result has rows that the values choose: tokens that are kept, experts that are asked, texts sorted by length.

Such rows belong to examples in a way that no shape tells: 20 of 24 tokens are five for each of four examples in one batch, and
three, five, six and six in the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.constants import Constants

_NAMES = {
    "nonzero", "argwhere", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "_pack_padded_sequence",
}  # fmt: skip
_MASKS = (torch.bool, torch.uint8)
_BY_INDEX = {"index_select", "index_add", "index_add_", "index_copy", "index_copy_"}
"""One index for all examples, along whatever axis."""
_ALONG_FIRST = {"gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "take_along_dim"}
"""An index for every example where the axis is not the first."""


def sized_by_values(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], constants: Constants) -> bool:
    """Whether values that are no constants of the model decide the size of the result."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__" or (name == "__setitem__" and isinstance(args[2], Tensor) and args[2].dim()):
        return _chooses_rows(args[0], tensors_in(args[1:2]), constants)
    if name in _BY_INDEX or name in _ALONG_FIRST:
        given = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
        index, dim = given.get("index"), given.get("dim")
        along_first = name in _BY_INDEX or dim == 0 or (isinstance(dim, int) and dim == -given["input"].dim())
        return along_first and isinstance(index, Tensor) and _chooses_rows(given["input"], [index], constants)
    if name in _NAMES or (name == "where" and len(args) + len(kwargs) == 1):
        return any(value not in constants for value in tensors_in((args, kwargs)))
    if name == "repeat_interleave":
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        return isinstance(repeats, Tensor) and repeats not in constants
    return False


def _chooses_rows(values: Any, indices: list[Tensor], constants: Constants) -> bool:
    """Whether indices from the data choose rows of the data: beside one that is constant they choose within its rows."""
    if any(index.dtype in _MASKS and index not in constants for index in indices):
        return True
    integers = [index for index in indices if index.dim() and index.dtype not in _MASKS]
    if not integers or any(index in constants for index in integers):
        return False
    return not (isinstance(values, Tensor) and values in constants)
