"""`noisesam reproduce baek2024 --scale controls` on tiny controls: runs, verdicts, tables, figures, a run that diverges."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.experiments import chosen_by_validation
from noisesam.reproduce.controls_runs import CHANCE, read_control
from noisesam.runs import open_runs

RUN = """
seeds = [0, 1, 2]
[run.data]
name = "digits"
train_size = 260
validation_size = 100
test_size = 60
[run.noise]
kind = "symmetric"
rate = 0.4
[run.model]
name = "mlp"
options = { hidden = [16] }
[run.optimizer]
lr = 0.5
[run.training]
epochs = 8
batch_size = 20
threads = 1
[run.tracking]
rho = 0.05
probe_size = 0
"""
STATED = 'title = "Tiny {}"\nexpectation = "Nothing: eight epochs."\ndecision = "As of the control."\n'
WIDTH = (
    STATED.format("width")
    + """
points = [
    { label = "sgd", "method.name" = "sgd" },
    { label = "1-sam-rho0.05", "method.name" = "1-sam", "method.rho" = 0.05 },
    { label = "1-sam-rho0.1", "method.name" = "1-sam", "method.rho" = 0.1 },
]
"""
    + RUN
    + """
[grid]
"model.options.hidden" = [[8], [16]]
"""
)
MATCHED = STATED.format("price") + """
points = [
    { label = "sgd", "method.name" = "sgd" },
    { label = "1-sam-rho0.05", "method.name" = "1-sam", "method.rho" = 0.05 },
    { label = "1-sam-broken", "method.name" = "1-sam", "method.rho" = 0.1, "optimizer.lr" = 1e30 },
]
""" + RUN  # fmt: skip


def call(*arguments: object):
    return CliRunner().invoke(app, ["reproduce", "baek2024", "--scale", "controls", *map(str, arguments)], terminal_width=80)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    sweeps = root / "sweeps"
    sweeps.mkdir()
    (sweeps / "control-width.toml").write_text(WIDTH)
    (sweeps / "control-matched.toml").write_text(MATCHED)
    (root / "kept").mkdir()
    (root / "kept" / "README.md").write_text("# Figures\n")
    given = ("--experiments", sweeps, "--out", root / "out", "--keep", root / "kept", "--workers", 1)
    result = call(*given)
    assert result.exit_code == 0, result.output
    return root, given, result


def test_the_runs_lie_in_a_folder_per_control_and_point(made):
    root, *_ = made
    assert {path.name for path in (root / "out" / "runs").iterdir()} == {"matched", "width"}
    names = {path.name for path in (root / "out" / "runs" / "width").iterdir()}
    assert len(names) == 18
    assert all(re.fullmatch(r"(sgd|1-sam-rho0\.05|1-sam-rho0\.1)-hidden\S*-seed[012]", name) for name in names)


def test_it_ends_with_the_verdicts_of_every_control_in_eighty_columns(made):
    _, _, result = made
    assert "Control: matched" in result.stdout
    assert "Control: width" in result.stdout
    assert "C11" in result.stdout
    assert "1-sam persists at width 8" in words(result.stdout) or "persists" in result.stdout
    lines = [line for line in result.stdout.splitlines() if "/" not in line]
    assert max(map(len, lines)) <= 80


def test_a_run_that_diverges_is_named_and_left_out_and_ends_nothing(made):
    root, _, result = made
    assert "1-sam-broken-seed0" in words(result.output)
    points = pd.read_csv(root / "kept" / "baek2024-controls-points.csv", keep_default_na=False).set_index("point")
    assert "did not finish" in points.loc["1-sam-broken", "excluded"]
    verdicts = pd.read_csv(root / "kept" / "baek2024-controls-controls.csv", keep_default_na=False)
    own = verdicts[verdicts["control"] == "matched"]
    assert all("runs left out, did not finish: 1-sam-broken" in reason for reason in own["reason"])
    assert "runs left out, did not finish: 1-sam-broken" in words(result.stdout)
    manifests = json.loads((root / "kept" / "baek2024-controls-manifests.json").read_text())
    assert len(manifests) == 18 + 6


def test_tables_figures_and_the_section_are_kept(made):
    root, *_ = made
    kept = root / "kept"
    for name in ("controls", "advantages", "points", "settings", "runs", "claims", "verdicts"):
        assert len(pd.read_csv(kept / f"baek2024-controls-{name}.csv")), name
    assert set(pd.read_csv(kept / "baek2024-controls-claims.csv")["claim"]) == {"C11"}
    for figure in ("width", "matched"):
        for suffix in ("png", "pdf", "csv"):
            assert (kept / "baek2024-controls" / f"{figure}.{suffix}").exists()
    readme = (kept / "README.md").read_text()
    assert "`noisesam reproduce baek2024 --scale controls`" in readme
    assert "| control | question | at | verdict | as expected |" in readme
    assert all((kept / link).exists() for link in re.findall(r"\]\(([^)]+)\)", readme))
    assert str(root) not in "".join(path.read_text() for path in kept.glob("*.*"))


def test_the_option_is_the_one_that_chosen_by_validation_takes(made):
    root, *_ = made
    folder = root / "out" / "runs" / "width"
    runs = read_control("width", open_runs(folder))
    labels = [label for label in runs.labels("1-sam") if runs.at(8.0).labels("1-sam").count(label)]
    assert len(labels) == 2
    tries = {("1-sam", number): [folder / f"{label}-seed{seed}" for seed in (0, 1, 2)] for number, label in enumerate(labels)}
    table = chosen_by_validation(tries, {"1-sam": [{"rho": 0.05}, {"rho": 0.1}]})
    assert runs.at(8.0).best_of("1-sam") == labels[int(table["chosen"].iloc[0])]
    assert set(runs.runs["excluded"]) <= {"", CHANCE}
    assert set(runs.runs["place"]) == {8.0, 16.0}


def test_a_second_call_makes_only_what_diverged_and_writes_the_same_bytes(made):
    root, given, _ = made
    files = [path for path in (root / "kept").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    result = call(*given, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["made"], said["skipped"]) == (0, 24)
    assert {row["control"] for row in said["controls"]} == {"matched", "width"}
    assert said["advantages"]
    assert {path: path.read_bytes() for path in files} == before


def test_a_control_without_a_rule_is_refused_before_anything_is_run(tmp_path):
    (tmp_path / "control-wdith.toml").write_text(WIDTH)
    result = call("--experiments", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Did you mean 'width'?" in words(result.output)
    assert not (tmp_path / "out").exists()


def test_the_sweep_files_of_the_project_are_the_scale():
    from noisesam.reproduce.settings import SCALES, read_settings

    settings = read_settings(SCALES["controls"], Path(__file__).resolve().parents[2] / "experiments", Path("out"))
    assert sum(len(setting.jobs) for setting in settings) == 810
    assert {str(job.folder.parent) for setting in settings for job in setting.jobs} == {f"out/{one.name}" for one in settings}
    assert all(set(setting.variants) == {"main"} for setting in settings)
