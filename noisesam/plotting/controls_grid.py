"""The control of the regulariser: test accuracy over its two coefficients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from noisesam.plotting._layout import panels
from noisesam.plotting._series import check, nothing_to_draw
from noisesam.plotting.controls import POINTS
from noisesam.plotting.style import VERMILION, style


def plot_control_regulariser(points: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the mean test accuracy at the last epoch for every pair of coefficients; without either it is SGD's.

    The frame is the pair that noisy validation labels choose at the last epoch.

    Args:
        points: Table of points of `noisesam.reproduce.controls.judge_control`.
        ax: Axes to draw on; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: If the table lacks a column, or holds no pair.

    Example:
        >>> row = {"control": "regulariser", "method": "reg-sgd", "activation": 0.01, "weight": 0.1, "chosen": True,
        ...        "last_test_accuracy": 0.7}
        >>> axes = plot_control_regulariser(pd.DataFrame([row]))
        >>> [text.get_text() for text in axes.texts]
        ['70.0']
    """
    columns = ("control", "method", "activation", "weight", "chosen", "last_test_accuracy")
    check(points, columns, source=POINTS)
    own = points[points["control"] == "regulariser"]
    pairs = own[own["method"] == "reg-sgd"]
    if not np.isfinite(pairs["last_test_accuracy"].astype(float)).any():
        raise nothing_to_draw("accuracy of a pair of coefficients", f"Pass {POINTS}.")
    activations, weights = (sorted(float(value) for value in pairs[name].unique()) for name in ("activation", "weight"))
    values = np.full((len(activations), len(weights)), np.nan)
    for row in pairs.to_dict("records"):
        place = activations.index(float(row["activation"])), weights.index(float(row["weight"]))
        values[place] = 100 * float(row["last_test_accuracy"])
    sgd = own.loc[own["method"] == "sgd", "last_test_accuracy"]
    if len(sgd) and activations[0] == 0 and weights[0] == 0:
        values[0, 0] = 100 * float(sgd.iloc[0])
    with style():
        import seaborn as sns

        axes, _ = panels(ax, 1, columns=1, width=4.7, height=3.2)
        panel = axes[0]
        sns.heatmap(
            values,
            ax=panel,
            cmap="Blues",  # one hue by lightness: safe for colour-blind readers and in grey print
            mask=np.isnan(values),
            annot=True,
            fmt=".1f",
            annot_kws={"fontsize": 8.0},
            linewidths=0.8,
            linecolor="white",
            cbar_kws={"label": "test accuracy at the last epoch (%)", "shrink": 0.9},
        )
        panel.grid(visible=False)
        panel.set_xticks(np.arange(len(weights)) + 0.5, [f"{value:g}" for value in weights])
        panel.set_yticks(np.arange(len(activations)) + 0.5, [f"{value:g}" for value in activations], rotation=0)
        panel.invert_yaxis()
        panel.tick_params(length=0)
        panel.set_xlabel("coefficient of the last layer's weights")
        panel.set_ylabel("coefficient of the last activation")
        chosen = pairs[pairs["chosen"].astype(bool)]
        for row in chosen.to_dict("records"):
            corner = weights.index(float(row["weight"])), activations.index(float(row["activation"]))
            panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.2, clip_on=False, zorder=5))
        notes = ["frame: chosen on noisy validation"] if len(chosen) else []
        if len(sgd) and activations[0] == 0 and weights[0] == 0:
            notes.append("0, 0: SGD")
        blank = any(np.isnan(values[activations.index(float(a)), weights.index(float(w))]) for a, w in _named(pairs))
        panel.set_title("\n".join(part for part in ("; ".join(notes), "blank: stayed at chance" if blank else "") if part))
    return panel


def _named(pairs: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the pairs that were run."""
    return [*zip(pairs["activation"], pairs["weight"], strict=True)]
