"""Functions whose result has rows that the values choose: tokens that are kept, experts that are asked, texts sorted by length.

Such rows belong to examples in a way that no shape tells: 20 of 24 tokens are five for each of four examples in one batch, and
three, five, six and six in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.constants import FixedConstants

_NAMES = {
    "nonzero", "argwhere", "masked_select", "masked_scatter", "masked_scatter_", "unique", "_unique2", "unique_dim",
    "unique_consecutive", "_pack_padded_sequence",
}  # fmt: skip
_MASKS = (torch.bool, torch.uint8)
_BY_INDEX = {"index_select", "index_fill", "index_fill_"}
"""One index for all examples, along whatever axis."""
_INTO_INDEX = {
    "index_put", "index_put_", "index_add", "index_add_", "index_copy", "index_copy_", "index_reduce",
    "index_reduce_",
}  # fmt: skip
"""The same, from another tensor: its rows are those that are moved, whatever they are written to."""
_ALONG = {"gather", "take_along_dim"}
_INTO_ALONG = {"scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"}
"""An index for every example where the axis is behind theirs."""
_PRODUCTS = {"matmul", "mm", "__matmul__", "__rmatmul__"}
_SPARSE_PRODUCTS = {"mv", "addmm", "spmm", "hspmm", "sspaddmm", "smm", "_sparse_mm", "_sparse_addmm"}
_OTHERS = {
    "__getitem__", "__setitem__", "take", "put", "put_", "embedding", "embedding_bag", "where", "repeat_interleave",
    "tensor_split", "grid_sample",
}  # fmt: skip
_STAY_IN_PLACE = _ALONG | {"embedding", "where", "masked_fill", "masked_fill_", "__getitem__", "index_select"}
"""Who takes choices and returns numbers that stay where they were, or has been asked already."""
_ASKED = _NAMES | _BY_INDEX | _INTO_INDEX | _ALONG | _INTO_ALONG | _PRODUCTS | _SPARSE_PRODUCTS | _OTHERS


def sized_by_values(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], constants: FixedConstants, examples: int
) -> bool:
    """Whether values that are no constants of the model decide the size of the result, or which of its rows are whose."""
    if isinstance(function, (OpOverload, OpOverloadPacket)):
        called = _as_called(_name_of(function), args, constants)
        if called is None:
            return any(value not in constants and not value.is_floating_point() for value in tensors_in((args, kwargs)))
        name, args = called
    else:
        name = getattr(function, "__name__", "")
    if name not in _ASKED:
        return False
    given = [*args, *kwargs.values()]
    if name == "__getitem__" or (name == "__setitem__" and isinstance(args[2], Tensor) and args[2].dim()):
        # A single whole number counts as the number that it is (`way`).
        indices = [index for index in tensors_in(args[1:2]) if index.dim() or index.dtype in _MASKS]
        first = args[1][0] if isinstance(args[1], (tuple, list)) and args[1] else None
        # Rows by arange(n), or all of them, and from each what the data say.
        if not isinstance(args[0], Tensor) or args[0].shape[:1] != (examples,):
            within = False  # rows of experts, heads or merged tokens are no examples
        elif isinstance(first, Tensor):
            within = first in constants and _is_every_row(first, args[0])
        else:
            within = any(index in constants for index in indices)
        moved = args[:1] if name == "__getitem__" else (args[0], args[2])
        return _chooses_rows(moved, indices, constants, within=within)
    if name in ("take", "put", "put_"):
        index = kwargs.get("index", args[1] if len(args) > 1 else None)
        return isinstance(index, Tensor) and index not in constants
    if name in ("embedding", "embedding_bag"):
        index, table = (kwargs.get(key, args[at] if len(args) > at else None) for at, key in enumerate(("input", "weight")))
        offsets = kwargs.get("offsets", args[2] if name == "embedding_bag" and len(args) > 2 else None)
        if isinstance(offsets, Tensor) and offsets not in constants:
            return True
        return isinstance(index, Tensor) and _chooses_rows([table], [index], constants)
    if name in _BY_INDEX or name in _INTO_INDEX or name in _ALONG or name in _INTO_ALONG:
        values, dim, indices, moved = _parts(name, args, kwargs)
        if (name in _ALONG or name in _INTO_ALONG) and _is_within_examples(values, dim, examples):
            return False
        return _chooses_rows(moved, indices, constants)
    if name in _NAMES or (name == "where" and len(given) == 1):
        return any(value not in constants for value in tensors_in((args, kwargs)))
    if name in ("repeat_interleave", "tensor_split"):
        sizes = [value for value in given[1:] if isinstance(value, Tensor)]
        return any(value not in constants for value in sizes)
    if name == "grid_sample":
        images, grid = (kwargs.get(key, args[at] if len(args) > at else None) for at, key in enumerate(("input", "grid")))
        return isinstance(grid, Tensor) and grid not in constants and isinstance(images, Tensor) and len(images) % examples > 0
    if name in _PRODUCTS or name in _SPARSE_PRODUCTS:
        return _combines_rows(tensors_in((args, kwargs)), constants, examples, dense=name in _PRODUCTS)
    return False


def dispatches(
    function: Callable[..., Any], result: Any, tensors: list[Tensor], constants: FixedConstants, examples: int
) -> bool:
    """Whether choices of the data become numbers, merged tokens or slots of all examples along an axis: a dispatch tensor.

    Whatever product it meets then moves tokens from row to row. A mask has the examples' axis, and none of these.
    """
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() < 2 or examples == 1:
        return False
    shape = result.shape
    if examples in shape[:2] or all(size % examples for size in shape):
        return False
    if _name_of(function) in _STAY_IN_PLACE:
        return False
    return any(not value.is_floating_point() and value.dim() > 1 and value not in constants for value in tensors)


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function; of an operation of torch's inside that without its overload, of others' none."""
    if not isinstance(function, (OpOverload, OpOverloadPacket)):
        return getattr(function, "__name__", "")
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    return packet.__name__ if packet._qualified_op_name.startswith("aten::") else ""


def _as_called(name: str, args: tuple[Any, ...], constants: FixedConstants) -> tuple[str, tuple[Any, ...]] | None:
    """Return an operation of torch's inside as the function that people call, with its arguments; None where there is none."""
    if name == "index":
        # Nothing else tells of a single whole number here (`way`).
        if any(index is not None and not index.dim() and index not in constants for index in args[1]):
            return None
        return "__getitem__", (args[0], tuple(slice(None) if index is None else index for index in args[1]))
    if name in ("index_put", "index_put_") and not args[2].dim():
        return "", args  # one number, wherever it is written
    if name == "embedding":
        return name, (args[1], args[0])
    if name in ("masked_fill", "masked_fill_") or (name == "where" and len(args) == 3):
        return "", args
    known = name in _BY_INDEX or name in _INTO_INDEX or name in _ALONG or name in _INTO_ALONG
    return (name, args) if known else None


def _parts(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, list[Tensor], list[Any]]:
    """Return values, axis, indices and what is moved by them, of however the function was called."""
    if name == "take_along_dim":
        names: tuple[str, ...] = ("input", "indices", "dim")
    elif name.startswith("index_put"):
        names = ("input", "indices", "values")
    else:
        names = ("input", "dim", "index", "source" if name in _INTO_INDEX else "src")
    given = dict(zip(names, args, strict=False)) | kwargs
    indices = tensors_in([given.get("index", given.get("indices"))])
    written = [given.get(key) for key in ("source", "src", "values")]
    values = given.get("input", given.get("self"))
    moved = [value for value in (values, *written) if isinstance(value, Tensor) and (value is values or value.dim())]
    return values, given.get("dim"), indices, moved


def _is_within_examples(values: Any, dim: Any, examples: int) -> bool:
    """Whether an index along this axis stays within an example: the axis is behind theirs."""
    if not isinstance(values, Tensor) or not isinstance(dim, int):
        return False
    axis, shape = dim % max(1, values.dim()), values.shape
    if examples == 1:
        return axis > 0
    if examples in shape[: min(axis, 2)]:
        return True
    # Merged with heads or windows: where the axis itself could be merged tokens, the first may as well be experts.
    return axis > 0 and shape[0] > 1 and shape[0] % examples == 0 and shape[axis] % examples > 0


def _is_every_row(index: Tensor, values: Any) -> bool:
    """Whether an index is arange(n), or a column of it: then what goes with it says what is taken from each row."""
    if not isinstance(values, Tensor) or not values.dim() or index.dtype in _MASKS or index.numel() != len(values):
        return False
    return torch.equal(index.flatten(), torch.arange(len(values), dtype=index.dtype, device=index.device))


def _combines_rows(tensors: list[Tensor], constants: FixedConstants, examples: int, *, dense: bool) -> bool:
    """Whether a matrix made of data adds up rows of data: a sparse one, or one that meets as many rows as there are tokens."""
    if any(value.layout != torch.strided and value not in constants for value in tensors):
        return True
    if not dense or len(tensors) < 2 or examples == 1:
        return False
    left, right = tensors[:2]
    matrices = left.dim() == 2 and right.dim() == 2 and left not in constants and right not in constants
    return matrices and len(right) % examples == 0


def _chooses_rows(moved: Iterable[Any], indices: list[Tensor], constants: FixedConstants, *, within: bool = False) -> bool:
    """Whether indices from the data choose rows of the data, or by one along the first axis, `within` its rows alone."""
    if any(index.dtype in _MASKS and index not in constants for index in indices):
        return True
    integers = [index for index in indices if index.dtype not in _MASKS]
    if not integers or within or all(index in constants for index in integers):
        return False
    return not all(isinstance(values, Tensor) and values in constants for values in moved)
