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
        for reason in dict.fromkeys(_left_out(row) for row in own.to_dict("records")):
            if reason:
                say(f"  {reason}", style="dim")
        say()
    say("* on which the rule is silent: what was expected, held against the 95% interval.", style="dim")
    say()


def _row(row: Any) -> tuple[str, ...]:
    mark = "" if row["decided_by"] == "rule" else " *"
    return (f"{row['question']}{mark}", row["at"], row["verdict"], row["as_expected"] or "-", row["estimate"].replace(" points", ""))


def _left_out(row: Any) -> str:
    """Return what the rule left out, without the rest of the reason."""
    return "; ".join(part for part in str(row["reason"]).split("; ") if "left out" in part)
