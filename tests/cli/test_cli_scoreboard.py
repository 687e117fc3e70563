"""`noisesam scoreboard`: from an experiment file to table, figure and manifests; what is wrong with a file is said."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from noisesam.cli import app

EXPERIMENT = """
title = "Tiny"
tuning_seeds = [9]
seeds = [0, 1]
[methods]
sgd = {}
sam = { grid = [{ rho = 0.05 }, { rho = 0.1 }] }
1-sam = { rho = 0.1 }
vasso = { rho = 0.1 }
saf = { start_epoch = 0, lag = 1 }
[run.data]
train_size = 120
validation_size = 30
test_size = 60
[run.noise]
kind = "symmetric"
rate = 0.4
[run.model]
name = "mlp"
options = { hidden = [8] }
[run.optimizer]
lr = 0.2
[run.training]
epochs = 2
batch_size = 30
threads = 1
[run.tracking]
probe_size = 16
probe_every = 1
[run.checkpoint]
every = 2
keep = 1
"""


def call(*arguments: str):
    return CliRunner().invoke(app, ["scoreboard", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scoreboard")
    (root / "tiny.toml").write_text(EXPERIMENT)
    result = call(str(root / "tiny.toml"), "--out", str(root / "out"), "--keep", str(root / "kept"), "--workers", "1")
    assert result.exit_code == 0, result.output
    return root


def test_table_tuning_figure_and_manifests_are_written(folder):
    table = pd.read_csv(folder / "kept" / "tiny.csv").set_index("method")
    assert list(table.index) == ["sgd", "sam", "1-sam", "vasso", "saf"]
    assert table["seeds"].eq(2).all()
    assert table["clean_last"].notna().all()
    assert table["passes"].to_dict() == {"sgd": 1.0, "sam": 2.0, "1-sam": 2.0, "vasso": 2.0, "saf": 1.0}
    weights = [f"{what}_weight_{group}" for what in ("logit", "jacobian") for group in ("clean", "noisy")]
    assert table.loc[["sam", "1-sam", "vasso"], weights].notna().all(axis=None)
    assert table.loc[["sgd", "saf"], weights].isna().all(axis=None)  # a rule without a perturbation has none
    tuning = pd.read_csv(folder / "kept" / "tiny-tuning.csv")
    tried = tuning[tuning["method"] == "sam"]
    assert tried["validation_accuracy"].notna().all()
    assert tried["chosen"].iloc[0] == tried["validation_accuracy"].idxmax() - tried.index[0]
    manifests = json.loads((folder / "kept" / "tiny-manifests.json").read_text())
    assert len(manifests) == 2 + 2 * 10  # two tries on the tuning seed; five methods, two seeds, with and without noise
    assert {m["noise"]["requested_rate"] if "requested_rate" in m["noise"] else m["noise"]["rate"] for m in manifests} == {
        0.4,
        0.0,
    }
    gains = table[["early_gain", "last_gain"]].notna().any(axis=None)
    assert (folder / "kept" / "tiny.png").exists() == gains


def test_a_second_call_trains_nothing_and_gives_the_same_table_but_for_the_clock(folder):
    clock = ["step_seconds", "seconds_ratio"]
    before = pd.read_csv(folder / "out" / "tiny.csv")
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("manifest.json")}
    result = call(str(folder / "tiny.toml"), "--out", str(folder / "out"), "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["scoreboard"]) == 5
    after = pd.read_csv(folder / "out" / "tiny.csv")
    pd.testing.assert_frame_equal(after.drop(columns=clock), before.drop(columns=clock), check_exact=True)
    assert (after[clock] > 0).all(axis=None)
    assert {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("manifest.json")} == stamps


def test_a_dry_run_counts_and_runs_nothing(folder):
    result = call(str(folder / "tiny.toml"), "--out", str(folder / "none"), "--dry-run")
    assert result.exit_code == 0
    assert "22 runs: 2 to tune" in result.output
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = [0, 1]", "seeds = [9]"), "overlap"),
        (("1-sam = { rho = 0.1 }", ""), "without the method '1-sam'"),
        (('title = "Tiny"', "surprise = 1"), "unknown: surprise"),
        (("tuning_seeds = [9]", ""), "missing: tuning_seeds"),
        (("grid = [{ rho = 0.05 }, { rho = 0.1 }]", "grid = 3"), "methods.sam.grid"),
        (("seeds = [0, 1]", "seeds = ["), "not valid TOML"),
        (("seeds = [0, 1]", "seeds = " + "[" * 3000 + "]" * 3000), "nested too deeply"),
        (("seeds = [0, 1]", "seeds = 5"), "a list of different whole numbers"),
        (("seeds = [0, 1]", "seeds = []"), "a list of different whole numbers"),
        (("tuning_seeds = [9]", 'tuning_seeds = ["9"]'), "a list of different whole numbers"),
        (("sgd = {}", "sgd = 3"), "a section [methods]"),
        (("[methods]\nsgd = {}", "equal_weights = 3\n[methods]\nsgd = {}"), "unknown: equal_weights"),
        (("sam = { grid = [{ rho = 0.05 }, { rho = 0.1 }] }", "sam = { roh = 0.1 }"), "Did you mean"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said(tmp_path, change, said):
    text = EXPERIMENT.replace(*change)
    assert text != EXPERIMENT
    (tmp_path / "bad.toml").write_text(text)
    result = call(str(tmp_path / "bad.toml"), "--out", str(tmp_path / "out"), "--dry-run")
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there_is_said():
    result = call("nothing.toml")
    assert result.exit_code == 2
    assert "No file nothing.toml" in result.output
