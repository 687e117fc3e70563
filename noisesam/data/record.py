"""What was done to the labels of a data set, in a form that goes into a run's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NoiseRecord:
    """The label noise of one data set: what was asked for, what came out, and by which law.

    Args:
        kind: Kind of noise as in `noisesam.data.noise_kinds()`, or "given" for labels that were noisy when they were read.
        requested_rate: The rate asked for; None where the kind takes none (human, transition-matrix, given).
        realised_rate: Fraction of the examples at hand whose observed label differs from the true one; None where no true
            label is known.
        transition_matrix: Row-stochastic K x K list, entry [i][j] = P(observed = j | true = i). The stated law for symmetric,
            pair-flip, asymmetric and transition-matrix noise; the mean over the examples of each class for instance-dependent
            noise; observed frequencies for human and given labels. None where no true label is known. A class without
            examples has the identity's row where the matrix is an average.
        seed: Seed of the draw; None where nothing was drawn.
        source: Where the labels came from: the human label set, or the file.

    Example:
        >>> record = NoiseRecord("symmetric", 0.5, 0.5, [[0.5, 0.5], [0.5, 0.5]], seed=0)
        >>> record.to_dict()["requested_rate"]
        0.5
        >>> NoiseRecord.from_dict(record.to_dict()) == record
        True
    """

    kind: str
    requested_rate: float | None
    realised_rate: float | None
    transition_matrix: list[list[float]] | None
    seed: int | None = None
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers, strings and lists, ready for JSON."""
        matrix = self.transition_matrix
        return {
            "kind": self.kind,
            "requested_rate": self.requested_rate,
            "realised_rate": self.realised_rate,
            "transition_matrix": None if matrix is None else [list(row) for row in matrix],
            "seed": self.seed,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NoiseRecord:
        """Rebuild a record from `to_dict`, for example out of a manifest."""
        return cls(**dict(values))
