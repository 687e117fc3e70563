"""Interleaved timing: every round times each contender once, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from noisesam.bench.case import Case, Step
from noisesam.bench.contenders import BEST_VMAP, VMAP, Contender
from noisesam.bench.outside import ContenderNote
from noisesam.bench.plain import one_by_one
from noisesam.errors import NoisesamError

TOLERANCE = {"float64": 1e-9, "float32": 1e-2, "tf32": 5e-2, "bfloat16": 0.25}
"""Relative difference allowed between a contender and one example at a time; a wrong example axis is off by order one."""


@dataclass
class Timing:
    """The times of one contender on one case, in seconds; `reason` says why there are none."""

    contender: str
    seconds: list[float] = field(default_factory=list)
    relative_error: float | None = None
    """Against one example at a time, of the gradient or of the norms; None where it computes something else."""
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    by_alternative: bool = False
    """Timed is what takes the contender's place."""

    @property
    def median(self) -> float | None:
        """Median over the rounds."""
        return statistics.median(self.seconds) if self.seconds else None


def measure(
    case: Case, contenders: list[Contender], *, rounds: int, slow_rounds: int, told: Callable[[str], None] = lambda _: None
) -> list[Timing]:
    """Time the contenders in turn on one case.

    Each is called once before the clock runs, and what it computes is compared with 1-SAM one example at a time; who is
    refused by its library, or computes something else, is left out with the reason.

    Args:
        case: Model, batch, precision.
        contenders: Who is timed.
        rounds: Timed calls per contender, each after an untimed one of the same contender.
        slow_rounds: Calls per slow contender, spread over the rounds.
        told: Called with the contender's name before each of its calls.

    Returns:
        One entry per contender, in their order, and one for the fastest form of vmap.
    """
    timings = {one.name: Timing(one.name) for one in contenders}
    steps: dict[str, Step] = {}
    truth = _truth(case)
    for one in contenders:
        told(one.name)
        step = _warmed(case, one, timings[one.name], truth)
        if step is not None:
            steps[one.name] = step
    clock = clock_of(case)
    spread = max(1, rounds // max(1, slow_rounds))
    for number in range(rounds):
        start = number % len(contenders)
        for one in contenders[start:] + contenders[:start]:
            told(one.name)
            late = one.slow and (number % spread or len(timings[one.name].seconds) >= slow_rounds)
            if one.name in steps and not late:
                if not one.slow:
                    # A step pays for the caches and the freed memory that its predecessor leaves: in training that is a step
                    # of its own kind. One that takes seconds does not feel it.
                    _timed(case, steps[one.name], clock)
                timings[one.name].seconds.append(_timed(case, steps[one.name], clock))
    return [*timings.values(), *_best_vmap(timings)]


def clock_of(case: Case) -> Callable[[], float]:
    """Return the processor's time for one thread, which other processes do not disturb, and the wall's elsewhere."""
    return time.process_time if case.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _timed(case: Case, step: Step, clock: Callable[[], float]) -> float:
    case.model.zero_grad(set_to_none=True)
    with quiet():
        case.synchronise()
        start = clock()
        step()
        case.synchronise()
        return clock() - start


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the contenders' warnings to ourselves: they have been noted in the call before the clock ran."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _truth(case: Case) -> dict[str, list[Tensor]]:
    case.model.zero_grad(set_to_none=True)
    norms = one_by_one(case)()
    assert norms is not None
    return {"1-sam": _gradient(case), "norms": [norms]}


def _warmed(case: Case, one: Contender, timing: Timing, truth: dict[str, list[Tensor]]) -> Step | None:
    """Return the contender's step, or its alternative's, once it has run and computed the right thing; else note why not."""
    ways = [("", one.prepare)] + ([("alternative", one.alternative)] if one.alternative is not None else [])
    for way, prepare in ways:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                case.model.zero_grad(set_to_none=True)
                step = prepare(case)
                found = step()
            timing.relative_error = _error(case, one, found, truth)
            if timing.relative_error is None or timing.relative_error <= tolerance_of(case):
                if one.ours:
                    timing.notes += sorted({str(warning.message) for warning in caught if warning.category is UserWarning})
                timing.notes += [str(warning.message) for warning in caught if warning.category is ContenderNote]
                if way:
                    timing.by_alternative = True
                    timing.notes.append(f"timed with {one.alternative_words}, since: {timing.reason}")
                timing.reason = ""
                if not one.slow:  # what is proven or compiled at the first call is not the price of a step
                    _timed(case, step, clock_of(case))
                return step
            reason = f"differs from one example at a time by {timing.relative_error:.1e}"
        except Exception as error:  # whatever a library raises is the reason why it has no number
            lines = str(error).strip().splitlines()
            reason = error.given if isinstance(error, NoisesamError) else ": ".join([type(error).__name__, *lines[:1]])
        timing.reason = timing.reason or reason
    return None


def _error(case: Case, one: Contender, found: Tensor | None, truth: dict[str, list[Tensor]]) -> float | None:
    if one.computes not in truth:
        return None
    return relative_error(_gradient(case) if one.computes == "1-sam" else [found], truth[one.computes])


def tolerance_of(case: Case) -> float:
    """Return the relative difference that rounding explains in this case."""
    if case.precision == "float32" and case.parameters[0].dtype == torch.float64:
        return TOLERANCE["float64"]
    # Convolutions on CUDA multiply with 10 bits unless torch is told otherwise; a batch and one example choose other kernels.
    reduced = case.precision == "float32" and case.device == "cuda" and torch.backends.cudnn.allow_tf32
    return TOLERANCE["tf32" if reduced else case.precision]


def _gradient(case: Case) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in case.parameters]


def relative_error(found: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """Return ||found - expected|| / ||expected|| over all tensors.

    Example:
        >>> relative_error([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 0.0])])
        1.333...
    """
    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(found, expected, strict=True) if a is not None]
    if len(pairs) != len(expected):
        return float("inf")
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def _best_vmap(timings: dict[str, Timing]) -> list[Timing]:
    asked = [timings[name] for name in VMAP if name in timings]
    timed = [one for one in asked if one.median is not None]
    if not asked:
        return []
    if not timed:
        return [Timing(BEST_VMAP, reason=asked[0].reason)]
    best = min(timed, key=lambda one: one.median or 0.0)
    return [Timing(BEST_VMAP, list(best.seconds), best.relative_error, [f"the fastest form is {best.contender}"])]
