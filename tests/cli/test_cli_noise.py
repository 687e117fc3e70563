"""`noisesam noise` reports what was done to the labels, counted from the labels themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.cli.noise import empirical_matrix
from noisesam.data import add_label_noise, load


def call(*arguments: str):
    return CliRunner().invoke(app, ["noise", *arguments])


def test_json_is_the_data_set_s_own_record_and_count():
    told = json.loads(call("--kind", "symmetric", "--rate", "0.3", "--seed", "5", "--json").stdout)
    noisy = add_label_noise(load("digits"), "symmetric", 0.3, seed=5)
    wrong = int((noisy.labels != noisy.clean_labels).sum())
    assert told["examples"] == len(noisy)
    assert told["realised_rate"] == wrong / len(noisy)
    assert told["stated_transition_matrix"] == noisy.noise.transition_matrix
    matrix, counts = np.array(told["empirical_transition_matrix"]), np.array(told["class_counts"])
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=1e-12)  # ten ratios of integers
    assert round(float(((1 - np.diag(matrix)) * counts).sum())) == wrong


def test_the_empirical_matrix_of_clean_labels_is_the_identity():
    matrix, counts = empirical_matrix(add_label_noise(load("digits"), "none", seed=0))
    np.testing.assert_array_equal(matrix, np.eye(10))
    assert counts.sum() == len(load("digits"))


def test_the_empirical_matrix_has_no_numbers_for_an_absent_class():
    digits = load("digits")
    without_three = digits.subset(np.flatnonzero(digits.clean_labels.numpy() != 3))
    matrix, counts = empirical_matrix(without_three)
    assert counts[3] == 0
    assert np.isnan(matrix[3]).all()
    assert not np.isnan(np.delete(matrix, 3, axis=0)).any()


def test_the_tables_fit_80_columns(monkeypatch):
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    result = call("--kind", "pair-flip", "--rate", "0.45")
    assert result.exit_code == 0
    assert "requested rate 0.4500" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_picture_lies_where_it_is_said_with_its_numbers(tmp_path):
    told = json.loads(call("--out", str(tmp_path / "new" / "folder"), "--json").stdout)
    assert told["picture"] == str(tmp_path / "new" / "folder" / "noise-symmetric.png")
    rows = (tmp_path / "new" / "folder" / "noise-symmetric.csv").read_text(encoding="utf-8").splitlines()
    assert [float(cell) for cell in rows[1].split(",")[:10]] == told["empirical_transition_matrix"][0]


def test_a_transition_matrix_from_a_file_is_the_stated_one(tmp_path):
    law = np.roll(np.eye(10), 1, axis=1)
    np.savetxt(tmp_path / "law.csv", law, delimiter=",")
    told = json.loads(call("--kind", "transition-matrix", "--matrix", str(tmp_path / "law.csv"), "--json").stdout)
    assert told["realised_rate"] == 1.0
    assert told["empirical_transition_matrix"] == law.tolist()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kind", "symetric"], "Did you mean 'symmetric'?"),
        (["--rate", "40"], "error: rate = 40"),
        (["--data", "digit"], "Did you mean 'digits'?"),
        (["--kind", "human"], "NOISESAM_DATA"),
    ],
)
def test_mistakes_exit_with_two_and_the_remedy(arguments, text, monkeypatch):
    monkeypatch.delenv("NOISESAM_DATA", raising=False)
    result = call(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


def test_a_matrix_file_of_words_is_an_error(tmp_path):
    (tmp_path / "law.csv").write_text("a,b\nc,d\n", encoding="utf-8")
    result = call("--kind", "transition-matrix", "--matrix", str(tmp_path / "law.csv"))
    assert result.exit_code == 2
    assert "is no table of numbers" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "worst"], "--source worst with --kind symmetric"),
        (["--matrix", "nope.csv"], "--matrix nope.csv with --kind symmetric"),
        (["--kind", "transition-matrix"], "Type --matrix FILE.csv"),
        (["--kind", "transition-matrix", "--matrix", "nope.csv"], "nope.csv cannot be read: No such file"),
        (["--seed", "-1"], "seed = -1"),
    ],
)
def test_an_option_that_would_not_be_read_is_refused(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_empty_matrix_file_is_named(tmp_path):
    (tmp_path / "empty.csv").write_text("\n")
    result = call("--kind", "transition-matrix", "--matrix", str(tmp_path / "empty.csv"))
    assert result.exit_code == 2
    assert "empty.csv is empty" in result.stderr
