"""Labelled examples whose labels may be wrong, with the truth beside them where it is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from noisesam.data import validation
from noisesam.data.record import NoiseRecord
from noisesam.errors import InputError

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class NoisyDataset:
    r"""Examples (x_i, observed label, true label) with a stable name for each of them.

    Group membership is `is_noisy[i] = (labels[i] != clean_labels[i])`; where no true label is known the group `all` is the
    only one. Everything is checked when the object is made, and nothing is changed afterwards.

    Args:
        inputs: (n, ...) tensor of floating type, finite; images are (n, channels, height, width).
        labels: (n,) observed labels, integers in [0, K).
        clean_labels: (n,) true labels, or None where they are not known.
        index: (n,) stable ids, non-negative and distinct; they survive subsets and splits. None numbers the rows from 0.
        classes: Names of the K classes; None names them "0" to the largest label.
        noise: What was done to the labels; None if nothing was.
        name: Name of the data set, as in `noisesam.data.load`.
        token_ids: True says that integer inputs are meant (ids for an embedding); they are kept as int64.

    Raises:
        InputError: For non-finite inputs, integer inputs without `token_ids`, labels out of range, sizes that disagree.

    Example:
        >>> import torch
        >>> data = NoisyDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]), clean_labels=torch.tensor([0, 0, 1]))
        >>> data.is_noisy
        tensor([False,  True, False])
        >>> [index.tolist() for _, _, index in data.batches(2)]
        [[0, 1], [2]]
    """

    # Declared loosely and checked in __post_init__: a wrong shape must meet our message, with or without a type checker.
    inputs: Shaped[Tensor, " ..."]
    labels: Shaped[Tensor, " ..."]
    clean_labels: Shaped[Tensor, " ..."] | None = None
    index: Shaped[Tensor, " ..."] = None  # pyright: ignore[reportAssignmentType]  # filled in __post_init__
    classes: tuple[str, ...] = ()
    noise: NoiseRecord | None = None
    name: str = ""
    token_ids: bool = False

    def __post_init__(self) -> None:
        inputs = validation.check_inputs(self.inputs, token_ids=self.token_ids)
        classes = validation.check_classes(self.classes, self.labels, self.clean_labels)
        n, device = len(inputs), inputs.device
        labels = validation.check_labels("labels", self.labels, n, len(classes), device)
        clean = self.clean_labels
        if clean is not None:
            clean = validation.check_labels("clean_labels", clean, n, len(classes), device)
        index = validation.check_index(self.index, n, device)
        for field, value in (("inputs", inputs), ("labels", labels), ("clean_labels", clean), ("index", index)):
            object.__setattr__(self, field, value)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        return self.inputs[position], self.labels[position], self.index[position]

    def __repr__(self) -> str:
        noise = "none" if self.noise is None else self.noise.kind
        shape = tuple(self.inputs.shape[1:])
        return (
            f"NoisyDataset(name={self.name!r}, n={len(self)}, input_shape={shape}, classes={self.num_classes}, noise={noise!r})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes K, classes without an example included."""
        return len(self.classes)

    @property
    def is_noisy(self) -> Bool[Tensor, " n"] | None:
        """Whether the observed label differs from the true one, per example; None where the truth is unknown."""
        return None if self.clean_labels is None else self.labels != self.clean_labels

    @property
    def realised_rate(self) -> float | None:
        """Fraction of examples with a wrong label; None where the truth is unknown or there is no example."""
        noisy = self.is_noisy
        return None if noisy is None or len(noisy) == 0 else int(noisy.sum()) / len(noisy)

    def subset(self, positions: Sequence[int] | np.ndarray | Shaped[Tensor, " ..."]) -> NoisyDataset:
        """Return the examples at `positions`, in that order, with their stable ids.

        The noise record keeps its law and takes the realised rate of the examples that are left.

        Args:
            positions: Row numbers (not ids), or a boolean mask of length n.

        Returns:
            The smaller data set.

        Raises:
            InputError: For positions that are no integers, out of range or repeated.

        Example:
            >>> data = NoisyDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
            >>> data.subset([2, 0]).index
            tensor([2, 0])
        """
        rows = validation.check_positions(positions, len(self)).to(self.inputs.device)
        clean = self.clean_labels
        part = dataclasses.replace(
            self,
            inputs=self.inputs[rows],
            labels=self.labels[rows],
            clean_labels=None if clean is None else clean[rows],
            index=self.index[rows],
        )
        if part.noise is None:
            return part
        return dataclasses.replace(part, noise=dataclasses.replace(part.noise, realised_rate=part.realised_rate))

    def split(self, size: int, *, seed: int) -> tuple[NoisyDataset, NoisyDataset]:
        """Hold out `size` examples drawn without replacement; both parts keep the order of the rows.

        Args:
            size: Number of held-out examples, 0 to n.
            seed: Seed of the draw.

        Returns:
            (rest, held_out).

        Raises:
            InputError: For a size outside 0..n.

        Example:
            >>> data = NoisyDataset(torch.zeros(5, 2), torch.tensor([0, 1, 1, 0, 1]))
            >>> rest, held_out = data.split(2, seed=0)
            >>> len(rest), len(held_out), sorted([*rest.index.tolist(), *held_out.index.tolist()])
            (3, 2, [0, 1, 2, 3, 4])
        """
        n = len(self)
        if not 0 <= size <= n:
            raise InputError(f"size = {size}", expected=f"0 to {n}, the number of examples", remedy="Hold out fewer examples")
        order = np.random.default_rng(seed).permutation(n)
        return self.subset(np.sort(order[size:])), self.subset(np.sort(order[:size]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NoisyDataset:
        """Return the data set on `device`, with floating inputs as `dtype`; labels and ids stay int64.

        Example:
            >>> NoisyDataset(torch.zeros(1, 2), torch.tensor([0])).to(dtype=torch.float64).inputs.dtype
            torch.float64
        """
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype = {dtype}", expected="a floating type", remedy="Use torch.float32 or torch.float64")
        clean = self.clean_labels
        return dataclasses.replace(
            self,
            inputs=self.inputs.to(device=device, dtype=None if self.token_ids else dtype),
            labels=self.labels.to(device),
            clean_labels=None if clean is None else clean.to(device),
            index=self.index.to(device),
        )

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Go once through the examples in batches.

        The order is drawn at the call, not at the first batch, so the generator's state before the call says which epoch
        this is.

        Args:
            batch_size: Examples per batch, at least 1; the last batch may be smaller.
            generator: Draws the order; None takes the examples as they stand.
            drop_last: Leave out a last batch that is not full.

        Returns:
            An iterator over (inputs, labels, index), each with the batch as first dimension.

        Raises:
            InputError: For a batch size below 1.

        Example:
            >>> data = NoisyDataset(torch.zeros(5, 2), torch.tensor([0, 1, 1, 0, 1]))
            >>> shuffled = data.batches(2, generator=torch.Generator().manual_seed(0), drop_last=True)
            >>> [tuple(inputs.shape) for inputs, _, _ in shuffled]
            [(2, 2), (2, 2)]
        """
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}", expected="at least 1", remedy="Use a positive batch size")
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator, device=generator.device)
        stop = n - n % batch_size if drop_last else n
        return self._iterate(order[:stop].to(self.inputs.device), batch_size)

    def _iterate(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield the rows named in `order`, `batch_size` at a time."""
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self.inputs[rows], self.labels[rows], self.index[rows]
