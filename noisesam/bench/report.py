"""The measured document as rows for a terminal and as Markdown; nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noisesam.bench.contenders import BASE, BEST_VMAP
from noisesam.bench.targets import MISSED, OPEN, TARGETS

Document = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings, and rows of cells."""


def settings_of(document: Document) -> list[tuple[int, str]]:
    """Return (threads, precision) of every setting."""
    return [(one["threads"], one["precision"]) for one in document["options"]["settings"]]


def setting_words(setting: tuple[int, str]) -> str:
    """A setting as a heading says it.

    Example:
        >>> setting_words((2, "float32"))
        '2 threads, float32'
    """
    threads, precision = setting
    return f"{threads} thread{'s' if threads > 1 else ''}, {precision}{' autocast' if precision == 'bfloat16' else ''}"


def times_table(document: Document, setting: tuple[int, str]) -> Table:
    """One row per contender, one column per model: milliseconds of SGD, then ratios to it."""
    rows = [row for row in document["timings"] if (row["threads"], row["precision"]) == setting]
    cells = {(row["contender"], row["model"]): row for row in rows}
    models = document["models"]
    table = []
    for name, label in document["options"]["labels"].items():
        found = [cells.get((name, one["model"])) for one in models]
        if not any(found):
            continue
        if name == BASE:
            table.append((f"{label} (ms)", *(digits(row and _milliseconds(row)) for row in found)))
        else:
            table.append((label, *(digits(row and row["ratio_to_sgd"]) for row in found)))
    return ("ratio to SGD", *(one["heading"] for one in models)), table


def memory_table(document: Document) -> Table:
    """One row per contender: megabytes of SGD's growth, then ratios to it."""
    cells = {(row["contender"], row["model"]): row for row in document["memory"]}
    models = document["models"]
    table = []
    for name in dict.fromkeys(row["contender"] for row in document["memory"]):
        found = [cells.get((name, one["model"])) for one in models]
        label = document["options"]["labels"][name]
        if name == BASE:
            sizes = [row["bytes"] / 1e6 if row and row["bytes"] is not None else None for row in found]
            table.append((f"{label} (MB)", *map(digits, sizes)))
        else:
            table.append((label, *(digits(row and row["ratio_to_sgd"]) for row in found)))
    return ("peak memory / SGD", *(one["heading"] for one in models)), table


def verdicts_table(document: Document) -> Table:
    """One row per target and model, the measured numbers in the order of the settings; missed if one is missed."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in document["verdicts"]:
        grouped.setdefault((row["target"], row["bound"], row["model"]), []).append(row)
    order = list(dict.fromkeys((one.name, one.words) for one in TARGETS))
    table = []
    for target, bound in order:
        for (its_target, its_bound, model), rows in grouped.items():
            if (its_target, its_bound) == (target, bound):
                words = {row["verdict"] for row in rows}
                word = MISSED if MISSED in words else OPEN if OPEN in words else rows[0]["verdict"]
                measured = " / ".join(digits(row["measured"]) for row in rows)
                table.append((target, model, bound, measured, word))
    return ("target", "model", "bound", "measured", "verdict"), table


def left_out(document: Document) -> list[str]:
    """Who has no number, on which models, and why: one line each, and what noisesam warned about."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in [*document["timings"], *document["memory"]]:
        notes = row.get("notes", []) if row["contender"] != BEST_VMAP else []
        for reason in [row["reason"], *notes]:
            if reason and row["contender"] != BEST_VMAP:
                models = reasons.setdefault((row["contender"], reason), [])
                models += [row["model"]] if row["model"] not in models else []
    return [f"{name} on {', '.join(models)}: {reason}" for (name, reason), models in reasons.items()]


def conditions(document: Document) -> list[str]:
    """On what and how it was measured, in sentences."""
    machine, versions, options = document["machine"], document["versions"], document["options"]
    computes = f"{machine['gpu']}, " if machine["gpu"] else ""
    sentences = [
        f"{computes}{machine['cpu']}, {machine['cpu_count']} cores; torch {versions['torch']}, "
        f"noisesam {versions['noisesam']}, Opacus {versions['opacus'] or 'not installed'}; {document['created']}.",
        f"Medians of {options['rounds']} interleaved calls in one process ({options['slow_rounds']} for the loop, vmap and "
        f"Opacus), {options['clock']}; forward and backward, no optimizer update.",
    ]
    if options.get("after_own_kind"):  # documents of before say nothing of it
        sentences.append("Each but those of the loop, vmap and Opacus follows an untimed call of its own kind, as in training.")
    if options.get("keeps_freed_memory"):
        sentences.append(
            "The process keeps freed memory, for every contender alike, as `noisesam train` does: otherwise page faults decide."
        )
    best = sorted(
        {(note.rpartition(" ")[2], row["model"]) for row in document["timings"] if row["contender"] == BEST_VMAP
         for note in row["notes"]}
    )  # fmt: skip
    if best:
        sentences.append("Best vmap: " + ", ".join(f"{form} on {model}" for form, model in best) + ".")
    if document["quick"]:
        sentences.insert(0, "Tiny models, to try the bench itself: these numbers say nothing about cost.")
    return sentences


def write_report(document: Document, folder: Path) -> list[Path]:
    """Write <machine kind>.json, and README.md from all such documents in the folder: other kinds have pages of their own.

    Args:
        document: What `run` returned.
        folder: Made if it does not exist.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{document['machine_kind']}{'-quick' if document['quick'] else ''}.json"
    target.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    own = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(("family-", "architectures"))]
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in own]
    readme = folder / "README.md"
    readme.write_text("# Benchmarks\n\n" + "\n".join(markdown(one) for one in documents), encoding="utf-8")
    return [target, readme]


def markdown(document: Document) -> str:
    """Everything about one machine as Markdown."""
    parts = [f"## {document['machine_kind']}", "\n".join(conditions(document))]
    parts.append("\n".join(f"- `{one['heading']}`: {one['title']}, batch {one['batch']}, "
                           f"{one['parameters']:,} parameters" for one in document["models"]))  # fmt: skip
    for setting in settings_of(document):
        parts += [f"### Time, {setting_words(setting)}", laid_out(times_table(document, setting))]
    if document["memory"]:
        parts += ["### Growth of peak memory in one step", laid_out(memory_table(document))]
    parts += [
        "### Targets",
        "Measured at " + "; ".join(map(setting_words, settings_of(document))) + "; memory once.",
        laid_out(verdicts_table(document)),
    ]
    out = left_out(document)
    if out:
        parts += ["### Left out, and notes", "\n".join(f"- {line}" for line in out)]
    if document["profiles"]:
        parts.append("### Where the time goes where a target is missed")
        parts.append("Both sides of every missed ratio; the profiler itself slows small operators down.")
        parts.append(laid_out(profiles_table(document)))
    if document.get("peaks"):
        parts.append("### What is alive at the peak of memory where a target is missed")
        parts.append(
            "Tensors beside model and batch. Those of the forward pass are kept for the reverse pass (activations); those of "
            "the reverse pass are gradients, of the batch or of every example, and temporaries. What a kernel allocates "
            "inside itself is not seen."
        )
        parts.append(laid_out(peaks_table(document)))
    return "\n\n".join(parts) + "\n"


def profiles_table(document: Document) -> Table:
    """One row per profiled step: its operators with the largest time of their own."""
    rows = []
    for one in document["profiles"]:
        operators = ", ".join(f"{op['operator']} {op['ms']:.2f} ms ({op['share']:.0%})" for op in one["operators"])
        rows.append((one["model"], setting_words((one["threads"], one["precision"])), one["contender"], operators))
    return ("model", "setting", "step", "operators by own time"), rows


def peaks_table(document: Document) -> Table:
    """One row per step whose memory was looked into: the operators whose results are alive at its peak."""
    rows = []
    for one in document["peaks"]:
        operators = ", ".join(
            f"{op['operator']} ({op['pass']}) {_megabytes(op['bytes'])} ({op['share']:.0%})" for op in one["operators"]
        )
        sizes = (_megabytes(one[part]) for part in ("bytes", "forward", "reverse"))
        rows.append((one["model"], one["contender"], *sizes, one["at"], operators))
    return ("model", "step", "alive", "of forward pass", "of reverse pass", "peak at", "operators by bytes alive"), rows


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def laid_out(table: Table) -> str:
    """Return the table as Markdown."""
    headings, rows = table
    lines = ["| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in [headings, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def _milliseconds(row: dict[str, Any]) -> float | None:
    return None if row["median_seconds"] is None else 1000 * row["median_seconds"]


def digits(value: float | None) -> str:
    """Three figures that matter, a dash where there is no number.

    Example:
        >>> digits(1.256), digits(162.4), digits(None)
        ('1.26', '162', '-')
    """
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
