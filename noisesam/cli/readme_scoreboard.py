"""The README's scoreboard: the committed tables of `noisesam scoreboard`, side by side, and in full beside the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisesam.cli.readme import markdown_table

if TYPE_CHECKING:
    import pandas as pd

    Row = Mapping[Any, Any] | pd.Series

SETTINGS = {"digits": "Digits", "cifar10": "CIFAR-10"}
"""Experiments scoreboard-<name> in the order in which they are shown, and their headings."""


def scoreboard_section(figures: Path) -> str:
    """Return figures and one table of all settings whose results are kept, the methods ordered by cost and gain."""
    tables = kept_tables(figures)
    if not tables:
        return "No scoreboard is kept here: `noisesam scoreboard experiments/scoreboard-digits.toml --keep figures`."
    pictures = [
        f"![Share of 1-SAM's gain that each method keeps, the cheapest first: {SETTINGS[name]}](figures/scoreboard-{name}.png)"
        for name in tables
    ]
    columns = ["method", "passes"]
    for name in tables:
        columns += [
            f"{SETTINGS[name]}: early",
            "last",
            "gain kept, early",
            "gain kept, last",
            "logit weight",
            "Jacobian weight",
        ]
    rows = []
    first = next(iter(tables.values()))
    for method in _ordered(first)["method"]:
        cells = [f"`{method}`", f"{_row(first, method)['passes']:.2f}"]
        for table in tables.values():
            row = _row(table, method)
            cells += [short(row["early_mean"]), short(row["last_mean"]), share(row, "early"), share(row, "last")]
            cells += [pair(row, "logit_weight"), pair(row, "jacobian_weight")]
        rows.append(tuple(cells))
    whole = [
        f"<details><summary>{SETTINGS[name]}: everything that was measured</summary>\n\n{full_table(table)}\n\n</details>"
        for name, table in tables.items()
    ]
    return "\n\n".join([*pictures, markdown_table(tuple(columns), rows), *whole])


def full_table(table: pd.DataFrame) -> str:
    """Return everything that is measured in one setting as Markdown."""
    columns = (
        "method", "forward passes", "backward passes", "s per step / SGD", "early stopping", "last epoch", "early, no noise",
        "last, no noise", "wrong labels fitted, last", "ahead of SGD, early (points)", "ahead of SGD, last (points)",
        "gain kept, early", "gain kept, last", "logit weight clean / noisy",
        "Jacobian weight clean / noisy", "activation norm", "last-layer norm",
    )  # fmt: skip
    rows = [
        (
            f"`{row['method']}`", number(row["forward_passes"], 2), number(row["backward_passes"], 2),
            number(row["seconds_ratio"], 1), short(row["early_mean"]), short(row["last_mean"]), short(row["clean_early"]),
            short(row["clean_last"]), short(row["wrong_labels_fitted"]), points(row, "early"), points(row, "last"),
            share(row, "early"), share(row, "last"), pair(row, "logit_weight"),
            pair(row, "jacobian_weight"), number(row["hidden_activation_norm"], 2), number(row["last_layer_norm"], 2),
        )
        for row in _ordered(table).to_dict("records")
    ]  # fmt: skip
    return markdown_table(columns, rows)


def kept_tables(figures: Path) -> dict[str, pd.DataFrame]:
    """Return the committed tables by setting."""
    import pandas as pd

    paths = {name: figures / f"scoreboard-{name}.csv" for name in SETTINGS}
    return {name: pd.read_csv(path) for name, path in paths.items() if path.exists()}


def short(value: float) -> str:
    """An accuracy with three digits and no zero in front.

    Example:
        >>> short(0.9072), short(float("nan"))
        ('.907', '-')
    """
    return "-" if value != value else f"{value:.3f}".removeprefix("0")


def number(value: float, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value != value else f"{value:.{digits}f}"


def share(row: Row, end: str) -> str:
    """A share of 1-SAM's gain with its interval; a dash where 1-SAM's gain cannot be told from nothing."""
    middle, low, high = (float(row[f"{end}_gain{which}"]) for which in ("", "_low", "_high"))
    if middle != middle:
        return "-"
    return f"{middle:.2f}" if low != low or low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def points(row: Row, end: str) -> str:
    """A difference to SGD in points with its interval."""
    middle, low, high = (100 * float(row[f"{end}_difference{which}"]) for which in ("", "_low", "_high"))
    return "-" if middle != middle or low == high else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def pair(row: Row, name: str) -> str:
    """A weight on clean and on noisy examples; a dash where the rule has no perturbation."""
    clean, noisy = float(row[f"{name}_clean"]), float(row[f"{name}_noisy"])
    return "-" if clean != clean else f"{clean:.2f} / {noisy:.2f}"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(cost=table["passes"].round(2)).sort_values(["cost", "last_gain"], ascending=[True, False])


def _row(table: pd.DataFrame, method: str) -> pd.Series:
    return table[table["method"] == method].iloc[0]
