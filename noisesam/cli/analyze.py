"""`noisesam analyze RUNS...`: the question answered over saved runs. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import print_json, progress_bar, records, say, say_path, warn, warnings_in_words
from noisesam.cli.report import show_accuracy, show_differences, show_findings, show_mechanism
from noisesam.errors import RunError, unknown_name

if TYPE_CHECKING:
    from noisesam.runs import RunCollection


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("analyze")(analyze)


def analyze(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the figures and their tables. (default: analysis, in the folder of the runs)")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the summary here, every column in full precision.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; figures are then drawn only with --out.")] = False,
    baseline: Annotated[str, typer.Option(help="The method that the others are compared with.")] = "sgd",
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw the figures.")] = True,
) -> None:
    """Compare saved runs: one row per method and setting, differences paired by seed, findings in words, figures."""
    collection, problems = open_all(runs)
    for problem in problems:
        warn(problem)
    if not len(collection):
        raise RunError(
            f"No run in {', '.join(str(path) for path in runs)} can be read",
            expected="at least one run whose manifest is whole",
            remedy="The problems above name what to do with each",
        )
    drawn = figures and (out is not None or not as_json)
    folder = out if out is not None else default_folder(runs[0])
    tables = analysed(collection, baseline)
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        tables["summary"].to_csv(csv, index=False)
    pictures = draw(collection, folder) if drawn else {"drawn": {}, "skipped": {}}
    if as_json:
        print_json(
            {
                "summary": records(tables["summary"]),
                "paired_differences": records(tables["paired_differences"]),
                "findings": tables["findings"],
                "problems": problems,
                "figures": pictures["drawn"],
                "skipped_figures": pictures["skipped"],
            }
        )
        return
    show_all(tables, baseline)
    if csv is not None:
        say_path("Summary as CSV:", csv)
    if drawn:
        show_figures(pictures, folder)


def open_all(paths: Sequence[Path]) -> tuple[RunCollection, list[str]]:
    """Open every run under the paths; what cannot be read is a problem in words, the rest is there."""
    from noisesam.runs import open_runs

    collection = open_runs(list(paths))
    return collection, [str(problem) for problem in collection.problems]


def analysed(collection: RunCollection, baseline: str) -> dict[str, Any]:
    """Compute the three things that are shown: summary with the baseline first, paired differences, findings."""
    from noisesam import analysis
    from noisesam.analysis.verdicts import unfinished

    summary = analysis.summary(collection)
    present = list(dict.fromkeys(str(method) for method in summary["method"]))
    if baseline not in present and baseline != "sgd":
        raise unknown_name("baseline", baseline, present)
    summary = summary.sort_values("method", key=lambda names: names != baseline, kind="stable", ignore_index=True)
    paired = analysis.paired_differences(collection, baseline=baseline) if baseline in present else None
    # Without a baseline nothing is compared; that a run did not finish is said all the same.
    sentences = analysis.findings(collection, baseline=baseline) if baseline in present else unfinished(collection)
    return {
        "summary": summary,
        "paired_differences": paired if paired is not None else summary.iloc[:0],
        "findings": sentences,
    }


def draw(collection: RunCollection, folder: Path) -> dict[str, dict[str, Any]]:
    """Draw every figure that the runs have data for.

    Returns:
        Under "drawn" the picture and the table of each figure; under "skipped" why there are no others.
    """
    from noisesam import plotting

    with warnings_in_words(), progress_bar("drawing", None):
        figures = plotting.draw_all(collection, folder)
    drawn = {figure.name: {"png": str(figure.png), "table": str(figure.csv)} for figure in figures}
    return {"drawn": drawn, "skipped": dict(figures.skipped)}


def show_figures(figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Say where the figures lie, and why one is missing."""
    say_path(f"{len(figures['drawn'])} figures, each with its table:", folder)
    for name, reason in figures["skipped"].items():
        say(f"  not drawn: {name}. {reason}", style="dim")


def show_all(tables: dict[str, Any], baseline: str) -> None:
    """Print the tables and the findings."""
    show_accuracy(tables["summary"])
    show_mechanism(tables["summary"])
    if len(tables["paired_differences"]):
        show_differences(tables["paired_differences"], baseline)
    if tables["findings"]:
        say("Findings", style="bold")
        show_findings(tables["findings"])
        say()


def default_folder(first: Path) -> Path:
    """`analysis` in the folder that holds the runs; beside a run, never inside it."""
    return (first.parent if (first / "manifest.json").exists() else first) / "analysis"
