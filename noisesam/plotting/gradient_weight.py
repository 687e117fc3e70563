"""Who drives the step: the clean/noisy ratio of mean gradient norms over time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.errors import unknown_name
from noisesam.plotting._layout import AxesLike, legend, panels, wrap_titles
from noisesam.plotting._series import band_note, check, draw_line, groups_alike, in_order, nothing_to_draw, over_seeds
from noisesam.plotting.style import method_style, style

_SOURCE = "the table of noisesam.analysis.gradient_weight(runs) or gradient_weight_at_equal_weights(runs)"
_NEEDS = "It needs runs with label noise, known true labels and a probe set."
_COLUMNS = ("method", "epoch", "ratio")

_SCALES = ("auto", "linear", "log")


def plot_gradient_weight(
    on_path: pd.DataFrame | None,
    at_equal_weights: pd.DataFrame | None = None,
    *,
    ax: AxesLike | None = None,
    band: str = "sd",
    scale: str = "auto",
) -> np.ndarray:
    """Draw the clean/noisy ratio of the mean norm of the step terms J(theta_J)^T r(theta_L) over time.

    Above 1 the step listens more to an example with a right label than to one with a wrong label. The left panel compares
    the methods at the same weights, those of the baseline's runs; the right panel follows each method on its own path,
    where ratios cross because a method that has fitted less noise has more of it left in its gradient.

    Args:
        on_path: Table of `noisesam.analysis.gradient_weight`: method, (setting), epoch, ratio; None leaves the panel out.
        at_equal_weights: Table of `noisesam.analysis.gradient_weight_at_equal_weights`: the same columns of the baseline's
            runs and `rule`, the method whose step term is measured there; None leaves the panel out.
        ax: One Axes per table handed in; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.
        scale: Of the ratio axis; "auto" is logarithmic where the mean ratios span more than a factor of five.

    Returns:
        The panels: at equal weights, on the own path; one of them where one table is missing.

    Raises:
        InputError: If both tables are missing, or one is empty, lacks a column or holds no ratio.

    Example:
        >>> path = pd.DataFrame({"method": "1-sam", "epoch": [0, 1, 2], "ratio": [1.0, 0.9, 0.8]})
        >>> equal = pd.DataFrame({"method": "sgd", "rule": "1-sam", "epoch": [0, 1, 2], "ratio": [1.0, 0.9, 0.8]})
        >>> [panel.get_title() for panel in plot_gradient_weight(path, equal)]
        ['at equal weights: those of SGD', "on each method's own path"]
    """
    if scale not in _SCALES:
        raise unknown_name("scale", scale, _SCALES)
    tables: dict[str, pd.DataFrame] = {}
    if at_equal_weights is not None:
        check(at_equal_weights, (*_COLUMNS, "rule"), source=_SOURCE, needs=_NEEDS)
        baseline = " and ".join(method_style(name).label for name in at_equal_weights["method"].unique())
        tables[f"at equal weights: those of {baseline}"] = _measured(at_equal_weights.assign(method=at_equal_weights["rule"]))
    if on_path is not None:
        tables["on each method's own path"] = _measured(on_path)
    if not tables:
        raise nothing_to_draw("gradient weights (both tables are None)", f"Pass {_SOURCE}.")
    drawn = groups_alike(*tables.values())
    with style():
        axes, own = panels(ax, len(tables), columns=2, width=3.6, height=2.9, sharey=True)
        seeds: list[int] = []
        values: list[float] = []
        for panel, title, found in zip(axes, tables, drawn, strict=True):
            panel.axhline(1.0, color="#555555", linewidth=0.8, zorder=1)
            floor = min(_positive(group.table["ratio"]).min() for group in found)
            for shift, group in enumerate(found):
                series = over_seeds(group.table, "epoch", "ratio", band)
                seeds += list(series["seeds"])
                values += list(_positive(series["mean"]))
                draw_line(panel, series, group.look, label=group.label, shift=shift, floor=float(floor))
            panel.set_title(title)
            panel.set_xlabel("epoch")
            panel.set_ylabel("clean / noisy step-term norm" if panel is axes[0] or not own else "")
        if scale == "log" or (scale == "auto" and max(values) > 5 * min(values)):
            for panel in axes:
                _logarithmic(panel)
        legend(axes, title=band_note(seeds, band), own=own, order=in_order(group for found in drawn for group in found))
        wrap_titles(axes, own=own)
    return axes


def _positive(values: pd.Series) -> pd.Series:
    """Keep the finite ratios above zero, the only ones with a place on either axis."""
    return values[np.isfinite(values) & (values > 0)]


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """Check the table and leave out the rows that have no ratio."""
    check(table, _COLUMNS, source=_SOURCE, needs=_NEEDS)
    measured = table[np.isfinite(table["ratio"]) & (table["ratio"] > 0)]
    if measured.empty:
        raise nothing_to_draw("clean/noisy ratio", _NEEDS)
    return measured


def _logarithmic(ax: Axes) -> None:
    """Use a logarithmic ratio axis with plain numbers, in both directions from 1."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
