"""Make many runs: skip what is finished, resume what broke, go on past what fails, and say how long it will take."""

from __future__ import annotations

import contextlib
import os
import queue
import time
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import Any, Literal

from noisesam.errors import InputError, RunError
from noisesam.experiments import processes
from noisesam.experiments.jobs import FailedRunError, Failure, Job, Outcome, Progress, Report, is_finished
from noisesam.experiments.pace import Pace
from noisesam.experiments.work import make_run

_POLL = 0.2
"""Seconds between two looks at what the workers have told."""
_LOOK = 0.5
"""Seconds between two computations of the time left: hundreds of runs report hundreds of epochs each."""


def run_all(
    jobs: Sequence[Job],
    *,
    workers: int = 2,
    executor: Executor | None = None,
    data_root: str | Path | None = None,
    progress: Progress | None = None,
    on_failure: Literal["raise", "collect"] = "raise",
) -> Outcome:
    """Make the runs that are not finished yet; a run's numbers do not depend on how many are made at once, or where.

    Args:
        jobs: The runs, independent of each other, each with its own folder.
        workers: Processes, one thread each; not used with an executor of one's own. Processes are spawned: a script needs
            `if __name__ == "__main__":` around the call.
        executor: Any `concurrent.futures.Executor`: of threads (torch's generators belong to the process, so threads make one
            run at a time), of MPI, of a Dask cluster (`Client.get_executor()`). Its workers need noisesam and the folders.
        data_root: Folder of the data sets; None takes NOISESAM_DATA.
        progress: Called with a `Report` at every change, and for every warning of a run. Without it, warnings are raised as
            warnings.
        on_failure: "raise" ends everything at the first failing run; "collect" makes all others and returns the failures.

    Returns:
        How many runs were made and skipped, and the failures.

    Raises:
        InputError: Two jobs with one folder, or a number of workers below one.
        FailedRunError: The first failing run, with "raise"; runs under way are stopped and go on from their last checkpoint
            at the next call. An executor of one's own cannot be stopped: it ends the runs under way.
        RunError: A worker process was killed from outside, with "raise". With "collect" the runs that it may have been are
            made again one by one, and only one that is killed alone is a failure.

    Example:
        >>> import tempfile
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from noisesam.training import load_config
        >>> tiny = {"data": {"train_size": 64}, "model": {"name": "linear"}, "training": {"epochs": 1}}
        >>> with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as threads:
        ...     jobs = [Job(load_config(tiny | {"seed": seed}), Path(folder) / f"seed{seed}") for seed in (0, 1)]
        ...     run_all(jobs[:1], executor=threads), run_all(jobs, executor=threads)
        (Outcome(made=1, skipped=0, failed=()), Outcome(made=1, skipped=1, failed=()))
    """
    if workers < 1:
        raise InputError(f"workers = {workers}", expected="at least 1")
    _refuse_shared_folders(jobs)
    waiting = [job for job in jobs if not is_finished(job)]
    if not waiting:
        return Outcome(0, len(jobs))
    root = None if data_root is None else Path(data_root).expanduser().absolute()
    tally = _Tally(waiting, progress, collect=on_failure == "collect")
    if executor is None:
        _in_processes(tally, workers, root)
    else:
        _in_executor(tally, executor, root)
    return Outcome(tally.made, len(jobs) - len(waiting), tuple(tally.failures))


def _refuse_shared_folders(jobs: Iterable[Job]) -> None:
    seen: set[Path] = set()
    for job in jobs:
        folder = job.folder.absolute()
        if folder in seen:
            raise InputError(f"Two jobs have the folder {job.folder}", expected="a folder for each run")
        seen.add(folder)


def _in_processes(tally: _Tally, workers: int, data_root: Path | None) -> None:
    """Make the runs in pools of processes: one pool, unless workers are killed from outside."""
    groups = deque([(list(range(len(tally.jobs))), workers)])
    while groups:
        numbers, count = groups.popleft()
        count = min(count, len(numbers))
        reports = processes.make_queue()
        with processes.pool(count, reports) as pool:
            killed = _follow(tally, pool, numbers, data_root, reports)
        if not killed:
            continue
        left = [number for number in numbers if number not in tally.over]
        if len(numbers) == 1:
            tally.fail(numbers[0], _killed(tally.jobs[numbers[0]].name))
            continue
        # Whichever run it was is among those that had begun; each of them is made again in a process of its own.
        suspects = [number for number in left if number in tally.begun] or left[:count]
        groups.append(([number for number in left if number not in suspects], count))
        groups.extend(([number], 1) for number in suspects)
        groups = deque(group for group in groups if group[0])


def _killed(name: str) -> Failure:
    return Failure(
        name,
        "Its worker process was killed from outside, also with no other run beside it",
        "enough memory for the run",
        "Lower training.batch_size or the method's memory_budget; the same command again resumes",
    )


def _in_executor(tally: _Tally, executor: Executor, data_root: Path | None) -> None:
    """Make the runs on an executor of the caller's, whose processes may have another working directory and environment."""
    given = os.environ.get("NOISESAM_DATA")
    root = Path(given).expanduser().absolute() if data_root is None and given else data_root
    if _follow(tally, executor, list(range(len(tally.jobs))), root, None):
        left = [number for number in range(len(tally.jobs)) if number not in tally.over]
        for number in left:
            name = tally.jobs[number].name
            tally.fail(number, Failure(name, "The executor broke down before the run ended", "", "Start it again, and resume"))


def _follow(tally: _Tally, executor: Executor, numbers: list[int], data_root: Path | None, reports: Any) -> bool:
    """Hand out the runs and count them as they end.

    Returns:
        Whether the executor broke before all had ended.
    """
    tally.begun.clear()
    futures: dict[Future[tuple[str, ...]], int] = {}
    broken: BrokenExecutor | None = None
    try:
        for number in numbers:
            job = tally.jobs[number]
            futures[executor.submit(make_run, Job(job.config, job.folder.absolute()), number, data_root)] = number
    except BrokenExecutor as error:  # while the last ones were handed out
        broken = error
    pending = set(futures)
    try:
        while pending:
            _listen(tally, reports)
            done = wait(pending, timeout=_POLL if reports is None else 0, return_when=FIRST_COMPLETED).done
            if done:
                _listen(tally, reports, timeout=0.0)
            for future in done:
                try:
                    tally.end(futures[future], future)
                except BrokenExecutor as error:
                    broken = error
            pending -= done
    except BaseException:
        for future in pending:
            future.cancel()
        raise
    if broken is not None and not tally.collect:
        raise RunError(
            "A worker process was killed from outside",
            expected="enough memory for every worker",
            remedy="The same command again resumes; --workers 1 needs less memory",
        ) from broken
    return broken is not None


def _listen(tally: _Tally, reports: Any, timeout: float = _POLL) -> None:
    """Take in what the workers have told."""
    if reports is None:
        return
    with contextlib.suppress(queue.Empty):
        tally.told(*(reports.get(timeout=timeout) if timeout else reports.get_nowait()))
        while True:
            tally.told(*reports.get_nowait())


class _Tally:
    """Counts runs and epochs, and tells the caller."""

    def __init__(self, jobs: list[Job], progress: Progress | None, *, collect: bool) -> None:
        self.jobs = jobs
        self.collect = collect
        self.made = 0
        self.failures: list[Failure] = []
        self.begun: set[int] = set()
        self.over: set[int] = set()
        self._progress = progress
        self._epochs = dict.fromkeys(range(len(jobs)), 0)
        self._resumed: dict[int, int] = {}
        self._warned: set[str] = set()
        self._started = time.monotonic()
        self._pace = Pace(jobs)
        self._left: float | None = None
        self._next_look = 0.0
        self._total = sum(job.config.training.epochs for job in jobs)
        self._tell()

    def told(self, what: str, number: int, value: Any) -> None:
        """Take in one report of a worker."""
        if what == "begun":
            self.begun.add(number)
        elif what == "warning":
            self._warn(value)
        elif number not in self.over:
            self._resumed.setdefault(number, value)
            self._epochs[number] = value
            self._pace.told(number, value, time.monotonic())
            self._tell()

    def end(self, number: int, future: Future[tuple[str, ...]]) -> None:
        """Count a run whose future is done.

        Raises:
            BaseException: What the future raised: any error without `collect`, and a broken executor always.
        """
        try:
            texts = future.result()
        except BrokenExecutor:
            raise
        except FailedRunError as error:
            if not self.collect:
                raise
            self.fail(number, error.failure)
            return
        except Exception as error:
            if not self.collect:
                raise
            self.fail(number, _unforeseen(self.jobs[number].name, error))
            return
        for text in texts:
            self._warn(text)
        self.made += 1
        self._close(number)

    def fail(self, number: int, failure: Failure) -> None:
        """Count a run that failed."""
        self.failures.append(failure)
        self._close(number)

    def _close(self, number: int) -> None:
        self.over.add(number)
        self._epochs[number] = self.jobs[number].config.training.epochs  # nothing of it is left to wait for
        self._tell()

    def _warn(self, text: str) -> None:
        if text in self._warned:
            return
        self._warned.add(text)
        if self._progress is None:
            warnings.warn(text, UserWarning, stacklevel=2)
        else:
            self._progress(self._report(text))

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._report())

    def _report(self, warning: str = "") -> Report:
        seconds, epochs = time.monotonic() - self._started, sum(self._epochs.values())
        if seconds >= self._next_look or len(self.over) == len(self.jobs):
            self._next_look = seconds + _LOOK
            self._left = self._time_left(seconds)
        return Report(len(self.jobs), len(self.over), len(self.failures), epochs, self._total, seconds, self._left, warning)

    def _time_left(self, seconds: float) -> float | None:
        """Return the work that is left at the pace at which work was done, None while most of it is of unknown kinds."""
        done = left = guessed = 0.0
        for number, epochs in self._epochs.items():
            each = self._pace.seconds_per_epoch(number)
            ahead = each * (self.jobs[number].config.training.epochs - epochs)
            done += each * (epochs - self._resumed.get(number, 0))
            left += ahead
            guessed += 0.0 if self._pace.knows(number) else ahead
        whole_runs_only = not self._resumed  # an executor of the caller's: no epoch is ever told of
        return left * seconds / done if done > 0 and (guessed <= 0.5 * left or whole_runs_only) else None


def _unforeseen(name: str, error: Exception) -> Failure:
    """A failure that noisesam does not raise itself: the others go on all the same."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(name, text, "", "Make the run alone to see where it comes from: the same call with this one job")
