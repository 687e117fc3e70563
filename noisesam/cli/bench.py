"""`noisesam bench`: what an exact per-example step costs on this machine, beside what else computes it."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.allocation import keep_freed_memory
from noisesam.cli.console import out, print_json, print_table, progress_bar, say, say_path
from noisesam.errors import InputError

if TYPE_CHECKING:
    from noisesam.bench.report import Table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    models: Annotated[str | None, typer.Option(help="Models, separated by commas; all by default.", show_default=False)] = None,
    contenders: Annotated[
        str | None, typer.Option(help="Contenders, separated by commas; all by default.", show_default=False)
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads, each measured; 1,2 by default, 1 on CUDA.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Calls per contender; slow ones take a third. 9 by default.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: float32 and bfloat16 autocast.")] = "cpu",
    memory: Annotated[bool, typer.Option(help="Measure peaks of memory, each in a process of its own.")] = True,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="Let the process keep freed memory, as noisesam train does.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models, to try the bench itself.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write <machine kind>.json and README.md there.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the times as CSV.")] = False,
) -> None:
    """Time SGD, SAM and the per-example methods against a loop, vmap and Opacus; say which targets hold."""
    if as_json and as_csv:
        raise InputError("Both --json and --csv", expected="one of them", remedy="Leave one out.")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler otherwise writes its own lines to stderr
    from noisesam.bench import plan, run, write_report

    planned = plan(
        models=_names(models), contenders=_names(contenders), threads=_numbers(threads), device=device, rounds=rounds,
        quick=quick, measures_memory=memory,
    )  # fmt: skip
    with progress_bar("bench", planned.units) as bar:

        def told(words: str) -> None:
            bar.update(bar.task_ids[0], advance=1, description=words)

        kept = keep_memory and keep_freed_memory()
        document = run(planned, told)
        document["options"]["keeps_freed_memory"] = kept
    written = write_report(document, folder) if folder is not None else []
    if as_json:
        print_json(document)
    elif as_csv:
        _print_csv(document["timings"])
    else:
        _show(document)
        for path in written:
            say_path("written:", path)


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


def _table(table: Table, title: str) -> None:
    headings, rows = table
    print_table(headings, rows, title=title, right=range(1, len(headings)))


def _print_csv(rows: list[dict[str, Any]]) -> None:
    table = csv.DictWriter(out.file, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(row | {"notes": "; ".join(row["notes"])} for row in rows)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--threads {text}", expected="whole numbers separated by commas", remedy="Type --threads 1,2."
        ) from error
