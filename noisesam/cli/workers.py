"""Several runs at once behind one progress bar, for the commands that make runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from noisesam.cli.console import err, progress_bar, warn
from noisesam.experiments import FailedRunError, Job, Outcome, Progress, Report, is_finished
from noisesam.experiments import run_all as make_all

__all__ = ["FailedRunError", "Job", "in_words", "is_finished", "make_runs", "run_all", "shown"]

EVERY = 60.0
"""Seconds between two lines about how far the runs are, where there is no terminal to draw a bar on."""


def run_all(jobs: Sequence[Job], *, workers: int, data_root: Path | None = None) -> int:
    """Make the runs that are not finished yet; the first failing one ends the command.

    Args:
        jobs: The runs, independent of each other.
        workers: Processes, one torch thread each; a run's numbers do not depend on how many there are.
        data_root: Folder of the data sets.

    Returns:
        How many runs were made.

    Raises:
        NoisesamError: The first error of a run; runs under way are stopped at once and resume from their last checkpoint.
    """
    return make_runs(jobs, workers=workers, data_root=data_root).made


def make_runs(
    jobs: Sequence[Job],
    *,
    workers: int,
    executor: Executor | None = None,
    data_root: Path | None = None,
    on_failure: Literal["raise", "collect"] = "raise",
    lines: bool = False,
) -> Outcome:
    """Make the runs that are not finished yet behind a bar; see `noisesam.experiments.run_all`.

    Args:
        jobs: The runs.
        workers: Processes, one torch thread each.
        executor: Where they are made instead.
        data_root: Folder of the data sets.
        on_failure: Whether the first failure ends everything.
        lines: Say how far the runs are, now and then, where no bar can be drawn.
    """
    with shown(lines=lines) as progress:
        return make_all(jobs, workers=workers, executor=executor, data_root=data_root, progress=progress, on_failure=on_failure)


@contextmanager
def shown(*, lines: bool = False) -> Iterator[Progress]:
    """Show reports as a bar with the time left, on a terminal; warnings of runs as lines, everywhere."""
    with progress_bar("training", None) as bar:
        task = bar.task_ids[0]
        told = 0.0

        def show(report: Report) -> None:
            nonlocal told
            if report.warning:
                warn(report.warning)
                return
            failed = f", {report.failed} failed" if report.failed else ""
            done = f"training {report.runs} runs: {report.ended} done{failed} (epochs)"
            bar.update(task, completed=report.epochs, total=report.total_epochs, description=done)
            if lines and not err.is_terminal and report.seconds - told >= EVERY:
                told = report.seconds
                left = "" if report.seconds_left is None else f", about {in_words(report.seconds_left)} left"
                err.print(f"{report.ended} of {report.runs} runs done{failed}{left}", markup=False)

        yield show


def in_words(seconds: float) -> str:
    """A duration as one reads it.

    Example:
        >>> in_words(42.0), in_words(200.0), in_words(9000.0)
        ('42 s', '3 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
