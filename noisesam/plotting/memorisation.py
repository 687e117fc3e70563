"""What becomes of the wrongly labelled training examples: true class, memorised wrong label, or another class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from noisesam.plotting._layout import AxesLike, grid_columns, label_outer, legend, panels, wrap_titles
from noisesam.plotting._series import band_note, check, draw_line, groups, nothing_to_draw, over_seeds
from noisesam.plotting.style import PREDICTION_STYLES, style

_SOURCE = "the table of noisesam.analysis.memorisation(runs)"
_NEEDS = "It needs runs with label noise and known true labels."


def plot_memorisation(table: pd.DataFrame, *, ax: AxesLike | None = None, band: str = "sd") -> np.ndarray:
    """Draw, in one panel per method, the fractions of wrongly labelled training examples by what they are taken for.

    The three fractions sum to one: predicted as the true class, as the wrong observed label (memorised), as another class.

    Args:
        table: Table of `noisesam.analysis.memorisation`: method, (setting), epoch, predicts_true, predicts_observed,
            predicts_other; one row per seed and epoch.
        ax: As many Axes as there are methods and settings; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The panels, flat, in the fixed order of the methods.

    Raises:
        InputError: If the table is empty, lacks a column or holds no fraction, or the number of Axes does not fit.

    Example:
        >>> table = pd.DataFrame({"method": "sam", "epoch": [0, 1], "predicts_true": [0.1, 0.8],
        ...                       "predicts_observed": [0.1, 0.1], "predicts_other": [0.8, 0.1]})
        >>> len(plot_memorisation(table)[0].lines)
        3
    """
    check(table, ["method", "epoch", *PREDICTION_STYLES], source=_SOURCE, needs=_NEEDS)
    found = groups(table.dropna(subset=list(PREDICTION_STYLES), how="all"))
    if not found:
        raise nothing_to_draw("fraction", _NEEDS)
    with style():
        axes, own = panels(ax, len(found), columns=grid_columns(len(found)), width=2.5, height=2.1, sharex=True, sharey=True)
        seeds: list[int] = []
        for panel, group in zip(axes, found, strict=True):
            for shift, (column, look) in enumerate(PREDICTION_STYLES.items()):
                series = over_seeds(group.table, "epoch", column, band)
                seeds += list(series["seeds"])
                draw_line(panel, series, look, shift=shift)
            panel.set_title(group.label)
            panel.set_ylim(-0.02, 1.02)
        label_outer(axes, xlabel="epoch", ylabel="fraction of noisy train")
        legend(axes, title=f"wrongly labelled examples predicted as ({band_note(seeds, band)})", own=own)
        wrap_titles(axes, own=own)
    return axes
