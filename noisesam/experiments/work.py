"""One run made in a worker, wherever that is: one thread, warnings in words, errors that can cross a process border."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisesam.errors import NoisesamError
from noisesam.experiments.jobs import FailedRunError, Job

_reports: Any = None
"""In a process of `processes.pool`: the queue on which it tells what it does while it does it."""

_alone = threading.Lock()
"""Torch's generators and its number of threads belong to the process: an executor of threads makes one run at a time."""


def report_to(reports: Any) -> None:
    """In a process of `processes.pool`: tell what the runs do on this queue, as (what, number of the job, value)."""
    global _reports
    _reports = reports


def make_run(job: Job, number: int, data_root: Path | None) -> tuple[str, ...]:
    """Make one run with one thread.

    Args:
        job: The run.
        number: By which the parent knows it.
        data_root: Folder of the data sets.

    Returns:
        Its warnings. Where there is a queue they were told on it at once, too; what is under way there when a run ends may
        arrive too late.

    Raises:
        FailedRunError: What `fit` raises on purpose.
    """
    import torch

    from noisesam.training import fit

    kept: list[str] = []

    def tell(text: str) -> None:
        kept.append(f"{job.name}: {text}")
        _tell("warning", number, kept[-1])

    with _alone, _one_thread(torch), _warnings_in_words(tell):
        _tell("begun", number, 0)
        try:
            fit(job.config, job.folder, data_root=data_root, progress=_Epochs(number, job.config.training.epochs))
        except NoisesamError as error:
            raise FailedRunError(job.name, error.given, error.expected, error.remedy) from None
    return tuple(kept)


class _Epochs:
    """Reports whole epochs of one run to the parent; a report for every step would be felt."""

    def __init__(self, number: int, epochs: int) -> None:
        self.number = number
        self.epochs = epochs
        self.reported = -1

    def __call__(self, step: int, total: int, _: str) -> None:
        done = self.epochs * step // max(total, 1)
        if done > self.reported:
            self.reported = done
            _tell("epochs", self.number, done)


def _tell(what: str, number: int, value: Any) -> None:
    if _reports is not None:
        _reports.put((what, number, value))


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """One thread for what does not ask for more; the process gets its own number back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _warnings_in_words(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell the library's warnings when they are raised; other kinds stay as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, UserWarning):
                tell(str(message))
            else:
                shown(message, category, *place, **rest)

        warnings.showwarning = show
        yield
