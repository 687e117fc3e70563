"""`noisesam runs` over small runs written by hand: list, show, verify, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.runs import RunWriter
from noisesam.training import config_to_dict, load_config


def call(*arguments: object):
    return CliRunner().invoke(app, ["runs", *map(str, arguments)])


def write_run(
    folder: Path, *, method: str = "sgd", seed: int = 0, accuracies=(0.1, 0.9, 0.7), finished=True, seconds=0.01
) -> Path:
    config = config_to_dict(
        load_config({"method": {"name": method}, "seed": seed, "training": {"epochs": len(accuracies) - 1}})
    )
    writer = RunWriter.create(folder, config=config, seeds={"init": seed}, noise=None)
    for epoch, accuracy in enumerate(accuracies):
        place = {"step": 10 * epoch, "epoch": float(epoch), "group": "all"}
        writer.add_metrics([{**place, "split": "test", "metric": "accuracy", "value": accuracy}])
        writer.add_metrics([{**place, "split": "train", "metric": "step_seconds", "value": seconds * (epoch + 1)}])
        writer.flush(10 * epoch)
    if finished:
        writer.finish()
    writer.close()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "a", method="sgd", seed=0)
    write_run(tmp_path / "runs" / "b", method="sgd", seed=1, accuracies=(0.1, 0.8, 0.6))
    write_run(tmp_path / "runs" / "deep" / "c", method="1-sam", accuracies=(0.1, 0.95, 0.94), finished=False)
    return tmp_path / "runs"


def test_a_path_lists_its_runs_at_any_depth(folder):
    told = json.loads(call(folder, "--json").stdout)
    assert told["problems"] == []
    rows = {(row["method"], row["seed"]): row for row in told["runs"]}
    assert set(rows) == {("sgd", 0), ("sgd", 1), ("1-sam", 0)}
    first = rows["sgd", 0]
    assert (first["best_test_accuracy"], first["last_test_accuracy"], first["epochs"], first["status"]) == (
        0.9,
        0.7,
        2.0,
        "finished",
    )
    assert rows["1-sam", 0]["status"] == "running"


def test_list_is_what_a_path_alone_means(folder):
    assert call(folder).stdout == call("list", folder).stdout != ""


def test_the_list_fits_80_columns(folder, monkeypatch):
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    lines = call(folder).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "3 runs"


def test_show_prints_the_manifest_and_the_last_values(folder):
    told = json.loads(call("show", folder / "a", "--json").stdout)
    assert told["manifest"]["configuration"]["method"]["name"] == "sgd"
    last = {row["metric"]: row["value"] for row in told["last"]}
    assert last["accuracy"] == 0.7
    shown = call("show", folder / "a").stdout
    assert "configuration.method.name" in shown
    assert "0.7000" in shown


def test_verify_exits_with_zero_on_whole_runs_and_with_one_on_a_broken_one(folder):
    assert call("verify", folder / "a").exit_code == 0
    part = next((folder / "b" / "metrics").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-7])
    result = call("verify", folder, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found[str(folder / "a")] == []
    assert any(part.name in problem for problem in found[str(folder / "b")])


def test_verify_sees_a_run_without_its_manifest(folder):
    (folder / "b" / "manifest.json").unlink()
    result = call("verify", folder)
    assert result.exit_code == 1
    assert str(folder / "b") in result.stdout.replace("\n", "")


def test_verify_of_a_folder_without_runs_is_an_error(tmp_path):
    result = call("verify", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: No run in")


def test_equal_runs_compare_equal_to_the_last_bit_whatever_the_clock_says(folder, tmp_path):
    write_run(tmp_path / "again", method="sgd", seed=0, seconds=0.5)
    told = json.loads(call("compare", folder / "a", tmp_path / "again", "--json").stdout)
    assert told["configuration"] == {}
    assert told["metrics_bit_equal"] is True
    assert told["examples_bit_equal"] is True


def test_one_bit_is_a_difference(folder, tmp_path):
    write_run(tmp_path / "again", method="sgd", seed=0, accuracies=(0.1, 0.9000000000000001, 0.7))
    told = json.loads(call("compare", folder / "a", tmp_path / "again", "--json").stdout)
    assert told["metrics_bit_equal"] is False
    assert told["metrics"][0]["largest_difference"] == 0.9000000000000001 - 0.9


def test_compare_names_what_differs_in_the_configuration_and_in_the_metrics(folder):
    result = call("compare", folder / "a", folder / "b")
    assert result.exit_code == 0
    assert any(line.split() == ["seed", "0", "1"] for line in result.stdout.splitlines())
    assert any(line.split()[-4:] == ["accuracy", "0.7000", "0.6000", "0.1"] for line in result.stdout.splitlines())
    assert "metrics (without step_seconds): different" in result.stdout


def test_broken_runs_are_problems_on_stderr_and_the_rest_is_listed(folder):
    (folder / "b" / "manifest.json").write_text("{", encoding="utf-8")
    result = call(folder)
    assert result.exit_code == 0
    assert result.stderr.startswith("problem: ")
    assert str(folder / "b" / "manifest.json") in result.stderr
    assert "2 runs" in result.stdout


def test_a_list_of_nothing_readable_is_a_failure(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "not valid JSON" in result.stderr


def test_a_folder_named_like_a_command_is_reached_by_its_path(folder, monkeypatch):
    (folder / "a").rename(folder / "show")
    monkeypatch.chdir(folder)
    assert "1 run" in call("./show").stdout
