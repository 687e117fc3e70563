"""The controls as dots with intervals: methods matched to SGD in accuracy or compute, and methods beside robust losses."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.plotting._layout import AxesLike, legend, panels
from noisesam.plotting._series import check, nothing_to_draw
from noisesam.plotting.controls import ADVANTAGES, STOPS, in_order, look_of, seeds_note
from noisesam.plotting.style import style

_PARTS = ("a quarter", "a half", "all")
_CLEAN = [(f"clean accuracy {level:g}", f"{level:.0%}") for level in (0.7, 0.8, 0.9)]
_LAST, _EARLY = ([(f"{part} of the passes, {stop}", part) for part in _PARTS] for stop in reversed(STOPS))
_MATCHES = {
    "equal clean accuracy": ("fitted when compared", _CLEAN),
    "equal compute, last epoch": ("of the passes of SGD's run", _LAST),
    "equal compute, early stopping": ("of the passes of SGD's run", _EARLY),
}
_ROOM = 0.72
"""Of the distance between two rows or columns: what the dots of one of them take."""
_LOSSES = {
    "cross_entropy": "cross-entropy",
    "generalised_cross_entropy": "generalised\ncross-entropy",
    "mean_absolute_error": "mean absolute\nerror",
    "label_smoothing": "label smoothing",
    "logit_norm_penalty": "logits' penalty",
}


def plot_control_matched(advantages: pd.DataFrame, *, ax: AxesLike | None = None) -> np.ndarray:
    """Draw every method's difference to SGD where both have fitted as much, or have spent as much.

    Dots are means of differences paired by seed, lines their 95% intervals.

    Args:
        advantages: Table of advantages of `noisesam.reproduce.controls.judge_control`.
        ax: Three Axes; None makes a figure.

    Returns:
        The three panels: at equal clean training accuracy; at equal compute the last epoch within the budget, and the epoch
        within it that noisy validation labels choose.

    Raises:
        InputError: If the table lacks a column, or holds no matched difference.

    Example:
        >>> row = {"control": "matched", "method": "1-sam", "stop": "clean accuracy 0.9", "estimate": 0.1, "low": 0.0,
        ...        "high": 0.2, "seeds": 3}
        >>> len(plot_control_matched(pd.DataFrame([row])))
        3
    """
    check(advantages, ("control", "method", "stop", "estimate", "low", "high", "seeds"), source=ADVANTAGES)
    shown = [stop for _, places in _MATCHES.values() for stop, _ in places]
    own = advantages[(advantages["control"] == "matched") & advantages["stop"].isin(shown)]
    if not np.isfinite(own["estimate"].astype(float)).any():
        raise nothing_to_draw("matched difference", f"Pass {ADVANTAGES}.")
    methods = in_order(own["method"])
    with style():
        axes, ours = panels(ax, 3, columns=3, width=2.7, height=2.8, sharey=True)
        for panel, (title, (label, places)) in zip(axes, _MATCHES.items(), strict=True):
            panel.axhline(0.0, color="#555555", linewidth=0.8, zorder=1)
            for method, shift in zip(methods, _shifts(len(methods)), strict=True):
                for place, (stop, _) in enumerate(places):
                    _dot(panel, own[(own["method"] == method) & (own["stop"] == stop)], place + shift, method, upright=True)
            panel.set_title(title)
            panel.set_xticks(range(len(places)), [name for _, name in places])
            panel.set_xlim(-0.5, len(places) - 0.5)
            panel.tick_params(axis="x", length=0)
            panel.set_xlabel(label)
        if axes[0].get_subplotspec() is None or ours:
            axes[0].set_ylabel("test accuracy minus SGD's (points)")
        _legend(axes, methods, seeds_note(own["seeds"], "lines"), own=ours)
    return axes


def plot_control_losses(advantages: pd.DataFrame, *, ax: AxesLike | None = None) -> np.ndarray:
    """Draw the difference to SGD with cross-entropy for every loss, with each method that was run on it.

    Dots are means of differences paired by seed, lines their 95% intervals. Of each loss there is the parameter that noisy
    validation labels choose for SGD, and the one on which the methods were run; rho is chosen too. What stayed at chance has
    no dot.

    Args:
        advantages: Table of advantages of `noisesam.reproduce.controls.judge_control`.
        ax: Two Axes; None makes a figure.

    Returns:
        The two panels: early stopping, last epoch.

    Raises:
        InputError: If the table lacks a column, or holds no robust loss.

    Example:
        >>> row = {"control": "robust-losses", "method": "sgd", "loss": "mean_absolute_error", "stop": "last epoch",
        ...        "estimate": 0.1, "low": 0.0, "high": 0.2, "seeds": 3}
        >>> [panel.get_title() for panel in plot_control_losses(pd.DataFrame([row]))]
        ['early stopping', 'last epoch']
    """
    check(advantages, ("control", "method", "loss", "stop", "estimate", "low", "high", "seeds"), source=ADVANTAGES)
    own = advantages[advantages["control"] == "robust-losses"]
    if own.empty:
        raise nothing_to_draw("robust loss", f"Pass {ADVANTAGES}.")
    order = list(_LOSSES)
    losses = sorted(own["loss"].unique(), key=lambda loss: (_family_place(loss, order), loss))
    methods = in_order(own["method"])
    with style():
        axes, ours = panels(ax, 2, columns=2, width=3.6, height=0.9 + 0.42 * len(losses), sharey=True)
        for panel, stop in zip(axes, STOPS, strict=True):
            panel.axvline(0.0, color="#555555", linewidth=0.8, zorder=1)
            for row, loss in enumerate(losses):
                present = in_order(own.loc[own["loss"] == loss, "method"])
                for method, shift in zip(present, _shifts(len(present)), strict=True):
                    at = own[(own["loss"] == loss) & (own["method"] == method) & (own["stop"] == stop)]
                    _dot(panel, at, row + shift, method, upright=False)
                if row:
                    panel.axhline(row - 0.5, color="0.88", linewidth=0.8)
            panel.set_title(stop)
            panel.set_xlabel("test accuracy minus that of SGD\nwith cross-entropy (points)")
            panel.set_yticks(range(len(losses)), [_name(loss) for loss in losses])
            panel.set_ylim(len(losses) - 0.5, -0.5)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="y", visible=False)
            panel.grid(axis="x", visible=True)
        _legend(axes, methods, seeds_note(own["seeds"], "lines"), own=ours)
    return axes


def _shifts(count: int) -> np.ndarray:
    """Return where the dots of one place stand, about its middle."""
    return (np.arange(count) - (count - 1) / 2) * _ROOM / max(count, 2)


def _dot(ax: Axes, rows: pd.DataFrame, at: float, method: str, *, upright: bool) -> None:
    """Draw one difference with its interval; what was not measured has no dot."""
    if rows.empty or not np.isfinite(float(rows["estimate"].iloc[0])):
        return
    look = look_of(method)
    middle, low, high = (100 * float(rows[name].iloc[0]) for name in ("estimate", "low", "high"))
    ends, place, centre = ([low, high], [at, at], [middle])
    ax.plot(*((place, ends) if upright else (ends, place)), color=look.color, linewidth=1.3, alpha=0.65, zorder=2)
    ax.plot(*(([at], centre) if upright else (centre, [at])), marker=look.marker, color=look.color, markersize=5, zorder=3)


def _legend(axes: np.ndarray, methods: Sequence[str], title: str, *, own: bool) -> None:
    for method in methods:
        look = look_of(method)
        axes[0].plot([], [], linestyle="", marker=look.marker, color=look.color, label=look.label)
    legend(axes, title=title, own=own)


def _family_place(loss: str, order: Sequence[str]) -> int:
    family = loss.partition("(")[0]
    return order.index(family) if family in order else len(order)


def _name(loss: str) -> str:
    """Write a loss with its parameter."""
    family, _, rest = loss.partition("(")
    parameter = re.sub(r"^(\w+)=", lambda found: f"{_SYMBOLS.get(found[1], found[1])} = ", rest.rstrip(")"))
    return _LOSSES.get(family, family) + (f", {parameter}" if parameter else "")


_SYMBOLS = {"epsilon": r"$\epsilon$", "lam": r"$\lambda$", "q": "$q$"}
