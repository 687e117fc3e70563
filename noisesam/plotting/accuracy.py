"""Accuracy over time: right labels learned, wrong labels fitted, test, and the three early-stopping points."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.errors import unknown_name
from noisesam.plotting._layout import AxesLike, direct_labels, grid_columns, label_outer, legend, one_axes, panels, wrap_titles
from noisesam.plotting._series import Group, band_note, check, draw_line, groups, nothing_to_draw, over_seeds
from noisesam.plotting.style import GROUP_STYLES, SELECTION_STYLES, STAR, style

_METRIC_COLUMNS = ("method", "epoch", "split", "group", "metric", "value")
_SOURCE = "the metrics of a RunCollection, noisesam.open_runs(path).metrics"
_LINES = (("train", "clean", "clean"), ("train", "noisy", "noisy"), ("test", "all", "test"))
_LABELS = ("auto", "direct", "legend")
_DIRECT_UP_TO = 10
_STOP_COLUMNS = ("method", "selection", "epoch", "test_accuracy")
_STOP_SIZES = {"oracle": 7.0, "validation": 8.5, "last": 5.0}
_STOP_SOURCE = "the table of noisesam.analysis.early_stopping(runs)"


def plot_accuracy_curves(
    metrics: pd.DataFrame, early_stopping: pd.DataFrame | None = None, *, ax: AxesLike | None = None, band: str = "sd"
) -> np.ndarray:
    """Draw, in one panel per method, the accuracy on clean train, noisy train and test examples over time.

    Train accuracy is against the observed label, so on the noisy group it is the fraction of wrong labels that are fitted.
    The early-stopping points lie at the mean epoch and mean test accuracy over seeds; the best of each seed averages above
    the mean curve. Without true labels the train line is that of all examples.

    Args:
        metrics: Tidy metrics: method, (setting), epoch, split, group, metric, value; one value per seed and epoch.
        early_stopping: Table of `noisesam.analysis.early_stopping`, or None for curves alone.
        ax: As many Axes as there are methods and settings; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The panels, flat, in the fixed order of the methods.

    Raises:
        InputError: If the table is empty, lacks a column or holds no accuracy, or the number of Axes does not fit.

    Example:
        >>> rows = [("sgd", seed, epoch, "test", "all", "accuracy", 0.5 + 0.1 * epoch)
        ...         for seed in range(2) for epoch in range(4)]
        >>> metrics = pd.DataFrame(rows, columns=["method", "seed", "epoch", "split", "group", "metric", "value"])
        >>> [panel.get_title() for panel in plot_accuracy_curves(metrics)]
        ['SGD']
    """
    found = groups(_accuracies(metrics))
    stops = _stops(early_stopping)
    with style():
        axes, own = panels(ax, len(found), columns=grid_columns(len(found)), width=2.5, height=2.1, sharex=True, sharey=True)
        seeds: list[int] = []
        for panel, group in zip(axes, found, strict=True):
            for shift, (rows, name) in enumerate(_lines(group)):
                series = over_seeds(rows, "epoch", "value", band)
                seeds += list(series["seeds"])
                draw_line(panel, series, GROUP_STYLES[name], shift=shift, width=1.8 if name == "test" else 1.3)
            _draw_stops(panel, stops, group)
            panel.set_title(group.label)
            panel.set_ylim(-0.02, 1.02)
        label_outer(axes, xlabel="epoch", ylabel="accuracy (fraction)")
        legend(axes, title=band_note(seeds, band), own=own)
        wrap_titles(axes, own=own)
    return axes


def plot_test_accuracy(
    metrics: pd.DataFrame,
    early_stopping: pd.DataFrame | None = None,
    *,
    ax: Axes | None = None,
    band: str = "sd",
    labels: str = "auto",
    zoom: bool = True,
) -> Axes:
    """Draw the test accuracy of every method over time in one panel, with each method's best point as a star.

    Args:
        metrics: Tidy metrics, as in `plot_accuracy_curves`.
        early_stopping: Table of `noisesam.analysis.early_stopping`, or None for curves alone.
        ax: Axes to draw on; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.
        labels: "direct" writes each name at the end of its line, "legend" lists them beside the Axes; "auto" is direct for
            up to ten lines.
        zoom: Start the accuracy axis at the lowest mean after the first tenth of the epochs, so that the rise from chance,
            alike for all methods, does not squeeze the rest; False shows all of it.

    Returns:
        The Axes.

    Raises:
        InputError: If the table is empty, lacks a column or holds no test accuracy.

    Example:
        >>> rows = [("1-sam", 0, epoch, "test", "all", "accuracy", 0.5 + 0.1 * epoch) for epoch in range(4)]
        >>> metrics = pd.DataFrame(rows, columns=["method", "seed", "epoch", "split", "group", "metric", "value"])
        >>> plot_test_accuracy(metrics).get_ylabel()
        'test accuracy (fraction)'
    """
    if labels not in _LABELS:
        raise unknown_name("labels", labels, _LABELS)
    accuracies = _accuracies(metrics)
    # Test labels are clean, so a run holds the same accuracy for the groups `all` and `clean`: one of them is a seed's value.
    found = groups(accuracies[(accuracies["split"] == "test") & (accuracies["group"] == "all")])
    if not found:
        raise nothing_to_draw("test accuracy", "Evaluate on a test split: data.test_size must not be 0.")
    stops = _stops(early_stopping)
    with style():
        ax, own = one_axes(ax)
        seeds: list[int] = []
        ends: list[tuple[float, float, str, str]] = []
        later: list[float] = []
        for shift, group in enumerate(found):
            series = over_seeds(group.table, "epoch", "value", band)
            seeds += list(series["seeds"])
            draw_line(ax, series, group.look, label=group.label, shift=shift, width=1.6)
            measured = series.dropna(subset="mean")
            later += list(measured.loc[measured["epoch"] >= 0.1 * measured["epoch"].max(), "mean"])
            ends.append((float(measured["epoch"].iloc[-1]), float(measured["mean"].iloc[-1]), group.label, group.look.color))
            best = stops[(stops["selection"] == "oracle") & _of(stops, group)]
            if not best.empty:
                x, y = float(best["epoch"].mean()), float(best["test_accuracy"].mean())
                ax.plot(
                    [x], [y], linestyle="", marker="*", markersize=9, color=group.look.color, markeredgecolor="white", zorder=5
                )
        ax.set_xlabel("epoch")
        ax.set_ylabel("test accuracy (fraction)")
        if zoom:
            room = 0.06 * max(max(later) - min(later), 0.05)
            ax.set_ylim(bottom=min(later) - room)
        note = band_note(seeds, band) + ("" if stops.empty else "; ★ best epoch of each method")
        ax.set_title(note, fontsize=8, loc="left", color="#444444")
        if labels == "legend" or (labels == "auto" and len(ends) > _DIRECT_UP_TO):
            legend([ax], title="", own=own, beside=True)
        else:
            direct_labels(ax, ends)
    return ax


def _accuracies(metrics: pd.DataFrame) -> pd.DataFrame:
    """Keep the finite accuracies."""
    check(metrics, _METRIC_COLUMNS, source=_SOURCE)
    kept = metrics[(metrics["metric"] == "accuracy") & metrics["value"].notna()]
    if kept.empty:
        raise nothing_to_draw("accuracy", f"Pass {_SOURCE}, of runs that were evaluated.")
    return kept


def _lines(group: Group) -> list[tuple[pd.DataFrame, str]]:
    """Return the lines of a panel; runs without true labels have one train line, of all examples."""
    rows = group.table
    lines = [(rows[(rows["split"] == split) & (rows["group"] == part)], name) for split, part, name in _LINES]
    if all(line.empty for line, name in lines if name != "test"):
        lines.insert(0, (rows[(rows["split"] == "train") & (rows["group"] == "all")], "all"))
    return [(line, name) for line, name in lines if not line.empty]


def _stops(early_stopping: pd.DataFrame | None) -> pd.DataFrame:
    """Check the table of early-stopping points; None is a table without rows."""
    if early_stopping is None:
        return pd.DataFrame({column: [] for column in _STOP_COLUMNS})
    check(early_stopping, _STOP_COLUMNS, source=_STOP_SOURCE)
    return early_stopping.dropna(subset=["epoch", "test_accuracy"])


def _of(table: pd.DataFrame, group: Group) -> pd.Series:
    """Say which rows belong to the method and setting of the group."""
    same = table["method"] == group.method
    if "setting" in table.columns and "setting" in group.table.columns:
        same &= table["setting"] == group.table["setting"].iloc[0]
    return same


def _draw_stops(ax: Axes, stops: pd.DataFrame, group: Group) -> None:
    """Mark where the three selections stop: a small star that fits into the hollow diamond where both choose one epoch."""
    for name, look in SELECTION_STYLES.items():
        rows = stops[(stops["selection"] == name) & _of(stops, group)]
        if rows.empty:
            continue
        ax.plot(
            [rows["epoch"].mean()],
            [rows["test_accuracy"].mean()],
            linestyle="",
            marker=look.marker,
            markersize=_STOP_SIZES[name],
            markerfacecolor=STAR if name == "oracle" else "white",
            markeredgecolor=look.color,
            markeredgewidth=0.8,
            label=look.label,
            clip_on=False,  # the last point lies on the edge
            zorder=6 if name == "oracle" else 5,
        )
