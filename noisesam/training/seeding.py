"""One root seed splits into named, independent generators. No torch import."""

from __future__ import annotations

import hashlib

import numpy as np

from noisesam.errors import InputError, unknown_name

PURPOSES = ("data", "validation", "noise", "init", "batching", "method", "dropout", "probe", "augmentation")
"""data: subsets of the data set; validation: the hold-out; noise: the label noise; init: the weights; batching: the order of
the examples; method: the method's own draws; dropout: torch's generator during the run; probe: the tracked examples;
augmentation: crops and flips."""


def seed_for(root_seed: int, purpose: str) -> int:
    """Derive the seed of one purpose from the root seed of a run.

    The purposes' seeds are statistically independent of each other and of those of any other root seed, and none of them
    depends on which other purposes exist; so two methods with one root seed share data, noise, weights and batches.

    Args:
        root_seed: the `seed` of the configuration, 0 or more.
        purpose: one of `PURPOSES`.

    Returns:
        A seed of 53 bits, which JSON, numpy and torch all keep exactly.

    Raises:
        InputError: an unknown purpose or a negative root seed.

    Example:
        >>> seed_for(0, "noise") == seed_for(0, "noise"), seed_for(0, "noise") == seed_for(1, "noise")
        (True, False)
    """
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES)
    if root_seed < 0:
        raise InputError(f"Root seed {root_seed}", expected="0 or more")
    # Python's own hash of a string changes with every process.
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
    sequence = np.random.SeedSequence(entropy=root_seed, spawn_key=(word,))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 11
