"""`noisesam demo --quick` from end to end, and `noisesam analyze` over what it left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from noisesam import analysis
from noisesam.cli import app
from noisesam.cli.analyze import default_folder
from noisesam.cli.demo import preset
from noisesam.cli.workers import Job, is_finished, run_all
from noisesam.errors import NoisesamError
from noisesam.runs import open_run, open_runs
from noisesam.training import fit

METHODS = ["sgd", "sam", "1-sam", "l-sam", "j-sam", "reg-sgd"]


def demo_runs(folder: Path):
    """The runs in the order of the demo, which its sentences follow."""
    return open_runs([job.folder for job in preset(quick=True).jobs(folder / "runs")])


def call(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_demo_is_the_stated_setting():
    chosen = preset()
    assert list(chosen.methods) == METHODS
    assert chosen.seeds >= 3
    config = chosen.config("1-sam", 2)
    assert (config.data.name, config.data.train_size, config.data.validation_size) == ("digits", 1200, 200)
    assert (config.noise.kind, config.noise.rate) == ("symmetric", 0.4)
    assert (config.model.name, config.model.options) == ("mlp", {"hidden": [128, 128], "activation": "relu"})
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.2, 0.0, 0.0)
    assert (config.training.epochs, config.training.batch_size, config.seed) == (150, 64, 2)
    assert config.tracking.rho == config.method.hyperparameters["rho"] == 0.1


def test_methods_of_one_seed_differ_in_the_method_alone():
    from dataclasses import replace

    chosen = preset()
    configs = [chosen.config(method, 0) for method in METHODS]
    assert {replace(config, method=configs[0].method) == configs[0] for config in configs} == {True}


def test_the_demo_leaves_finished_runs_figures_table_and_findings(quick_demo):
    runs = demo_runs(quick_demo)
    assert runs.problems == []
    assert sorted((run.method, run.seed, run.status) for run in runs) == sorted(
        (method, seed, "finished") for method in METHODS for seed in range(2)
    )
    summary = pd.read_csv(quick_demo / "summary.csv")
    expected = analysis.summary(runs)
    assert list(summary.columns) == list(expected.columns)
    assert sorted(summary["method"]) == sorted(METHODS)
    findings = (quick_demo / "findings.txt").read_text(encoding="utf-8").splitlines()
    assert findings == analysis.findings(runs)
    pictures = {path.stem for path in (quick_demo / "figures").glob("*.png")}
    assert {"accuracy", "gradient-weight", "weights-against-loss", "memorisation", "norms"} <= pictures
    assert all((quick_demo / "figures" / f"{name}.csv").stat().st_size > 0 for name in pictures)


def test_the_demo_says_what_it_does_what_it_found_and_where_it_lies(quick_demo):
    output = (quick_demo.parent / "quick-demo-output.txt").read_text(encoding="utf-8")
    assert "320 images of handwritten digits, 40% of them with a wrong label" in " ".join(output.split())
    assert "its numbers mean nothing" in " ".join(output.split())
    for heading in ("Test accuracy (clean labels)", "Wrong labels reproduced", "Difference to sgd", "Findings"):
        assert heading in output
    assert all(line in " ".join(output.split()) for line in analysis.findings(demo_runs(quick_demo)))
    for place in ("runs", "figures", "summary.csv"):
        assert str(quick_demo / place) in output


def test_a_worker_s_run_is_the_run_that_fit_makes(quick_demo, tmp_path):
    chosen = preset(quick=True)
    fit(chosen.config("1-sam", 1), tmp_path / "alone")
    told = json.loads(call("runs", "compare", quick_demo / "runs" / "1-sam-seed1", tmp_path / "alone", "--json").stdout)
    assert (told["configuration"], told["metrics_bit_equal"], told["examples_bit_equal"]) == ({}, True, True)


def test_finished_runs_are_not_made_again(quick_demo, monkeypatch):
    jobs = preset(quick=True).jobs(quick_demo / "runs")
    assert all(is_finished(job) for job in jobs)
    monkeypatch.setattr("noisesam.experiments.processes.ProcessPoolExecutor", None)
    assert run_all(jobs, workers=2) == 0


def test_only_what_is_missing_is_made(quick_demo, tmp_path):
    jobs = preset(quick=True).jobs(tmp_path)[:2]
    shutil.copytree(quick_demo / "runs" / "sgd-seed0", tmp_path / "sgd-seed0")
    before = (tmp_path / "sgd-seed0" / "manifest.json").read_bytes()
    assert run_all(jobs, workers=2) == 1
    assert (tmp_path / "sgd-seed0" / "manifest.json").read_bytes() == before
    assert open_run(tmp_path / "sam-seed0").status == "finished"


def test_a_run_that_fails_names_itself_and_its_remedy(quick_demo, tmp_path):
    shutil.copytree(quick_demo / "runs" / "sgd-seed0", tmp_path / "taken")
    with pytest.raises(NoisesamError, match=r"taken: .* another configuration|taken: ") as caught:
        run_all([Job(preset(quick=True).config("sgd", 1), tmp_path / "taken")], workers=1)
    assert caught.value.given.startswith("taken: ")
    assert caught.value.remedy


def test_analyze_prints_one_row_per_method_and_agrees_with_the_library(quick_demo, tmp_path):
    result = call("analyze", quick_demo / "runs", "--csv", tmp_path / "new" / "summary.csv", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    runs = open_runs(quick_demo / "runs")
    expected = analysis.summary(runs)
    assert told["summary"][0]["method"] == "sgd"
    assert {row["method"]: row["last_test_accuracy_mean"] for row in told["summary"]} == dict(
        zip(expected["method"], expected["last_test_accuracy_mean"], strict=True)
    )
    assert told["findings"] == analysis.findings(runs)
    assert {row["method"] for row in told["paired_differences"]} == set(METHODS) - {"sgd"}
    assert len(pd.read_csv(tmp_path / "new" / "summary.csv")) == len(METHODS)


def test_analyze_fits_80_columns(quick_demo, monkeypatch):
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    result = call("analyze", quick_demo / "runs", "--no-figures")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout


def test_json_alone_draws_nothing(quick_demo, tmp_path):
    shutil.copytree(quick_demo / "runs" / "sgd-seed0", tmp_path / "runs" / "sgd-seed0")
    assert json.loads(call("analyze", tmp_path / "runs", "--json").stdout)["figures"] == {}
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_figures_lie_beside_the_runs_and_never_inside_one(quick_demo):
    assert default_folder(quick_demo / "runs") == quick_demo / "runs" / "analysis"
    assert default_folder(quick_demo / "runs" / "sgd-seed0") == quick_demo / "runs" / "analysis"


def test_json_names_every_figure_and_its_table(quick_demo, tmp_path):
    told = json.loads(call("analyze", quick_demo / "runs" / "sgd-seed0", "--out", tmp_path, "--json").stdout)
    assert {"accuracy", "norms"} <= set(told["figures"])
    assert all(Path(figure["png"]).is_file() and Path(figure["table"]).is_file() for figure in told["figures"].values())
    assert not set(told["figures"]) & set(told["skipped_figures"])


def test_a_broken_run_is_a_problem_with_a_remedy_and_the_others_are_analysed(quick_demo, tmp_path):
    for name in ("sgd-seed0", "1-sam-seed0"):
        shutil.copytree(quick_demo / "runs" / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "1-sam-seed0" / "manifest.json").write_text("{", encoding="utf-8")
    result = call("analyze", tmp_path / "runs", "--json")
    assert result.exit_code == 0
    assert [row["method"] for row in json.loads(result.stdout)["summary"]] == ["sgd"]
    assert "1-sam-seed0/manifest.json" in result.stderr
    assert json.loads(result.stdout)["problems"]


def test_nothing_but_broken_runs_is_a_failure(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text("{", encoding="utf-8")
    result = call("analyze", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("problem: ")
    assert "can be read" in result.stderr


def test_a_baseline_that_is_not_there_names_those_that_are(quick_demo):
    result = call("analyze", quick_demo / "runs", "--baseline", "1sam", "--json")
    assert result.exit_code == 2
    assert "Did you mean '1-sam'?" in result.stderr


def test_another_baseline_is_what_the_rest_is_compared_with(quick_demo):
    told = json.loads(call("analyze", quick_demo / "runs", "--baseline", "1-sam", "--json").stdout)
    assert {row["baseline"] for row in told["paired_differences"]} == {"1-sam"}
    assert "sgd" in {row["method"] for row in told["paired_differences"]}
