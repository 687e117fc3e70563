"""The checks that a data set passes when it is made: refuse what would be silently wrong later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisesam.errors import InputError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_ROWS_PER_CHECK = 4096
MAX_CLASSES = 100_000
"""Most classes that are numbered where none are named: a larger label is an id or a time, not a class."""
_ROWS_NAMED = 5


class MissingSplitError(InputError):
    """A user's own data has no examples of the split that was asked for."""


def name_rows(rows: Iterable[int], total: int) -> str:
    """Write a few row numbers and how many there are in all.

    Example:
        >>> name_rows([1, 4], 2)
        'rows 1, 4'
        >>> name_rows(range(9), 9)
        'rows 0, 1, 2, 3, 4 and 4 more'
    """
    named = list(rows)[:_ROWS_NAMED]
    text = ("row " if total == 1 else "rows ") + ", ".join(map(str, named))
    return text + (f" and {total - len(named)} more" if total > len(named) else "")


def _named(mask: Tensor) -> str:
    """Name the rows where `mask` is true."""
    rows = mask.nonzero().flatten().tolist()
    return name_rows(rows, len(rows))


def check_inputs(inputs: Any, *, token_ids: bool) -> Tensor:
    """Check type, shape and finiteness of the inputs."""
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs of type {type(inputs).__name__}", expected="a tensor", remedy="Convert with torch.as_tensor(inputs)"
        )
    if inputs.ndim == 0:
        raise InputError("inputs of shape ()", expected="shape (n, ...)", remedy="Add the example axis with inputs[None]")
    if token_ids:
        if inputs.dtype not in _INTEGERS:
            raise InputError(
                f"inputs of type {inputs.dtype} with token_ids=True", expected="integer ids", remedy="Leave token_ids out"
            )
        return inputs.long()
    if not inputs.is_floating_point():
        raise InputError(
            f"inputs of type {inputs.dtype}",
            expected="a floating type",
            remedy="Convert with inputs.float() (images: inputs.float() / 255), or say token_ids=True if these are token ids",
        )
    # By chunks, so that a fault is found before the whole of a large set is read.
    for start in range(0, len(inputs), _ROWS_PER_CHECK):
        chunk = inputs[start : start + _ROWS_PER_CHECK]
        # Lowest and highest are NaN if any element is; one pass without a mask of all elements, many times as fast.
        if chunk.numel() and not all(bool(bound.isfinite()) for bound in chunk.aminmax()):
            # The sum over a whole row would overflow for large finite values, so the elements are looked at one by one.
            bad = torch.cat([~torch.isfinite(row).all().reshape(1) for row in inputs])
            raise InputError(
                f"inputs with NaN or infinite values in {_named(bad)}",
                expected="finite values",
                remedy="Repair or drop these examples before making the data set",
            )
    return inputs


def check_classes(classes: Any, labels: Any, clean_labels: Any) -> tuple[str, ...]:
    """Check the class names, or name the classes by number up to the largest label."""
    if isinstance(classes, str):
        raise InputError(f"classes = {classes!r}", expected="a sequence of names", remedy="Write classes=(name, name, ...)")
    names = tuple(str(name) for name in classes or ())
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"class name {repeated!r} more than once", expected="distinct names", remedy="Rename one of them")
    if names:
        return names
    largest = [int(part.max()) for part in (labels, clean_labels) if isinstance(part, Tensor) and part.numel()]
    return numbered_classes(max([*largest, 0]))


def numbered_classes(largest: int, where: str = "") -> tuple[str, ...]:
    """Name the classes "0" to the largest label, which must be small enough to be one.

    Example:
        >>> numbered_classes(2)
        ('0', '1', '2')
    """
    if largest >= MAX_CLASSES:
        raise InputError(
            (f"{where}: " if where else "") + f"a label of {largest}",
            expected=f"class numbers below {MAX_CLASSES}",
            remedy="Number the classes 0, 1, 2, ... without gaps, or name them in `classes`",
        )
    return tuple(str(k) for k in range(max(largest, 0) + 1))


def check_labels(field: str, labels: Any, n: int, classes: int, device: torch.device) -> Tensor:
    """Check type, size and range of labels, and return them as int64."""
    labels = _integers(field, labels, n, device)
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise InputError(
            f"{field}[{first}] = {int(labels[first])}, {int(wrong.sum())} of {n} out of range ({_named(wrong)})",
            expected=f"class numbers 0 to {classes - 1}",
            remedy="Number the classes from 0, binary labels as 0 and 1 (not -1 and 1), and name all of them in `classes`",
        )
    return labels


def check_index(index: Any, n: int, device: torch.device) -> Tensor:
    """Check the stable ids, or number the rows."""
    if index is None:
        return torch.arange(n, device=device)
    index = _integers("index", index, n, device)
    if n and int(index.min()) < 0:
        raise InputError(
            f"index with negative ids in {_named(index < 0)}", expected="ids of 0 and above", remedy="Renumber them"
        )
    if len(torch.unique(index)) != n:
        raise InputError("index with repeated ids", expected=f"{n} distinct ids", remedy="Leave index out to number the rows")
    return index


def _integers(field: str, values: Any, n: int, device: torch.device) -> Tensor:
    """Check that a column holds n integers on the device of the inputs, and return it as int64."""
    kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
    if kind not in _INTEGERS:
        raise InputError(
            f"{field} of type {kind}", expected="an integer tensor", remedy=f"Convert with torch.as_tensor({field}).long()"
        )
    if tuple(values.shape) != (n,):
        raise InputError(
            f"{field} of shape {tuple(values.shape)} for {n} inputs",
            expected=f"shape ({n},), one entry for each example",
            remedy="Hand in class numbers, not one-hot rows, in the order of the inputs",
        )
    if values.device != device:
        raise InputError(
            f"{field} on {values.device}, inputs on {device}",
            expected="one device",
            remedy="Make it first, then call .to(device)",
        )
    return values.long()


def check_positions(positions: Any, n: int) -> Tensor:
    """Turn positions or a mask into distinct row numbers in 0..n-1."""
    rows = positions.detach().cpu() if isinstance(positions, Tensor) else torch.as_tensor(np.asarray(positions))
    if rows.numel() == 0 and rows.dtype != torch.bool:
        return torch.empty(0, dtype=torch.int64)
    if rows.dtype == torch.bool:
        if tuple(rows.shape) != (n,):
            raise InputError(
                f"a mask of shape {tuple(rows.shape)}", expected=f"shape ({n},)", remedy="Give one entry per example"
            )
        return rows.nonzero().flatten()
    if rows.dtype not in _INTEGERS or rows.ndim != 1:
        raise InputError(
            f"positions of type {rows.dtype} and shape {tuple(rows.shape)}",
            expected="a list of row numbers or a boolean mask",
            remedy="Hand in integers",
        )
    rows = rows.long()
    wrong = (rows < 0) | (rows >= n)
    if bool(wrong.any()):
        first = int(rows[wrong][0])
        raise InputError(
            f"position {first} in a data set of {n}", expected=f"0 to {n - 1}", remedy="Positions are rows, not ids"
        )
    if len(torch.unique(rows)) != len(rows):
        raise InputError("positions with repeats", expected="distinct positions", remedy="Each example can be taken once")
    return rows
