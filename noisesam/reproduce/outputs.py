"""What a reproduction leaves behind: tables, manifests, figures, and the section of figures/README.md on them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisesam.errors import InputError
from noisesam.markdown import markdown_table, with_section
from noisesam.reproduce.baek2024 import Findings
from noisesam.reproduce.controls import ControlTables
from noisesam.reproduce.evidence import MAIN
from noisesam.reproduce.settings import PAPER
from noisesam.runs import RunCollection
from noisesam.runs.files import write_atomically

FIGURE_CLAIMS = {
    "accuracy": ("C1", "C2", "C3", "C10"),
    "test-accuracy": ("C1", "C2", "C6", "C10"),
    "gradient-weight": ("C5", "C6"),
    "weights-against-loss": ("C5",),
    "memorisation": ("C3",),
    "norms": ("C7",),
}
"""Figure of `noisesam.plotting.draw_all` -> the claims that can be seen in it."""

_PRIVATE = re.compile(r"(?:^|[\s'\"(=])(?:/(?:home|root|Users|tmp|work|mnt|var)/|[A-Za-z]:\\\\|~/)")


@dataclass(frozen=True)
class Written:
    """What was written: the stem of all names, the tables, and the figures with the claims that they show."""

    stem: str
    folder: Path
    tables: dict[str, Path]
    figures: dict[Path, tuple[str, tuple[str, ...]]]
    """PNG -> (setting, claims)."""
    skipped: dict[str, str]
    """Figure -> why it could not be drawn."""
    section: str
    """The section of README.md, in Markdown."""


def write(findings: Findings, folder: Path, *, command: str) -> Written:
    """Write everything into a folder, each file replaced as a whole; the same runs give the same bytes.

    Written are <stem>-claims.csv (one row per claim and setting), -verdicts.csv, the further tables, -manifests.json, the
    figures in the folder <stem> (PNG, PDF and the numbers as CSV), and the section of README.md: in a README.md that is
    there the section is replaced or added, otherwise it is a file of its own, <stem>.md.

    Args:
        findings: What a scale found.
        folder: Where to; made where it is missing.
        command: The command that this is the outcome of.

    Returns:
        The paths.

    Raises:
        RunError: The folder cannot be written.
        InputError: A manifest holds an absolute path.
    """
    stem = f"{PAPER}-{findings.scale.name}"
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"claims": findings.claims, "verdicts": findings.verdicts, **findings.tables}
    paths = {name: folder / f"{stem}-{name}.csv" for name in tables}
    for name, table in tables.items():
        write_atomically(paths[name], table.to_csv(index=False, lineterminator="\n").encode())
    if findings.manifests:
        write_atomically(folder / f"{stem}-manifests.json", manifests_text(findings.manifests).encode())
    figures, skipped = _draw(findings, folder / stem)
    written = Written(stem, folder, paths, figures, skipped, section="")
    written = replace(written, section=section(findings, written, command))
    _write_section(folder, stem, written.section)
    return written


def copy(written: Written, folder: Path) -> None:
    """Copy what was written into another folder, whose README.md gets the section too.

    Raises:
        RunError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(written.folder.glob(f"{written.stem}-*")):
        write_atomically(folder / path.name, path.read_bytes())
    for png in written.figures:
        for path in (png.with_suffix(suffix) for suffix in (".png", ".pdf", ".csv")):
            write_atomically(folder / path.relative_to(written.folder), path.read_bytes())
    _write_section(folder, written.stem, written.section)


def manifests_text(manifests: Any) -> str:
    """Return manifests as one JSON document, sorted by id.

    Raises:
        InputError: One of them holds an absolute path, which would name a machine or a user.
    """
    ordered = sorted(manifests, key=lambda manifest: (manifest["id"], manifest["configuration_hash"]))
    text = json.dumps(ordered, separators=(",", ":"), sort_keys=True)
    found = _PRIVATE.search(text)
    if found:
        near = text[max(found.start() - 40, 0) : found.end() + 20]
        raise InputError(
            f"The manifests hold a path of this machine: ...{near}...",
            expected="manifests that may be shared",
            remedy="Name data sets by their name, not by their place, and make the runs again",
        )
    return text + "\n"


def _draw(findings: Findings, folder: Path) -> tuple[dict[Path, tuple[str, tuple[str, ...]]], dict[str, str]]:
    """Draw the figures of the toy, or those of each setting's own runs."""
    from noisesam.plotting import draw_all

    drawn: dict[Path, tuple[str, tuple[str, ...]]] = {}
    skipped: dict[str, str] = {}
    if findings.toy is not None:
        for name, (draw, claims) in toy_figures().items():
            drawn[_save(draw, findings.toy, folder / name)] = ("toy", claims)
    if findings.controls is not None:
        for name, (draw, claims) in control_figures().items():
            try:
                drawn[_save(draw, findings.controls, folder / name)] = (name, claims)
            except InputError as reason:
                skipped[name] = str(reason)
    for setting, variants in findings.runs.items():
        figures = draw_all(variants[MAIN], folder / setting)
        drawn |= {figure.png: (setting, FIGURE_CLAIMS.get(figure.name, ())) for figure in figures}
        skipped |= {f"{setting}/{name}": reason for name, reason in figures.skipped.items()}
    return drawn, skipped


def section(findings: Findings, written: Written, command: str) -> str:
    """Return the section on a scale: verdicts, figures with what they show, tables, and the ids of the runs."""
    overall = dict(zip(findings.verdicts["claim"], findings.verdicts["verdict"], strict=True))
    judged = findings.claims
    own = dict(zip(zip(judged["claim"], judged["setting"], strict=True), judged["verdict"], strict=True))
    parts = [
        f"## `{command}`",
        f"Scale `{findings.scale.name}`: {findings.scale.title}. Written by the command; the verdicts follow from the runs by "
        "the rules in `docs/claims.md`.",
        markdown_table(("claim", "statement", "verdict"), _verdict_rows(findings.verdicts)),
    ]
    if findings.controls is not None:
        parts += control_parts(findings.controls.verdicts)
    if findings.shows_nothing:
        names = ", ".join(findings.shows_nothing)
        parts.append(f"In {names} SGD came to fit less than half of the wrong labels: these settings show little.")
    figures = [
        (
            f"[`{png.relative_to(written.folder).as_posix()}`]({png.relative_to(written.folder).as_posix()})",
            ", ".join(claims) or "-",
            # A figure of one setting goes with the verdicts of that setting, not with those over all of them.
            "; ".join(f"{claim} {own.get((claim, setting), overall[claim])}" for claim in claims if claim in overall) or "-",
            setting,
        )
        for png, (setting, claims) in written.figures.items()
    ]
    parts.append(markdown_table(("figure", "claims", "verdicts", "runs"), figures))
    tables = ", ".join(f"[`{path.name}`]({path.name})" for path in written.tables.values())
    manifests = f", [`{written.stem}-manifests.json`]({written.stem}-manifests.json)" if findings.manifests else ""
    parts.append(f"Tables: {tables}{manifests}. Every figure lies there as PNG and PDF with its numbers as CSV.")
    if findings.controls is not None:
        name = written.tables["runs"].name
        parts.append(f"The ids of all {len(findings.tables['runs'])} runs, control by control: [`{name}`]({name}).")
    if findings.runs:
        parts.append(markdown_table(("setting", "variant", "runs", "ids"), _run_rows(findings.runs)))
    return "\n\n".join(parts)


def control_parts(table: pd.DataFrame) -> list[str]:
    """Return what every control says, as Markdown: a table over all of them, and how to read it."""
    rows = [
        (
            str(row["control"]),
            str(row["question"]) + ("" if row["decided_by"] == "rule" else " \\*"),
            str(row["at"]),
            str(row["verdict"]),
            str(row["as_expected"] or "-"),
            str(row["estimate"]),
        )
        for row in table.to_dict("records")
    ]
    columns = ("control", "question", "at", "verdict", "as expected", "numbers (95% intervals over seeds)")
    note = (
        "The rules stand in `experiments/control-*.toml`, and `docs/controls.md` says how the table is read. "
        "\\* The rule is silent: what was expected, held against the interval."
    )
    return [markdown_table(columns, rows), note]


def _verdict_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return [(str(row["claim"]), str(row["statement"]), in_words(row)) for row in table.to_dict("records")]


def in_words(row: Any) -> str:
    """Write one row of the verdicts with the settings that it names."""
    where = row.get("settings")
    if not isinstance(where, str) or not where:
        return str(row["verdict"])
    return where if where.startswith(f"{row['verdict']} in ") and ";" not in where else f"{row['verdict']} ({where})"


def _run_rows(runs: dict[str, dict[str, RunCollection]]) -> list[tuple[str, ...]]:
    return [
        (setting, variant, str(len(collection)), " ".join(f"`{run.id}`" for run in collection))
        for setting, variants in runs.items()
        for variant, collection in variants.items()
    ]


def _write_section(folder: Path, stem: str, content: str) -> None:
    """Put the section into the folder's README.md, or beside, where there is none."""
    readme = folder / "README.md"
    if not readme.exists():
        write_atomically(folder / f"{stem}.md", (content + "\n").encode())
        return
    write_atomically(readme, with_section(readme.read_text(encoding="utf-8"), stem, content).encode())


Draw = Callable[[Any], tuple[Any, pd.DataFrame]]


def toy_figures() -> dict[str, tuple[Draw, tuple[str, ...]]]:
    """Return the figures of the toy: name -> how it is drawn from the toy's tables, and the claims that it shows."""
    from noisesam.plotting.toy import plot_toy_accuracy, plot_toy_ratios, plot_toy_traps

    return {
        "accuracy": (lambda toy: (plot_toy_accuracy(toy.accuracy), _drawn(toy.accuracy)), ("C1", "C2", "C10")),
        "weight-ratios": (lambda toy: (plot_toy_ratios(toy.ratios), toy.ratios), ("C4",)),
        "traps": (lambda toy: (plot_toy_traps(toy.runs), toy.runs), ("C1", "C2", "C6")),
    }


def _drawn(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return the rows and columns that the figure shows; toy_grid gives the whole table again, to the bit."""
    return accuracy.loc[accuracy["setting"] == "linear", ["setting", "method", "rho", "seed", "step", "test_accuracy"]]


def control_figures() -> dict[str, tuple[Draw, tuple[str, ...]]]:
    """Return the figures of the controls: name -> how it is drawn from their tables, and the claims that it shows."""
    from noisesam.plotting import (
        plot_control_advantage,
        plot_control_losses,
        plot_control_matched,
        plot_control_regulariser,
        plot_control_step_length,
    )

    def of(control: str, table: str, draw: Callable[[pd.DataFrame], Any]) -> Draw:
        def drawn(tables: ControlTables) -> tuple[Any, pd.DataFrame]:
            own = getattr(tables, table)
            return draw(own), own[own["control"] == control]

        return drawn

    factors = {
        name: (of(name, "advantages", functools.partial(plot_control_advantage, control=name)), claims)
        for name, claims in {"width": ("C11",), "train-size": ("C9",), "learning-rate": (), "noise-rate": ()}.items()
    }
    return {
        "matched": (of("matched", "advantages", plot_control_matched), ()),
        **factors,
        "regulariser": (of("regulariser", "points", plot_control_regulariser), ()),
        "step-length": (of("step-length", "points", plot_control_step_length), ()),
        "robust-losses": (of("robust-losses", "advantages", plot_control_losses), ("C13",)),
    }


def _save(draw: Draw, tables: Any, path: Path) -> Path:
    from noisesam.plotting import save

    axes, table = draw(tables)
    return save(np.ravel(axes)[0].figure, path, table).png
