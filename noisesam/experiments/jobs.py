"""A run to be made, and what is said about runs that were made, skipped or failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisesam.errors import NoisesamError
from noisesam.training import Config, config_to_dict, load_config


@dataclass(frozen=True)
class Job:
    """One run to be made: its configuration and its folder.

    Example:
        >>> Job(load_config({"seed": 3}), Path("runs/a")).name
        'a'
    """

    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, by which the run is spoken of."""
        return self.folder.name


@dataclass(frozen=True)
class Failure:
    """A run that could not be made: its name, and the three parts of the error."""

    name: str
    given: str
    expected: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return str(NoisesamError(f"{self.name}: {self.given}", expected=self.expected, remedy=self.remedy))


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs: runs made now, runs that were finished before, runs that failed."""

    made: int
    skipped: int
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Report:
    """How far the runs are, handed to `progress` at every change; a warning of a run comes as a report of its own."""

    runs: int
    """Runs to be made; those that were finished before do not count."""
    ended: int
    """Runs that have ended, well or not."""
    failed: int
    epochs: int
    """Epochs that are done, over all runs; an executor of one's own reports whole runs only."""
    total_epochs: int
    seconds: float
    """Wall time since the first run was handed out."""
    seconds_left: float | None
    """At the pace so far; None before the first epoch, and while most of what is left is of models that were not timed yet."""
    warning: str = ""
    """A warning of a run, which names itself."""


Progress = Callable[[Report], None]
"""What a caller hands in to be told how far the runs are; called in the caller's thread."""


class FailedRunError(NoisesamError):
    """An error of one run, able to cross a process border with its three parts."""

    def __init__(self, run: str, given: str, expected: str = "", remedy: str = "") -> None:
        self.parts: Mapping[str, str] = {"run": run, "given": given, "expected": expected, "remedy": remedy}
        super().__init__(f"{run}: {given}", expected=expected, remedy=remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the call that makes it; an exception's own pickling would lose the keyword parts."""
        return FailedRunError, tuple(self.parts.values())

    @property
    def failure(self) -> Failure:
        """The same as data."""
        return Failure(*self.parts.values())


def is_finished(job: Job) -> bool:
    """Whether the folder holds this very run, finished and readable; another run there is for `fit` to refuse.

    Args:
        job: The run.

    Returns:
        False too where the folder holds something that cannot be read: `fit` says what is wrong with it.

    Example:
        >>> is_finished(Job(load_config({}), Path("no/such/place")))
        False
    """
    if not (job.folder / "manifest.json").exists():
        return False
    from noisesam.runs import open_run

    try:
        run = open_run(job.folder)
        return run.status == "finished" and not run.problems and _is_of(job.config, run.config, run.manifest.get("data_file"))
    except NoisesamError:
        return False


def _is_of(config: Config, stored: dict[str, Any], data_file: Any) -> bool:
    """Whether a stored configuration is this one; of a data file of the user's own the content counts, not the place."""
    if data_file is None:
        return load_config(stored) == config
    from noisesam.runs import portable_configuration

    portable, identity = portable_configuration(config_to_dict(config), data_file=Path(config.data.name).expanduser())
    return identity == data_file and load_config(stored) == load_config(portable)
