"""Numbers that a method remembers of every example, by the example's index in its data set."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from noisesam.errors import InputError
from noisesam.gradients.batch import whole_index
from noisesam.methods.checks import check_count

STORE_BUDGET = 2 * 2**30
"""Bytes above which a store is mapped to a temporary file instead of memory."""
LARGEST_INDEX = 2**24 - 1
"""The table has a row for every number up to the largest, so ids that are hashes would fill memory or disk with empty rows.
16,777,215 leaves room for the largest labelled sets of images (14 million) and meets nearly every batch of 32-bit hashes."""


class ExampleStore:
    """A table of one row per example, looked up by index, never by the position in an epoch; it grows as indices appear.

    It is dense up to the largest index, which may be `LARGEST_INDEX` at most: examples are numbered from 0, ids that are
    hashes are refused.

    Args:
        row_shape: Shape of what is kept of one example.
        dtype: Precision of what is kept.
        fill: What an example holds that was never written.
        memory_budget: Bytes above which the table lies in a temporary file that the system pages in and out.

    Example:
        >>> store = ExampleStore((2,), memory_budget=2**20)
        >>> store.write(torch.tensor([5]), torch.ones(1, 2))
        >>> store.read(torch.tensor([5, 9]), "cpu").tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        row_shape: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        fill: float = 0.0,
        memory_budget: int = STORE_BUDGET,
    ) -> None:
        self.row_shape = row_shape
        self.fill = fill
        self.memory_budget = check_count("store_budget", memory_budget, at_least=0, remedy="It counts bytes.")
        self._file: Any = None
        self._rows = torch.empty((0, *row_shape), dtype=dtype)
        self._used = 0

    @property
    def mapped(self) -> bool:
        """Whether the table lies in a file."""
        return self._file is not None

    def __len__(self) -> int:
        """Return one more than the largest index written."""
        return self._used

    def read(self, index: Integer[Tensor, " b"], device: torch.device | str) -> Tensor:
        """Return the rows of these examples, `fill` where nothing was written."""
        index = index.to("cpu", torch.int64)
        known = index < self._used
        rows = self._rows.new_full((len(index), *self.row_shape), self.fill)
        rows[known] = self._rows[index[known]]
        return rows.to(device)

    def write(self, index: Integer[Tensor, " b"], rows: Tensor) -> None:
        """Keep the rows of these examples; where an index appears twice, the last row.

        Raises:
            InputError: An index is negative or above `LARGEST_INDEX`.
        """
        if len(index) == 0:
            return
        index = _within_bounds(index)
        index, rows = index.to("cpu"), rows.detach().to("cpu", self._rows.dtype)
        self._grow(int(index.max()) + 1)
        last = {example: row for row, example in enumerate(index.tolist())}
        if len(last) < len(index):
            kept = torch.tensor(list(last.values()))
            index, rows = index[kept], rows[kept]
        self._rows[index] = rows

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: the rows themselves, for a file belongs to one store."""
        return {**self.__dict__, "_file": None, "_rows": self._rows[: self._used].clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build a copy, in a file of its own where the rows are above the budget."""
        self.__dict__.update(state)
        self.load_state_dict({"rows": self._rows})

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the table."""
        return {"rows": self._rows[: self._used].clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            InputError: The rows are not of this store's shape.
        """
        rows = state.get("rows")
        if not isinstance(rows, Tensor) or tuple(rows.shape[1:]) != self.row_shape or rows.dim() == 0:
            raise InputError(
                "A saved store of examples",
                expected=f"rows of the shape {self.row_shape}",
                remedy="Build the method with the configuration of the run that saved it.",
            )
        self._file, self._used = None, 0
        self._rows = self._rows.new_empty((0, *self.row_shape))
        self._grow(len(rows))
        self._rows[: len(rows)] = rows.to("cpu", self._rows.dtype)

    def _grow(self, needed: int) -> None:
        if needed > len(self._rows):
            capacity = max(needed, 2 * len(self._rows))
            numbers = capacity * math.prod(self.row_shape)
            bytes_needed = numbers * self._rows.element_size()
            if bytes_needed > self.memory_budget:
                file = tempfile.NamedTemporaryFile(prefix="noisesam-examples-")  # noqa: SIM115 - lives as long as the store
                file.truncate(bytes_needed)
                larger = torch.from_file(file.name, shared=True, size=numbers, dtype=self._rows.dtype)
                larger = larger.view(capacity, *self.row_shape)
            else:
                file, larger = None, self._rows.new_empty((capacity, *self.row_shape))
            larger[: self._used] = self._rows[: self._used]
            if file is None or self.fill != 0:  # a new file holds zeros, which take no room on disk until they are written
                larger[self._used :] = self.fill
            self._rows, self._file = larger, file
        self._used = max(self._used, needed)


def require_index(method: str, index: Tensor | None, examples: int) -> Int[Tensor, " b"]:
    """Return the indices of a batch's examples, or refuse a batch without them.

    Raises:
        InputError: The index is missing, or not one whole number from 0 to `LARGEST_INDEX` for each example.
    """
    expected = f"index=(b,) whole numbers, the stable place of each of the {examples} examples in its data set"
    if index is None:
        raise InputError(
            f"{method} without index",
            expected=expected,
            remedy="Call backward(inputs, targets, index=index): this method remembers examples from epoch to epoch.",
        )
    if not isinstance(index, Tensor) or index.shape != (examples,):
        given = f"of shape {tuple(index.shape)}" if isinstance(index, Tensor) else f"of type {type(index).__name__}"
        raise InputError(f"index {given}", expected=expected, remedy="Pass the index of the same batch.")
    return _within_bounds(index)


def _within_bounds(index: Tensor) -> Int[Tensor, " b"]:
    """Return whole numbers as int64, or refuse those that no table has room for."""
    index = whole_index(index)
    low, high = (int(index.min()), int(index.max())) if len(index) else (0, 0)
    if low < 0 or high > LARGEST_INDEX:
        raise InputError(
            f"index from {low} to {high}",
            expected=f"the numbers of the data set's examples from 0 on, at most {LARGEST_INDEX}: one row is kept for each",
            remedy="Number the examples from 0: torch.arange(len(dataset)), or NoisyDataset.index; not ids that are hashes.",
        )
    return index
