"""The label-noise transition matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from noisesam.errors import InputError
from noisesam.plotting._layout import new_figure
from noisesam.plotting.style import style

_NUMBERS_UP_TO = 20  # beyond, a cell is smaller than its number
_NAMES_UP_TO = 30


def plot_transition_matrix(
    matrix: np.ndarray | Sequence[Sequence[float]],
    classes: Sequence[Any],
    ax: Axes | None = None,
    *,
    class_counts: Sequence[float] | Sequence[int] | np.ndarray | None = None,
    realised_rate: float | None = None,
) -> Axes:
    """Draw T, where T[i, j] is the probability that an example of true class i is labelled j.

    The title carries the rate of wrong labels, sum_i p_i (1 - T[i, i]) with p the class frequencies.

    Args:
        matrix: Transition matrix, shape (K, K), rows summing to 1; a row of NaN is a class without examples.
        classes: The K class names, in the order of the matrix.
        ax: Axes to draw on; None makes a figure.
        class_counts: Examples per true class; None takes the classes as equally frequent.
        realised_rate: The measured rate, where it is known; it is shown as it is.

    Returns:
        The Axes.

    Raises:
        InputError: If the matrix is not square, does not match the class names or is not a stochastic matrix.

    Example:
        >>> plot_transition_matrix([[0.8, 0.2], [0.4, 0.6]], ["cat", "dog"]).get_title()
        'wrong labels: 30.0%'
    """
    values = np.asarray(matrix, dtype=float)
    names = [str(name) for name in classes]
    _check(values, names)
    with style():
        import seaborn as sns

        count = len(names)
        if ax is None:
            side = float(np.clip(1.8 + 0.34 * count, 3.0, 8.0))
            ax = new_figure(side + 0.7, side).subplots()
        shown = names if count <= _NAMES_UP_TO else False
        sns.heatmap(
            values,
            ax=ax,
            vmin=0.0,
            vmax=1.0,
            cmap="Blues",  # one hue by lightness: safe for colour-blind readers and in grey print
            square=True,
            mask=np.isnan(values),
            annot=_numbers(values) if count <= _NUMBERS_UP_TO else False,
            fmt="",
            annot_kws={"fontsize": 7.0},
            linewidths=0.5 if count <= _NAMES_UP_TO else 0.0,
            linecolor="white",
            xticklabels=shown,
            yticklabels=shown,
            cbar_kws={"label": "probability", "shrink": 0.8},
        )
        ax.grid(visible=False)
        if shown:
            ax.set_xticks(np.arange(count) + 0.5, names, rotation=90 if max(map(len, names)) > 2 else 0)
            ax.set_yticks(np.arange(count) + 0.5, names, rotation=0)
        ax.tick_params(length=0)
        ax.set_xlabel("observed label")
        ax.set_ylabel("true class")
        rate = _rate(values, class_counts) if realised_rate is None else realised_rate
        ax.set_title(f"wrong labels: {100 * rate:.1f}%")
    return ax


def _check(values: np.ndarray, names: list[str]) -> None:
    """Refuse what is no transition matrix of these classes."""
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] == 0:
        raise InputError(
            f"The transition matrix has shape {values.shape}",
            expected="shape (classes, classes), at least one class",
            remedy="Pass dataset.noise.transition_matrix.",
        )
    if len(names) != len(values):
        raise InputError(
            f"{len(names)} class names were given for a {len(values)} x {len(values)} transition matrix",
            expected=f"{len(values)} class names",
            remedy="Pass dataset.classes.",
        )
    known = values[~np.isnan(values).any(axis=1)]
    if ((known < -1e-9) | (known > 1 + 1e-9)).any() or not np.allclose(known.sum(axis=1), 1.0, atol=1e-6):
        raise InputError(
            "The matrix is not a transition matrix",
            expected="entries between 0 and 1, each row summing to 1",
            remedy="Divide each row of a matrix of counts by its sum.",
        )


def _rate(values: np.ndarray, class_counts: Sequence[float] | Sequence[int] | np.ndarray | None) -> float:
    """Return sum_i p_i (1 - T[i, i]) over the classes that have a row."""
    counts = np.ones(len(values)) if class_counts is None else np.asarray(class_counts, dtype=float)
    if counts.shape != (len(values),):
        raise InputError(
            f"{len(counts)} class counts were given for {len(values)} classes", expected=f"{len(values)} counts, one per class"
        )
    known = ~np.isnan(values).any(axis=1)
    return float(np.average(1.0 - np.diag(values)[known], weights=counts[known])) if counts[known].sum() > 0 else float("nan")


def _numbers(values: np.ndarray) -> np.ndarray:
    """Write the cells as .62, and nothing where there is nothing."""
    return np.array([["" if not cell > 0 else f"{cell:.2f}".removeprefix("0") for cell in row] for row in values])
