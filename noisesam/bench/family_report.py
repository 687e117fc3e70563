"""The family's measured document as rows for a terminal and as Markdown; nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noisesam.bench.family_claims import NOT_HELD, OPEN
from noisesam.bench.report import Document, Table, digits, laid_out

PREFIX = "family-"
"""How the names of the documents begin."""


def settings_of(document: Document) -> list[tuple[str, int]]:
    """Return (model, threads) of everything that was measured."""
    return [(one["model"], one["threads"]) for one in document["sgd"]]


def setting_words(document: Document, setting: tuple[str, int]) -> str:
    """A setting as a heading says it, with what one SGD step takes."""
    model, threads = setting
    sgd = next(one["seconds"] for one in document["sgd"] if (one["model"], one["threads"]) == setting)
    step = "" if sgd is None else f", one SGD step {digits(1000 * sgd)} ms"
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}{step}"


def costs_table(document: Document, setting: tuple[str, int]) -> Table:
    """One row per member: passes as counted, seconds relative to SGD with quartiles and to SAM, share of SAM's overhead."""
    rows = []
    for row in document["costs"]:
        if (row["model"], row["threads"]) != setting:
            continue
        low, high, share = row["ratio_lower_quartile"], row["ratio_upper_quartile"], row["share_of_sam_overhead"]
        spread = "-" if low is None else f"{digits(low)} to {digits(high)}"
        rows.append((
            row["member"], _passes(row["forward_passes"]), _passes(row["backward_passes"]), digits(row["ratio_to_sgd"]), spread,
            digits(row["ratio_to_sam"]), "-" if share is None else f"{share:.0%}",
        ))  # fmt: skip
    return ("method", "F", "B", "s / SGD", "quartiles", "s / SAM", "of SAM's\noverhead"), rows


def claims_table(document: Document) -> Table:
    """One row per claim, member and model, the measured numbers in the order of the threads; not held if one is not."""
    rows = []
    for (label, model), found in _claims(document).items():
        words = {one["verdict"] for one in found}
        word = NOT_HELD if NOT_HELD in words else OPEN if OPEN in words else found[0]["verdict"]
        rows.append((label, model, found[0]["rule"], " / ".join(_exact(one["measured"]) for one in found), word))
    return ("claim", "model", "rule, fixed beforehand", "measured", "verdict"), rows


def statements(document: Document) -> list[str]:
    """What the papers say, and how it became a rule: one line per claim."""
    lines = {
        one["claim"]: f"{one['claim']}: {one['statement']} ({one['citation']}). Read as: {one['reading']}."
        for one in document["claims"]
    }
    return list(lines.values())


def reasons(document: Document) -> list[str]:
    """Why claims do not hold or are open, one line for the models that share a reason."""
    models: dict[tuple[str, str, str], list[str]] = {}
    for (label, model), found in _claims(document).items():
        for one in found:
            if one["reason"]:
                known = models.setdefault((label, one["verdict"], one["reason"]), [])
                known += [model] if model not in known else []
    return [f"{label} on {', '.join(where)}, {verdict}: {reason}" for (label, verdict, reason), where in models.items()]


def left_out(document: Document) -> list[str]:
    """Who has no numbers, on which models, and why; and who counts other passes than the registry documents."""
    models: dict[tuple[str, str], list[str]] = {}
    for row in document["costs"]:
        for note in [row["reason"], _miscounted(row)]:
            if note:
                known = models.setdefault((row["member"], note), [])
                known += [row["model"]] if row["model"] not in known else []
    return [f"{name} on {', '.join(where)}: {note}" for (name, note), where in models.items()]


def cycles_table(document: Document) -> Table:
    """One row per member whose options or cycle are not the plain ones: what is timed, and from where."""
    rows = []
    for one in document["members"]:
        if one["options"] or one["cycle_steps"] > 1:
            options = ", ".join(f"{name}={value}" for name, value in one["options"].items())
            rows.append((one["member"], options or "defaults", str(one["cycle_steps"]), one["cycle_reason"]))
    return ("method", "options", "steps of a cycle", "why"), rows


def conditions(document: Document) -> list[str]:
    """On what and how it was measured, in sentences."""
    machine, versions, options = document["machine"], document["versions"], document["options"]
    computes = f"{machine['gpu']}, " if machine["gpu"] else ""
    sentences = [
        f"{computes}{machine['cpu']}, {machine['cpu_count']} cores; torch {versions['torch']}, "
        f"noisesam {versions['noisesam']}; {document['created']}.",
        f"Medians of {options['rounds']} whole cycles of steps ({options['long_rounds']} where a cycle is an epoch), members "
        "in turn, SGD in plain torch before and after each cycle in the same process; "
        f"{options['clock']}, {options['precision']}; forward and backward, no optimizer update.",
        "F and B: forward and backward passes over the batch per step, as the steps counted them; all are the documented ones."
        if not any(map(_miscounted, document["costs"]))
        else "F and B: forward and backward passes over the batch per step, as the steps counted them.",
    ]
    if options.get("keeps_freed_memory"):
        sentences.append("The process keeps freed memory, for every member alike, as `noisesam train` does.")
    if document["quick"]:
        sentences.insert(0, "Tiny models, to try the bench itself: these numbers say nothing about cost.")
    return sentences


def command_of(document: Document) -> str:
    """The command that measures this again."""
    options = document["options"]
    words = ["noisesam bench --family", "--models", ",".join(one["model"] for one in document["models"])]
    if not options["all_members"]:
        words += ["--contenders", ",".join(one["member"] for one in document["members"])]
    words += ["--threads", ",".join(map(str, options["threads"])), "--rounds", str(options["rounds"])]
    words += ["--device", options["device"]] if options["device"] != "cpu" else []
    words += [] if options.get("keeps_freed_memory") else ["--no-keep-memory"]
    words += ["--quick"] if document["quick"] else []
    return " ".join([*words, "--out benchmarks"])


def write_family(document: Document, folder: Path) -> list[Path]:
    """Write family-<machine kind>.json, and family.md from all such documents in the folder.

    Args:
        document: What `run_family` returned.
        folder: Made if it does not exist.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{document['machine_kind']}{'-quick' if document['quick'] else ''}.json"
    target.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    page = folder / "family.md"
    page.write_text("# What the family costs\n\n" + "\n".join(markdown(one) for one in documents), encoding="utf-8")
    return [target, page]


def markdown(document: Document) -> str:
    """Everything about one machine as Markdown."""
    parts = [f"## {document['machine_kind']}", "\n".join(conditions(document)), f"    {command_of(document)}"]
    parts.append("\n".join(f"- `{one['model']}`: {one['title']}, batch {one['batch']}, "
                           f"{one['parameters']:,} parameters" for one in document["models"]))  # fmt: skip
    for setting in settings_of(document):
        parts += [f"### {setting_words(document, setting)}", laid_out(costs_table(document, setting))]
    parts += [
        "### The papers' claims",
        "\n".join(f"- {line}" for line in statements(document)),
        'Rules and tolerances stand in the code and were fixed before anything was measured. "Passes alone" is what the '
        "counted passes would make it if a backward pass took twice a forward one and nothing else took time.",
        laid_out(_claims_with_reasons(document)),
        "### What is timed",
        "Options on which the cost depends; the others are the methods' defaults. Who is not named is timed with its defaults, "
        "step by step.",
        laid_out(cycles_table(document)),
    ]
    out = left_out(document)
    if out:
        parts += ["### Left out, and notes", "\n".join(f"- {line}" for line in out)]
    return "\n\n".join(parts) + "\n"


def _claims_with_reasons(document: Document) -> Table:
    """The claims' table with the paper, what passes alone would make it, and the reason."""
    _, rows = claims_table(document)
    wide = []
    for (label, model, rule, measured, verdict), found in zip(rows, _claims(document).values(), strict=True):
        why = list(dict.fromkeys(one["reason"] for one in found if one["reason"]))
        alone = _exact(found[0]["from_passes"])
        wide.append((label, found[0]["citation"], model, rule, measured, alone, verdict, " ".join(why)))
    return ("claim", "paper", "model", "rule, fixed beforehand", "measured", "passes alone", "verdict", "reason"), wide


def _claims(document: Document) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the verdicts by name and model, those of each number of threads together, claim by claim."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    names = list(dict.fromkeys((one["claim"], one["member"]) for one in document["claims"]))
    for claim, member in names:
        label = member if member.startswith(claim) else claim
        for one in document["claims"]:
            if (one["claim"], one["member"]) == (claim, member):
                found.setdefault((label, one["model"]), []).append(one)
    return found


def _miscounted(row: dict[str, Any]) -> str:
    counted, stated = ([row[f"{kind}{way}_passes"] for way in ("forward", "backward")] for kind in ("", "documented_"))
    if None in counted or all(abs(one - other) < 1e-9 for one, other in zip(counted, stated, strict=True)):
        return ""
    return (
        f"counts {_passes(counted[0])} F + {_passes(counted[1])} B, documented {_passes(stated[0])} F + {_passes(stated[1])} B"
    )


def _passes(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _exact(value: float | None) -> str:
    """Two decimals, the sign kept: overheads and savings may be negative."""
    return "-" if value is None else f"{value:.2f}"
