"""Why a step costs what it costs: the operators with the largest time of their own, and what is alive at the peak of memory."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
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
        # On CUDA the kernels are listed too, beside the operators that started them and already carry their time.
        events = [event for event in taken.key_averages() if event.device_type == DeviceType.CPU]
        rows = [(str(event.key), _microseconds(event, case.device), int(event.count)) for event in events]
    total = sum(time for _, time, _ in rows) or 1.0
    largest = sorted(rows, key=lambda row: -row[1])[:OPERATORS]
    return [
        {"operator": name, "ms": time / 1000 / STEPS, "share": time / total, "calls": calls / STEPS}
        for name, time, calls in largest
    ]


def alive_at_peak(case: Case, contender: Contender) -> dict[str, Any]:
    """Say what is alive when one step holds the most memory: which tensors, made by which operators, in which pass.

    What the forward pass made and is still alive has been kept for the reverse pass (activations); the reverse pass makes
    gradients, of the batch or of every example, and temporaries. What a kernel allocates inside itself is not seen.

    Returns:
        `bytes` at the peak beside model and batch, those made in the `forward` and in the `reverse` pass, the operator `at`
        which the peak is reached, and the `operators` with the most bytes: name, pass, bytes, share of all bytes.
    """
    with quiet():
        step = contender.prepare(case)
        step()
        case.model.zero_grad(set_to_none=True)
        with _Allocations() as seen:
            step()
    made = Counter({origin: count for origin, count in seen.at_peak.items() if count})
    total = sum(made.values())
    return {
        "bytes": total,
        "at": " ".join(seen.peak_in),
        **{name: sum(count for (_, its), count in made.items() if its == name) for name in (FORWARD, REVERSE)},
        "operators": [
            {"operator": operator, "pass": name, "bytes": count, "share": count / total}
            for (operator, name), count in made.most_common(OPERATORS)
        ],
    }


FORWARD, REVERSE = "forward", "reverse"
_Origin = tuple[str, str]
"""Operator and pass."""


class _Allocations(TorchDispatchMode):
    """Follow every new storage from the operator that returns it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[_Origin] = Counter()
        self.at_peak: Counter[_Origin] = Counter()
        self.peak_in: _Origin = ("", "")
        self._known: set[int] = set()
        self._total = self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):  # what was there before, and what comes in as an argument, is not the step's
                self._follow(value, None)
        result = func(*args, **(kwargs or {}))
        # Autograd numbers the reverse passes that run; outside of one there is no number.
        here = REVERSE if torch._C._current_graph_task_id() != -1 else FORWARD
        origin = (str(func.overloadpacket), here)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._follow(value, origin)
        if self._total > self._peak:
            self._peak, self.at_peak, self.peak_in = self._total, self.now.copy(), origin
        return result

    def _follow(self, tensor: torch.Tensor, origin: _Origin | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if origin is not None else 0
        weakref.finalize(storage, self._forget, key, origin, size)
        if origin is not None:
            self.now[origin] += size
            self._total += size

    def _forget(self, key: int, origin: _Origin | None, size: int) -> None:
        self._known.discard(key)
        if origin is not None:
            self.now[origin] -= size
            self._total -= size


def _microseconds(event: Any, device: str) -> float:
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)
