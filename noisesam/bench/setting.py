"""What a step of each method costs in one training setting: its model, its data, its batch size, one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from noisesam.bench.case import Case
from noisesam.bench.family_members import CYCLES, EPOCH, OPTIONS, Cycle, Member
from noisesam.bench.family_timing import measure
from noisesam.errors import InputError
from noisesam.training import Config, prepare

LONG_ROUNDS = 3


def step_costs(
    config: Config,
    methods: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    rounds: int = 9,
    data_root: str | Path | None = None,
) -> pd.DataFrame:
    """Time the steps of several methods in turn, each with SGD beside it.

    The ratio is the median over rounds of seconds per step over those of the SGD steps around it; a method whose steps differ
    is timed over a whole cycle of them. Weights are the initial ones and stay as they are.

    Args:
        config: The setting; its method is not used.
        methods: Label -> (method, hyper-parameters).
        rounds: Cycles per method.
        data_root: Folder of the data sets.

    Returns:
        method (the label), seconds_ratio (seconds per step over SGD's), step_seconds (median over rounds).

    Raises:
        InputError: The training set is smaller than a batch.

    Example:
        >>> from noisesam.training import load_config
        >>> setting = {"data": {"train_size": 128}, "model": {"name": "mlp", "options": {"hidden": [8]}}}
        >>> costs = step_costs(load_config(setting), {"sam": ("sam", {"rho": 0.1})}, rounds=2)
        >>> costs["method"].tolist(), bool((costs["seconds_ratio"] > 0).all())
        (['sam'], True)
    """
    prepared = prepare(config, data_root=data_root)
    train, size = prepared.splits.train, config.training.batch_size
    places = range(0, len(train) - size + 1, size)
    if not places:
        raise InputError(f"{len(train)} training examples in batches of {size}", expected="at least one whole batch")
    prepared.model.train()
    data = [Case(prepared.model, train.inputs[at : at + size], train.labels[at : at + size]) for at in places]
    chosen = []
    for label, (method, options) in methods.items():
        cycle = CYCLES.get(method, Cycle())
        if cycle.steps == EPOCH:
            cycle = replace(cycle, steps=len(data))
        chosen.append(Member(label, method, {**OPTIONS.get(method, {}), **options}, cycle))
    threads = torch.get_num_threads()
    torch.set_num_threads(config.training.threads or threads)
    try:
        costs = measure(data, chosen, rounds=rounds, long_rounds=min(rounds, LONG_ROUNDS))
    finally:
        torch.set_num_threads(threads)
    rows = [
        {
            "method": cost.member,
            "seconds_ratio": float("nan") if cost.ratio is None else cost.ratio,
            "step_seconds": float(pd.Series(cost.seconds, dtype=float).median()),
        }
        for cost in costs
    ]
    return pd.DataFrame(rows)
