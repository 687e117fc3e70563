"""`noisesam bench`: what an exact per-example step costs on this machine, and with --family what every method costs."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.allocation import keep_freed_memory
from noisesam.cli.console import out, print_json, print_table, progress_bar, say, say_path
from noisesam.errors import InputError

if TYPE_CHECKING:
    from noisesam.bench.report import Table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    family: Annotated[
        bool, typer.Option("--family", help="Time every method against SGD instead; hold the papers' claims against it.")
    ] = False,
    architectures: Annotated[
        bool,
        typer.Option("--architectures", help="Look instead at which engine the models of timm and transformers run on."),
    ] = False,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            "--model",
            help="Models, separated by commas; all by default, mlp,resnet8,vit with --family.",
            show_default=False,
        ),
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(help="Contenders, with --family methods, separated by commas; all by default.", show_default=False),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Numbers of threads, each measured; 1,2 by default, 1 on CUDA and with --family.", show_default=False
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Calls per contender; slow ones take a third. 9 by default.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: float32 and bfloat16 autocast (--family: float32).")] = "cpu",
    memory: Annotated[
        bool, typer.Option(help="Measure peaks of memory, each in a process of its own; never with --family.")
    ] = True,
    keep_memory: Annotated[
        bool, typer.Option(help="Let the process keep freed memory, as noisesam train and noisesam.fit do.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models, to try the bench itself.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write <machine kind>.json and README.md there, family-<machine kind>.json and family.md with --family, "
            "architectures.json and .md with --architectures.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the times as CSV.")] = False,
) -> None:
    """Time SGD, SAM and the per-example methods against a loop, vmap and Opacus; say which targets hold.

    With --family, time every method against SGD over whole cycles of its steps; say which of the papers' claims hold.
    With --architectures, take one step of 1-SAM with every family of models of timm and transformers, against a loop.
    """
    if as_json and as_csv:
        raise InputError("Both --json and --csv", expected="one of them", remedy="Leave one out.")
    if architectures:
        others = {"--family": family, "--models": models, "--contenders": contenders, "--threads": threads, "--rounds": rounds,
                  "--quick": quick, "--csv": as_csv, "--device": device != "cpu"}  # fmt: skip
        _architectures([name for name, given in others.items() if given], folder, as_json)
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler otherwise writes its own lines to stderr
    from noisesam.bench import family as family_bench
    from noisesam.bench import plan, run, write_report
    from noisesam.bench.family_report import write_family

    asked: dict[str, Any] = {
        "models": _names(models), "threads": _numbers(threads), "device": device, "rounds": rounds, "quick": quick,
    }  # fmt: skip
    if family:
        families = family_bench.plan_family(chosen=_names(contenders), **asked)
        document = _measured(lambda told: family_bench.run_family(families, told), families.units, keep_memory)
    else:
        planned = plan(contenders=_names(contenders), measures_memory=memory, **asked)
        document = _measured(lambda told: run(planned, told), planned.units, keep_memory)
    written = [] if folder is None else write_family(document, folder) if family else write_report(document, folder)
    if as_json:
        print_json(document)
    elif as_csv:
        _print_csv(document["costs" if family else "timings"])
    else:
        (_show_family if family else _show)(document)
        for path in written:
            say_path("written:", path)


def _architectures(others: list[str], folder: Path | None, as_json: bool) -> None:
    if others:
        raise InputError(
            f"--architectures with {', '.join(others)}",
            expected="--architectures alone, or with --out or --json: every architecture is looked at once, on the CPU",
            remedy="Leave the others out.",
        )
    from noisesam.bench import architectures_report as report
    from noisesam.bench.architecture_members import members
    from noisesam.bench.architectures import run_architectures

    chosen = members()
    with progress_bar("architectures", len(chosen)) as bar:
        document = run_architectures(chosen, lambda words: bar.update(bar.task_ids[0], advance=1, description=words))
    written = [] if folder is None else report.write_architectures(document, folder)
    if as_json:
        print_json(document)
        return
    for sentence in report.conditions(document):
        say(sentence, style="dim")
    say()
    headings, rows = report.architectures_table(document)
    print_table(headings, rows, right=(4, 5), keep=(2, 3))
    for line in report.summary(document):
        say("- " + line)
    for path in written:
        say_path("written:", path)


def _measured(measure: Callable[[Callable[[str], None]], dict[str, Any]], units: int, keep_memory: bool) -> dict[str, Any]:
    """Measure under a progress bar; the document says whether the process kept freed memory."""
    with progress_bar("bench", units) as bar:

        def told(words: str) -> None:
            bar.update(bar.task_ids[0], advance=1, description=words)

        kept = keep_memory and keep_freed_memory()
        document = measure(told)
        document["options"]["keeps_freed_memory"] = kept
    return document


def _show(document: dict[str, Any]) -> None:
    from noisesam.bench import report

    for sentence in report.conditions(document):
        say(sentence, style="dim")
    for setting in report.settings_of(document):
        say()
        _table(report.times_table(document, setting), report.setting_words(setting))
    if document["memory"]:
        say()
        _table(report.memory_table(document), "growth of peak memory in one step")
    say()
    headings, rows = report.verdicts_table(document)
    print_table(headings, rows, title="targets (measured in the order of the settings)", right=(2, 3), keep=(1, 4))
    for line in report.left_out(document):
        say("- " + line, style="dim")
    if document["profiles"]:
        say("- profiles and peaks of what misses its target: --json, --out", style="dim")


def _show_family(document: dict[str, Any]) -> None:
    from noisesam.bench import family_report as report

    for sentence in report.conditions(document):
        say(sentence, style="dim")
    for setting in report.settings_of(document):
        say()
        _table(report.costs_table(document, setting), report.setting_words(document, setting))
    headings, rows = report.claims_table(document)
    if rows:
        say()
        print_table(
            headings, rows, title="the papers' claims (measured in the order of the threads)", right=(3,), keep=(0, 1, 4)
        )
        say()
    for line in [*report.statements(document), *report.reasons(document), *report.left_out(document)]:
        say("- " + line, style="dim")


def _table(table: Table, title: str) -> None:
    headings, rows = table
    print_table(headings, rows, title=title, right=range(1, len(headings)))


def _print_csv(rows: list[dict[str, Any]]) -> None:
    table = csv.DictWriter(out.file, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(row | ({"notes": "; ".join(row["notes"])} if "notes" in row else {}) for row in rows)


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("An empty list of names", expected="names separated by commas", remedy="Leave the option out for all")
    return names


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--threads {text}", expected="whole numbers separated by commas", remedy="Type --threads 1,2."
        ) from error
