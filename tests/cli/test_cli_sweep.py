"""`noisesam sweep`: from a file that states its expectation to runs, a table of what became of them, and a calibration."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.experiments import read_calibration, read_sweep
from noisesam.runs import open_runs

EXAMPLE = Path(__file__).parents[2] / "experiments" / "example-sweep.toml"
SWEEP = """
title = "Tiny"
expectation = "1-SAM is above SGD."
decision = "Supported if the interval is above zero."
seeds = [0, 1]
[grid]
methods = ["sgd", "1-sam"]
[calibration]
tuning_seeds = [9]
[calibration.methods.1-sam]
grid = [{ rho = 0.05 }, { rho = 0.1 }]
[run.data]
train_size = 160
validation_size = 80
test_size = 60
[run.model]
name = "mlp"
options = { hidden = [16] }
[run.optimizer]
lr = 0.5
[run.training]
epochs = 8
batch_size = 20
[run.tracking]
probe_size = 0
[run.checkpoint]
every = 8
keep = 1
"""
POINTS = """
[[points]]
label = "good"
"method.name" = "sgd"
[[points]]
label = "stuck"
"method.name" = "sgd"
"optimizer.lr" = 0.0
[[points]]
label = "bad"
"method.name" = "sgd"
"optimizer.lr" = 1e30
"""


def call(*arguments: object):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def cluster(monkeypatch):
    """What is used of dask.distributed, with threads behind it."""
    addresses: list[str] = []

    class Client:
        def __init__(self, address: str) -> None:
            addresses.append(address)
            if address == "tcp://nobody:1":
                raise OSError("timed out")
            self.threads = ThreadPoolExecutor(2)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.threads.shutdown()

        def get_executor(self) -> ThreadPoolExecutor:
            return self.threads

    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=Client))
    return addresses


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A sweep that was calibrated and run, on two worker processes."""
    root = tmp_path_factory.mktemp("sweep")
    (root / "tiny.toml").write_text(SWEEP)
    refused = call(root / "tiny.toml", "--out", root / "out")
    assert refused.exit_code == 2
    assert "holds no choice for '1-sam' in 'tiny'" in words(refused.stderr)
    assert f"remedy: Run: noisesam sweep {root / 'tiny.toml'} --calibrate" in words(refused.stderr)
    assert not (root / "out").exists()
    for name, flags in (("calibrated", ["--calibrate"]), ("made", [])):
        result = call(root / "tiny.toml", "--out", root / "out", *flags)
        assert result.exit_code == 0, result.output
        (root / f"{name}.txt").write_text(result.output)
    return root


def test_calibration_writes_every_try_and_the_runs_take_what_was_chosen(calibrated):
    said = words((calibrated / "calibrated.txt").read_text())
    assert "2 runs." in said
    assert "rho 0.05" in said
    assert "rho 0.1" in said
    assert said.count("taken") >= 1
    choice = read_calibration(calibrated / "calibration.toml").choices["tiny", "1-sam"]
    assert [one.options for one in choice.tries] == [{"rho": 0.05}, {"rho": 0.1}]
    best = max(choice.tries, key=lambda one: one.validation_accuracy)
    assert choice.tries[choice.taken] == best
    runs = open_runs(calibrated / "out")
    assert len(runs) == 4  # those of the calibration lie elsewhere
    assert {run.config["method"].get("rho") for run in runs} == {None, choice.options["rho"]}


def test_sweep_json_holds_statement_outcome_and_run_ids_and_no_place(calibrated):
    text = (calibrated / "out" / "sweep.json").read_text()
    said = json.loads(text)
    assert (said["title"], said["seeds"]) == ("Tiny", [0, 1])
    assert said["expectation"] == "1-SAM is above SGD."
    assert said["decision"] == "Supported if the interval is above zero."
    assert said["outcome"] == {"made": 4, "skipped": 0, "failed": [], "at_chance": []}
    ids = {run.path.name: run.id for run in open_runs(calibrated / "out")}
    assert {one["folder"]: one["id"] for one in said["runs"]} == ids
    assert all(one["folder"] == f"{one['point']}-seed{one['seed']}" for one in said["runs"])
    assert str(calibrated) not in text


def test_expectation_and_rule_are_shown_before_the_table_of_what_was_made(calibrated):
    said = words((calibrated / "made.txt").read_text())
    order = ["Expected: 1-SAM is above SGD.", "Decides: Supported if the interval is above zero.", "4 runs.", "sgd 2 0 0 0"]
    assert [said.index(part) for part in order] == sorted(said.index(part) for part in order)


def test_the_same_command_again_makes_only_what_is_missing(calibrated, tmp_path, cluster):
    shutil.copytree(calibrated / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "sgd-seed1")
    arguments = (calibrated / "tiny.toml", "--out", tmp_path / "out", "--scheduler", "tcp://here:8786", "--json")
    assert json.loads(call(*arguments).stdout)["outcome"] | {"at_chance": []} == {
        "made": 1,
        "skipped": 3,
        "failed": [],
        "at_chance": [],
    }
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("manifest.json")}
    assert json.loads(call(*arguments).stdout)["outcome"]["skipped"] == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("manifest.json")} == stamps
    assert cluster == ["tcp://here:8786"] * 2


def test_a_stale_table_is_refused(calibrated, tmp_path):
    (tmp_path / "tiny.toml").write_text(SWEEP.replace("epochs = 8", "epochs = 9"))
    shutil.copy(calibrated / "calibration.toml", tmp_path)
    result = call(tmp_path / "tiny.toml", "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 2
    assert "made for another setting, grid or other tuning seeds" in words(result.stderr)
    assert "--calibrate" in result.stderr


def test_failing_runs_are_reported_at_the_end_and_stuck_ones_are_flagged(tmp_path, cluster):
    head, _, run = SWEEP.partition("[grid]")
    (tmp_path / "tiny.toml").write_text(head.replace("[0, 1]", "[0]") + POINTS + run[run.index("[run.data]") :])
    result = call(tmp_path / "tiny.toml", "--out", tmp_path / "out", "--scheduler", "tcp://here:8786")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    said = words(result.stderr)
    assert "failed: bad-seed0: Training diverged after" in said
    assert "Expected a finite loss. Lower optimizer.lr" in said
    assert "stuck-seed0 stayed at chance on the noisy validation labels" in said
    table = words(result.stdout)
    for row in ("good 1 0 0 0", "stuck 1 0 0 1", "bad 0 0 1 -"):
        assert row in table
    outcome = json.loads((tmp_path / "out" / "sweep.json").read_text())["outcome"]
    assert (outcome["made"], outcome["skipped"], outcome["at_chance"]) == (2, 0, ["stuck-seed0"])
    assert [failure["name"] for failure in outcome["failed"]] == ["bad-seed0"]


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(calibrated, tmp_path):
    arguments = (calibrated / "tiny.toml", "--out", calibrated / "out", "--dry-run")
    assert "4 runs, 4 of them are finished already." in call(*arguments).stdout
    told = json.loads(call(calibrated / "tiny.toml", "--out", tmp_path / "new", "--dry-run", "--json").stdout)
    assert [one["finished"] for one in told["runs"]] == [False] * 4
    assert told["decision"] == "Supported if the interval is above zero."
    assert "2 runs." in call(calibrated / "tiny.toml", "--out", tmp_path / "new", "--calibrate", "--dry-run").stdout
    assert not (tmp_path / "new").exists()


def test_without_dask_a_scheduler_names_the_extra(calibrated, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = call(calibrated / "tiny.toml", "--out", calibrated / "out", "--scheduler", "tcp://here:8786")
    assert result.exit_code == 1
    assert "error: --scheduler needs Dask, which is not installed" in result.stderr
    assert 'pip install "noisesam[dask]"' in result.stderr


def test_a_scheduler_that_does_not_answer_is_said(calibrated, cluster):
    result = call(calibrated / "tiny.toml", "--out", calibrated / "out", "--scheduler", "tcp://nobody:1")
    assert result.exit_code == 1
    assert "error: No Dask scheduler answers at tcp://nobody:1 (timed out)" in words(result.stderr)


def test_nothing_to_calibrate_and_a_mistake_are_said(tmp_path):
    (tmp_path / "tiny.toml").write_text(SWEEP.replace("grid = [{ rho = 0.05 }, { rho = 0.1 }]", "rho = 0.1"))
    result = call(tmp_path / "tiny.toml", "--calibrate")
    assert result.exit_code == 2
    assert "tiny has nothing to calibrate" in result.stderr
    (tmp_path / "tiny.toml").write_text(SWEEP.replace('"1-sam"]', '"1sam"]').replace("methods.1-sam", "methods.1sam"))
    result = call(tmp_path / "tiny.toml", "--dry-run")
    assert result.exit_code == 2
    assert "Did you mean '1-sam'?" in words(result.stderr)
    assert call("nothing.toml").exit_code == 2


def test_the_example_can_be_run():
    sweep = read_sweep(EXAMPLE)
    sweep.check()
    assert [point.label for point in sweep.points] == ["sgd-rate0.2", "sgd-rate0.4", "1-sam-rate0.2", "1-sam-rate0.4"]
    assert len(sweep.calibration_jobs("runs")) == 3
