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
    """Draw the share of 1-SAM's gain over SGD that each method keeps, the cheapest methods first, in passes per step.

    A pass is one forward and one backward of the batch, a backward counted as two forwards. Bars are Fieller's 95%
    intervals over seeds; where 1-SAM gains nothing a row stays empty. Within one cost the best at the last epoch stands first.

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
    ordered = table.assign(cost=table["passes"].round(2)).sort_values(["cost", "last_gain"], ascending=[True, False])
    with style():
        axes, _ = panels(ax, 2, columns=2, width=3.9, height=1.3 + 0.18 * len(ordered), sharey=True)
        for panel, (end, title) in zip(axes, _TITLES.items(), strict=True):
            _draw(panel, ordered, end)
            panel.set_title(title)
            if ordered[f"{end}_gain"].notna().any():
                panel.set_xlabel("share of 1-SAM's gain over SGD")
        axes[0].set_ylabel("method and passes per step")
    return axes


def _draw(panel: Axes, ordered: pd.DataFrame, end: str) -> None:
    empty = bool(ordered[f"{end}_gain"].isna().all())
    for place, dash in () if empty else ((0, "-"), (1, ":")):
        panel.axvline(place, color="0.6", linewidth=0.8, linestyle=dash)
    names = []
    for place, (_, row) in enumerate(ordered.iterrows()):
        look = method_style(str(row["method"]))
        names.append(f"{look.label}   {row['cost']:.2f}")
        middle, low, high = (float(row[f"{end}_gain{which}"]) for which in ("", "_low", "_high"))
        if low == low:
            panel.plot([low, high], [place, place], color=look.color, linewidth=1.2, alpha=0.6)
        if middle == middle:
            panel.plot([middle], [place], marker=look.marker, color=look.color, markersize=5, linestyle="none")
    if empty:
        reason = "no share: 1-SAM's own gain over SGD\ncannot be told from nothing here"
        panel.text(0.5, 0.5, reason, transform=panel.transAxes, ha="center", va="center", color="0.4")
        panel.set_xticks([])
    costs = ordered["cost"].tolist()
    for place in range(1, len(costs)):
        if costs[place] != costs[place - 1]:  # methods of one cost stand together
            panel.axhline(place - 0.5, color="0.85", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)
    panel.grid(axis="x", visible=True)
    panel.margins(x=0.05)
