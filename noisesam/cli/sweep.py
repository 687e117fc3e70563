"""`noisesam sweep FILE.toml`: a grid of runs from a file that says beforehand what is expected and what decides."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import number, plain, print_json, print_table, say, say_path, warn
from noisesam.errors import ConfigurationError, InputError, MissingExtraError, RunError

if TYPE_CHECKING:
    from noisesam.experiments import Choice, Job, Outcome, Sweep

TABLE = "calibration.toml"
"""Beside the sweep files: what every sweep's methods are run with."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The sweep, such as experiments/example-sweep.toml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. (default: runs/<name of the file>)")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Make the runs on this Dask cluster; its workers share the folders.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Choose the hyper-parameters on noisy validation, write the table beside --out, and stop."
        ),
    ] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. (default: $NOISESAM_DATA)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the runs of a sweep that are not finished yet; the same command again resumes it."""
    from noisesam.cli.workers import make_runs
    from noisesam.experiments import is_finished, read_calibration, read_sweep

    stated = read_sweep(file)
    stated.check()
    folder = out if out is not None else Path("runs") / stated.name
    table = file.parent / TABLE
    if calibrate:
        # Beside the runs and not among them: whoever reads the folder of the sweep reads what it reports.
        folder = folder.with_name(f"{folder.name}-calibration")
        jobs = [job for own in _tuning(stated, folder).values() for job in own]
    else:
        jobs = stated.jobs(folder, read_calibration(table) if stated.calibration is not None else None)
    before = {job.name for job in jobs if is_finished(job)}
    if not as_json:
        introduce(stated, len(jobs), len(before), calibrate=calibrate)
    if dry_run:
        if as_json:
            print_json({**statement(stated), "runs": [{"folder": job.name, "finished": job.name in before} for job in jobs]})
        else:
            say_path("Would write to", folder)
        return
    with executor_at(scheduler) as executor:
        outcome = make_runs(
            jobs, workers=workers, executor=executor, data_root=data_root, on_failure="collect", lines=not as_json
        )
    if calibrate:
        conclude_calibration(stated, folder, table, outcome, as_json=as_json)
    else:
        conclude(stated, jobs, before, folder, outcome, as_json=as_json)
    if outcome.failed:
        raise typer.Exit(1)


def _tuning(stated: Sweep, folder: Path) -> dict[tuple[str, int], list[Job]]:
    jobs = stated.calibration_jobs(folder)
    if not jobs:
        raise ConfigurationError(
            f"{stated.name} has nothing to calibrate",
            expected="[calibration.methods.<method>] sections with a grid of several values",
            remedy="Run it without --calibrate",
        )
    return jobs


@contextmanager
def executor_at(address: str | None) -> Iterator[Executor | None]:
    """Connect to a Dask scheduler; without an address there is no executor, and the runs are made here.

    Raises:
        MissingExtraError: Dask is not installed.
        RunError: Nobody answers at the address.
    """
    if address is None:
        yield None
        return
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtraError(
            "--scheduler needs Dask, which is not installed",
            expected="the package distributed",
            remedy='Type: pip install "noisesam[dask]"; or leave --scheduler out, which makes the runs on this machine',
        ) from error
    try:
        client = distributed.Client(address)
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(
            f"No Dask scheduler answers at {address} ({error})",
            expected="an address such as tcp://host:8786",
            remedy="Start one with: dask scheduler",
        ) from error
    with client:
        yield client.get_executor()


def introduce(stated: Sweep, runs: int, finished: int, *, calibrate: bool) -> None:
    """Say what is asked and expected, and how many runs that takes."""
    say(stated.title, style="bold")
    if calibrate:
        say("Calibration: every method is tried with its grid, and the accuracy on noisy validation labels chooses.")
    else:
        say(f"Expected: {stated.expectation}")
        say(f"Decides: {stated.decision}")
    say(f"{runs} runs" + (f", {finished} of them are finished already." if finished else "."))
    say()


def statement(stated: Sweep) -> dict[str, Any]:
    """What was stated before the runs."""
    return {
        "name": stated.name,
        "title": stated.title,
        "expectation": stated.expectation,
        "decision": stated.decision,
        "seeds": list(stated.seeds),
        "points": [{"label": point.label, "values": point.values} for point in stated.points],
    }


def conclude(stated: Sweep, jobs: Sequence[Job], before: set[str], folder: Path, outcome: Outcome, *, as_json: bool) -> None:
    """Write sweep.json beside the runs, and show what became of every point."""
    from noisesam.runs.files import write_atomically
    from noisesam.runs.manifest import without_places

    failed = {failure.name for failure in outcome.failed}
    flags = {job.name: None if job.name in failed else _at_chance(job) for job in jobs}
    failures = [{**vars(failure), "given": without_places(failure.given)} for failure in outcome.failed]
    stuck = sorted(name for name, flag in flags.items() if flag)
    said = {
        **statement(stated),
        "outcome": {"made": outcome.made, "skipped": outcome.skipped, "failed": failures, "at_chance": stuck},
        "runs": [_entry(job, point.label) for job, point in zip(jobs, stated.points * len(stated.seeds), strict=True)],
    }
    text = json.dumps(plain(said), indent=2, ensure_ascii=False)
    write_atomically(folder / "sweep.json", (text + "\n").encode())
    _show_failures(outcome)
    for name in stuck:
        warn(f"{name} stayed at chance on the noisy validation labels: it learnt nothing that could be compared")
    if as_json:
        print_json({**said, "out": folder})
        return
    rows = []
    for number_of_point, point in enumerate(stated.points):
        own = [job.name for job in jobs[number_of_point :: len(stated.points)]]
        lost, skipped = sum(name in failed for name in own), sum(name in before for name in own)
        known = [flags[name] is True for name in own if flags[name] is not None]
        chance = str(sum(known)) if known else "-"
        rows.append((point.label, str(len(own) - skipped - lost), str(skipped), str(lost), chance))
    print_table(("point", "made", "finished\nbefore", "failed", "at\nchance"), rows, right=(1, 2, 3, 4))
    if not all(flag is not None for name, flag in flags.items() if name not in failed):
        say("- : no validation examples, by which chance would be told.", style="dim")
    say_path("Runs and sweep.json:", folder)


def _at_chance(job: Job) -> bool | None:
    """Whether a finished run learnt nothing; None where nothing tells."""
    from noisesam.experiments import at_chance
    from noisesam.runs import open_run

    try:
        return at_chance(open_run(job.folder))
    except (InputError, RunError):
        return None


def _entry(job: Job, point: str) -> dict[str, Any]:
    """What sweep.json says of a run; no place of this machine."""
    from noisesam.runs import open_run

    try:
        run = open_run(job.folder)
        found = {"id": run.id, "status": run.status}
    except RunError:
        found = {"id": None, "status": "missing"}
    return {"folder": job.name, "point": point, "seed": job.config.seed, **found}


def conclude_calibration(stated: Sweep, folder: Path, table: Path, outcome: Outcome, *, as_json: bool) -> None:
    """Write what was chosen into the table, and show every try."""
    from noisesam.experiments import read_calibration, write_calibration

    _show_failures(outcome)
    choices = stated.choices(folder)
    write_calibration(table, read_calibration(table).with_choices(choices))
    for choice in choices:
        taken = ", ".join(f"{key} = {value}" for key, value in choice.tries[choice.taken].options.items())
        if choice.at_chance:
            warn(f"{choice.method} stays at chance in all of its grid: lower its values")
        elif choice.at_the_edge:
            warn(f"{choice.method} takes {taken}, an end of its grid: a better value may lie beyond it")
    if as_json:
        failures = [vars(failure) for failure in outcome.failed]
        done = {"made": outcome.made, "skipped": outcome.skipped, "failed": failures}
        print_json({"name": stated.name, "choices": [_choice(choice) for choice in choices], "outcome": done, "table": table})
        return
    rows = [
        (
            choice.method,
            ", ".join(f"{key} {value}" for key, value in one.options.items()),
            number(one.validation_accuracy),
            number(one.best_epoch, 0),
            "taken" if place == choice.taken else "",
            "at chance" if one.at_chance else "",
        )
        for choice in choices
        for place, one in enumerate(choice.tries)
    ]
    print_table(("method", "tried", "noisy\nvalidation", "best\nepoch", "", ""), rows, right=(2, 3))
    say_path("Table:", table)


def _choice(choice: Choice) -> dict[str, Any]:
    return {**vars(choice), "tries": [vars(one) for one in choice.tries], "at_chance": choice.at_chance}


def _show_failures(outcome: Outcome) -> None:
    for failure in outcome.failed:
        warn(f"failed: {failure}")
