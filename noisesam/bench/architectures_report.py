"""The architectures' document as rows for a terminal and as Markdown; nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

from noisesam.bench.report import Document, Table, laid_out

FILE = "architectures.json"
COMMAND = "noisesam bench --architectures --out benchmarks"


def conditions(document: Document) -> list[str]:
    """What was looked at, where and how, in sentences."""
    versions, options = document["versions"], document["options"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "noisesam", "timm", "transformers"))
    return [
        f"{document['machine']['cpu']}, {document['machine']['cpu_count']} cores; {packages}; {document['created']}.",
        "Of timm the smallest model of every family up to 60 million parameters, on the smallest images that it takes, in "
        "float64; of transformers small classifiers of texts, one of them padded, in float32. Three examples.",
        f"All parameters drawn {options['away']} away from where they begin, dropout off, BatchNorm frozen, "
        f"rho {options['rho']}.",
        'Off the loop: 1-SAM of engine="auto" against plain autograd, one example after the other, relative to the norm of the '
        "gradient. Rounding alone: the same loop with every weight a unit in the last place away.",
    ]


def summary(document: Document) -> list[str]:
    """How many run on which engine, library by library, and how far the worst is off."""
    lines = []
    for library in dict.fromkeys(row["library"] for row in document["architectures"]):
        rows = [row for row in document["architectures"] if row["library"] == library]
        made = [row for row in rows if row["engine"] is not None]
        engines = {engine: sum(row["engine"] == engine for row in made) for engine in sorted({row["engine"] for row in made})}
        counted = ", ".join(
            f"{count} {'refused' if engine == 'refused' else 'on ' + engine}" for engine, count in engines.items()
        )
        worst = max((row for row in made if row["error"] is not None), key=lambda row: row["error"], default=None)
        farthest = "" if worst is None else (
            f"; farthest off the loop: {worst['model']}, {worst['error']:.1e} (rounding alone: {worst['rounding']:.1e})"
        )  # fmt: skip
        left = "" if len(made) == len(rows) else f"; {len(rows) - len(made)} could not be made"
        lines.append(f"{library}: {len(made)} architectures, {counted}{farthest}{left}.")
    return lines


def architectures_table(document: Document) -> Table:
    """One row per architecture."""
    rows = [
        (row["library"], row["family"], row["model"], row["engine"] or "-", _power(row["error"]), _power(row["rounding"]),
         row.get("reason", ""))
        for row in document["architectures"]
    ]  # fmt: skip
    return ("library", "family", "model", "engine", "off the loop", "rounding alone", "why not fast"), rows


def write_architectures(document: Document, folder: Path) -> list[Path]:
    """Write architectures.json and architectures.md.

    Args:
        document: What `run_architectures` returned.
        folder: Made if it does not exist.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, page = folder / FILE, folder / "architectures.md"
    target.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(markdown(document), encoding="utf-8")
    return [target, page]


def markdown(document: Document) -> str:
    """Everything as Markdown."""
    headings, rows = architectures_table(document)
    safe = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    parts = [
        "# Architectures of others, as they are", "\n".join(conditions(document)), f"    {COMMAND}",
        "\n".join(f"- {line}" for line in summary(document)), laid_out((headings, safe)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _power(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
