"""`noisesam reproduce baek2024`: the paper's claims, or its controls, at a scale: from sweep files to verdicts and figures."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import (
    err,
    number,
    print_json,
    print_table,
    progress_bar,
    records,
    say,
    say_path,
    show_error,
    warn,
    warnings_in_words,
)
from noisesam.cli.reproduce_controls import show_controls
from noisesam.errors import RunError, unknown_name

if TYPE_CHECKING:
    from noisesam.experiments import Job, Outcome
    from noisesam.reproduce.baek2024 import Findings
    from noisesam.reproduce.outputs import Written
    from noisesam.reproduce.planning import Planned
    from noisesam.reproduce.settings import Scale, Setting

PAPERS = ("baek2024",)
_NAMED = 2
"""So many options with runs that do not count are named on the terminal, more are counted."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce")(reproduce)


def reproduce(
    paper: Annotated[str, typer.Argument(help="What is reproduced: baek2024.")],
    scale: Annotated[
        str,
        typer.Option(help="toy (seconds), cpu and controls (45 minutes on two cores each) or gpu (a CUDA device)."),
    ] = "toy",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs, tables and figures. (default: reproduce-output/<scale>)")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Write tables, figures and manifests there too, and their section of its README.md.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each; the scale gpu runs in this process.")] = 2,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. (default: NOISESAM_DATA)")] = None,
    experiments: Annotated[
        Path | None, typer.Option(help="Folder of the sweep files. (default: experiments, here or in the checkout)")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Make runs for so long, one at a time, and stop; the same command goes on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="State runs, steps, time and memory, from timed steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a paper's experiments, and give a verdict on every claim by rules stated beforehand. Finished runs are skipped."""
    from noisesam.reproduce.settings import experiments_folder, read_settings, scale_named

    if paper not in PAPERS:
        raise unknown_name("paper", paper, PAPERS)
    chosen = scale_named(scale)
    folder = out if out is not None else Path("reproduce-output") / scale
    if scale == "toy":
        _toy(chosen, folder, keep, dry_run=dry_run, as_json=as_json)
        return
    settings = read_settings(chosen, experiments_folder(experiments), folder / "runs", provisional=dry_run)
    for setting in settings:
        setting.sweep.check()
    if dry_run:
        _dry_run(chosen, settings, workers=workers, data_root=data_root, as_json=as_json)
        return
    began = time.perf_counter()
    if not as_json:
        _introduce(chosen, settings)
    done = _make(chosen, settings, workers=workers, data_root=data_root, minutes=minutes, lines=not as_json)
    if done is None:
        return
    _conclude(chosen, settings, folder, keep, done, began, as_json=as_json)


def _toy(scale: Scale, folder: Path, keep: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Run the toy, whose models are trained together in this process."""
    from noisesam.reproduce.baek2024 import find_toy
    from noisesam.reproduce.toy import METHODS, SETTINGS, STEPS, TWO_LAYER_METHODS

    seeds = 5
    if dry_run:
        runs = 2 * seeds * len(METHODS) + 2 * len(TWO_LAYER_METHODS)
        if as_json:
            print_json({"scale": scale.name, "settings": [*SETTINGS], "runs": runs, "steps": STEPS, "minutes": scale.minutes})
            return
        say(f"{scale.name}: {scale.title}", style="bold")
        say(f"{runs} models in {len(SETTINGS)} settings, trained together: half a minute at most, in this process, 1 GB.")
        return
    began = time.perf_counter()
    from noisesam.reproduce import toy_grid

    findings = find_toy(scale, toy_grid(seeds=seeds))
    written = _write(findings, folder, keep)
    if as_json:
        print_json(_as_json(findings, written, folder, time.perf_counter() - began))
        return
    _show(findings)
    _say_where(folder, written, keep)


def _dry_run(scale: Scale, settings: list[Setting], *, workers: int, data_root: Path | None, as_json: bool) -> None:
    """State what would be run and what it would take."""
    from noisesam.reproduce.estimates import in_minutes
    from noisesam.reproduce.planning import plan

    at_once = 1 if scale.by_method else workers
    with warnings_in_words():
        planned = plan(settings, workers=at_once, data_root=data_root)
    total = sum(one.seconds for one in planned) / at_once
    tuning = sum(one.tuning_seconds for one in planned) / at_once
    if as_json:
        print_json(
            {
                "scale": scale.name,
                "workers": at_once,
                "budget_minutes": scale.minutes,
                "minutes": total / 60,
                "calibration_minutes": tuning / 60,
                "measured": all(one.measured for one in planned),
                "settings": [asdict(one) for one in planned],
            }
        )
        return
    say(f"{scale.name}: {scale.title}", style="bold")
    rows = [_planned_row(one, at_once) for one in planned]
    headings = ("setting", "runs", "made", "steps", "minutes", "memory", "calibration")
    print_table(headings, rows, right=(1, 2, 3, 4, 5))
    say()
    one = planned[0]
    say(f"Seconds: {one.device}; {at_once} run{'s' if at_once > 1 else ''} at once. Memory is a worker's, or the device's.")
    made = sum(one.finished for one in planned)
    left = f", {made} of them made already" if made else ""
    budget = f" (budget: {scale.minutes:g})" if scale.minutes is not None else ""
    say(f"{sum(one.runs for one in planned)} runs{left}: about {in_minutes(total)} minutes{budget}.")
    if tuning:
        runs = sum(one.tuning_runs for one in planned)
        say(f"Calibration, a run of its own for a new setting: {runs} runs, about {in_minutes(tuning)} minutes.")
    if scale.minutes is not None and total > 60 * scale.minutes:
        warn(f"{in_minutes(total)} minutes are more than the {scale.minutes:g} of this scale")


def _planned_row(one: Planned, at_once: int) -> tuple[str, ...]:
    from noisesam.reproduce.estimates import in_minutes

    memory = one.device_memory or one.memory
    bound = "" if one.measured else ">"
    tuning = f"{one.tuning_runs} runs, {in_minutes(one.tuning_seconds / at_once)} min" if one.tuning_runs else "-"
    shown = f"{bound}{memory / 1e9:.1f} GB" if memory else "-"
    return (one.name, str(one.runs), str(one.finished), f"{one.steps:,}", in_minutes(one.seconds / at_once), shown, tuning)


def _introduce(scale: Scale, settings: list[Setting]) -> None:
    """Say what is about to be run, what is expected of it, and by which rule it decides."""
    say(f"Why is SAM robust to label noise? {scale.name}: {scale.title}", style="bold")
    for setting in settings:
        say()
        say(f"{setting.name}: {setting.sweep.title} ({len(setting.jobs)} runs)", style="bold")
        say(f"Expected: {setting.sweep.expectation}")
        say(f"Decided by: {setting.sweep.decision}")
    say()


def _make(
    scale: Scale, settings: list[Setting], *, workers: int, data_root: Path | None, minutes: float | None, lines: bool
) -> Outcome | None:
    """Make what is not finished; None if the time was over before."""
    from noisesam.cli.workers import make_runs
    from noisesam.reproduce.making import make_in_turn, need_device
    from noisesam.reproduce.settings import devices, in_order

    jobs = in_order(settings, scale)
    need_device(devices(settings))
    if scale.by_method or minutes is not None:
        with warnings_in_words(), progress_bar("", None) as bar:
            task = bar.task_ids[0]
            outcome, complete = make_in_turn(
                jobs, minutes=minutes, data_root=data_root, progress=lambda text: bar.update(task, description=text)
            )
        if not complete:
            _say_unfinished(jobs, outcome)
            return None
        return outcome
    outcome = make_runs(jobs, workers=workers, data_root=data_root, on_failure="collect", lines=lines)
    diverged = [failure for failure in outcome.failed if scale.controls and _diverged(jobs, failure.name)]
    for failure in diverged:
        warn(f"{failure} Its point is not chosen, and the run is left out.")
    if len(diverged) < len(outcome.failed):
        for failure in outcome.failed:
            show_error(RunError(f"{failure.name}: {failure.given}", expected=failure.expected, remedy=failure.remedy))
        raise RunError(
            f"{len(outcome.failed)} of {len(jobs)} runs failed, so that nothing can be judged",
            expected="every run of the scale",
            remedy="Repair the cause; the same command again makes what is missing",
        )
    return outcome


def _diverged(jobs: list[Job], name: str) -> bool:
    """Say whether every run of a name that is not finished ended by itself, with what it measured so far."""
    from noisesam.experiments import is_finished
    from noisesam.runs import open_run

    own = [job for job in jobs if job.name == name]
    kept = [job for job in own if (job.folder / "manifest.json").exists()]
    return bool(own) and kept == own and all(is_finished(job) or open_run(job.folder).status == "failed" for job in own)


def _say_unfinished(jobs: list[Job], outcome: Outcome) -> None:
    err.print(
        f"The time is over: {outcome.made + outcome.skipped} of {len(jobs)} runs are made. The same command goes on from here.",
        soft_wrap=True,
    )


def _conclude(
    scale: Scale,
    settings: list[Setting],
    folder: Path,
    keep: Path | None,
    done: Outcome,
    began: float,
    *,
    as_json: bool,
) -> None:
    """Check, judge, write and show."""
    from noisesam.reproduce.baek2024 import find, find_controls

    findings = find_controls(scale, settings) if scale.controls else find(scale, settings)
    written = _write(findings, folder, keep)
    spent = time.perf_counter() - began
    for name in findings.shows_nothing:
        warn(f"{name}: SGD fits {number(findings.fitted[name], 2)} of the wrong labels at the end; below half it shows nothing")
    if as_json:
        print_json(_as_json(findings, written, folder, spent) | {"made": done.made, "skipped": done.skipped})
        return
    say(f"{done.made} runs made, {done.skipped} finished before, in {spent / 60:.1f} minutes. All manifests are as asked for.")
    say()
    if "published" in findings.tables:
        _show_published(findings)
    _show(findings)
    _say_where(folder, written, keep)


def _write(findings: Findings, folder: Path, keep: Path | None) -> Written:
    """Write into the output folder, and into the folder that is kept."""
    from noisesam.reproduce.outputs import copy, write

    parts = ["noisesam", "reproduce", "baek2024", "--scale", findings.scale.name]
    command = shlex.join(parts)
    with warnings_in_words():
        written = write(findings, folder, command=command)
    if keep is not None:
        copy(written, keep)
    return written


def _show_published(findings: Findings) -> None:
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


def _percent(value: Any) -> str:
    shown = number(value, 4)
    return "-" if shown == "-" else f"{100 * float(value):.1f}%"


def _points(value: Any) -> str:
    return "-" if number(value) == "-" else f"{100 * float(value):+.1f}"


def _show(findings: Findings) -> None:
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


def _said(row: Mapping[Any, Any]) -> list[str]:
    """The numbers that decide, without those beside, and the reason if the claim stays open; the table names every run."""
    estimate = str(row["estimate"]).partition("beside:")[0].strip().rstrip(";")
    reasons = str(row["reason"]).split("; ") if row["verdict"] == "undecided" else []
    named = [reason for reason in reasons if reason.startswith("left out: ")]
    if len(named) > _NAMED:
        reasons = [reason for reason in reasons if reason not in named] + [f"{len(named)} options with runs left out"]
    return [text for text in (estimate, *reasons) if text]


def _say_where(folder: Path, written: Written, keep: Path | None) -> None:
    say_path("Tables and figures:", folder)
    if keep is not None:
        say_path("Kept:", keep)
    for name, reason in written.skipped.items():
        say(f"  not drawn: {name}. {reason}", style="dim")


def _as_json(findings: Findings, written: Written, folder: Path, seconds: float) -> dict[str, Any]:
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
