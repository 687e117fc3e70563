"""Making runs one after the other in this process, for a stated time, so that a long scale goes piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from noisesam.errors import ConfigurationError, NoisesamError
from noisesam.experiments import Failure, Job, Outcome, is_finished
from noisesam.runs.checkpoints import committed_steps

Told = Callable[[str], None]


class OutOfTimeError(BaseException):
    """Raised in a run whose piece of time is over; no `Exception`, so that the run is not marked as failed."""


def make_in_turn(
    jobs: Sequence[Job], *, minutes: float | int | None = None, data_root: Path | None = None, progress: Told | None = None
) -> tuple[Outcome, bool]:
    """Make the runs that are not finished yet, one after the other, and stop when the time is over.

    A run is stopped where it has just written a checkpoint (`checkpoint.every_steps` says how often), so that nothing is lost,
    and never before it has come to the next one, so that every piece gets somewhere. A run that fails is passed over.

    Args:
        jobs: The runs, in the order in which they are made.
        minutes: Wall time of this piece; None goes on to the end.
        data_root: Folder of the data sets.
        progress: Called with a line of text whenever a run has begun an epoch or ended.

    Returns:
        How many runs were made, were finished before, and failed; and whether each of them has come to its end.
    """
    from noisesam.training import fit

    until = None if minutes is None else time.monotonic() + 60 * minutes
    waiting = [job for job in jobs if not is_finished(job)]
    made, failed = 0, list[Failure]()
    for number, job in enumerate(waiting):
        if number and until is not None and time.monotonic() >= until:
            break
        try:
            fit(
                job.config,
                job.folder,
                data_root=data_root,
                progress=_Watch(f"run {number + 1} of {len(waiting)}", job.folder, until, progress),
            )
        except OutOfTimeError:
            break
        except NoisesamError as error:
            failed.append(Failure(job.name, error.given, error.expected, error.remedy))
            continue
        made += 1
    return Outcome(made, len(jobs) - len(waiting), tuple(failed)), made + len(failed) == len(waiting)


class _Watch:
    """Looks at the clock at every step, and tells of every epoch."""

    def __init__(self, name: str, folder: Path, until: float | None, told: Told | None) -> None:
        self.name = name
        self.folder = folder
        self.until = until
        self.told = told
        self.said = ""
        self.first: int | None = None

    def __call__(self, step: int, total: int, text: str) -> None:
        if self.told is not None and text != self.said:
            self.said = text
            self.told(f"{self.name}: {text}")
        if self.first is None:
            self.first = step
        over = self.until is not None and time.monotonic() >= self.until
        if over and self.first < step < total and step in committed_steps(self.folder):
            raise OutOfTimeError


def need_device(devices: Sequence[str]) -> None:
    """Refuse to run where a device that is asked for is missing.

    Raises:
        ConfigurationError: There is no CUDA device.
    """
    wanted = [device for device in devices if device.startswith("cuda")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError(
            f"This scale runs on {wanted[0]}, and torch {torch.__version__} finds no CUDA device here",
            expected="a machine with an NVIDIA GPU and a build of torch for it",
            remedy="Run it there, or use --scale cpu; --dry-run lists what would be run",
        )
