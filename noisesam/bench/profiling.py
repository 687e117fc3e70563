"""Why a step costs what it costs: the operators with the largest time of their own, and what is alive at the peak of memory."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def alive_at_peak(case: Case, contender: Contender) -> list[dict[str, Any]]:
    """Return which operators made the tensors that are alive when one step holds the most memory, most bytes first.

    What a kernel allocates inside itself is not seen, and on an accelerator the reverse pass is not.

    Returns:
        Per operator its name, the bytes of its tensors that are alive, and their share of all bytes at the peak.
    """
    with quiet():
        step = contender.prepare(case)
        step()
        case.model.zero_grad(set_to_none=True)
        with _Allocations() as seen:
            step()
    total = sum(seen.at_peak.values()) or 1
    return [{"operator": name, "bytes": count, "share": count / total} for name, count in seen.at_peak.most_common(OPERATORS)]


class _Allocations(TorchDispatchMode):
    """Follow every new storage from the operator that returns it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._known: set[int] = set()
        self._total = self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):  # what was there before, and what comes in as an argument, is not the step's
                self._follow(value, None)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._follow(value, str(func.overloadpacket))
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, self.now.copy()
        return result

    def _follow(self, tensor: torch.Tensor, operator: str | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if operator is not None else 0
        self.now[operator or ""] += size
        self._total += size
        weakref.finalize(storage, self._forget, key, operator or "", size)

    def _forget(self, key: int, operator: str, size: int) -> None:
        self._known.discard(key)
        self.now[operator] -= size
        self._total -= size


def _microseconds(event: Any, device: str) -> float:
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)
