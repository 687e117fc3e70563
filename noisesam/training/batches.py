"""The order of the examples, as a function of the seed and the step alone. No torch import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from noisesam.errors import InputError


@dataclass(frozen=True)
class BatchOrder:
    """Every example once per epoch, in an order drawn anew from (seed, epoch); the ragged last batch is kept.

    Nothing is carried from one batch to the next, so a run resumes inside an epoch from its step number.

    Args:
        size: number of training examples.
        batch_size: examples per batch.
        seed: seed of the purpose "batching".

    Example:
        >>> order = BatchOrder(size=5, batch_size=2, seed=0)
        >>> order.steps_per_epoch, [len(order.batch(step)) for step in range(3)]
        (3, [2, 2, 1])
        >>> sorted(int(i) for step in range(3, 6) for i in order.batch(step))
        [0, 1, 2, 3, 4]
    """

    size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch_size < 1:
            raise InputError(f"{self.size} examples in batches of {self.batch_size}", expected="at least 1 of each")

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the examples."""
        return -(-self.size // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch in which a step is taken, from 0."""
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> Int[np.ndarray, " size"]:
        """Return the positions of all examples in the order of one epoch."""
        if self._last.get("epoch") != epoch:
            generator = np.random.default_rng(np.random.SeedSequence(entropy=self.seed, spawn_key=(epoch,)))
            self._last.update(epoch=epoch, order=generator.permutation(self.size))
        return self._last["order"]

    def batch(self, step: int) -> Int[np.ndarray, " batch"]:
        """Return the positions of the examples of one step, steps counted from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    @cached_property
    def _last(self) -> dict:
        """The order drawn last: a cache, no state."""
        return {}
