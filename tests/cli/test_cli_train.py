"""`noisesam train`: configuration in, run out; dry runs train nothing; mistakes name the nearest valid key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.runs import open_run
from noisesam.training import config_to_dict, default_directory, fit, load_config

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.toml"))
TINY = """
[data]
train_size = 64
test_size = 32
validation_size = 16
[noise]
kind = "symmetric"
rate = 0.25
[model]
name = "linear"
[training]
epochs = 2
batch_size = 16
[tracking]
probe_size = 8
"""


def call(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return tmp_path / "tiny.toml"


def test_a_dry_run_prints_the_resolved_configuration_and_trains_nothing(tiny):
    result = call(tiny, "--set", "method.name=1-sam", "--set", "method.rho=0.05", "--dry-run")
    assert result.exit_code == 0
    printed, sizes = result.stdout.split("Sizes")
    config = load_config(tomllib.loads(printed))
    assert config == load_config(tiny, overrides=("method.name=1-sam", "method.rho=0.05"))
    for label, value in {"training examples": "48", "validation examples": "16", "test examples": "32", "steps": "6"}.items():
        assert any(line.split() == [*label.split(), value] for line in sizes.splitlines())
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


def test_a_dry_run_names_the_folder_that_training_uses(tiny):
    told = json.loads(call(tiny, "--dry-run", "--json").stdout)
    assert told["sizes"]["steps"] == 6
    config = load_config(tiny)
    assert told["configuration"] == json.loads(json.dumps(config_to_dict(config)))
    assert Path(told["out"]) == default_directory(config) == fit(config).path


def test_the_command_trains_what_fit_trains_and_the_same_command_finds_it_again(tiny):
    first = call(tiny, "--set", "seed=3", "--out", "a")
    assert first.exit_code == 0, first.output
    assert "noisy validation" in first.stdout
    fit(load_config(tiny, overrides=("seed=3",)), "b")
    compared = CliRunner().invoke(app, ["runs", "compare", "a", "b", "--json"])
    assert json.loads(compared.stdout)["metrics_bit_equal"] is True
    before = open_run("a").manifest
    assert call(tiny, "--set", "seed=3", "--out", "a").stdout == first.stdout
    assert open_run("a").manifest == before


def test_json_has_the_three_ways_to_stop(tiny):
    told = json.loads(call(tiny, "--out", "a", "--json").stdout)
    assert told["status"] == "finished"
    assert [row["selection"] for row in told["early_stopping"]] == ["oracle", "validation", "last"]


def test_another_configuration_is_refused_and_the_run_stays(tiny):
    call(tiny, "--out", "a")
    before = open_run("a").manifest
    result = call(tiny, "--set", "optimizer.lr=0.5", "--out", "a")
    assert result.exit_code == 1
    assert "remedy: " in result.stderr
    assert open_run("a").manifest == before


def test_no_resume_refuses_a_folder_that_holds_a_run(tiny):
    call(tiny, "--out", "a")
    assert call(tiny, "--out", "a", "--no-resume").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "optimizer.momentun=0.9"], "Did you mean 'optimizer.momentum'?"),
        (["--set", "method.name=1sam"], "1-sam"),
        (["--set", "training.epochs=many"], "training.epochs"),
        (["--set", "epochs"], "epochs"),
        (["--set", "data.validation_size=64"], "data.validation_size"),
    ],
)
def test_mistakes_in_the_configuration_exit_with_two_before_anything_is_written(tiny, arguments, text):
    result = call(tiny, *arguments, "--out", "a")
    assert result.exit_code == 2, result.output
    assert text in result.stderr
    assert result.stderr.startswith("error: ")
    assert not Path("a").exists()


def test_a_configuration_that_is_no_toml_is_an_error(tiny):
    tiny.write_text("[data\n", encoding="utf-8")
    result = call(tiny)
    assert result.exit_code == 2
    assert "tiny.toml" in result.stderr


def test_a_place_that_cannot_be_written_is_an_error(tiny):
    Path("file").write_text("", encoding="utf-8")
    result = call(tiny, "--out", "file/run")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_run_that_diverges_says_so_and_keeps_what_was_measured(tiny):
    result = call(tiny, "--set", "optimizer.lr=1e30", "--set", "model.name=two-layer-linear", "--out", "a")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("remedy: ")
    assert open_run("a").status == "failed"
    assert len(open_run("a").metrics) > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid_configurations(path):
    from noisesam.training import validate

    validate(load_config(path))


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"digits", "cifar10-small", "cifar10-resnet18"}
