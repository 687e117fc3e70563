"""Several runs at once: a process pool of single-threaded workers with one progress bar over all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisesam.cli.allocation import keep_freed_memory
from noisesam.cli.console import progress_bar, warn, warnings_in_words
from noisesam.errors import NoisesamError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from noisesam.training import Config


@dataclass(frozen=True)
class Job:
    """One run to be made: its configuration and its folder."""

    config: Config
    folder: Path


_reports: Any = None
"""In a worker: where it reports epochs to."""


def is_finished(job: Job) -> bool:
    """Whether the folder holds this very run, finished and readable; another run there is for `fit` to refuse."""
    if not (job.folder / "manifest.json").exists():
        return False
    from noisesam.runs import open_run
    from noisesam.training import load_config

    run = open_run(job.folder)
    return run.status == "finished" and not run.problems and load_config(run.config) == job.config


def run_all(jobs: list[Job], *, workers: int, data_root: Path | None = None) -> int:
    """Make the runs that are not finished yet.

    Args:
        jobs: The runs, independent of each other.
        workers: Processes, one torch thread each; a run's numbers do not depend on how many there are.
        data_root: Folder of the data sets.

    Returns:
        How many runs were made.

    Raises:
        NoisesamError: The first error of a run; runs under way are stopped at once and resume from their last checkpoint.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    if not waiting:
        return 0
    epochs = sum(job.config.training.epochs for job in waiting)
    reports = multiprocessing.get_context("spawn").Queue()
    with (
        _pool(min(workers, len(waiting)), reports) as pool,
        progress_bar(f"training {len(waiting)} runs (epochs)", epochs) as bar,
    ):
        task = bar.task_ids[0]
        futures = [pool.submit(_make, job, data_root) for job in waiting]
        for finished in _watch(futures, reports, lambda epochs: bar.update(task, advance=epochs)):
            try:
                finished.result()
            except BrokenExecutor as error:
                raise RunError(
                    "A worker process was killed from outside",
                    expected="enough memory for every worker",
                    remedy="The same command again resumes; --workers 1 needs less memory",
                ) from error
    return len(waiting)


@contextmanager
def _pool(workers: int, reports: Any) -> Iterator[Executor]:
    """Spawned workers that start with one thread each and are gone, whatever happens."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))  # inherited by the workers, read when they import torch
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(reports,))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    finally:
        for name, value in threads.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reports.close()
        reports.cancel_join_thread()


def _watch(futures: list[Future[None]], reports: Any, advance: Any) -> Iterable[Future[None]]:
    """Yield futures as they end; a worker's report is a number of epochs, or a warning in words."""
    pending = set(futures)
    while pending:
        with contextlib.suppress(queue.Empty):
            report = reports.get(timeout=0.2)
            while True:
                warn(report) if isinstance(report, str) else advance(report)
                report = reports.get_nowait()
        done = {future for future in pending if future.done()}
        pending -= done
        yield from as_completed(done)


def _start(reports: Any) -> None:
    global _reports
    _reports = reports
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """End this worker when its parent is gone, however that ended: nobody would read its runs or stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # As safe as a kill: whatever was flushed is whole.


def _make(job: Job, data_root: Path | None) -> None:
    """In a worker: make one run."""
    import signal

    import torch

    from noisesam.training import fit

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the workers
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        with warnings_in_words(lambda text: _reports.put(f"{job.folder.name}: {text}")):
            fit(job.config, job.folder, data_root=data_root, progress=_Reporter(job.config.training.epochs))
    except NoisesamError as error:
        raise FailedRunError(job.folder.name, error.given, error.expected, error.remedy) from None


class _Reporter:
    """Reports whole epochs of one run to the parent; a report for every step would be felt."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.reported = 0

    def __call__(self, step: int, total: int, _: str) -> None:
        done = self.epochs * step // max(total, 1)
        if done > self.reported:
            _reports.put(done - self.reported)
            self.reported = done


class FailedRunError(NoisesamError):
    """An error of one run, able to cross a process border with its three parts."""

    def __init__(self, run: str, given: str, expected: str = "", remedy: str = "") -> None:
        self.parts: Mapping[str, str] = {"run": run, "given": given, "expected": expected, "remedy": remedy}
        super().__init__(f"{run}: {given}", expected=expected, remedy=remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the call that makes it; an exception's own pickling would lose the keyword parts."""
        return FailedRunError, tuple(self.parts.values())
