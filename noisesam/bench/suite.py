"""The whole bench: times, memory, verdicts and the profiles of what is missed, as one plain document."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from noisesam.bench import memory
from noisesam.bench.case import RHO, Case
from noisesam.bench.contenders import BASE, BEST_VMAP, CONTENDERS, ONE_SAM, SAM, VMAP, Contender, chosen_contenders
from noisesam.bench.models import BenchModel, chosen_models
from noisesam.bench.profiling import alive_at_peak, profiled
from noisesam.bench.targets import MISSED, Verdict, judge
from noisesam.bench.timing import Timing, measure
from noisesam.errors import InputError, NoisesamError
from noisesam.runs.manifest import hardware, now, software_versions, without_places

SCHEMA = 1
DEVICES = ("cpu", "cuda")
ROUNDS, SLOW_SHARE = 9, 3
MEMORY = (BASE, SAM, ONE_SAM, "l-sam", "j-sam", "norms", BEST_VMAP)
"""Whose memory is measured."""


@dataclass(frozen=True)
class Setting:
    """How torch computes: threads of the processor, and precision."""

    threads: int
    precision: str

    @property
    def words(self) -> str:
        """As a heading says it."""
        precision = "bfloat16 autocast" if self.precision == "bfloat16" else self.precision
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {precision}"


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    models: list[BenchModel]
    contenders: list[Contender]
    settings: list[Setting]
    device: str = "cpu"
    rounds: int = ROUNDS
    slow_rounds: int = ROUNDS // SLOW_SHARE
    quick: bool = False
    measures_memory: bool = True

    @property
    def units(self) -> int:
        """Calls that a progress bar counts."""
        calls = len(self.contenders) * (1 + self.rounds)
        return len(self.models) * (len(self.settings) * calls + len(self.memory_contenders))

    @property
    def memory_contenders(self) -> list[str]:
        """Whose memory is measured; the tiny twins are for tests, which ask for two."""
        if not self.measures_memory:
            return []
        asked = {one.name for one in self.contenders} | ({BEST_VMAP} if self._has_vmap else set())
        return [name for name in ((BASE, ONE_SAM) if self.quick else MEMORY) if name in asked]

    @property
    def _has_vmap(self) -> bool:
        return any(one.name in VMAP for one in self.contenders)


def plan(
    *,
    models: list[str] | None = None,
    contenders: list[str] | None = None,
    threads: list[int] | None = None,
    device: str = "cpu",
    rounds: int | None = None,
    quick: bool = False,
    measures_memory: bool = True,
) -> Plan:
    """Check what is asked for.

    Args:
        models: Names of `MODELS`; all by default.
        contenders: Names of `CONTENDERS`; all by default. SGD is always among them, as the unit.
        threads: Numbers of threads, each a setting of its own; one and two by default (one on CUDA).
        device: "cpu", or "cuda" with float32 and bfloat16 autocast.
        rounds: Calls per contender; slow contenders take a third.
        quick: Tiny models, for tests.
        measures_memory: False to leave the peaks of memory out.

    Raises:
        InputError: A name or a number is not valid, or there is no such device.

    Example:
        >>> plan(models=["mlp"], threads=[1], rounds=6).slow_rounds
        2
    """
    if device not in DEVICES:
        raise InputError(f"Device {device!r}", expected="one of: " + ", ".join(DEVICES))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("Device 'cuda'", expected="a device that torch sees", remedy="Use --device cpu.")
    threads = threads or ([1] if device == "cuda" or quick else [1, 2])
    rounds = (2 if quick else ROUNDS) if rounds is None else rounds
    for what, count in [("threads", one) for one in threads] + [("rounds", rounds)]:
        if count < 1:
            raise InputError(f"{what}={count}", expected="a number of at least 1")
    precisions = ["float32", "bfloat16"] if device == "cuda" else ["float32"]
    settings = [Setting(count, precision) for count in threads for precision in precisions]
    slow_rounds = max(1, rounds // SLOW_SHARE)
    return Plan(
        chosen_models(models), chosen_contenders(contenders), settings, device, rounds, slow_rounds, quick, measures_memory
    )


def run(plan: Plan, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything that is planned.

    Args:
        plan: From `plan`.
        told: Called with a few words before every call; `plan.units` times.

    Returns:
        A document of strings, numbers, lists and dicts: machine, versions, options, timings, memory, verdicts, profiles and
        peaks of memory.
    """
    document: dict[str, Any] = {"schema": SCHEMA, "created": now(), "quick": plan.quick, **_surroundings(plan)}
    document |= {"models": [], "timings": [], "memory": [], "verdicts": [], "profiles": [], "peaks": []}
    threads_before = torch.get_num_threads()
    try:
        for model in plan.models:
            fastest: dict[str, str] = {}
            for setting in plan.settings:
                torch.set_num_threads(setting.threads)
                _time(plan, model, setting, document, fastest, told)
            torch.set_num_threads(threads_before)
            _weigh(plan, model, document, fastest, told)
    finally:
        torch.set_num_threads(threads_before)
    return document


def _time(
    plan: Plan,
    model: BenchModel,
    setting: Setting,
    document: dict[str, Any],
    fastest: dict[str, str],
    told: Callable[[str], None],
) -> None:
    case = Case.of(model, device=plan.device, precision=setting.precision, quick=plan.quick)
    if not any(one["model"] == model.name for one in document["models"]):
        count = sum(parameter.numel() for parameter in case.parameters)
        about = {"model": model.name, "heading": model.heading, "title": model.title}
        document["models"].append(about | {"batch": case.size, "parameters": count})
    words = f"{model.name}, {setting.words}: "
    timings = measure(
        case, plan.contenders, rounds=plan.rounds, slow_rounds=plan.slow_rounds, told=lambda name: told(words + name)
    )
    seconds = {one.contender: one.median for one in timings if one.median is not None}
    here = {"model": model.name, "threads": setting.threads, "precision": setting.precision}
    document["timings"] += [here | _timing_row(one, seconds.get(BASE)) for one in timings]
    best = next((note for one in timings if one.contender == BEST_VMAP for note in one.notes), "")
    form = {BEST_VMAP: best.rpartition(" ")[2]} if best else {}
    fastest |= form | fastest
    verdicts = judge(model.name, seconds, {one.contender: one.reason for one in timings if one.median is None})
    document["verdicts"] += [here | _verdict_row(one) for one in verdicts]
    swapped = {one.contender for one in timings if one.by_alternative}
    document["profiles"] += [
        here | {"contender": one.name, "operators": profiled(case, one)} for one in _explained(verdicts, form, swapped)
    ]


def _explained(verdicts: list[Verdict], fastest: dict[str, str], swapped: Collection[str] = ()) -> list[Contender]:
    """Whose profile explains a missed target: the contenders on both sides of its ratio, each once, as they were timed."""
    missed = [one.target for one in verdicts if one.verdict == MISSED and one.measured is not None]
    sides = {fastest.get(side, side) for target in missed for side in (target.above, target.below)}
    found = [one for one in CONTENDERS.values() if one.name in sides]
    return [
        replace(one, prepare=one.alternative) if one.name in swapped and one.alternative is not None else one for one in found
    ]


def _weigh(
    plan: Plan, model: BenchModel, document: dict[str, Any], fastest: dict[str, str], told: Callable[[str], None]
) -> None:
    """Measure the growth of memory, at one thread and in the first precision."""
    grown: dict[str, float] = {}
    reasons: dict[str, str] = {}
    precision = plan.settings[0].precision
    for name in plan.memory_contenders:
        told(f"{model.name}, memory: {name}")
        if name == BEST_VMAP and BEST_VMAP not in fastest:
            reasons[name] = "no form of vmap runs"
            continue
        try:
            child = fastest.get(name, name)
            grown[name] = float(memory.growth(model.name, child, device=plan.device, precision=precision, quick=plan.quick))
        except NoisesamError as error:
            reasons[name] = without_places(str(error))
    base = grown.get(BASE)
    here = {"model": model.name, "precision": precision}
    for name in plan.memory_contenders:
        size = grown.get(name)
        ratio = size / base if size is not None and base else None
        row = {"contender": name, "bytes": size, "ratio_to_sgd": ratio, "reason": reasons.get(name, "")}
        document["memory"].append(here | row)
    verdicts = judge(model.name, grown, reasons, quantity="memory")
    document["verdicts"] += [here | {"threads": 1} | _verdict_row(one) for one in verdicts]
    missed = _explained(verdicts, fastest)
    if missed:
        case = Case.of(model, device=plan.device, precision=precision, quick=plan.quick)
        document["peaks"] += [here | {"contender": one.name} | alive_at_peak(case, one) for one in missed]


def _timing_row(one: Timing, base: float | None) -> dict[str, Any]:
    return {
        "contender": one.contender,
        "median_seconds": one.median,
        "ratio_to_sgd": one.median / base if one.median is not None and base else None,
        "smallest_seconds": min(one.seconds, default=None),
        "largest_seconds": max(one.seconds, default=None),
        "calls": len(one.seconds),
        "relative_error": one.relative_error,
        "notes": [without_places(note) for note in one.notes],
        "reason": without_places(one.reason),
    }


def _verdict_row(one: Verdict) -> dict[str, Any]:
    return {
        "target": one.target.name,
        "quantity": one.target.quantity,
        "bound": one.target.words,
        "measured": one.measured,
        "verdict": one.verdict,
        "reason": without_places(one.reason),
    }


def _surroundings(plan: Plan) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if plan.device == "cuda" else None
    versions = software_versions()
    try:
        versions["opacus"] = importlib.metadata.version("opacus")
    except importlib.metadata.PackageNotFoundError:
        versions["opacus"] = None
    machine = hardware(gpu, 1 if gpu else 0)
    clocks = "process time at one thread, wall time elsewhere" if plan.device == "cpu" else "wall time, synchronised"
    return {
        "machine_kind": machine_kind(machine),
        "machine": machine,
        "versions": versions,
        "options": {
            "device": plan.device,
            "settings": [{"threads": one.threads, "precision": one.precision} for one in plan.settings],
            "rounds": plan.rounds,
            "slow_rounds": plan.slow_rounds,
            "after_own_kind": True,
            "slow": [one.name for one in plan.contenders if one.slow],
            "labels": {one.name: one.label for one in plan.contenders} | {BEST_VMAP: "1-SAM, best vmap"},
            "clock": clocks,
            "rho": RHO,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32) if gpu else None,
        },
    }


def machine_kind(machine: dict[str, Any]) -> str:
    """Return the model of the processor that computes, as a file name.

    Example:
        >>> machine_kind({"gpu": None, "cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu_count": 2})
        'intel-xeon-2.20ghz-2-cores'
    """
    words = machine["gpu"] or f"{machine['cpu'] or 'cpu'} {machine['cpu_count'] or os.cpu_count()} cores"
    words = re.sub(r"\((?:r|tm|c)\)|\bcpu\b|\bprocessor\b", " ", words.lower())
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-.")
