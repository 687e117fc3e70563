"""`noisesam readme` (hidden): fill the README's generated sections from the registry and from saved runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import say
from noisesam.cli.methods import short_reference
from noisesam.cli.report import mean_and_sd, short
from noisesam.errors import RunError
from noisesam.markdown import markdown_table, replaced

if TYPE_CHECKING:
    import pandas as pd


HEADLINES = ("1-sam reaches", "of 1-sam's gain", "memorised at the end", "of the last hidden activation")
"""Findings that the README repeats."""
EVERYWHERE = ("chunk_size", "memory_budget", "parameter_groups", "weight_decay")
"""Hyper-parameters that every method takes, or every relative of SAM; the README names them once."""


def register(app: typer.Typer) -> None:
    """Add the hidden command."""
    app.command("readme", hidden=True)(readme)


def readme(
    runs: Annotated[Path | None, typer.Option(help="Runs of the demo; without them the demo's section stays.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="The demo's picture (PNG); copied to figures/demo.png with its table.")
    ] = None,
    file: Annotated[Path, typer.Option(help="The file to rewrite.")] = Path("README.md"),
) -> None:
    """Rewrite the generated sections: the methods from the registry, tables from what is kept, the demo's from saved runs.

    REPORT.md, where it lies beside the file, gets the tables of the reproduction.
    """
    from noisesam.cli.readme_scoreboard import full_table, kept_tables, scoreboard_section

    text = replaced(file.read_text(encoding="utf-8"), "methods-table", methods_table())
    figures = file.parent / "figures"
    text = replaced(text, "scoreboard-table", scoreboard_section(figures))
    for name, table in kept_tables(figures).items():
        page = f"# Scoreboard: {name}\n\nWritten by `noisesam readme` from scoreboard-{name}.csv.\n\n{full_table(table)}\n"
        (figures / f"scoreboard-{name}.md").write_text(page, encoding="utf-8")
    if runs is not None:
        from noisesam.cli.analyze import analysed, open_all

        collection, problems = open_all([runs])
        if problems:
            raise RunError(
                f"{len(problems)} problems under {runs}: {problems[0]}", expected="whole runs", remedy="noisesam demo"
            )
        tables = analysed(collection, "sgd")
        keep_evidence(tables, [run.manifest for run in collection], file.parent / "figures")
        text = replaced(
            text, "demo-table", demo_section(tables, picture=keep_figure(figure, file.parent) if figure is not None else "")
        )
    report = file.parent / "REPORT.md"
    if report.exists():
        from noisesam.cli.readme_report import fill_report

        report.write_text(fill_report(report.read_text(encoding="utf-8"), figures), encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    say(f"{file} rewritten: methods-table, scoreboard-table" + (", demo-table" if runs is not None else ""))


def linked(reference: str) -> str:
    """Authors and year, linked to arXiv where the paper is there.

    Example:
        >>> linked("Foret et al. 2021, arXiv 2010.01412")
        '[Foret et al. 2021](https://arxiv.org/abs/2010.01412)'
    """
    found = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", reference)
    return f"[{short_reference(reference)}](https://arxiv.org/abs/{found.group(1)})" if found else short_reference(reference)


def methods_table() -> str:
    """The registry as Markdown."""
    from noisesam.methods import describe, names

    rows = []
    for one in map(describe, names()):
        parameters = ", ".join(f"`{key}`" for key in one.hyperparameters if key not in EVERYWHERE)
        rows.append((f"`{one.name}`", one.rule, one.cost, parameters or "-", linked(one.reference)))
    return markdown_table(("name", "gradient of the step", "cost", "hyper-parameters", "reference"), rows)


def keep_evidence(tables: dict[str, Any], manifests: list[dict[str, Any]], folder: Path) -> None:
    """Write every finding and the manifests of the runs that they come from."""
    folder.mkdir(exist_ok=True)
    sentences = "\n".join(f"- {sentence}" for sentence in tables["findings"])
    text = f"# What the demo found\n\nWritten by `noisesam readme` from the runs of `noisesam demo`.\n\n{sentences}\n"
    (folder / "demo.md").write_text(text, encoding="utf-8")
    kept = json.dumps(sorted(manifests, key=lambda manifest: manifest["id"]), indent=1, sort_keys=True)
    (folder / "demo-manifests.json").write_text(kept + "\n", encoding="utf-8")


def keep_figure(figure: Path, root: Path) -> str:
    """Copy a figure and the numbers beside it to figures/demo.*; the Markdown that shows it."""
    if not figure.is_file():
        raise RunError(f"There is no figure {figure}", expected="a PNG that `noisesam demo` drew")
    (root / "figures").mkdir(exist_ok=True)
    for suffix in (".png", ".csv"):
        beside = figure.with_suffix(suffix)
        if beside.exists():
            shutil.copyfile(beside, root / "figures" / f"demo{suffix}")
    return "![Accuracy over training on clean, mislabelled and test images, method by method](figures/demo.png)"


def demo_section(tables: dict[str, Any], picture: str = "") -> str:
    """The demo's summary as Markdown, with its seeds and spread, and its findings in words."""
    from noisesam.methods import names

    summary: pd.DataFrame = tables["summary"]
    rows: list[tuple[str, ...]] = []
    for row in sorted(summary.to_dict("records"), key=lambda row: names().index(row["method"])):
        accuracies = (
            mean_and_sd(row[f"{one}_test_accuracy_mean"], row[f"{one}_test_accuracy_sd"])
            for one in ("oracle", "validation", "last")
        )
        fitted = (short(row[f"{one}_noisy_fitted_mean"]) for one in ("oracle", "last"))
        rows.append((f"`{row['method']}`", *accuracies, *fitted, f"{float(row['early_ratio_mean']):.2f}"))
    columns = (
        "method",
        "best test accuracy (oracle)",
        "chosen on noisy validation",
        "last epoch",
        "wrong labels fitted at best",
        "at last",
        "clean/noisy gradient weight, early",
    )
    seeds = (
        f"Mean ± standard deviation over {int(summary['seeds'].max())} seeds. What the runs say, in part "
        "([all of it](figures/demo.md), [the runs' manifests](figures/demo-manifests.json)):"
    )
    sentences = "\n".join(f"- {sentence}" for sentence in tables["findings"] if any(words in sentence for words in HEADLINES))
    return "\n\n".join(part for part in (picture, markdown_table(columns, rows), seeds, sentences) if part)
