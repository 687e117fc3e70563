"""The command line as a whole: statuses, streams, start-up, the shape of its errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from noisesam.cli import app, exit_status
from noisesam.cli.workers import FailedRunError
from noisesam.errors import ConfigurationError, InputError, MissingExtraError, RunError

COMMANDS = ("demo", "train", "analyze", "scoreboard", "sweep", "methods", "noise", "runs", "reproduce", "bench")


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["runs", "compare", "-h"]])
def test_help_exits_with_zero(arguments):
    result = call(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_lists_what_works_and_hides_what_does_not():
    shown = call("--help").stdout
    assert all(f" {name} " in shown for name in COMMANDS)
    assert " readme " not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["demo", "--seeds", "two"],
        ["demo", "--workers", "0"],
        ["train"],
        ["noise", "--wrong"],
        ["runs", "compare", "a"],
    ],
)
def test_a_wrong_call_exits_with_two_and_names_itself_on_stderr(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_a_missing_path_exits_with_one_and_shows_given_expected_remedy():
    result = call("runs", "no/such/folder")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: no/such/folder does not exist",
        "expected: a run or a folder of runs",
        "remedy: Check the path",
    ]


def test_a_mistake_shows_no_traceback():
    process = subprocess.run(
        [sys.executable, "-m", "noisesam", "analyze", "no/such/folder"], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("error: no/such/folder does not exist")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("a"), 2),
        (InputError("a"), 2),
        (RunError("a"), 1),
        (MissingExtraError("a"), 1),
        (FailedRunError("run", "a"), 1),
    ],
)
def test_usage_errors_exit_with_two_and_failures_with_one(error, status):
    assert exit_status(error) == status


def _raise(error):
    def command(*_, **__):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "the same command again resumes"),
        (PermissionError(13, "Permission denied", "/nowhere/runs"), 1, "error: Cannot use /nowhere/runs: Permission denied"),
        (OSError(28, "No space left on device", "/full/part"), 1, "error: Cannot use /full/part: No space left on device"),
        (FloatingPointError("The loss is not finite"), 1, "remedy: The run diverged"),
    ],
)
def test_interruptions_and_full_disks_are_messages(monkeypatch, error, status, text):
    monkeypatch.setattr("noisesam.cli.analyze.open_all", _raise(error))
    result = call("analyze", "anything")
    assert result.exit_code == status
    assert text in result.stderr
    assert "Traceback" not in result.output


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("noisesam.cli.analyze.open_all", _raise(ZeroDivisionError("a bug")))
    result = call("analyze", "anything")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["runs", "no/such"], ["analyze", "no/such"], ["train", "--help"], ["train", "no.toml"]]
)
def test_commands_that_train_nothing_import_no_torch(arguments):
    code = (
        "import sys, noisesam.cli\n"
        f"sys.argv = ['noisesam', *{arguments!r}]\n"
        "try:\n    noisesam.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr


def test_an_error_of_a_run_crosses_the_process_border_with_its_three_parts():
    import pickle

    error = pickle.loads(pickle.dumps(FailedRunError("sgd-seed0", "It broke", "a whole disk", "Make room")))
    assert (error.given, error.expected, error.remedy) == ("sgd-seed0: It broke", "a whole disk", "Make room")


def test_bench_refuses_an_empty_list_of_models():
    result = call("bench", "--quick", "--models", "")
    assert result.exit_code == 2
    assert "An empty list of names" in result.stderr
