"""`noisesam reproduce baek2024`: the paper's claims, or its controls, at a scale: from sweep files to verdicts and figures."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisesam.cli.console import (
    err,
    number,
    print_json,
    progress_bar,
    say,
    show_error,
    warn,
    warnings_in_words,
)
from noisesam.cli.reproduce_plan import introduce, show_plan
from noisesam.cli.reproduce_shown import as_data, say_where, show_findings, show_published
from noisesam.errors import RunError, unknown_name

if TYPE_CHECKING:
    from noisesam.experiments import Job, Outcome
    from noisesam.reproduce.baek2024 import Findings
    from noisesam.reproduce.outputs import Written
    from noisesam.reproduce.settings import Scale, Setting

PAPERS = ("baek2024",)


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
        show_plan(chosen, settings, workers=workers, data_root=data_root, as_json=as_json)
        return
    began = time.perf_counter()
    if not as_json:
        introduce(chosen, settings)
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
        runs = seeds * (2 * len(METHODS) + len(TWO_LAYER_METHODS))
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
        print_json(as_data(findings, written, folder, time.perf_counter() - began))
        return
    show_findings(findings)
    say_where(folder, written, keep)


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
    else:
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
    for failure in outcome.failed:
        warn(f"{failure}")
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
        print_json(as_data(findings, written, folder, spent) | {"made": done.made, "skipped": done.skipped})
        return
    say(f"{done.made} runs made, {done.skipped} finished before, in {spent / 60:.1f} minutes. All manifests are as asked for.")
    say()
    if "published" in findings.tables:
        show_published(findings)
    show_findings(findings)
    say_where(folder, written, keep)


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
