"""What a scale will cost, measured before it is run: a few steps of every method, one evaluation and one probe per setting."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisesam.errors import InputError
from noisesam.tracking.schedule import every_epochs
from noisesam.training.config import Config

STEPS = 5
"""Timed steps of every method, after two that warm up; the median counts."""

_STAND_INS = {
    "mnist": ((28, 28), 60_000, 10_000, 10),
    "fashion-mnist": ((28, 28), 60_000, 10_000, 10),
    "cifar10": ((32, 32, 3), 50_000, 10_000, 10),
    "cifar100": ((32, 32, 3), 50_000, 10_000, 100),
}
"""Images that cost what the real ones cost, so that a dry run needs no data: shape, sizes of the splits, classes."""


@dataclass(frozen=True)
class Costs:
    """What the runs of one method in one setting are made of.

    Attributes:
        step: Seconds per training step.
        example: Seconds per example and evaluation.
        probe: Seconds per measurement of the probe; 0 without one.
        start: Seconds to read the data and to build the run.
        memory: Highest resident memory of the process, bytes; 0 if not known.
        device_memory: Highest memory on the accelerator, bytes; 0 on the CPU.
        device: What was measured on.
    """

    step: float
    example: float
    probe: float
    start: float
    memory: int
    device_memory: int
    device: str


@dataclass(frozen=True)
class Counts:
    """What one run has to do: steps, examples times evaluations, probes."""

    steps: int
    evaluated: int
    probes: int


def cost_key(config: Config) -> str:
    """Name what the seconds of a step depend on: the data's shape, the model, the method, batches, device and optimizer.

    Example:
        >>> from noisesam.training import load_config
        >>> first, second = (load_config({"seed": seed, "training": {"epochs": 3 + seed}}) for seed in (0, 1))
        >>> cost_key(first) == cost_key(second)
        True
    """
    optimizer = config.optimizer
    parts = [
        config.data.name,
        dataclasses.asdict(config.model),
        [config.method.name, config.method.loss],
        {name: value for name, value in dataclasses.asdict(config.training).items() if name != "epochs"},
        [optimizer.name, optimizer.momentum > 0, optimizer.weight_decay > 0],
    ]
    return json.dumps(parts, sort_keys=True)


def counts(config: Config) -> Counts:
    """Count what one run has to do, from its configuration alone.

    Example:
        >>> from noisesam.training import load_config
        >>> sizes = {"train_size": 120, "validation_size": 20, "test_size": 80}
        >>> counts(load_config({"data": sizes, "training": {"epochs": 10}}))
        Counts(steps=20, evaluated=2200, probes=7)
    """
    epochs, tracking = config.training.epochs, config.tracking
    train, test = split_sizes(config)
    steps = epochs * -(-(train - config.data.validation_size) // config.training.batch_size)
    evaluations = len({*range(0, epochs + 1, tracking.evaluate_every), epochs})
    schedule = every_epochs(tracking.probe_every, dense=tracking.probe_dense)
    probed = {epoch for epoch in range(epochs + 1) if schedule(0, epoch) is not None} | {epochs}
    return Counts(steps, evaluations * (train + test), len(probed) if tracking.probe_size else 0)


def seconds(config: Config, costs: Costs) -> float:
    """Estimate the seconds of one run on one worker."""
    number = counts(config)
    return costs.start + number.steps * costs.step + number.evaluated * costs.example + number.probes * costs.probe


def split_sizes(config: Config) -> tuple[int, int]:
    """Return the numbers of training examples, validation included, and of test examples.

    Raises:
        InputError: A data set of the user's own whose sizes are not stated.
    """
    data = config.data
    whole = {"digits": (1200, 597)} | {name: stand_in[1:3] for name, stand_in in _STAND_INS.items()}
    sizes = (data.train_size, data.test_size)
    if None in sizes and data.name not in whole:
        raise InputError(
            f"data.train_size and data.test_size are not stated for {data.name}",
            expected="numbers of examples, from which the steps are counted",
            remedy="State them in the sweep file",
        )
    train, test = (given if given is not None else whole[data.name][place] for place, given in enumerate(sizes))
    return train, test


def measure(configs: Iterable[Config], data_root: Path | None = None) -> dict[str, Costs]:
    """Measure what the steps of some configurations cost, one per `cost_key`. To be called in a fresh process.

    Data sets that are not at hand are replaced by images of the same shape and number, whose reading is then not counted.

    Args:
        configs: Configurations of runs.
        data_root: Folder of the data sets.

    Returns:
        `cost_key` -> costs. Memory is the process's highest so far, so it grows over the entries.
    """
    from noisesam.training.precision import tf32_allowed

    wanted: dict[str, Config] = {}
    for config in configs:
        wanted.setdefault(cost_key(config), config)
    found: dict[str, Costs] = {}
    reading: dict[str, float] = {}
    # As in a run: evaluation and probes are plain, and a step says itself in which precision it is taken.
    with tempfile.TemporaryDirectory() as folder, tf32_allowed(False):
        for key, config in wanted.items():
            found[key] = _measure(config, Path(folder), data_root, reading)
    return found


def _measure(config: Config, folder: Path, data_root: Path | None, reading: dict[str, float]) -> Costs:
    import torch

    from noisesam.tracking import Tracker
    from noisesam.training import evaluate, prepare

    torch.set_num_threads(config.training.threads or torch.get_num_threads())
    name = config.data.name
    if name not in reading:
        reading[name] = _reading_seconds(name, data_root)
    cuda = config.training.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = _clock(cuda)
    stand_in, begin = _with_stand_in(config, folder), clock()
    prepared = prepare(stand_in, data_root=data_root)
    start = clock() - begin + reading[name]
    prepared.method.start_epoch(0)
    taken = [_timed(lambda step=step: _step(prepared, step), cuda) for step in range(STEPS + 2)]

    def evaluation() -> None:
        for split, dataset in prepared.splits.evaluated().items():
            evaluate(prepared.model, dataset, split=split, loss=prepared.method.loss)

    probe = 0.0
    if prepared.splits.probe is not None:
        tracker = Tracker(
            prepared.model,
            prepared.splits.probe,
            method=prepared.method,
            loss=prepared.method.loss,
            rho=config.tracking.rho,
            batch_size=config.training.batch_size,
        )
        tracker.measure(0, 0)
        probe = _timed(lambda: tracker.measure(1, 1), cuda)
    examples = sum(len(dataset) for dataset in prepared.splits.evaluated().values())
    on_cpu = "processor time, one thread" if torch.get_num_threads() == 1 else "wall time, CPU"
    return Costs(
        step=statistics.median(taken[2:]),
        example=_timed(evaluation, cuda) / examples,
        probe=probe,
        start=start,
        memory=_peak_memory(),
        device_memory=int(torch.cuda.max_memory_allocated()) if cuda else 0,
        device=torch.cuda.get_device_name() if cuda else on_cpu,
    )


def _step(prepared: Any, step: int) -> None:
    """Take one training step, as the training loop does."""
    batch = prepared.batch(step)
    prepared.optimizer.zero_grad()
    with prepared.arithmetic():
        prepared.method.backward(batch.inputs, batch.labels, index=batch.index)
    # A rate of zero: on stand-in images a real one might diverge.
    for group in prepared.optimizer.param_groups:
        group["lr"] = 0.0
    prepared.optimizer.step()


def _timed(call: Callable[[], object], cuda: bool) -> float:
    """Time a call by `_clock`."""
    import torch

    if cuda:
        torch.cuda.synchronize()
    clock = _clock(cuda)
    begin = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - begin


def _clock(cuda: bool) -> Callable[[], float]:
    """Processor time with one thread, so that what else runs here does not count; wall time elsewhere."""
    import torch

    return time.process_time if torch.get_num_threads() == 1 and not cuda else time.perf_counter


def _with_stand_in(config: Config, folder: Path) -> Config:
    """Replace a named data set by random images of its shape and size; human labels by as many wrong ones."""
    if config.data.name not in _STAND_INS:
        return config
    shape, train, test, classes = _STAND_INS[config.data.name]
    sizes = {"train": config.data.train_size or train, "test": config.data.test_size or test}
    path = folder / f"{config.data.name}-{sizes['train']}-{sizes['test']}.npz"
    if not path.exists():
        generator = np.random.default_rng(0)
        arrays: dict[str, Any] = {"classes": np.array([f"class {number}" for number in range(classes)])}
        for split, size in sizes.items():
            arrays[f"{split}_images"] = generator.integers(0, 256, (size, *shape), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(size) % classes
        np.savez(path, **arrays)
    noise = config.noise
    if noise.kind == "human":
        noise = dataclasses.replace(noise, kind="symmetric", rate=0.4, source=None)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name=str(path)), noise=noise)


def _reading_seconds(name: str, data_root: Path | None) -> float:
    """Time the reading of both splits of a named data set; 0 where it is not at hand or cheap."""
    from noisesam.data import load

    if name not in _STAND_INS:
        return 0.0
    clock = _clock(cuda=False)
    begin = clock()
    try:
        for split in ("train", "test"):
            load(name, split=split, root=data_root)
    except InputError:
        return 0.0
    return clock() - begin


def _peak_memory() -> int:
    """Highest resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def in_minutes(value: float) -> str:
    """Write seconds as minutes, rounded up to half a minute below ten.

    Example:
        >>> in_minutes(20.0), in_minutes(100.0), in_minutes(1500.0)
        ('0.5', '2', '25')
    """
    minutes = value / 60
    return f"{math.ceil(2 * minutes) / 2:g}" if minutes < 10 else f"{math.ceil(minutes)}"


ASSUMED_RATE = 15e12
"""Operations per second that a present data-centre GPU is assumed to sustain in convolutions of this size; not measured."""
_SAMPLE = 4


def assumed(configs: Iterable[Config]) -> dict[str, Costs]:
    """Compute what steps would cost on a device that is not here: counted operations at an assumed rate.

    Args:
        configs: Configurations of runs.

    Returns:
        `cost_key` -> costs; the memory is a lower bound: the examples, and the weights with their gradients by example for
        one chunk of 32.
    """
    return {cost_key(config): _assumed(config) for config in configs}


def _assumed(config: Config) -> Costs:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from noisesam import methods, models

    if config.data.name not in _STAND_INS:
        raise InputError(
            f"Nothing can be assumed about {config.data.name}",
            expected=f"one of: {', '.join(_STAND_INS)}",
            remedy="Run the dry run on the machine that has the device",
        )
    shape, _, _, classes = _STAND_INS[config.data.name]
    sides = (shape[2], *shape[:2]) if len(shape) == 3 else (1, *shape)
    model = models.make(config.model.name, input_shape=sides, classes=classes, **config.model.options)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(_SAMPLE, *sides))
    forward = counter.get_total_flops() / _SAMPLE
    passes = methods.describe(config.method.name).passes
    forwards, backwards = (float(number) if number.replace(".", "").isdigit() else 2.0 for number in passes)
    per_example = forward * (forwards + 2 * backwards) / ASSUMED_RATE
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    pixels = 4 * sum(split_sizes(config)) * sides[0] * sides[1] * sides[2]
    return Costs(
        step=config.training.batch_size * per_example,
        example=forward / ASSUMED_RATE,
        probe=config.tracking.probe_size * 8 * 3 * forward / ASSUMED_RATE,
        start=10.0,
        memory=0,
        device_memory=int(pixels + 36 * weights),
        device=f"not measured: no such device here, {ASSUMED_RATE / 1e12:.0f} TFLOP/s assumed",
    )
