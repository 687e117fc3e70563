"""Gain kept against cost: which method is worth its passes under label noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.plotting._layout import AxesLike, panels
from noisesam.plotting._series import check, nothing_to_draw
from noisesam.plotting.style import method_style, style

_SOURCE = "the table of noisesam.analysis.scoreboard(noisy_runs)"
_TITLES = {"early": "early stopping", "last": "last epoch"}


def plot_scoreboard(table: pd.DataFrame, *, ax: AxesLike | None = None) -> np.ndarray:
    """Draw the share of 1-SAM's gain over SGD that each method keeps against its passes per step.

    A pass is one forward and one backward of the batch, a backward counted as two forwards. Bars are bootstrap intervals
    over seeds; a method without a gain (1-SAM has none there) is left out.

    Args:
        table: Table of `noisesam.analysis.scoreboard`.
        ax: Two Axes; None makes a figure.

    Returns:
        The two panels: early stopping, last epoch.

    Raises:
        InputError: If the table is empty, lacks a column or holds no gain.

    Example:
        >>> row = {"method": "sam", "passes": 2.0, "early_gain": 0.4, "early_gain_low": 0.2, "early_gain_high": 0.6}
        >>> row |= {name.replace("early", "last"): value for name, value in row.items() if "early" in name}
        >>> [panel.get_title() for panel in plot_scoreboard(pd.DataFrame([row]))]
        ['early stopping', 'last epoch']
    """
    columns = [f"{end}_gain{which}" for end in _TITLES for which in ("", "_low", "_high")]
    check(table, ["method", "passes", *columns], source=_SOURCE, needs="Needs runs of sgd and 1-sam.")
    if table[["early_gain", "last_gain"]].isna().all(axis=None):
        raise nothing_to_draw("gain", "1-SAM must gain over SGD in these runs.")
    with style():
        axes, _ = panels(ax, 2, columns=2, width=4.6, height=4.6, sharex=True)
        for panel, (end, title) in zip(axes, _TITLES.items(), strict=True):
            _draw(panel, table.dropna(subset=[f"{end}_gain"]), end)
            panel.set_title(title)
            panel.set_xlabel("passes per step (SGD: 1)")
            panel.set_ylabel("share of 1-SAM's gain over SGD")
    return axes


def _draw(panel: Axes, table: pd.DataFrame, end: str) -> None:
    panel.axhline(0, color="0.6", linewidth=0.8)
    panel.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    # Methods of equal cost stand side by side, best first, so that bars and names do not cover each other.
    ordered = table.sort_values(["passes", f"{end}_gain"])
    counted = ordered.groupby(ordered["passes"].round(2)).cumcount()
    sizes = ordered.groupby(ordered["passes"].round(2))["passes"].transform("size")
    shift = 0.045 * (counted - (sizes - 1) / 2)
    for (_, row), moved in zip(ordered.iterrows(), shift, strict=True):
        look = method_style(str(row["method"]))
        x, y = float(row["passes"]) + float(moved), float(row[f"{end}_gain"])
        low, high = (float(row[f"{end}_gain{which}"]) for which in ("_low", "_high"))
        if low == low:
            panel.plot([x, x], [low, high], color=look.color, linewidth=1.0, alpha=0.6)
        panel.plot([x], [y], marker=look.marker, color=look.color, markersize=5, linestyle="none", label=look.label)
        panel.annotate(look.label, (x, max(y, high if high == high else y)), xytext=(0, 3), textcoords="offset points",
                       rotation=90, ha="center", va="bottom", fontsize=6)  # fmt: skip
    panel.margins(x=0.06, y=0.16)
