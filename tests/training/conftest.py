from __future__ import annotations

import pandas as pd
import pytest

from noisesam import open_run
from noisesam.runs import verify
from noisesam.runs.checkpoints import read_payload


def _comparable(frame):
    """All metrics but the wall time, in one order."""
    kept = frame[frame["metric"] != "step_seconds"]
    return kept.sort_values(["step", "split", "group", "metric"]).reset_index(drop=True)


@pytest.fixture(scope="session")
def assert_same_run():
    """Two finished runs are equal to the bit: weights, optimizer, method, generators, metrics, examples."""

    def check(path, reference):
        run, other = open_run(path), open_run(reference)
        assert run.status == other.status == "finished"
        assert verify(path) == []
        last = other.checkpoint_steps[-1]
        assert run.checkpoint_steps[-1] == last
        payload, state = read_payload(run.path, last)
        other_payload, other_state = read_payload(other.path, last)
        assert payload == other_payload
        assert state == other_state
        pd.testing.assert_frame_equal(_comparable(run.metrics), _comparable(other.metrics), check_exact=True)
        pd.testing.assert_frame_equal(run.examples, other.examples, check_exact=True)

    return check


@pytest.fixture(scope="session")
def small_config():
    """A run of 4 epochs of 3 steps on 40 noisy digits, with everything that has a state: momentum, dropout, a schedule."""

    def make(**sections):
        config = {
            "data": {"train_size": 50, "test_size": 20, "validation_size": 10},
            "noise": {"kind": "symmetric", "rate": 0.4},
            "model": {"name": "mlp", "options": {"hidden": [8], "dropout": 0.3}},
            "method": {"name": "1-sam", "rho": 0.05},
            "optimizer": {"lr": 0.1, "momentum": 0.9, "schedule": "cosine", "weight_decay": 1e-3},
            "training": {"epochs": 4, "batch_size": 16, "threads": 1},
            "tracking": {"probe_size": 8, "probe_dense": 1, "probe_every": 2},
            "checkpoint": {"every": 2, "every_steps": 2},
            "seed": 1,
        }
        for section, values in sections.items():
            config[section] = {**config[section], **values} if isinstance(values, dict) else values
        return config

    return make
