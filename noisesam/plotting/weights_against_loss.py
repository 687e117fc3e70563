"""Which examples a perturbation weighs up: logit weight and Jacobian weight against the loss of the example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from noisesam.errors import InputError, unknown_name
from noisesam.plotting._layout import AxesLike, legend, panels, wrap_titles
from noisesam.plotting._series import band_note, check, draw_line, groups, nothing_to_draw, over_seeds
from noisesam.plotting.style import GROUP_STYLES, style

_SOURCE = "the table of noisesam.analysis.weights_against_loss(runs)"
_NEEDS = "Track a probe set: tracking.probe_size must not be 0."
_ROWS = {
    "logit_weight": "logit weight\n‖r(w+ε)‖ / ‖r(w)‖",
    "jacobian_weight": "Jacobian weight\n‖J(w+ε)ᵀr(w)‖ / ‖J(w)ᵀr(w)‖",
}
_LABELS = {"clean": "clean train", "noisy": "noisy train", "all": "all train"}


def plot_weights_against_loss(
    table: pd.DataFrame,
    *,
    method: str | None = None,
    setting: str | None = None,
    epochs: Sequence[float] | Sequence[int] | None = None,
    ax: AxesLike | None = None,
    band: str = "sd",
) -> np.ndarray:
    """Draw, for the runs of one method, how the per-example perturbation changes logit scale and Jacobian at each loss.

    A point is a loss bin at its mean loss. Above 1 the perturbation makes the examples of the bin count more than plain SGD
    does at the same weights. One column per time; the upper row is the logit weight, the lower the Jacobian weight.

    Args:
        table: Table of `noisesam.analysis.weights_against_loss`: method, (setting), epoch, group, bin, loss, logit_weight,
            jacobian_weight; one row per seed, time, group and bin.
        method: On whose path the weights are measured; None takes the first in the fixed order, SGD where it was run.
        setting: Which setting of the method; None takes the first one.
        epochs: Times to show, each taken to the nearest probe; None shows an early, a middle and the last one.
        ax: Two Axes per time, the upper row first; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The panels, shape (2, times).

    Raises:
        InputError: If the table is empty, lacks a column or holds no weight, the method or setting is not in it, or the
            number of Axes does not fit.

    Example:
        >>> table = pd.DataFrame({"method": "sgd", "epoch": 1.0, "group": "clean", "bin": [0, 1], "loss": [0.1, 1.0],
        ...                       "logit_weight": [1.5, 1.2], "jacobian_weight": [1.0, 1.0]})
        >>> plot_weights_against_loss(table).shape
        (2, 1)
    """
    rows, label = _shown(table, epochs, method, setting)
    shown, times = list(dict.fromkeys(sorted(rows["group"]))), sorted(rows["epoch"].unique())
    with style():
        flat, own = panels(ax, 2 * len(times), columns=len(times), width=2.7, height=2.2, sharex=True, sharey="row")
        grid = flat.reshape(2, len(times))
        seeds: list[int] = []
        for (column, ylabel), line_of_panels in zip(_ROWS.items(), grid, strict=True):
            for panel, time in zip(line_of_panels, times, strict=True):
                panel.axhline(1.0, color="#555555", linewidth=0.8, zorder=1)
                for part in shown:
                    series = _by_bin(rows[(rows["group"] == part) & (rows["epoch"] == time)], column, band)
                    seeds += list(series["seeds"])
                    draw_line(panel, series, GROUP_STYLES[part], label=_LABELS[part])
            line_of_panels[0].set_ylabel(ylabel)
        for panel, time in zip(grid[0], times, strict=True):
            panel.set_title(f"{label}, epoch {time:g}")
        for panel in grid[1]:
            panel.set_xlabel("loss of the example (nats)")
        if _spans(rows["loss"]) > 30:
            for panel in flat:
                panel.set_xscale("log")
                _label_losses(panel)
        if _spans(rows["logit_weight"]) > 5:
            # Late in training a fitted example counts tenfold: on a linear axis the early panels would be flat.
            for panel in grid[0]:
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter(ScalarFormatter())
        legend(flat, title=f"by loss bin; {band_note(seeds, band)}", own=own)
        wrap_titles(grid[0], own=own)
    return grid


def weights_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that `plot_weights_against_loss` draws by default: one method at three times.

    Args:
        table: Table of `noisesam.analysis.weights_against_loss`.

    Raises:
        InputError: If the table lacks a column, or holds nothing to draw.
    """
    return _shown(table, None, None, None)[0]


def _shown(
    table: pd.DataFrame, epochs: Sequence[float] | Sequence[int] | None, method: str | None, setting: str | None
) -> tuple[pd.DataFrame, str]:
    """Return what is drawn of a table, and the label of its runs."""
    check(table, ["method", "epoch", "group", "bin", "loss", *_ROWS], source=_SOURCE, needs=_NEEDS)
    rows, label = _chosen(table.dropna(subset=list(_ROWS), how="all"), method, setting)
    parts = [part for part in ("clean", "noisy") if (rows["group"] == part).any()] or ["all"]
    rows = rows[rows["group"].isin(parts)]
    if rows.empty:
        raise nothing_to_draw("logit or Jacobian weight", _NEEDS)
    return rows[rows["epoch"].isin(_times(rows["epoch"].unique(), epochs))], label


def _label_losses(panel: Axes) -> None:
    """Label decades, every second or third where there are many, or 1, 2 and 5 of each where there are fewer than two."""
    low, high = panel.get_xlim()
    # With five ticks asked for the locator labels at most four: the usual labels of such an axis overlap in a narrow panel.
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0), numticks=5))
    panel.xaxis.set_major_formatter(FuncFormatter(_decade))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _chosen(table: pd.DataFrame, method: str | None, setting: str | None) -> tuple[pd.DataFrame, str]:
    """Return the rows of one method in one setting, and their label."""
    found = groups(table)
    if not found:
        raise nothing_to_draw("logit or Jacobian weight", _NEEDS)
    if method is not None and method not in {group.method for group in found}:
        raise unknown_name("method", method, dict.fromkeys(group.method for group in found))
    of_method = [group for group in found if method is None or group.method == method]
    if setting is None:
        return of_method[0].table, of_method[0].label
    for group in of_method:
        if "setting" in table.columns and (group.table["setting"] == setting).all():
            return group.table, group.label
    raise unknown_name("setting", setting, [str(name) for name in table.get("setting", pd.Series(dtype=str)).unique()])


def _times(measured: np.ndarray, wanted: Sequence[float] | Sequence[int] | None) -> list[float]:
    """Take each wanted epoch to the nearest measured one; by default 5%, 30% and 100% of the run, the start left out."""
    if wanted is not None and len(wanted) == 0:
        raise InputError("No epochs were given", expected="at least one epoch", remedy="Leave `epochs` out.")
    later = measured[measured > 0] if (measured > 0).any() else measured
    among = later if wanted is None else measured
    targets = [share * float(among.max()) for share in (0.05, 0.3, 1.0)] if wanted is None else list(wanted)
    return sorted({float(among[np.argmin(np.abs(among - target))]) for target in targets})


def _by_bin(rows: pd.DataFrame, column: str, band: str) -> pd.DataFrame:
    """Reduce over seeds bin by bin, and put each bin at its mean loss over the seeds."""
    rows = rows.dropna(subset=[column])
    series = over_seeds(rows, "bin", column, band)
    series["bin"] = rows.groupby("bin", sort=True)["loss"].mean().to_numpy()
    return series.rename(columns={"bin": "loss"})


def _spans(values: pd.Series) -> float:
    """Return the largest over the smallest positive value."""
    positive = values[values > 0]
    return float(positive.max() / positive.min()) if len(positive) else 1.0


def _decade(value: float, _: int) -> str:
    """Write 0.001 to 100 as they are and other powers of ten in short: 1e-5."""
    if 1e-3 <= value <= 100 or value <= 0:
        return f"{value:g}"
    return f"1e{round(math.log10(value))}"
