"""What is printed: plain JSON, tables of at most 80 columns, TOML that reads back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisesam.cli import console
from noisesam.cli.report import bracket, mean_and_sd, short, show_accuracy, show_differences, show_mechanism
from noisesam.cli.toml_text import to_toml
from noisesam.errors import NoisesamError


def test_json_has_null_where_a_value_is_not_finite():
    frame = pd.DataFrame({"method": ["sgd"], "value": [np.nan], "steps": np.array([3]), "reached": [True]})
    assert console.records(frame) == [{"method": "sgd", "value": None, "steps": 3, "reached": True}]
    assert console.plain({"a": np.float64("inf"), "b": (np.int64(1), np.array([0.5]))}) == {"a": None, "b": [1, [0.5]]}


def test_json_keeps_full_precision(capsys):
    console.print_json({"value": 1 / 3})
    assert json.loads(capsys.readouterr().out) == {"value": 1 / 3}


def test_short_numbers_lose_only_their_leading_zero():
    assert [short(value) for value in (0.5, -0.5, 1.25, 0.0)] == [".500", "-.500", "1.250", ".000"]
    assert mean_and_sd(0.5, None) == ".500"
    assert bracket(float("nan"), float("nan")) == ""


_SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), st.text())
_KEYS = st.text(min_size=1)
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3), st.dictionaries(_KEYS, _SCALARS, max_size=3))


@given(
    st.dictionaries(_KEYS, _SCALARS, max_size=3),
    st.dictionaries(_KEYS, st.dictionaries(_KEYS, _VALUES, max_size=4), max_size=3),
)
def test_toml_reads_back_what_was_written(values, sections):
    config = {**values, **sections}
    assert tomllib.loads(to_toml(config)) == config


def test_toml_leaves_out_what_is_none():
    assert tomllib.loads(to_toml({"data": {"train_size": None, "name": "digits"}})) == {"data": {"name": "digits"}}


def summary_table(settings: list[str]) -> pd.DataFrame:
    rows = []
    for setting in settings:
        row: dict[str, object] = {"method": "looklayersam", "setting": setting, "seeds": 3}
        for selection in ("oracle", "validation", "last"):
            for quantity in ("test_accuracy", "epoch", "clean_fitted", "noisy_fitted"):
                row |= {f"{selection}_{quantity}_{part}": 0.123456 for part in ("mean", "sd", "low", "high")}
        for ratio in ("early_ratio", "oracle_ratio", "validation_ratio"):
            row |= {f"{ratio}_{part}": 1.23456 for part in ("mean", "sd", "low", "high")}
        rows.append(row | {"forward_passes": 2.0, "backward_passes": 2.0, "step_seconds": 0.0123})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "settings", [["", ""], ["rho=0.05", "rho=0.1"], ["activation=0.0003, weight=0.003", "activation=0.001, weight=0.003"]]
)
def test_tables_fit_80_columns_and_keep_every_number(capsys, monkeypatch, settings):
    monkeypatch.setattr(console.out, "_width", 80)
    table = summary_table(settings)
    show_accuracy(table)
    show_mechanism(table)
    paired = pd.DataFrame(
        [
            {
                "method": "looklayersam",
                "setting": setting,
                "baseline": "sgd",
                "baseline_setting": "",
                "selection": selection,
                "difference": -0.0123,
                "sd": 0.01,
                "low": -0.1234,
                "high": 0.1234,
                "pairs": 3,
            }
            for setting in settings
            for selection in ("oracle", "validation", "last")
        ]
    )
    show_differences(paired, "sgd")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed  # rich's sign for text that it cut off
    assert printed.count(".123 ±.123") == 3 * len(settings)
    assert "looklayersam" in printed
    assert printed.count("[-.123, .123]") == 3 * (len(settings) if settings[0] != settings[1] else 1)


def test_brackets_in_names_are_brackets(capsys):
    console.say("[bold]a[/bold]")
    console.print_table(("name",), [("[red]x",)])
    assert capsys.readouterr().out.split() == ["[bold]a[/bold]", "name", "[red]x"]


def test_a_progress_bar_draws_nothing_where_there_is_no_terminal(capsys):
    with console.progress_bar("training", 3) as bar:
        bar.update(bar.task_ids[0], advance=3)
    assert capsys.readouterr() == ("", "")


def test_no_text_out_of_a_file_reaches_the_terminal_as_a_command(capsys):
    text = "a\x1b[2J\x1b]0;title\x07\r\x9b1m\u202eb\u2028\ud800"
    console.say(text)
    console.say_path("path:", text)
    console.print_table(("name",), [(text,)])
    console.warn(text)
    console.show_error(NoisesamError(text, expected=text, remedy=text))
    printed = "".join(capsys.readouterr())
    assert all(character.isprintable() for character in printed.replace("\n", ""))
    assert printed.count("\\x1b[2J") == 7
    assert console.harmless("näme\n名") == "näme\n名"


_WITH_SIGN = """
from noisesam.cli import app, console, main

@app.command("sign")
def sign():
    console.out.print("0.90 \\u00b1 0.01")

sys.argv = ["noisesam", "sign"]
main()
"""


def test_a_terminal_of_ascii_gets_question_marks_and_no_traceback():
    """The plus-or-minus sign stands in every table of means."""
    shown = subprocess.run(
        [sys.executable, "-c", "import sys\n" + _WITH_SIGN],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert shown.returncode == 0, shown.stderr.decode()
    assert b"0.90 ? 0.01" in shown.stdout
