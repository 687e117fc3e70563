"""From a table to lines: who gets a line of their own, and the mean and band over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisesam.errors import InputError, unknown_name
from noisesam.plotting.style import METHOD_STYLES, Look, method_style

BANDS = ("sd", "interval")
_ORDER = {name: position for position, name in enumerate(METHOD_STYLES)}
_NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")
MARKS = 7  # markers along a line: enough to tell lines apart in print, few enough to see the line


@dataclass(frozen=True)
class Group:
    """The rows of one method in one setting, with the label and look they are drawn with."""

    method: str
    label: str
    look: Look
    table: pd.DataFrame


def check(table: pd.DataFrame, columns: Sequence[str], *, source: str, needs: str = "") -> None:
    """Refuse an empty table or one without the columns that the figure draws."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        lacking = ", ".join(repr(name) for name in missing)
        raise InputError(
            f"The table has no column {lacking} (its columns: {', '.join(map(str, table.columns))})",
            expected="the columns " + ", ".join(columns),
            remedy=f"Pass {source}.",
        )
    if table.empty:
        raise InputError(
            "The table is empty",
            expected="at least one row",
            remedy=f"Pass {source}. {needs}".rstrip(),
        )


def nothing_to_draw(what: str, remedy: str) -> InputError:
    """Build the error for a table that has rows, but none with a value that the figure draws."""
    return InputError(f"The table holds no {what}", expected="at least one finite value", remedy=remedy)


def groups(table: pd.DataFrame) -> list[Group]:
    """Split a table by method and setting, in the fixed order of the methods; settings are named where there are several."""
    return groups_alike(table)[0]


def groups_alike(*tables: pd.DataFrame) -> list[list[Group]]:
    """Split the tables of one figure: lines of one label look alike in all of its panels, lines of two labels in none.

    A method without a setting has its own look; its settings have further ones, in the order of their values.
    """
    split: list[list[tuple[str, str, pd.DataFrame]]] = []
    for table in tables:
        split.append([])
        for name in sorted(table["method"].unique(), key=_place):
            rows = table[table["method"] == name]
            settings = (
                sorted(rows["setting"].unique(), key=lambda value: _by_value(str(value)))
                if "setting" in rows.columns
                else [None]
            )
            for setting in settings:
                label = "" if len(settings) == 1 or not setting else str(setting)
                split[-1].append((name, label, rows if setting is None else rows[rows["setting"] == setting]))
    labels: dict[str, set[str]] = {}
    for name, label, _ in (line for lines in split for line in lines):
        labels.setdefault(name, set()).add(label)
    looks = {
        (name, label): method_style(name, variant)
        for name, found in labels.items()
        for variant, label in enumerate(sorted(found, key=_by_value))
    }
    return [[Group(name, _called(name, label), looks[name, label], rows) for name, label, rows in lines] for lines in split]


def in_order(found: Iterable[Group]) -> list[str]:
    """Return the labels in the order of a legend: by method, and those of a method by the values of their settings."""
    return list(
        dict.fromkeys(group.label for group in sorted(found, key=lambda one: (_place(one.method), _by_value(one.label))))
    )


def _called(name: str, setting: str) -> str:
    label = method_style(name).label
    return f"{label} ({setting})" if setting else label


def _place(method: str) -> tuple[int, str]:
    """Return the place of a method in the fixed order, those of the user's own behind."""
    return (_ORDER.get(method, len(_ORDER)), method)


def _by_value(setting: str) -> list[tuple[int, float, str]]:
    """Order texts by the numbers in them: rho=0.05, rho=0.1, rho=1e3."""
    parts = _NUMBER.split(setting)
    return [(0, float(part), "") if position % 2 else (1, 0.0, part) for position, part in enumerate(parts)]


def over_seeds(table: pd.DataFrame, x: str, y: str, band: str = "sd") -> pd.DataFrame:
    """Reduce the rows of each x to mean, low, high and number of seeds; NaN and infinite values count as not measured.

    The band is one standard deviation (n - 1) or the 95% t interval of the mean; with one seed it is empty (NaN).
    """
    if band not in BANDS:
        raise unknown_name("band", band, BANDS)
    values = table[[x, y]].astype(float).replace([np.inf, -np.inf], np.nan)
    reduced = values.groupby(x, sort=True)[y].agg(["mean", "std", "count"])
    half = reduced["std"]
    if band == "interval":
        from scipy.stats import t

        count = reduced["count"].to_numpy().clip(min=2)
        half = half * t.ppf(0.975, count - 1) / np.sqrt(count)
    return pd.DataFrame(
        {
            x: reduced.index.to_numpy(dtype=float),
            "mean": reduced["mean"].to_numpy(),
            "low": (reduced["mean"] - half).to_numpy(),
            "high": (reduced["mean"] + half).to_numpy(),
            "seeds": reduced["count"].to_numpy(),
        }
    )


def draw_line(
    ax: Axes,
    series: pd.DataFrame,
    look: Look,
    *,
    label: str | None = None,
    shift: int = 0,
    floor: float | None = None,
    width: float = 1.4,
) -> None:
    """Draw mean and band; `shift` staggers the markers of lines that lie on each other, `floor` bounds the band below.

    A band reaches below zero where the spread exceeds the mean; on a logarithmic axis `floor` keeps it on the paper.
    """
    x = series.iloc[:, 0].to_numpy()
    measured = np.flatnonzero(np.isfinite(series["mean"].to_numpy()))
    every = max(1, len(x) // MARKS)
    marks = measured[(shift * every // 3) % every :: every] if len(measured) > 1 else measured
    ax.plot(
        x,
        series["mean"].to_numpy(),
        label=look.label if label is None else label,
        linewidth=width,
        markevery=list(marks),
        markeredgecolor="white",
        markeredgewidth=0.4,
        **look.line(),
    )
    low, high = series["low"].to_numpy(), series["high"].to_numpy()
    if np.isfinite(low).any():
        low = low if floor is None else np.where(np.isfinite(low), np.maximum(low, floor), np.nan)
        ax.fill_between(x, low, high, color=look.color, alpha=0.16, linewidth=0)


def band_note(seeds: Sequence[int], band: str = "sd") -> str:
    """Say what line and band are, in the words of the caption: '3 seeds: mean, band ±1 sd'."""
    counts = sorted({int(count) for count in seeds if count > 0})
    if counts in ([], [1]):
        return "1 seed"
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"  # noqa: RUF001
    return f"{number} seeds: mean, band " + ("±1 sd" if band == "sd" else "95% t interval")
