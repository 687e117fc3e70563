"""Whole runs on a device that is not the CPU, by way of a stand-in for one."""

from __future__ import annotations

import pandas as pd
import pytest
from reference.stand_in import NAME, on_stand_in
from torch import nn

from noisesam import fit
from noisesam.gradients.engine import proven
from noisesam.training import values


@pytest.fixture
def device_is_known(monkeypatch):
    monkeypatch.setitem(values._RANGES, "training.device", (lambda value: value in ("cpu", NAME), "cpu or the stand-in"))


@pytest.mark.parametrize("method", ["sgd", "1-sam", "j-sam", "reg-sgd", "saf", "ausam", "esam"])
def test_a_run_there_is_the_run_on_the_cpu(device_is_known, method, small_config, tmp_path):
    training = {"epochs": 2, "dtype": "float64"}  # the order of summation differs there, in the last digits
    config = small_config(method={"name": method}, training=training)
    config["method"].pop("rho")
    here = fit(config, tmp_path / "here").metrics
    config["training"]["device"] = NAME
    with on_stand_in(nn.Module()):
        there = fit(config, tmp_path / "there").metrics
    timeless = [frame[frame["metric"] != "step_seconds"].reset_index(drop=True) for frame in (there, here)]
    pd.testing.assert_frame_equal(*timeless, rtol=1e-12)


# Which rows are the batch's is told; are the labels in range, is all finite, what is the loss: each is asked once. Per-example
# methods ask too whether their norms have their digits, and for the norms.
@pytest.mark.parametrize(("method", "waits"), [("sgd", 4), ("sam", 4), ("1-sam", 6)])
def test_a_step_of_a_run_waits_for_the_device_a_handful_of_times(
    device_is_known, method, waits, small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(proven, "is_due", lambda _batch: False)  # a comparison with autograd has questions of its own
    counted = {}
    for epochs in (2, 4):
        config = small_config(method={"name": method}, tracking={"probe_size": 0, "evaluate_every": 99})
        config["method"].pop("rho")
        config["training"] |= {"epochs": epochs, "device": NAME}
        config["checkpoint"] = {"every": 99}
        with on_stand_in(nn.Module()) as mode:
            fit(config, tmp_path / str(epochs))
        counted[epochs] = mode.counts["waits"]
    steps = 2 * 3
    assert counted[4] - counted[2] == waits * steps
