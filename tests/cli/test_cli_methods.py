"""`noisesam methods` says what the registry says."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.methods import describe, names


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_table_has_one_row_per_method_and_fits_80_columns(monkeypatch):
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    result = call("methods")
    lines = result.stdout.splitlines()
    first_words = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert [word for word in first_words if word in names()] == list(names())
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout


def test_json_holds_everything_that_the_registry_knows():
    listed = json.loads(call("methods", "--json").stdout)
    assert [one["name"] for one in listed] == list(names())
    for one in listed:
        described = describe(one["name"])
        assert (one["rule"], one["cost"], one["reference"]) == (described.rule, described.cost, described.reference)
        assert set(one["hyperparameters"]) == set(described.hyperparameters)
        assert all(entry["meaning"] for entry in one["hyperparameters"].values())


@pytest.mark.parametrize("name", names())
def test_one_method_is_shown_with_every_hyper_parameter_and_default(name):
    shown = call("methods", name).stdout
    described = describe(name)
    assert described.title in shown
    for key, (default, _) in described.hyperparameters.items():
        assert any(line.split()[:2] == [key, "none" if default is None else str(default)] for line in shown.splitlines())


def test_an_unknown_method_exits_with_two_and_names_the_nearest():
    result = call("methods", "1sam")
    assert result.exit_code == 2
    assert "remedy: Did you mean '1-sam'?" in result.stderr
