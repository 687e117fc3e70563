"""Seconds and passes of the family's members, each with SGD beside it in the same process, over whole cycles of steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch

from noisesam.bench import plain
from noisesam.bench.case import Case
from noisesam.bench.family_members import EPOCH, Member
from noisesam.bench.models import BenchModel
from noisesam.bench.timing import clock_of, quiet
from noisesam.errors import NoisesamError
from noisesam.methods import make

SGD_EVERY = 8
"""Steps of a cycle after which SGD is timed again; at least once before and once after every cycle."""


def data_set(model: BenchModel, *, device: str = "cpu", quick: bool = False) -> list[Case]:
    """Return one epoch: batches of different examples on one model."""
    first = Case.of(model, device=device, quick=quick)
    inputs, targets = model.inputs(EPOCH * first.size, quick=quick)
    parts = zip(inputs.to(device).split(first.size), targets.to(device).split(first.size), strict=True)
    return [Case(first.model, part, labels) for part, labels in parts]


class Course:
    """A method on its way through the data set: it is told when an epoch starts, and what it counts is added up."""

    def __init__(self, member: Member, data: Sequence[Case]) -> None:
        self.member, self.data = member, data
        self.method = make(member.method, data[0].model, **member.options)
        size = data[0].size
        self._index = [torch.arange(place * size, (place + 1) * size) for place in range(len(data))]
        self._epoch, self._place = member.cycle.first_epoch, 0
        self.taken = self.forward_examples = self.backward_examples = 0

    def step(self) -> None:
        """Take the next step; its gradient is left in `.grad`."""
        if self._place == 0:
            self.method.start_epoch(self._epoch)
        case = self.data[self._place]
        result = self.method.backward(case.inputs, case.targets, index=self._index[self._place])
        self.forward_examples += result.forward_examples
        self.backward_examples += result.backward_examples
        self.taken += 1
        self._place += 1
        if self._place == len(self.data):
            self._next_epoch()

    def warm_up(self) -> None:
        """Bring the method to where it is timed, at the start of an epoch, and forget what was counted."""
        for _ in range(self.member.cycle.warm_up):
            self.data[0].model.zero_grad(set_to_none=True)
            self.step()
        if self._place:
            self._next_epoch()
        self.taken = self.forward_examples = self.backward_examples = 0

    def passes(self) -> tuple[float, float]:
        """Return forward and backward passes over the batch per step, since the warm-up."""
        examples = self.taken * self.data[0].size
        return self.forward_examples / examples, self.backward_examples / examples

    def _next_epoch(self) -> None:
        self._epoch, self._place = self._epoch + 1, 0


def timed_cycle(
    step: Callable[[], object], base: Callable[[], object], steps: int, stopwatch: Callable[[Callable[[], object]], float]
) -> tuple[float, float]:
    """Time one whole cycle with SGD steps spread over it.

    Args:
        step: A step of the method.
        base: A step of SGD; run before the first, after the last and after every SGD_EVERY-th step.
        steps: Steps of the cycle.
        stopwatch: Runs what it is given and returns the seconds that took.

    Returns:
        Seconds per step of the method, the whole cycle divided by its steps, and seconds per step of SGD.
    """
    own, beside = 0.0, [stopwatch(base)]
    for number in range(1, steps + 1):
        own += stopwatch(step)
        if number % SGD_EVERY == 0 or number == steps:
            beside.append(stopwatch(base))
    return own / steps, sum(beside) / len(beside)


@dataclass
class Cost:
    """What one member costs on one model; `reason` says why there are no numbers."""

    member: str
    seconds: list[float] = field(default_factory=list)
    """Per step, by round."""
    sgd_seconds: list[float] = field(default_factory=list)
    """Per step of SGD beside it, by round."""
    passes: tuple[float, float] | None = None
    """Forward and backward passes over the batch per step, as counted."""
    reason: str = ""

    @property
    def ratios(self) -> list[float]:
        """Seconds relative to the SGD steps of the same round."""
        return [own / sgd for own, sgd in zip(self.seconds, self.sgd_seconds, strict=True)]

    @property
    def ratio(self) -> float | None:
        """Median of the rounds' ratios."""
        return statistics.median(self.ratios) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of the rounds' ratios."""
        if not self.seconds:
            return None
        if len(self.seconds) == 1:
            return self.ratios[0], self.ratios[0]
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def measure(
    data: Sequence[Case],
    chosen: Sequence[Member],
    *,
    rounds: int,
    long_rounds: int,
    told: Callable[[str], None] = lambda _: None,
) -> list[Cost]:
    """Time the members in turn, each with SGD beside it, and count their passes.

    Args:
        data: The batches of an epoch, on one model.
        chosen: Who is timed.
        rounds: Cycles per member.
        long_rounds: Cycles of members whose cycle is an epoch, spread over the rounds.
        told: Called with the member's name before its warm-up and before each of its cycles.

    Returns:
        One entry per member, in their order; who refuses the model has the reason in the place of numbers.
    """
    case, clock = data[0], clock_of(data[0])
    base_steps = cycle([plain.sgd(one) for one in data])

    def base() -> None:
        next(base_steps)()

    def stopwatch(step: Callable[[], object]) -> float:
        case.model.zero_grad(set_to_none=True)
        case.synchronise()
        start = clock()
        step()
        case.synchronise()
        return clock() - start

    costs = {one.name: Cost(one.name) for one in chosen}
    courses: dict[str, Course] = {}
    with quiet():
        stopwatch(base)
        for one in chosen:
            told(one.name)
            try:
                course = Course(one, data)
                course.warm_up()
                courses[one.name] = course
            except NoisesamError as error:  # a method may refuse a model, and says why
                costs[one.name].reason = error.given
        for one in in_turn(chosen, rounds, long_rounds):
            told(one.name)
            if one.name in courses:
                own, sgd = timed_cycle(courses[one.name].step, base, one.cycle.steps, stopwatch)
                costs[one.name].seconds.append(own)
                costs[one.name].sgd_seconds.append(sgd)
    case.model.zero_grad(set_to_none=True)
    for name, course in courses.items():
        costs[name].passes = course.passes()
    return list(costs.values())


def in_turn(chosen: Sequence[Member], rounds: int, long_rounds: int) -> Iterator[Member]:
    """Say who is timed next: round by round, another first in each, members with long cycles in some rounds alone."""
    spread = max(1, rounds // long_rounds)
    for number in range(rounds):
        start = number % len(chosen)
        for one in [*chosen[start:], *chosen[:start]]:
            if not one.long or (number % spread == 0 and number // spread < long_rounds):
                yield one
