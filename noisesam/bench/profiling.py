"""Where a step spends its time: the operators with the largest time of their own."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile

from noisesam.bench.case import Case
from noisesam.bench.contenders import Contender
from noisesam.bench.timing import quiet

OPERATORS, STEPS = 5, 3


def profiled(case: Case, contender: Contender) -> list[dict[str, Any]]:
    """Return the operators of one step with the largest time of their own, largest first.

    Returns:
        Per operator its name, milliseconds and calls per step, and its share of the step's time.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device == "cuda" else [])
    with quiet():
        step = contender.prepare(case)
        step()
        with profile(activities=activities) as taken:
            for _ in range(STEPS):
                case.model.zero_grad(set_to_none=True)
                step()
            case.synchronise()
        rows = [(str(event.key), _microseconds(event, case.device), int(event.count)) for event in taken.key_averages()]
    total = sum(time for _, time, _ in rows) or 1.0
    largest = sorted(rows, key=lambda row: -row[1])[:OPERATORS]
    return [
        {"operator": name, "ms": time / 1000 / STEPS, "share": time / total, "calls": calls / STEPS}
        for name, time, calls in largest
    ]


def _microseconds(event: Any, device: str) -> float:
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)
