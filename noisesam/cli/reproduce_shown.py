"""What `noisesam reproduce` shows of a scale's findings: the claims with their numbers, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisesam.cli.console import number, print_table, records, say, say_path
from noisesam.cli.reproduce_controls import show_controls

if TYPE_CHECKING:
    from noisesam.reproduce.baek2024 import Findings
    from noisesam.reproduce.outputs import Written

_NAMED = 2
"""So many options with runs that do not count are named on the terminal, more are counted."""


def show_published(findings: Findings) -> None:
    """Print the published numbers beside ours, and what ours are of."""
    table = findings.tables["published"]
    rows = [
        (
            row["method"],
            _percent(row["published"]),
            _percent(row["ours"]),
            _points(row["published_gap"]),
            _points(row["ours_gap"]),
        )
        for row in table.to_dict("records")
    ]
    first = table.iloc[0]
    print_table(
        ("method", "published", "ours", "gap published", "gap ours"),
        rows,
        title="Best test accuracy (oracle) beside the published numbers",
        right=(1, 2, 3, 4),
    )
    say(f"Ours: {findings.scale.title}, {first['setting']}: {first['comparison']}.")
    say("Published: " + str(table["source"].iloc[0]) + ".", style="dim")
    say()


def show_findings(findings: Findings) -> None:
    """Print the claims table: per setting with its numbers, then the verdict over all settings."""
    from noisesam.reproduce.decisions import UNTESTED

    tested = findings.claims[findings.claims["verdict"] != UNTESTED]
    rows = [
        (str(row["claim"]), str(row["setting"]), str(row["verdict"]), "; ".join(_said(row)))
        for row in tested.to_dict("records")
    ]
    if rows:
        print_table(("claim", "setting", "verdict", "numbers (95% intervals over seeds)"), rows, title="By setting", keep=(0,))
        say()
    rows = [
        (str(row["claim"]), str(row["statement"]), str(row["verdict"]), str(row["settings"] or "-"))
        for row in findings.verdicts.to_dict("records")
    ]
    print_table(("claim", "statement", "verdict", "where"), rows, title="Claims", keep=(0,))
    say()
    if findings.controls is not None:
        show_controls(findings.controls.verdicts)


def say_where(folder: Path, written: Written, keep: Path | None) -> None:
    """Say where tables and figures lie, and which could not be drawn."""
    say_path("Tables and figures:", folder)
    if keep is not None:
        say_path("Kept:", keep)
    for name, reason in written.skipped.items():
        say(f"  not drawn: {name}. {reason}", style="dim")


def as_data(findings: Findings, written: Written, folder: Path, seconds: float) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "scale": findings.scale.name,
        "claims": records(findings.claims),
        "verdicts": records(findings.verdicts),
        "published": records(findings.tables["published"]) if "published" in findings.tables else [],
        "controls": records(findings.controls.verdicts) if findings.controls is not None else [],
        "advantages": records(findings.controls.advantages) if findings.controls is not None else [],
        "wrong_labels_fitted_by_sgd": findings.fitted,
        "tables": {name: str(path) for name, path in written.tables.items()},
        "figures": [str(path) for path in written.figures],
        "skipped_figures": written.skipped,
        "folder": str(folder),
        "seconds": seconds,
    }


def _said(row: Mapping[Any, Any]) -> list[str]:
    """The numbers that decide, without those beside, and the reason if the claim stays open; the table names every run."""
    estimate = str(row["estimate"]).partition("beside:")[0].strip().rstrip(";")
    reasons = str(row["reason"]).split("; ") if row["verdict"] == "undecided" else []
    named = [reason for reason in reasons if reason.startswith("left out: ")]
    if len(named) > _NAMED:
        reasons = [reason for reason in reasons if reason not in named] + [f"{len(named)} options with runs left out"]
    return [text for text in (estimate, *reasons) if text]


def _percent(value: Any) -> str:
    shown = number(value, 4)
    return "-" if shown == "-" else f"{100 * float(value):.1f}%"


def _points(value: Any) -> str:
    return "-" if number(value) == "-" else f"{100 * float(value):+.1f}"
