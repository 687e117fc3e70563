"""`noisesam reproduce baek2024`: from sweep files to verdicts, figures and manifests; refusals; what a dry run states."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.reproduce.claims import CLAIMS, judge
from noisesam.reproduce.evidence_runs import evidence_of
from noisesam.runs import RunCollection, open_runs

SWEEP = """
title = "Tiny digits"
expectation = "Nothing: one epoch."
decision = "None: one epoch."
seeds = [0, 1]
[run.data]
name = "digits"
train_size = 120
validation_size = 40
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
epochs = 1
batch_size = 20
threads = 1
[run.tracking]
rho = 0.05
probe_size = 16
probe_every = 1
[run.checkpoint]
every = 1
keep = 1
[grid]
methods = ["sgd", "sam", "1-sam"]
[[points]]
label = "main"
[[points]]
label = "no-noise"
"noise.rate" = 0.0
[calibration]
tuning_seeds = [9]
[calibration.methods]
sam = { grid = [{ rho = 0.05 }] }
1-sam = { grid = [{ rho = 0.05 }] }
"""
SECOND = SWEEP.replace("Tiny digits", "Tinier digits").replace("hidden = [8]", "hidden = [4]")


def call(*arguments: object):
    return CliRunner().invoke(app, ["reproduce", "baek2024", *map(str, arguments)], terminal_width=80)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "baek2024-cpu-tiny.toml").write_text(SWEEP)
    (folder / "baek2024-cpu-tinier.toml").write_text(SECOND)
    return folder


@pytest.fixture(scope="module")
def made(sweeps, tmp_path_factory):
    """The scale cpu on two tiny sweeps: broken off after no time, then finished."""
    root = tmp_path_factory.mktemp("made")
    (root / "kept").mkdir()
    (root / "kept" / "README.md").write_text(
        "# Figures\n\nBefore.\n\n<!-- baek2024-cpu -->\nold\n<!-- /baek2024-cpu -->\n\nAfter.\n"
    )
    given = ("--scale", "cpu", "--experiments", sweeps, "--out", root / "out", "--keep", root / "kept", "--workers", 1)
    paused = call(*given, "--minutes", 0)
    finished = call(*given)
    assert finished.exit_code == 0, finished.output
    return root, given, paused, finished


def test_a_scale_whose_time_is_over_says_how_far_it_is_and_goes_on(made):
    _, _, paused, finished = made
    assert paused.exit_code == 0, paused.output
    counted = re.search(r"The time is over: (\d+) of 24 runs are made", words(paused.output))
    assert counted is not None
    done = int(counted.group(1))
    assert done < 24
    assert f"{24 - done} runs made, {done} finished before" in words(finished.output)


def test_the_verdicts_shown_and_written_are_those_of_the_runs(made):
    root, _, _, finished = made
    evidence = [
        evidence_of(RunCollection(list(open_runs(root / "out" / "runs" / name))), setting=name) for name in ("tinier", "tiny")
    ]
    expected = judge(evidence)
    written = pd.read_csv(root / "kept" / "baek2024-cpu-claims.csv", keep_default_na=False)
    assert written[["claim", "setting", "verdict", "estimate"]].to_numpy().tolist() == (
        expected[["claim", "setting", "verdict", "estimate"]].to_numpy().tolist()
    )
    assert all(name in finished.output for name in CLAIMS)
    assert max(len(line) for line in finished.stdout.splitlines() if "baek2024" not in line and "/" not in line) <= 80
    assert "below half it shows nothing" in words(finished.output)  # one epoch fits no wrong label


def test_the_kept_folder_has_tables_figures_manifests_and_its_section(made):
    root, *_ = made
    kept = root / "kept"
    for name in ("claims", "verdicts", "summary", "differences", "evidence", "settings"):
        assert len(pd.read_csv(kept / f"baek2024-cpu-{name}.csv")), name
    manifests = json.loads((kept / "baek2024-cpu-manifests.json").read_text())
    assert len(manifests) == len({manifest["id"] for manifest in manifests}) == 24
    assert str(root) not in (kept / "baek2024-cpu-manifests.json").read_text()
    readme = (kept / "README.md").read_text()
    assert readme.startswith("# Figures\n\nBefore.\n\n<!-- baek2024-cpu -->\n")
    assert readme.endswith("<!-- /baek2024-cpu -->\n\nAfter.\n")
    assert "old" not in readme.splitlines()
    assert "`noisesam reproduce baek2024 --scale cpu`" in readme
    linked = re.findall(r"\]\(([^)]+)\)", readme)
    assert len([link for link in linked if link.endswith(".png")]) >= 8
    assert all((kept / link).exists() for link in linked)
    assert all((kept / link).with_suffix(".pdf").exists() for link in linked if link.endswith(".png"))
    assert all(f"`{manifest['id']}`" in readme for manifest in manifests)


def test_a_second_call_makes_nothing_and_writes_the_same_bytes(made):
    root, given, _, _ = made
    files = [path for path in (root / "kept").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    result = call(*given, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["made"], said["skipped"]) == (0, 24)
    assert {row["claim"] for row in said["verdicts"]} == set(CLAIMS)
    assert {path: path.read_bytes() for path in files} == before


def test_a_wrong_manifest_is_an_error_that_names_the_run(made, tmp_path):
    import shutil

    root, given, *_ = made
    shutil.copytree(root / "out", tmp_path / "out")
    place = tmp_path / "out" / "runs" / "tiny" / "main-sam-seed1" / "manifest.json"
    manifest = json.loads(place.read_text())
    manifest["noise"]["realised_rate"] = 0.1
    place.write_text(json.dumps(manifest))
    result = call("--scale", "cpu", "--experiments", given[3], "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{manifest['id']}: realised noise rate 0.1000, requested 0.4000" in words(result.output)
    assert "remedy: Delete the runs that are named" in words(result.output)
    assert "Traceback" not in result.output


def test_a_dry_run_states_runs_steps_time_and_memory_and_makes_nothing(sweeps, tmp_path):
    tuned = tmp_path / "sweeps"
    tuned.mkdir()
    text = SWEEP.replace("1-sam = { grid = [{ rho = 0.05 }] }", "1-sam = { grid = [{ rho = 0.05 }, { rho = 0.1 }] }")
    (tuned / "baek2024-cpu-tiny.toml").write_text(text)
    given = ("--scale", "cpu", "--experiments", tuned, "--out", tmp_path / "out")
    result = call(*given, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    (one,) = said["settings"]
    assert (one["runs"], one["finished"], one["steps"]) == (12, 0, 12 * 4)  # 80 training images in batches of 20
    assert one["tuning_runs"] == 2
    assert said["measured"] is True
    assert 0 < one["seconds"] < 600
    assert one["memory"] > 100e6
    assert not (tmp_path / "out").exists()
    refused = call(*given)  # without its calibration the scale itself is refused
    assert refused.exit_code == 2
    assert "--calibrate" in words(refused.output)
    assert not (tmp_path / "out").exists()


def test_the_dry_run_of_the_gpu_scale_states_a_computed_time_without_a_device():
    result = call("--scale", "gpu", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "24 runs" in words(result.output)
    import torch

    if not torch.cuda.is_available():
        assert "not measured: no such device here" in words(result.output)


def test_the_gpu_scale_is_refused_without_a_cuda_device(sweeps, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "baek2024-gpu.toml").write_text(SWEEP.replace("threads = 1", 'device = "cuda"'))
    result = call("--scale", "gpu", "--experiments", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "finds no CUDA device here" in words(result.output)
    assert "remedy: Run it there, or use --scale cpu" in words(result.output)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("baek2024", "--scale", "huge"), "Unknown scale 'huge'"),
        (("beak2024",), "Did you mean 'baek2024'?"),
        (("baek2024", "--scale", "cpu", "--experiments", "no/such/folder"), "No folder no/such/folder"),
        (("baek2024", "--scale", "cpu", "--experiments", "tests"), "No baek2024-cpu*.toml in tests"),
    ],
)
def test_what_is_not_there_is_refused_with_a_remedy(arguments, said, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    result = CliRunner().invoke(app, ["reproduce", *arguments])
    assert result.exit_code == 2, result.output
    assert said in words(result.output)
    assert "remedy:" in result.output or "Did you mean" in result.output


def test_the_toy_ends_with_its_verdicts_and_keeps_its_figures(tmp_path):
    result = call("--scale", "toy", "--out", tmp_path / "out", "--keep", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in CLAIMS)
    verdicts = pd.read_csv(tmp_path / "kept" / "baek2024-toy-verdicts.csv").set_index("claim")["verdict"]
    assert verdicts["C4"] == "supported"
    peaks = pd.read_csv(tmp_path / "kept" / "baek2024-toy-peaks.csv")
    assert set(peaks["setting"]) == {"linear", "linear, zero start", "two-layer linear"}
    assert (tmp_path / "kept" / "baek2024-toy.md").exists()


def test_a_dry_run_of_the_toy_runs_nothing(tmp_path):
    result = call("--scale", "toy", "--dry-run", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "135 models in 3 settings" in words(result.output)
    assert not (tmp_path / "out").exists()
