"""Symmetric label noise with an exact number of changed examples."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64


def flip_count(n: int, rate: float | int) -> int:
    """Return floor(rate n + 1e-9); the small number undoes the rounding of products like 0.29 * 100.

    Example:
        >>> flip_count(100, 0.29), flip_count(10, 0.25)
        (29, 2)
    """
    return min(n, math.floor(rate * n + 1e-9))


def flip_to_others(
    labels: Int64[np.ndarray, " n"], rate: float | int, classes: int, generator: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Give exactly floor(rate n + 1e-9) examples, drawn without replacement, a uniform label among the K - 1 other classes."""
    noisy = labels.copy()
    chosen = generator.permutation(len(labels))[: flip_count(len(labels), rate)]
    # A shift by 1..K-1 modulo K is uniform over the other classes.
    noisy[chosen] = (labels[chosen] + generator.integers(1, classes, size=len(chosen))) % classes
    return noisy


def redraw_from_all(
    labels: Int64[np.ndarray, " n"], rate: float | int, classes: int, generator: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Give exactly floor(rate n + 1e-9) examples a uniform label among ALL classes; about one in K of them stays right."""
    noisy = labels.copy()
    chosen = generator.permutation(len(labels))[: flip_count(len(labels), rate)]
    noisy[chosen] = generator.integers(0, classes, size=len(chosen))
    return noisy
