"""The controls as lines: the advantage over SGD against what is varied, and accuracy against the radius of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.plotting._layout import AxesLike, label_outer, legend, panels
from noisesam.plotting._series import check, nothing_to_draw
from noisesam.plotting.style import DOTTED, METHOD_STYLES, PURPLE, Look, method_style, style

ADVANTAGES = "the table of advantages of noisesam.reproduce.controls.judge_control(runs)"
POINTS = "the table of points of noisesam.reproduce.controls.judge_control(runs)"
FACTORS = {
    "width": "width of the hidden layers",
    "train-size": "training images",
    "learning-rate": "learning rate",
    "noise-rate": "rate of wrong labels",
}
"""Control -> its axis."""
STOPS = ("early stopping", "last epoch")
FITTED = 0.5
"""The share of the wrong labels that SGD has to fit; below, there is little to resist."""

_LINEAR = ("noise-rate",)
_APART = 0.055
"""Methods stand so far apart, in doublings or in parts of ten of a linear axis: 1-SAM and J-SAM often have one value."""
_CONTROL = Look("SGD at L-SAM's step length", PURPLE, "h", DOTTED)
_HOLLOW = "hollow: SGD fits less than half of the wrong labels"


def look_of(method: str) -> Look:
    """Return the look of a method, the control of step length included."""
    return _CONTROL if method == "length-matched-sgd" else method_style(method)


def in_order(methods: Sequence[str] | pd.Series) -> list[str]:
    """Return the methods in their fixed order, those without a look of their own last."""
    order = list(METHOD_STYLES)
    return sorted(set(methods), key=lambda name: (order.index(name) if name in order else len(order), name))


def plot_control_advantage(advantages: pd.DataFrame, *, control: str, ax: AxesLike | None = None) -> np.ndarray:
    """Draw the advantage over SGD against what a control varies: a line per method, the band its 95% interval over seeds.

    Differences are paired by seed. A hollow mark is a place at which SGD's last model fits less than half of the wrong labels.

    Args:
        advantages: Table of advantages of `noisesam.reproduce.controls.judge_control`.
        control: width, train-size, learning-rate or noise-rate.
        ax: Two Axes; None makes a figure.

    Returns:
        The two panels: early stopping, last epoch.

    Raises:
        InputError: If the table lacks a column, or holds no place of this control.

    Example:
        >>> row = {"control": "width", "place": 8.0, "method": "1-sam", "stop": "last epoch", "estimate": 0.1, "low": 0.0,
        ...        "high": 0.2, "seeds": 3, "wrong_labels_fitted_by_sgd": 0.2}
        >>> table = pd.DataFrame([row, row | {"place": 16.0, "wrong_labels_fitted_by_sgd": 0.9}])
        >>> [panel.get_title() for panel in plot_control_advantage(table, control="width")]
        ['early stopping', 'last epoch']
    """
    columns = ("control", "place", "method", "stop", "estimate", "low", "high", "seeds", "wrong_labels_fitted_by_sgd")
    check(advantages, columns, source=ADVANTAGES)
    own = advantages[(advantages["control"] == control) & advantages["place"].notna()]
    if not np.isfinite(own["estimate"].astype(float)).any():
        raise nothing_to_draw(f"advantage of the control {control}", f"Pass {ADVANTAGES}.")
    with style():
        axes, ours = panels(ax, 2, columns=2, width=3.5, height=2.7, sharex=True, sharey=True)
        for panel, stop in zip(axes, STOPS, strict=True):
            panel.axhline(0.0, color="#555555", linewidth=0.8, zorder=1)
            at_stop = own[own["stop"] == stop]
            methods = in_order(at_stop["method"])
            for number, method in enumerate(methods):
                rows, shift = at_stop[at_stop["method"] == method], _APART * (number - (len(methods) - 1) / 2)
                _line(panel, rows.sort_values("place"), look_of(method), shift, logarithmic=control not in _LINEAR)
            panel.set_title(stop)
            _places(panel, sorted(float(place) for place in own["place"].unique()), logarithmic=control not in _LINEAR)
        label_outer(axes, xlabel=FACTORS.get(control, control), ylabel="test accuracy minus SGD's (points)")
        if (own["wrong_labels_fitted_by_sgd"] < FITTED).any():
            axes[0].plot([], [], linestyle="", marker="o", markerfacecolor="white", markeredgecolor="#555555", label=_HOLLOW)
        legend(axes, title=seeds_note(own["seeds"], "band"), own=ours)
    return axes


def _line(ax: Axes, rows: pd.DataFrame, look: Look, shift: float, *, logarithmic: bool) -> None:
    """Draw one method: line and band in points, a mark at every place, hollow where there is little to resist."""
    places = rows["place"].to_numpy(dtype=float)
    places = places * 2**shift if logarithmic else places + 0.1 * shift
    middle, low, high = (100 * rows[name].to_numpy(dtype=float) for name in ("estimate", "low", "high"))
    ax.plot(places, middle, color=look.color, linestyle=look.linestyle, zorder=3)
    ax.fill_between(places, low, high, color=look.color, alpha=0.14, linewidth=0)
    hollow = (rows["wrong_labels_fitted_by_sgd"] < FITTED).to_numpy()
    for where, face in ((~hollow, look.color), (hollow, "white")):
        if where.any():
            ax.plot(
                places[where], middle[where], linestyle="", marker=look.marker, color=look.color, markerfacecolor=face,
                markersize=5, zorder=4,
            )  # fmt: skip
    ax.plot([], [], label=look.label, **look.line())


def _places(ax: Axes, places: Sequence[float], *, logarithmic: bool) -> None:
    """Set a tick at every place, as a plain number; doublings are at equal distances where the axis is logarithmic."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    if logarithmic:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator([*places]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.margins(x=0.06)


def seeds_note(seeds: pd.Series, mark: str) -> str:
    """Say what a band or a line is, in the words of the caption."""
    counts = sorted({int(count) for count in seeds if count > 0})
    if not counts:
        return ""
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'' if number == '1' else 's'}, {mark}: 95% t interval"


def plot_control_step_length(points: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    r"""Draw the test accuracy at the last epoch against rho: L-SAM, SGD at L-SAM's step length, and the others beside them.

    Bands are 95% intervals over seeds of each method by itself; SGD, which has no rho, is a line across.

    Args:
        points: Table of points of `noisesam.reproduce.controls.judge_control`.
        ax: Axes to draw on; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: If the table lacks a column, or holds no radius.

    Example:
        >>> row = {"control": "step-length", "method": "l-sam", "rho": 0.1, "seeds": 3, "last_test_accuracy": 0.6,
        ...        "last_low": 0.5, "last_high": 0.7}
        >>> plot_control_step_length(pd.DataFrame([row])).get_ylabel()
        'test accuracy at the last epoch (%)'
    """
    columns = ("control", "method", "rho", "seeds", "last_test_accuracy", "last_low", "last_high")
    check(points, columns, source=POINTS)
    own = points[points["control"] == "step-length"]
    radii = sorted(float(rho) for rho in own["rho"].dropna().unique())
    if not radii:
        raise nothing_to_draw("radius of the control step-length", f"Pass {POINTS}.")
    with style():
        axes, ours = panels(ax, 1, columns=1, width=5.2, height=3.1)
        panel = axes[0]
        for method in in_order(own["method"]):
            rows, look = own[own["method"] == method].sort_values("rho"), look_of(method)
            middle, low, high = (
                100 * rows[name].to_numpy(dtype=float) for name in ("last_test_accuracy", "last_low", "last_high")
            )
            if rows["rho"].isna().all():
                panel.axhline(middle[0], color=look.color, linewidth=1.4, label=look.label, zorder=2)
                panel.axhspan(low[0], high[0], color=look.color, alpha=0.10, linewidth=0)
                continue
            places = rows["rho"].to_numpy(dtype=float)
            panel.plot(places, middle, label=look.label, markeredgecolor="white", markeredgewidth=0.4, zorder=3, **look.line())
            panel.fill_between(places, low, high, color=look.color, alpha=0.14, linewidth=0)
        _places(panel, radii, logarithmic=True)
        label_outer(axes, xlabel=r"$\rho$ (units of the weights)", ylabel="test accuracy at the last epoch (%)")
        note = seeds_note(own["seeds"], "band")
        if (own["seeds"] == 0).any():
            note += "; radii that stay at chance left out"
        legend(axes, title=note, own=ours)
    return panel
