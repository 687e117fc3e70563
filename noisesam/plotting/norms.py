"""How large the last hidden activation and the last layer grow."""

from __future__ import annotations

import numpy as np
import pandas as pd

from noisesam.plotting._layout import AxesLike, legend, panels
from noisesam.plotting._series import band_note, check, draw_line, groups, nothing_to_draw, over_seeds
from noisesam.plotting.style import style

_SOURCE = "the table of noisesam.analysis.norms(runs)"
_NEEDS = "Track a probe set: tracking.probe_size must not be 0."
_TITLES = {
    "hidden_activation_norm": ("last hidden activation", "mean norm over probe examples"),
    "last_layer_norm": ("last-layer weight", "Frobenius norm"),
}


def plot_norms(table: pd.DataFrame, *, ax: AxesLike | None = None, band: str = "sd") -> np.ndarray:
    """Draw the norm of the last hidden activation and of the last layer's weight over time, one line per method.

    Args:
        table: Table of `noisesam.analysis.norms`: method, (setting), epoch, hidden_activation_norm, last_layer_norm; one
            row per seed and epoch (of the group `all`, where it has groups).
        ax: Two Axes; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The two panels: activation, last layer.

    Raises:
        InputError: If the table is empty, lacks a column or holds no norm, or not two Axes were handed in.

    Example:
        >>> table = pd.DataFrame({"method": "sgd", "epoch": [0, 1], "hidden_activation_norm": [1.0, 2.0],
        ...                       "last_layer_norm": [1.0, 1.5]})
        >>> [panel.get_title() for panel in plot_norms(table)]
        ['last hidden activation', 'last-layer weight']
    """
    check(table, ["method", "epoch", *_TITLES], source=_SOURCE, needs=_NEEDS)
    if "group" in table.columns:
        table = table[table["group"] == "all"]
    found = groups(table.dropna(subset=list(_TITLES), how="all"))
    if not found:
        raise nothing_to_draw("norm", _NEEDS)
    with style():
        axes, own = panels(ax, 2, columns=2, width=3.6, height=2.9, sharex=True)
        seeds: list[int] = []
        for panel, (column, (title, unit)) in zip(axes, _TITLES.items(), strict=True):
            for shift, group in enumerate(found):
                series = over_seeds(group.table, "epoch", column, band)
                seeds += list(series["seeds"])
                draw_line(panel, series, group.look, label=group.label, shift=shift)
            panel.set_title(title)
            panel.set_ylabel(unit)
            panel.set_xlabel("epoch")
        legend(axes, title=band_note(seeds, band), own=own)
    return axes
