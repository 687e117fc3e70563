"""How long the epochs of runs take, learnt while they are made: an epoch of one model or size is no measure for another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from noisesam.experiments.jobs import Job

WHOLE = 50_000
"""Examples that an epoch over a whole data set is taken to have beside epochs over a stated number."""


@dataclass
class _Timed:
    """Visits to training examples that were timed, and their seconds."""

    visits: int = 0
    seconds: float = 0.0


@dataclass
class Pace:
    """The seconds of an epoch by kind of run: its own, or else those of the same data and model, or else those of all.

    What is learnt is the time of a visit to a training example, so that epochs of fewer examples are shorter.

    Example:
        >>> from pathlib import Path
        >>> from noisesam.training import load_config
        >>> quick, slow = load_config({}), load_config({"model": {"name": "linear"}})
        >>> pace = Pace([Job(quick, Path("a")), Job(slow, Path("b")), Job(slow, Path("c"))])
        >>> for number, epoch, second in ((0, 0, 0.0), (0, 10, 1.0), (1, 0, 1.0), (1, 10, 31.0)):
        ...     pace.told(number, epoch, second)
        >>> round(pace.seconds_per_epoch(0), 6), round(pace.seconds_per_epoch(2), 6)
        (0.1, 3.0)
    """

    jobs: Sequence[Job]
    _kinds: list[tuple[Hashable, ...]] = field(init=False)
    _sizes: list[int] = field(init=False)
    _last: dict[int, tuple[int, float]] = field(default_factory=dict)
    _by_kind: dict[Hashable, _Timed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._kinds = [_kinds(job) for job in self.jobs]
        self._sizes = [job.config.data.train_size or WHOLE for job in self.jobs]

    def told(self, number: int, epoch: int, second: float) -> None:
        """Take in that a run has come to an epoch at a second of any clock; the first report of a run is where it began."""
        before = self._last.get(number)
        self._last[number] = (epoch, second)
        if before is None or epoch <= before[0]:
            return
        for kind in self._kinds[number]:
            timed = self._by_kind.setdefault(kind, _Timed())
            timed.visits += (epoch - before[0]) * self._sizes[number]
            timed.seconds += second - before[1]

    def knows(self, number: int) -> bool:
        """Say whether an epoch of this run's data and model was timed; what others took is a guess, hours off or more."""
        return any(kind in self._by_kind for kind in self._kinds[number][:-1])

    def seconds_per_epoch(self, number: int) -> float:
        """Return what an epoch of a run takes; 1 while nothing was timed, so that epochs are counted."""
        for kind in self._kinds[number]:
            timed = self._by_kind.get(kind)
            if timed is not None and timed.seconds > 0:
                return timed.seconds * self._sizes[number] / timed.visits
        return 1.0


def _kinds(job: Job) -> tuple[Hashable, ...]:
    config = job.config
    setting = (config.data.name, config.model.name, repr(sorted(config.model.options.items())))
    return ((*setting, config.method.name), setting, ())
