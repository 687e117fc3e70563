"""Figures and legends: a Figure of one's own where no Axes is handed in, and legends that never cover data."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from noisesam.errors import InputError

AxesLike = Axes | np.ndarray | Sequence[Axes]


class StandaloneFigure(Figure):
    """A Figure that pyplot does not know of: nothing to close, nothing shown twice; a notebook shows it as `ax.figure`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, whose layout makes room for legends outside the Axes."""
    return StandaloneFigure(figsize=(width, height), layout="constrained")


def one_axes(ax: Axes | None, *, width: float = 5.6, height: float = 3.4) -> tuple[Axes, bool]:
    """Return the Axes handed in, or a new one, and whether it is new."""
    if ax is not None:
        return ax, False
    return new_figure(width, height).subplots(), True


def panels(
    ax: AxesLike | None, count: int, *, columns: int, width: float, height: float, **share: Any
) -> tuple[np.ndarray, bool]:
    """Return `count` Axes in one flat array, the ones handed in or those of a new grid, and whether they are new."""
    if ax is not None:
        given = np.array([ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object))), dtype=object)
        if len(given) != count:
            raise InputError(
                f"{len(given)} Axes were handed in for {count} panels",
                expected=f"{count} Axes, one per panel",
                remedy=f"Use figure.subplots(1, {count}), or leave `ax` out.",
            )
        return given, False
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = new_figure(width * columns, height * rows + 0.55).subplots(rows, columns, squeeze=False, **share)
    flat = grid.ravel()
    for position, unused in enumerate(flat[count:], start=count):
        unused.remove()
        above = flat[position - columns]
        above.tick_params(labelbottom=True)  # a shared x axis hides the labels of all but the last row
    return flat[:count], True


def grid_columns(count: int) -> int:
    """Return how many columns hold `count` small panels without a lonely last one: 6 in 3, 8 in 4, 22 in 5."""
    if count <= 4:
        return count
    return min(range(3, 6), key=lambda columns: (-(-count // columns) * columns - count, -columns if count > 12 else columns))


def wrapped(text: str, fits: Callable[[str], bool]) -> str:
    """Break a text into lines that fit: after spaces where it can be, within a word where the word alone is too wide."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        if lines[-1] and not fits((lines[-1] + word).rstrip()):
            lines.append("")
        for letter in word:
            if lines[-1] and letter != " " and not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    return "\n".join(line.rstrip() for line in lines)


def wrap_titles(axes: np.ndarray, *, own: bool) -> None:
    """Break the titles into lines no wider than their Axes, so that none reaches into its neighbour or off the page.

    Call it last, for the width of the Axes is settled by everything else; our own figure grows by the lines that are added.
    """
    figure = axes[0].get_figure(root=True)
    figure.draw_without_rendering()
    added: dict[int, int] = {}  # row of the grid -> the most lines by which one of its titles has grown
    for ax in axes:
        width = 0.95 * ax.get_window_extent().width  # fonts are hinted to whole pixels, in each resolution differently
        text = ax.get_title()

        def fits(line: str, title: Text = ax.title, width: float = width) -> bool:
            title.set_text(line)
            return bool(title.get_window_extent().width <= width)

        ax.set_title(wrapped(text, fits))
        spec = ax.get_subplotspec()
        row = 0 if spec is None else spec.rowspan.start
        added[row] = max(added.get(row, 0), ax.get_title().count("\n") - text.count("\n"))
    if own and sum(added.values()):
        line = 1.2 * axes[0].title.get_fontsize() / 72.0
        figure.set_figheight(figure.get_figheight() + line * sum(added.values()))


_LINE = 0.165  # inches per legend line at the font size of the style
_WIDEST_BESIDE = 0.45
"""A legend that would take more of the figure's width than this goes below the Axes, which it would leave no room."""
_DIRECT_WIDTH = 28
"""Characters after which a name at the end of a line is broken."""


def legend(axes: Iterable[Axes], *, title: str, own: bool, beside: bool = False, order: Sequence[str] = ()) -> None:
    """Place one legend for all Axes outside of them: below the figure or beside it, beside the last Axes if not our figure."""
    every = list(axes)
    entries: dict[str, Any] = {}
    for ax in every:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    labels = sorted(entries, key=lambda label: order.index(label) if label in order else len(order))
    handles = [entries[label] for label in labels]
    figure = every[0].get_figure(root=True)
    if not own or figure is None:
        every[-1].legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0, title=title, alignment="left"
        )
    elif beside and _legend_width(labels) <= _WIDEST_BESIDE * 72.0 * figure.get_figwidth():
        figure.set_figheight(max(figure.get_figheight(), 0.5 + _LINE * len(labels)))
        figure.legend(handles, labels, loc="outside right upper", title=title, alignment="left")
    else:
        columns = _legend_columns(labels, 72.0 * figure.get_figwidth())
        figure.set_figheight(figure.get_figheight() + _LINE * (-(-len(labels) // columns) - 1))
        figure.legend(handles, labels, loc="outside lower center", title=title, ncols=columns)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many columns of a legend, which fills them downwards, fit into the width in points."""
    size = 8.0
    for rows in range(1, len(labels) + 1):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        widest = [_legend_width(column, size) for column in columns]
        if sum(widest) + 2.0 * size * len(columns) <= width:
            return len(columns)
    return 1


def _legend_width(labels: Sequence[str], size: float = 8.0) -> float:
    """Return what a column of a legend takes, in points: the text, the handle and its gap."""
    return 0.6 * size * max(map(len, labels)) + (4.2 + 0.8) * size


def label_outer(axes: np.ndarray, *, xlabel: str, ylabel: str) -> None:
    """Label the y axis of the left panels and the x axis of the lowest panel of each column."""
    for ax in axes:
        spec = ax.get_subplotspec()
        if spec is None or spec.is_first_col():
            ax.set_ylabel(ylabel)
        if spec is None or spec.is_last_row() or ax.xaxis.get_tick_params().get("labelbottom", False):
            ax.set_xlabel(xlabel)


def direct_labels(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) to the right of the Axes at the height of y, moved apart where they would overlap."""
    if not ends:
        return
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, so that heights in points are known
    size = 8.5
    height = ax.get_window_extent().height * 72.0 / figure.dpi
    ordered = [
        (x, y, textwrap.fill(text, _DIRECT_WIDTH, break_long_words=False, break_on_hyphens=False), color)
        for x, y, text, color in sorted(ends, key=lambda end: end[1])
    ]
    gap = 1.3 * size * max(text.count("\n") + 1 for _, _, text, _ in ordered) / height
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = spread(np.array([to_axes.transform((x, y))[1] for x, y, _, _ in ordered]), gap)
    placed += max(0.0, -placed[0]) - max(0.0, placed[-1] - 1.0)  # back beside the Axes
    for (x, y, text, color), at in zip(ordered, placed, strict=True):
        ax.annotate(
            text,
            xy=(x, y),
            xycoords="data",
            xytext=(1.05, at),
            textcoords="axes fraction",
            color=[0.75 * channel for channel in to_rgb(color)],  # a hue that is clear as a line is faint as text
            fontsize=size,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 1.0,
                "shrinkB": 2.0,
            },
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Move sorted positions apart to at least `gap`, each cluster about its own mean (pool-adjacent-violators)."""
    clusters: list[list[float]] = []  # [sum of the wanted first positions, members]
    for position, value in enumerate(wanted):
        clusters.append([float(value) - position * gap, 1.0])
        while len(clusters) > 1 and clusters[-2][0] / clusters[-2][1] > clusters[-1][0] / clusters[-1][1]:
            total, members = clusters.pop()
            clusters[-1][0] += total
            clusters[-1][1] += members
    starts = np.concatenate([np.full(int(members), total / members) for total, members in clusters])
    return starts + gap * np.arange(len(wanted))
