"""Growth of peak memory during one step, in a process of its own for every contender: `python -m noisesam.bench.memory`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from noisesam.bench.case import Case
from noisesam.bench.contenders import CONTENDERS
from noisesam.bench.models import MODELS
from noisesam.bench.timing import quiet
from noisesam.errors import RunError
from noisesam.gradients.engine import products

TIME_LIMIT = 1200
"""Seconds after which a child process is given up."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""Has glibc hand back every freed block of this many bytes or more. By itself it keeps some, the more the longer a process
runs, and which depends on addresses: the same step is then read differently in every process."""
SMALLEST = math.ceil(products.WORTH_THE_CALL_BESIDE_MKL ** (1 / 3))
"""Rows and columns from which a product is large enough for oneDNN, on any processor."""


def growth(model: str, contender: str, *, device: str = "cpu", precision: str = "float32", quick: bool = False) -> int:
    """Return by how many bytes one step raises the peak of memory above model, batch and libraries.

    A child process takes the step, so that nothing that ran before has left memory to re-use. It first runs the contender
    on the model's tiny twin, and products of the least size that goes to oneDNN, which loads the libraries; then it takes one
    step from a model without gradients: the gradient itself and all that the first step of a run needs count. Freed blocks go
    back to the system: what is counted is what the step holds at once, and not what the allocator keeps besides.

    Args:
        model: A name of `MODELS`.
        contender: A name of `CONTENDERS`.
        device: "cpu" (resident memory of the process) or "cuda" (allocated memory of the device).
        precision: "float32" or "bfloat16" (autocast).
        quick: Take the tiny twin for the model.

    Returns:
        Bytes.

    Raises:
        RunError: The child process failed.
    """
    call = [sys.executable, "-m", "noisesam.bench.memory", model, contender, device, precision, str(int(quick))]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=TIME_LIMIT, env=os.environ | RETURNED)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"The memory of {contender} on {model}: no result after {TIME_LIMIT} seconds") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RunError(f"The memory of {contender} on {model}: {said[-1] if said else f'exit status {done.returncode}'}")
    return int(json.loads(done.stdout)["bytes"])


def grown(model: str, contender: str, *, device: str, precision: str, quick: bool) -> int:
    """Measure in this process; right only once per process."""
    torch.set_num_threads(1)
    prepare = CONTENDERS[contender].prepare
    with quiet():
        prepare(Case.of(MODELS[model], device=device, precision=precision, quick=True))()
        _load_libraries()
        case = Case.of(MODELS[model], device=device, precision=precision, quick=quick)
        before = _level(device)
        prepare(case)()
        case.synchronise()
        return max(0, _peak(device) - before)


def _load_libraries() -> None:
    """Use once, on less than a megabyte, what the tiny twin's products are too small for: code is no memory of a step."""
    values = torch.ones(SMALLEST, SMALLEST)
    products.linear(values, values, None)
    products.matmul(values, values)
    products.transposed_matmul(values, values)
    products.transposed_matmul(values.repeat(2, 1), values.repeat(2, 1))


def _level(device: str) -> int:
    """Return the memory in use now, from which on the peak is counted."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from what is resident
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        # getrusage would also count the process that started this one, whose memory a child inherits for a moment.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    _model, _contender, _device, _precision, _quick = sys.argv[1:]
    _found = grown(_model, _contender, device=_device, precision=_precision, quick=_quick == "1")
    sys.stdout.write(json.dumps({"bytes": _found}) + "\n")
