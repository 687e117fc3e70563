"""The dry run: runs, steps, minutes and memory of every setting, from steps that are timed on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from noisesam.experiments import is_finished
from noisesam.experiments.processes import THREADS
from noisesam.reproduce.estimates import Costs, assumed, cost_key, counts, measure, seconds
from noisesam.reproduce.settings import Setting
from noisesam.training.config import Config


@dataclass(frozen=True)
class Planned:
    """What a setting will take.

    Attributes:
        name: Of the setting.
        runs: All runs.
        finished: Runs that are finished already; steps and seconds are those of the others.
        steps: Optimizer steps.
        seconds: Seconds on one worker.
        tuning_runs: Runs of the calibration, which is made apart and not counted in the above.
        tuning_seconds: Their seconds on one worker.
        memory: Resident memory of a worker, bytes; 0 if not known.
        device_memory: Memory on the accelerator, bytes; 0 if there is none.
        device: What the seconds were measured on, or that they were not.
        measured: Whether they were.
    """

    name: str
    runs: int
    finished: int
    steps: int
    seconds: float
    tuning_runs: int
    tuning_seconds: float
    memory: int
    device_memory: int
    device: str
    measured: bool


def plan(settings: Sequence[Setting], *, workers: int = 2, data_root: Path | None = None) -> list[Planned]:
    """Time a few steps of every method in every setting, and state what the runs that are left will take.

    The settings are measured in fresh processes, as many at once as there will be workers, so that what they take from each
    other is in the numbers. On a device that this machine does not have nothing is measured: seconds and memory are then
    computed from counted operations at an assumed rate, and said to be.

    Args:
        settings: The settings of a scale.
        workers: Runs made at once.
        data_root: Folder of the data sets; data that is not there is replaced by images of the same shape.

    Returns:
        One entry per setting.
    """
    if _device_is_missing(settings):
        found = [assumed(_distinct(setting)) for setting in settings]
        return [_planned(setting, costs, measured=False) for setting, costs in zip(settings, found, strict=True)]
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
            futures = [pool.submit(measure, _distinct(setting), data_root) for setting in settings]
            return [
                _planned(setting, future.result(), measured=True) for setting, future in zip(settings, futures, strict=True)
            ]
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _distinct(setting: Setting) -> list[Config]:
    """Return one configuration per cost."""
    return list({cost_key(job.config): job.config for job in reversed(setting.jobs)}.values())


def _planned(setting: Setting, costs: dict[str, Costs], *, measured: bool) -> Planned:
    waiting = [job for job in setting.jobs if not is_finished(job)]
    tuning = setting.tuning
    return Planned(
        name=setting.name,
        runs=len(setting.jobs),
        finished=len(setting.jobs) - len(waiting),
        steps=sum(counts(job.config).steps for job in waiting),
        seconds=sum(seconds(job.config, costs[cost_key(job.config)]) for job in waiting),
        tuning_runs=len(tuning),
        tuning_seconds=sum(seconds(config, costs[cost_key(config)]) for config in tuning if cost_key(config) in costs),
        memory=max(one.memory for one in costs.values()),
        device_memory=max(one.device_memory for one in costs.values()),
        device=next(iter(costs.values())).device,
        measured=measured,
    )


def _device_is_missing(settings: Sequence[Setting]) -> bool:
    if not any(job.config.training.device.startswith("cuda") for setting in settings for job in setting.jobs):
        return False
    import torch

    return not torch.cuda.is_available()
