"""Every method of the family trains, is saved, and resumes to the bit."""

from __future__ import annotations

import json
import shutil

import pytest

from noisesam import fit
from noisesam.methods import names
from noisesam.training import load_config
from noisesam.training.preparation import prepare

OPTIONS = {"saf": {"start_epoch": 0, "lag": 1}, "mesa": {"start_epoch": 0}, "looksam": {"k": 2}, "looklayersam": {"k": 2}}


@pytest.mark.parametrize("name", names())
def test_every_method_trains_and_resumes_to_the_bit(name, tmp_path, small_config, assert_same_run):
    config = small_config(training={"epochs": 3}, checkpoint={"every_steps": 1, "keep": 0})
    rho = {"rho": 0.05} if name not in ("sgd", "reg-sgd", "saf", "mesa") else {}
    config["method"] = {"name": name, **rho, **OPTIONS.get(name, {})}
    whole = fit(config, tmp_path / "whole")
    last, middle = whole.checkpoint_steps[-1], whole.checkpoint_steps[-1] // 2
    copy = tmp_path / "resumed"
    shutil.copytree(whole.path, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.stem.removeprefix("step-")) > middle:
            path.unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["status"] = "running"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    steps_taken = []
    fit(config, copy, progress=lambda done, total, text: steps_taken.append(done))
    assert steps_taken == list(range(middle, last + 1))
    assert_same_run(copy, whole.path)


def test_a_rule_that_spans_the_run_gets_its_length(small_config):
    config = small_config(method={"name": "ssam-d"}, training={"epochs": 7})
    assert prepare(load_config(config)).method.epochs == 7
    named = small_config(method={"name": "ssam-d", "epochs": 9}, training={"epochs": 7})
    assert prepare(load_config(named)).method.epochs == 9
