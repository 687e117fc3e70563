"""What may not be read is said to be closed: it is neither damaged nor absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from noisesam import open_run, open_runs
from noisesam.cli import app
from noisesam.errors import RunError
from noisesam.runs.files import cannot_read, inside

from .conftest import write_run


def closed(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.fixture
def shut(tmp_path, monkeypatch) -> Path:
    """Two runs, the folder of one of which the system does not let us look into (root may look into every folder)."""
    for name in ("open", "shut"):
        write_run(tmp_path / name, config={"method": {"name": "sgd"}, "seed": len(name)})
    scandir = os.scandir

    def refused(path="."):
        if Path(path) == tmp_path / "shut":
            raise closed(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    return tmp_path


def test_a_closed_folder_is_a_problem_beside_the_runs_that_are_read(shut):
    collection = open_runs(shut)
    assert len(collection) == 1
    (problem,) = collection.problems
    assert "shut cannot be read: Permission denied" in str(problem)
    assert "permissions" in problem.remedy
    with pytest.raises(RunError, match="cannot be read"):
        open_runs(shut, strict=True)


def test_the_command_line_lists_it_and_verify_fails(shut):
    listed = CliRunner().invoke(app, ["runs", str(shut)])
    assert "Permission denied" in listed.output
    verified = CliRunner().invoke(app, ["runs", "verify", str(shut)])
    assert verified.exit_code == 1
    assert "2 checked, 1 with problems" in verified.stdout


def test_a_closed_part_is_not_called_damaged(tmp_path, monkeypatch):
    write_run(tmp_path / "run")

    def refused(path, *_, **__):
        raise closed(path)

    monkeypatch.setattr(pq, "ParquetFile", refused)
    problems = open_run(tmp_path / "run").problems
    assert problems
    assert all("cannot be read: Permission denied" in p.message and "delete" not in p.remedy for p in problems)


def test_a_closed_place_is_not_called_missing(tmp_path, monkeypatch):
    write_run(tmp_path / "run")

    def refused(self, **_):
        raise closed(self)

    monkeypatch.setattr(Path, "resolve", refused)
    with pytest.raises(RunError, match="cannot be read"):
        inside(tmp_path / "run", tmp_path / "run" / "manifest.json")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", lambda self: refused(self))
    with pytest.raises(RunError, match="cannot be read"):
        open_run(tmp_path / "run")


def test_the_error_names_place_reason_and_way_out():
    assert str(cannot_read(Path("a"), closed("a"))) == (
        "a cannot be read: Permission denied. Change its permissions, or those of the folder it lies in."
    )
