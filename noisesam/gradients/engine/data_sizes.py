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
_BY_INDEX = {
    "index_select", "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "index_reduce",
    "index_reduce_",
}  # fmt: skip
"""One index for all examples, along whatever axis."""
_WRITES = {"__setitem__", "index_put", "index_put_"}
_ALONG_FIRST = {
    "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "take_along_dim",
}  # fmt: skip
"""An index for every example where the axis is not the first."""


def sized_by_values(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], constants: Constants) -> bool:
    """Whether values that are no constants of the model decide the size of the result."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__" or (name in _WRITES and isinstance(args[2], Tensor) and args[2].dim()):
        # A single whole number counts as the number that it is (`way`).
        indices = [index for index in tensors_in(args[1:2]) if index.dim() or index.dtype in _MASKS]
        first = args[1][0] if isinstance(args[1], (tuple, list)) and args[1] else None
        # Rows by arange(n), or all of them, and from each what the data say.
        within = first in constants if isinstance(first, Tensor) else any(index in constants for index in indices)
        return _chooses_rows(args[0], indices, constants, within=within)
    if name in ("take", "put", "put_"):
        index = kwargs.get("index", args[1] if len(args) > 1 else None)
        return isinstance(index, Tensor) and index not in constants
    if name == "embedding":
        index, table = (kwargs.get(key, args[at] if len(args) > at else None) for at, key in enumerate(("input", "weight")))
        return isinstance(index, Tensor) and _chooses_rows(table, [index], constants)
    if name in _BY_INDEX or name in _ALONG_FIRST:
        names = ("input", "indices", "dim") if name == "take_along_dim" else ("input", "dim", "index")
        given = dict(zip(names, args, strict=False)) | kwargs
        index, dim = given.get("index", given.get("indices")), given.get("dim")
        along_first = name in _BY_INDEX or dim == 0 or (isinstance(dim, int) and dim == -given["input"].dim())
        return along_first and isinstance(index, Tensor) and _chooses_rows(given["input"], [index], constants)
    if name in _NAMES or (name == "where" and len(args) + len(kwargs) == 1):
        return any(value not in constants for value in tensors_in((args, kwargs)))
    if name == "repeat_interleave":
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        return isinstance(repeats, Tensor) and repeats not in constants
    return False


def _chooses_rows(values: Any, indices: list[Tensor], constants: Constants, *, within: bool = False) -> bool:
    """Whether indices from the data choose rows of the data, or by one along the first axis, `within` its rows alone."""
    if any(index.dtype in _MASKS and index not in constants for index in indices):
        return True
    integers = [index for index in indices if index.dtype not in _MASKS]
    if not integers or within or all(index in constants for index in integers):
        return False
    return not (isinstance(values, Tensor) and values in constants)
