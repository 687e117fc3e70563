"""The verdicts of the controls on a terminal: a table per control, what was left out below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisesam.cli.console import print_table, say

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("question", "at", "verdict", "as\nexpected", "points (95% intervals)")


def show_controls(table: pd.DataFrame) -> None:
    """Print every question of every control with its verdict.

    Args:
        table: `verdicts` of `noisesam.reproduce.controls.ControlTables`.
    """
    for control, own in table.groupby("control", sort=False):
        rows = [_row(row) for row in own.to_dict("records")]
        print_table(_COLUMNS, rows, title=f"Control: {control}", keep=())
        for text in dict.fromkeys(part for reason in own["reason"] for part in _left_out(reason)):
            say(text, style="dim")
        say()
    say("* on which the rule is silent: what was expected, held against the 95% interval.", style="dim")
    say()


def _row(row: Any) -> tuple[str, ...]:
    mark = "" if row["decided_by"] == "rule" else " *"
    return (
        f"{row['question']}{mark}",
        row["at"],
        row["verdict"],
        row["as_expected"] or "-",
        row["estimate"].replace(" points", ""),
    )


def _left_out(reason: str) -> list[str]:
    """Return what a rule left out, and the runs that do not count, without the rest of the reason."""
    places, _, runs = reason.partition("runs left out, ")
    found = [part.strip() for part in places.split(";") if "left out" in part]
    return [*found, *([f"runs left out, {runs}"] if runs else [])]
