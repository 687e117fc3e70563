"""The toy in three figures: the gain at the peak, who drives the step, and the settings in which the lesson turns round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from noisesam.errors import unknown_name
from noisesam.plotting._layout import AxesLike, label_outer, legend, panels
from noisesam.plotting._series import Group, band_note, check, draw_line, nothing_to_draw, over_seeds
from noisesam.plotting.style import METHOD_STYLES, SELECTION_STYLES, STAR, Look, method_style, style

_SOURCE = "the tables of noisesam.reproduce.toy_grid()"
_BASELINE = "sgd"
_RATIOS = {
    "step_term_ratio": r"step terms $J(\theta_J)^\top r(\theta_L)$",
    "plain_gradient_ratio": r"plain gradients $J(w)^\top r(w)$",
}
_TITLES = {
    "linear": "linear, random start",
    "linear, zero start": "linear, zero start",
    "two-layer linear": "two-layer linear",
}


def plot_toy_accuracy(
    accuracy: pd.DataFrame, *, setting: str = "linear", ax: AxesLike | None = None, band: str = "sd"
) -> np.ndarray:
    """Draw the clean test accuracy over the steps, a panel per method with a line per rho, gradient descent in each.

    The star on a line is its early-stopping peak: mean step and mean accuracy of the seeds' highest test accuracy.

    Args:
        accuracy: Table `accuracy` of `noisesam.reproduce.toy_grid`: setting, method, rho, seed, step, test_accuracy.
        setting: Which of its settings.
        ax: As many Axes as there are methods beside gradient descent; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The panels, in the fixed order of the methods.

    Raises:
        InputError: If the table is empty, lacks a column or the setting, or the number of Axes does not fit.

    Example:
        >>> rows = [("linear", method, rho, 0, step, 0.5 + 0.1 * step)
        ...         for method, rho in [("sgd", float("nan")), ("1-sam", 0.3)] for step in range(4)]
        >>> columns = ["setting", "method", "rho", "seed", "step", "test_accuracy"]
        >>> [panel.get_title() for panel in plot_toy_accuracy(pd.DataFrame(rows, columns=columns))]
        ['1-SAM']
    """
    table = _of_setting(accuracy, setting, ("step", "test_accuracy"))
    baseline, by_method = _lines(table)
    with style():
        axes, own = panels(ax, len(by_method), columns=len(by_method), width=3.6, height=2.2, sharex=True, sharey=True)
        seeds: list[int] = []
        for panel, (name, lines) in zip(axes, by_method.items(), strict=True):
            for shift, line in enumerate([*baseline, *lines]):
                series = over_seeds(line.table, "step", "test_accuracy", band)
                seeds += list(series["seeds"])
                draw_line(panel, series, line.look, label=line.label, shift=shift)
                _draw_peak(panel, line)
            panel.set_title(method_style(name).label)
        label_outer(axes, xlabel="step", ylabel="test accuracy (fraction)")
        note = band_note(seeds, band).replace(", ", ",\n") + "; ★ peak"
        legend(axes, title=note, own=own, beside=True, order=_order(baseline, by_method))
    return axes


def plot_toy_ratios(
    ratios: pd.DataFrame,
    *,
    setting: str = "linear",
    until: int | None = 200,
    ax: AxesLike | None = None,
    band: str = "sd",
) -> np.ndarray:
    """Draw the clean/noisy ratio of mean norms over the steps: of the step terms, and of the plain gradients beside them.

    The two are different things. The step term says how much a clean example moves the weights against a noisy one; the
    plain gradient falls on the path of 1-SAM because its clean examples are fitted. Both are on each method's own path.

    Args:
        ratios: Table `ratios` of `noisesam.reproduce.toy_grid`: setting, method, rho, seed, step, step_term_ratio,
            plain_gradient_ratio.
        setting: Which of its settings.
        until: The last step that is drawn, None for all.
        ax: Two Axes; None makes a figure.
        band: "sd" for ±1 standard deviation over seeds, "interval" for the 95% t interval of the mean.

    Returns:
        The two panels: step terms, plain gradients.

    Raises:
        InputError: If the table is empty, lacks a column or the setting, or not two Axes were handed in.

    Example:
        >>> table = pd.DataFrame({"setting": "linear", "method": "1-sam", "rho": 0.3, "seed": 0, "step": [0, 10],
        ...                       "step_term_ratio": [1.0, 1.0], "plain_gradient_ratio": [1.0, 0.6]})
        >>> len(plot_toy_ratios(table))
        2
    """
    table = _of_setting(ratios, setting, ("step", *_RATIOS))
    if until is not None:
        table = table[table["step"] <= until]
        if table.empty:
            raise nothing_to_draw(f"ratio up to step {until}", "Raise `until`, or pass until=None.")
    baseline, by_method = _lines(table)
    lines = [*baseline, *(line for found in by_method.values() for line in found)]
    with style():
        axes, own = panels(ax, 2, columns=2, width=3.7, height=2.3, sharex=True)
        seeds: list[int] = []
        for panel, (column, title) in zip(axes, _RATIOS.items(), strict=True):
            panel.axhline(1.0, color="#555555", linewidth=0.8, zorder=1)
            for shift, line in enumerate(lines):
                series = over_seeds(line.table, "step", column, band)
                seeds += list(series["seeds"])
                floor = float(series["mean"].min())  # a band below zero has no place on a logarithmic axis
                draw_line(panel, series, line.look, label=line.label, shift=shift, floor=floor)
            panel.set_title(title)
            _logarithmic(panel)
        label_outer(axes, xlabel="step", ylabel="clean / noisy ratio of mean norms")
        note = band_note(seeds, band).replace(", ", ",\n")
        legend(axes, title=note, own=own, beside=True, order=_order(baseline, by_method))
    return axes


def plot_toy_traps(runs: pd.DataFrame, *, ax: AxesLike | None = None) -> np.ndarray:
    """Draw the peak test accuracy against rho in every setting of the toy: where the lesson holds and where it turns round.

    Small marks are seeds, lines are their means, the horizontal line is gradient descent. The star is the best rho of a
    method by its mean peak: chosen on the test accuracy itself. Panels have accuracy axes of their own.

    Args:
        runs: Table `runs` of `noisesam.reproduce.toy_grid`: setting, method, rho, seed, peak.
        ax: As many Axes as there are settings; None makes a figure.

    Returns:
        The panels, in the table's order of the settings.

    Raises:
        InputError: If the table is empty or lacks a column, or the number of Axes does not fit.

    Example:
        >>> runs = pd.DataFrame({"setting": "linear", "method": "1-sam", "rho": [0.1, 0.3], "seed": 0, "peak": [0.8, 0.9]})
        >>> [panel.get_title() for panel in plot_toy_traps(runs)]
        ['linear, random start']
    """
    check(runs, ("setting", "method", "rho", "seed", "peak"), source=_SOURCE)
    settings = list(dict.fromkeys(runs["setting"]))
    star = SELECTION_STYLES["oracle"]
    with style():
        axes, own = panels(ax, len(settings), columns=len(settings), width=2.5, height=2.7)
        shown: list[str] = []
        for panel, setting in zip(axes, settings, strict=True):
            table = runs[runs["setting"] == setting]
            for name in _in_order(table["method"]):
                _draw_peaks(panel, table[table["method"] == name], method_style(name), star, baseline=name == _BASELINE)
                shown.append(method_style(name).label)
            panel.set_title(_TITLES.get(setting, setting))
            panel.set_xlabel(r"$\rho$ (units of the weights)")
            if own:
                _room(panel)
        axes[0].set_ylabel("peak test accuracy (fraction)")
        counts = [int(count) for count in runs.groupby(["setting", "method", "rho"], dropna=False)["seed"].nunique()]
        order = [look.label for look in METHOD_STYLES.values()]
        legend(axes, title=_marks(counts), own=own, order=[*order, star.label])
    return axes


def _of_setting(table: pd.DataFrame, setting: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Check the table and return the rows of one setting."""
    check(table, ("setting", "method", "rho", "seed", *columns), source=_SOURCE)
    found = table[table["setting"] == setting]
    if found.empty:
        raise unknown_name("setting", setting, [str(name) for name in table["setting"].unique()])
    return found


def _lines(table: pd.DataFrame) -> tuple[list[Group], dict[str, list[Group]]]:
    """Return the line of gradient descent, if there is one, and the lines of every other method, one per rho.

    The largest rho has the look of the method itself, smaller ones are lighter.
    """
    baseline: list[Group] = []
    others: dict[str, list[Group]] = {}
    for name in _in_order(table["method"]):
        own = table[table["method"] == name]
        label = method_style(name).label
        if name == _BASELINE:
            baseline.append(Group(name, label, method_style(name), own))
            continue
        radii = sorted(own["rho"].unique())
        others[name] = [
            Group(name, rf"{label}, $\rho$ = {rho:g}", _shade(name, len(radii) - 1 - place, len(radii)), own[own["rho"] == rho])
            for place, rho in enumerate(radii)
        ]
    return (baseline, others) if others else ([], {_BASELINE: baseline})


def _shade(name: str, place: int, count: int) -> Look:
    """Return the look of a method for one of several radii, lighter with every place but never faint."""
    look = method_style(name, place)
    share = 0.0 if place == 0 else 0.5 * place / (count - 1)
    red, green, blue = (channel + share * (1 - channel) for channel in to_rgb(method_style(name).color))
    return replace(look, color=to_hex((red, green, blue)))


def _in_order(names: pd.Series) -> list[str]:
    """Return the methods in their fixed order."""
    order = list(METHOD_STYLES)
    return sorted(names.unique(), key=lambda name: (order.index(name) if name in order else len(order), name))


def _order(baseline: list[Group], by_method: dict[str, list[Group]]) -> list[str]:
    """Return the labels of a legend."""
    return [line.label for line in [*baseline, *(line for lines in by_method.values() for line in lines)]]


def _peaks(line: Group) -> Iterator[tuple[float, float]]:
    """Return step and accuracy of every seed's first highest test accuracy."""
    for _, own in line.table.groupby("seed"):
        best = int(own["test_accuracy"].to_numpy().argmax())
        yield float(own["step"].iloc[best]), float(own["test_accuracy"].iloc[best])


def _draw_peak(ax: Axes, line: Group) -> None:
    """Mark the mean peak of the seeds."""
    step, accuracy = np.mean([*_peaks(line)], axis=0)
    ax.plot(
        [step], [accuracy], linestyle="", marker="*", markersize=9, color=line.look.color, markeredgecolor="white", zorder=5
    )


def _draw_peaks(ax: Axes, table: pd.DataFrame, look: Look, star: Look, *, baseline: bool) -> None:
    """Draw the seeds' peaks and their means against rho; gradient descent has no rho and is a line across."""
    if baseline:
        mean, sd = float(table["peak"].mean()), float(table["peak"].std())
        ax.axhline(mean, color=look.color, linewidth=1.4, label=look.label, zorder=2)
        if sd == sd:
            ax.axhspan(mean - sd, mean + sd, color=look.color, alpha=0.10, linewidth=0)
        return
    ax.plot(
        table["rho"], table["peak"], linestyle="", marker=look.marker, markersize=2.6, color=look.color, alpha=0.45, zorder=3
    )
    means = table.groupby("rho")["peak"].mean()
    ax.plot(
        means.index, means.to_numpy(), label=look.label, markeredgecolor="white", markeredgewidth=0.4, zorder=4, **look.line()
    )
    best = int(means.to_numpy().argmax())
    ax.plot(
        [means.index[best]], [means.iloc[best]], linestyle="", marker=star.marker, markersize=9, markerfacecolor=STAR,
        markeredgecolor=star.color, markeredgewidth=0.8, label=star.label, zorder=5,
    )  # fmt: skip
    ax.set_xscale("log")


def _logarithmic(ax: Axes) -> None:
    """Use a logarithmic ratio axis with plain numbers, in both directions from 1."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 10 * low else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _room(ax: Axes) -> None:
    """Label the radii as plain numbers and leave room around the marks."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

    radii = sorted({float(x) for line in ax.lines for x in np.atleast_1d(line.get_xdata()) if line.get_marker() != "None"})
    if radii:
        ax.xaxis.set_major_locator(FixedLocator(radii))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    ax.margins(x=0.10, y=0.10)


def _marks(counts: list[int]) -> str:
    number = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} or {max(counts)}"
    return f"small marks: {number} seeds, line: mean; SGD: mean, band ±1 sd"
