"""Gradient norms that come with the training steps, each example at the weights at which it was visited."""

from __future__ import annotations

import pytest

import noisesam
from noisesam.training import prepare


def run_of(tmp_path, method: dict, lr: float):
    config = {
        "data": {"name": "digits", "train_size": 60, "test_size": 30, "validation_size": 10},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "method": method,
        "optimizer": {"lr": lr},
        "training": {"epochs": 2, "batch_size": 16, "dtype": "float64"},
        "tracking": {"probe_size": 0},
    }
    return config, noisesam.fit(config, tmp_path / method["name"])


def visited(run):
    rows = run.metrics[(run.metrics["metric"] == "visited_gradient_norm") & (run.metrics["epoch"] == 2)]
    return dict(zip(rows["group"], rows["value"], strict=True))


@pytest.mark.parametrize("method", [{"name": "sgd", "gradient_norms": True}, {"name": "1-sam", "rho": 0.1}, {"name": "j-sam"}])
def test_at_standing_weights_visited_norms_are_those_of_the_decomposition(tmp_path, method):
    config, run = run_of(tmp_path, method, lr=1e-18)
    prepared = prepare(noisesam.load_config(config))
    train = prepared.splits.train
    norms = noisesam.decompose(prepared.model, train.inputs, train.labels).gradient_norm
    expected = {"all": norms.mean(), "clean": norms[~train.is_noisy].mean(), "noisy": norms[train.is_noisy].mean()}
    assert visited(run) == {group: pytest.approx(float(value), rel=1e-10) for group, value in expected.items()}


def test_a_method_without_norms_leaves_none(tmp_path):
    _, run = run_of(tmp_path, {"name": "sam"}, lr=0.1)
    assert visited(run) == {}


def test_tapping_does_not_change_the_run_beyond_rounding(tmp_path):
    _, plain = run_of(tmp_path, {"name": "sgd"}, lr=0.1)
    _, tapped = run_of(tmp_path / "tapped", {"name": "sgd", "gradient_norms": True}, lr=0.1)
    last = [
        float(run.metrics.query("metric == 'loss' and split == 'train' and group == 'all' and epoch == 2")["value"].iloc[0])
        for run in (plain, tapped)
    ]
    assert last[0] == pytest.approx(last[1], rel=1e-12)
