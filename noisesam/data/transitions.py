"""Transition matrices: the law of the observed label given the true one, entry [i, j] = P(observed = j | true = i)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from noisesam.data import asymmetric
from noisesam.data.dataset import NoisyDataset
from noisesam.data.record import NoiseRecord
from noisesam.errors import InputError, unknown_name

STATED_KINDS = ("none", "symmetric", "symmetric-iid", "symmetric-inclusive", "pair-flip", "asymmetric")
"""Kinds whose matrix follows from the rate and the number of classes."""

_ROW_SUM_TOLERANCE = 1e-6


def transition_matrix(
    kind: str,
    rate: float | int,
    classes: int | Sequence[str],
    *,
    mapping: Mapping[int, int] | Mapping[str, str] | None = None,
    name: str = "",
) -> Float64[np.ndarray, "classes classes"]:
    r"""Return the stated law of a kind of label noise.

    With K classes, rate p and i the true class,

        symmetric, symmetric-iid    T_ii = 1 - p,          T_ij = p / (K - 1)
        symmetric-inclusive         T_ii = 1 - p + p / K,  T_ij = p / K
        pair-flip                   T_ii = 1 - p,          T_i,(i+1 mod K) = p
        asymmetric                  T_ii = 1 - p,          T_i,m(i) = p where the map m moves i, else T_ii = 1

    Args:
        kind: One of none, symmetric, symmetric-iid, symmetric-inclusive, pair-flip, asymmetric.
        rate: p in [0, 1].
        classes: Number of classes K, or their names.
        mapping: For asymmetric noise: true class -> observed class, by number or by name.
        name: For asymmetric noise without a mapping: the data set's name, for those that have a published map.

    Returns:
        Row-stochastic matrix of shape (K, K).

    Raises:
        InputError: For an unknown kind, a rate outside [0, 1], fewer than two classes, or a kind whose law needs the data.

    Example:
        >>> transition_matrix("pair-flip", 0.25, 2)
        array([[0.75, 0.25],
               [0.25, 0.75]])

    References:
        Patrini, Rozza, Krishna Menon, Nock, Qu (2017). Making Deep Neural Networks Robust to Label Noise. arXiv 1609.03683.
        Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama (2018). Co-teaching. arXiv 1804.06872 (pair flip).
    """
    if kind in ("instance-dependent", "human", "transition-matrix"):
        raise InputError(
            f"the transition matrix of {kind} noise",
            expected="one of: " + ", ".join(STATED_KINDS),
            remedy="It depends on the data: add the noise and read dataset.noise.transition_matrix",
        )
    if kind not in STATED_KINDS:
        raise unknown_name("noise kind", kind, STATED_KINDS)
    names = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else tuple(classes)
    count = len(names)
    check_rate(rate)
    if kind == "none":
        return np.eye(count)
    if count < 2:
        raise InputError(f"{count} class", expected="at least two classes", remedy="Label noise needs another class to flip to")
    keep = (1.0 - rate) * np.eye(count)
    if kind == "symmetric-inclusive":
        return keep + rate / count
    if kind == "pair-flip":
        return keep + rate * np.roll(np.eye(count), 1, axis=1)
    if kind == "asymmetric":
        return asymmetric.matrix(rate, asymmetric.resolve(mapping, names, name))
    return keep + rate / (count - 1) * (1.0 - np.eye(count))


def check_rate(rate: Any) -> None:
    """Check that a rate is a probability."""
    if isinstance(rate, str) or np.ndim(rate) or rate is None or not 0.0 <= rate <= 1.0:
        raise InputError(f"rate = {rate!r}", expected="a fraction from 0 to 1", remedy="Write 40% as 0.4")


def check_matrix(matrix: Any, classes: int) -> Float64[np.ndarray, "classes classes"]:
    """Check a user's transition matrix: its size, its signs and its row sums.

    Args:
        matrix: (K, K) array or nested list.
        classes: K.

    Returns:
        The matrix in float64, its rows scaled to sum to 1 exactly up to rounding.

    Raises:
        InputError: If the matrix is not row-stochastic.
    """
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (classes, classes):
        raise InputError(
            f"a transition matrix of shape {values.shape}",
            expected=f"shape ({classes}, {classes}), one row for each true class",
            remedy="Entry [i][j] is the probability that true class i is observed as j",
        )
    sums = values.sum(axis=1)
    wrong = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (np.abs(sums - 1.0) <= _ROW_SUM_TOLERANCE))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"row {row} of the transition matrix sums to {sums[row]:.6g}, with smallest entry {values[row].min():.6g}",
            expected="probabilities that sum to 1 in each row",
            remedy="If each column sums to 1, hand in the transpose",
        )
    return values / sums[:, None]


def draw(
    labels: Int64[np.ndarray, " n"], matrix: Float[np.ndarray, "classes classes"], generator: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Draw an observed label for each true one from its row, independently."""
    return draw_rows(matrix[labels], generator)


def draw_rows(rows: Float[np.ndarray, "n classes"], generator: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Draw one class for each row of probabilities; a class of probability zero is never drawn."""
    cumulative = np.cumsum(rows, axis=1)
    # Dividing by the last entry makes it, and every entry of the trailing zero classes, exactly 1, which no draw reaches.
    cumulative /= cumulative[:, -1:]
    uniform = generator.random((len(rows), 1))
    return (uniform >= cumulative).sum(axis=1).astype(np.int64)


def observed_frequencies(
    clean: Int64[np.ndarray, " n"], observed: Int64[np.ndarray, " n"], classes: int
) -> Float64[np.ndarray, "classes classes"]:
    """Return the share of each observed class among the examples of each true class; the identity's row where there is none."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (clean, observed), 1.0)
    return rows_or_identity(counts, counts.sum(axis=1))


def rows_or_identity(
    sums: Float64[np.ndarray, "classes classes"], totals: Float64[np.ndarray, " classes"]
) -> Float64[np.ndarray, "classes classes"]:
    """Divide each row by its total, and put the identity's row where the total is zero."""
    present = totals[:, None] > 0
    return np.where(present, sums / np.where(present, totals[:, None], 1.0), np.eye(len(sums)))


def given_noise(dataset: NoisyDataset, *, source: str) -> NoisyDataset:
    """Record the noise of labels that were wrong when they were read; a data set without any is returned as it is."""
    clean = dataset.clean_labels
    if clean is None or not dataset.realised_rate:
        return dataset
    matrix = observed_frequencies(clean.cpu().numpy(), dataset.labels.cpu().numpy(), dataset.num_classes)
    record = NoiseRecord("given", None, dataset.realised_rate, matrix.tolist(), None, source)
    return dataclasses.replace(dataset, noise=record)
