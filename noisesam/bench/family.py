"""What every method of the family costs: passes as counted, seconds as timed against SGD next to it, as one plain document.

A method whose steps differ (LookSAM's every k-th, a mask that is renewed by epoch) is timed over one whole cycle of steps;
a method that pays later than its start (SAF, MESA) is first brought to where it pays. `family_members.CYCLES` says for whom.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from noisesam.bench.contenders import BASE
from noisesam.bench.family_claims import CLAIMS, judge_claims
from noisesam.bench.family_members import EPOCH, Member, documented_passes, members
from noisesam.bench.family_timing import SGD_EVERY, Cost, data_set, measure
from noisesam.bench.models import BenchModel
from noisesam.bench.suite import machine_kind
from noisesam.bench.suite import plan as checked_plan
from noisesam.runs.manifest import hardware, now, software_versions, without_places

SCHEMA = 1
KIND = "family"
MODELS = ("mlp", "resnet8", "vit")
"""The models by default."""
LONG_SHARE = 3
"""Members whose cycle is an epoch run a third of the rounds: each of theirs is an average over many steps already."""


@dataclass(frozen=True)
class FamilyPlan:
    """What is to be measured."""

    models: list[BenchModel]
    members: list[Member]
    threads: list[int]
    device: str
    rounds: int
    quick: bool

    @property
    def long_rounds(self) -> int:
        """Cycles of members whose cycle is an epoch."""
        return max(1, self.rounds // LONG_SHARE)

    @property
    def units(self) -> int:
        """Warm-ups and cycles that a progress bar counts."""
        each = sum(1 + (self.long_rounds if one.long else self.rounds) for one in self.members)
        return len(self.threads) * len(self.models) * each


def plan_family(
    *,
    models: list[str] | None = None,
    chosen: list[str] | None = None,
    threads: list[int] | None = None,
    device: str = "cpu",
    rounds: int | None = None,
    quick: bool = False,
) -> FamilyPlan:
    """Check what is asked for.

    Args:
        models: Names of bench models; MLP, ResNet-8 and ViT by default.
        chosen: Names of members; all by default. SAM is always among them, as what overheads are relative to.
        threads: Numbers of threads, each measured apart; one by default.
        device: "cpu" or "cuda".
        rounds: Cycles per member; those whose cycle is an epoch run a third.
        quick: Tiny models, to try it.

    Raises:
        InputError: A name or a number is not valid, or there is no such device.

    Example:
        >>> plan_family(models=["mlp"], chosen=["looksam"], rounds=4).units
        10
    """
    general = checked_plan(
        models=list(MODELS) if models is None else models, contenders=[BASE], threads=threads or [1], device=device,
        rounds=rounds, quick=quick, measures_memory=False,
    )  # fmt: skip
    return FamilyPlan(general.models, members(chosen), threads or [1], device, general.rounds, quick)


def run_family(plan: FamilyPlan, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything that is planned.

    Args:
        plan: From `plan_family`.
        told: Called with a few words before every warm-up and cycle; `plan.units` times.

    Returns:
        A document of strings, numbers, lists and dicts: machine, versions, options, members, SGD's seconds, costs, and
        verdicts on claims.
    """
    document: dict[str, Any] = {"schema": SCHEMA, "kind": KIND, "created": now(), "quick": plan.quick, **_surroundings(plan)}
    document |= {"members": [_member_row(one) for one in plan.members], "models": [], "sgd": [], "costs": [], "claims": []}
    before = torch.get_num_threads()
    try:
        for model in plan.models:
            data = data_set(model, device=plan.device, quick=plan.quick)
            about = {"model": model.name, "heading": model.heading, "title": model.title, "batch": data[0].size}
            document["models"].append(about | {"parameters": sum(weight.numel() for weight in data[0].parameters)})
            for threads in plan.threads:
                torch.set_num_threads(threads)
                words = f"{model.name}, {threads} thread{'s' if threads > 1 else ''}: "
                costs = measure(
                    data, plan.members, rounds=plan.rounds, long_rounds=plan.long_rounds,
                    told=lambda name, words=words: told(words + name),
                )  # fmt: skip
                _enter(document, plan, costs, {"model": model.name, "threads": threads}, data[0].size)
    finally:
        torch.set_num_threads(before)
    return document


def _enter(document: dict[str, Any], plan: FamilyPlan, costs: list[Cost], here: dict[str, Any], batch: int) -> None:
    """Write what was measured on one model, and what it says about the claims."""
    sgd = [seconds for one in costs for seconds in one.sgd_seconds]
    document["sgd"].append(here | {"seconds": statistics.median(sgd) if sgd else None, "calls": len(sgd)})
    ratios = {one.member: one.ratio for one in costs if one.ratio is not None}
    for member, one in zip(plan.members, costs, strict=True):
        document["costs"].append(here | _cost_row(one, ratios.get("sam"), documented_passes(member, batch)))
    verdicts = judge_claims(
        ratios, {one.member: without_places(one.reason) for one in costs if one.reason},
        passes={one.member: one.passes for one in costs if one.passes is not None},
    )  # fmt: skip
    for one in verdicts:
        claim = CLAIMS[one.claim]
        stated = {"statement": claim.statement, "citation": claim.citation, "rule": claim.rule, "reading": claim.reading}
        document["claims"].append(here | asdict(one) | stated)


def _surroundings(plan: FamilyPlan) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if plan.device == "cuda" else None
    machine = hardware(gpu, 1 if gpu else 0)
    on_cpu = "process time at one thread, wall time elsewhere"
    return {
        "machine_kind": machine_kind(machine),
        "machine": machine,
        "versions": software_versions(),
        "options": {
            "device": plan.device,
            "threads": plan.threads,
            "precision": "float32",
            "rounds": plan.rounds,
            "long_rounds": plan.long_rounds,
            "epoch_steps": EPOCH,
            "sgd_every": SGD_EVERY,
            "clock": on_cpu if plan.device == "cpu" else "wall time, synchronised",
            "all_members": len(plan.members) == len(members()),
        },
    }


def _member_row(one: Member) -> dict[str, Any]:
    return {
        "member": one.name, "method": one.method, "options": dict(one.options), "cycle_steps": one.cycle.steps,
        "cycle_reason": one.cycle.reason, "warm_up_steps": one.cycle.warm_up, "first_epoch": one.cycle.first_epoch,
    }  # fmt: skip


def _cost_row(one: Cost, sam: float | None, documented: tuple[float, float]) -> dict[str, Any]:
    ratio, quartiles, passes = one.ratio, one.quartiles or (None, None), one.passes or (None, None)
    share = (ratio - 1) / (sam - 1) if ratio is not None and sam is not None and sam > 1 else None
    return {
        "member": one.member,
        "forward_passes": passes[0],
        "backward_passes": passes[1],
        "documented_forward_passes": documented[0],
        "documented_backward_passes": documented[1],
        "seconds_per_step": statistics.median(one.seconds) if one.seconds else None,
        "ratio_to_sgd": ratio,
        "ratio_lower_quartile": quartiles[0],
        "ratio_upper_quartile": quartiles[1],
        "ratio_to_sam": ratio / sam if ratio is not None and sam is not None else None,
        "share_of_sam_overhead": share,
        "rounds": len(one.seconds),
        "reason": without_places(one.reason),
    }
