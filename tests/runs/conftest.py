"""A small run, written through the writer, to be read, broken and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from noisesam.runs import EXAMPLES_COLUMNS, RunWriter

CONFIG = {
    "data": {"name": "digits"},
    "noise": {"kind": "symmetric", "rate": 0.4},
    "method": {"name": "sgd", "rho": 0.1},
    "training": {"epochs": 3},
    "tracking": {"evaluate_every": 1},
    "seed": 0,
}


def metric_rows(step: int, steps_per_epoch: int = 10) -> list[dict]:
    front = {"step": step, "epoch": step / steps_per_epoch}
    return [
        front | {"split": split, "group": "all", "metric": "accuracy", "value": 0.1 + step / 100 + shift}
        for split, shift in (("train", 0.0), ("test", 0.05))
    ]


def example_columns(step: int, size: int = 4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    columns = {}
    for column in EXAMPLES_COLUMNS:
        if column.dtype == "int64":
            columns[column.name] = generator.integers(0, 3, size)
        else:
            columns[column.name] = generator.random(size)
    return columns | {"step": np.full(size, step), "epoch": np.full(size, step / 10), "example": np.arange(size)}


def payload() -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.arange(6, dtype=np.float32).reshape(2, 3)})


def write_run(path: Path, *, config: dict | None = None, finish: bool = True, flushes: int = 4) -> RunWriter:
    """Steps 0, 10, 20, 30: evaluation, probe, flush and checkpoint at each."""
    writer = RunWriter.create(path, config=config or CONFIG, seeds={"init": 1, "noise": 2}, noise={"kind": "symmetric"})
    for step in range(0, 10 * flushes, 10):
        write_stretch(writer, step)
    if finish:
        writer.finish()
    return writer


def write_stretch(writer: RunWriter, step: int) -> None:
    writer.add_metrics(metric_rows(step))
    writer.add_examples(example_columns(step))
    writer.flush(step)
    writer.write_checkpoint(step, payload(), {"step": step})
    writer.prune(2)


class Make:
    """The helpers above, handed to tests as one fixture."""

    config = CONFIG
    run = staticmethod(write_run)
    stretch = staticmethod(write_stretch)
    metric_rows = staticmethod(metric_rows)
    example_columns = staticmethod(example_columns)
    payload = staticmethod(payload)


@pytest.fixture
def make() -> type[Make]:
    return Make
