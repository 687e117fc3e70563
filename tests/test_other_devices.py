"""The tests on a stand-in for an accelerator, each file in a process of its own: torch has one such device per process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.glob("*/test_on_another_device.py"))


@pytest.mark.parametrize("file", FILES)
def test_on_another_device(file):
    # Not in the workers of this run, and with nothing of theirs in the environment.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / file)]
    ended = subprocess.run(command, cwd=TESTS.parent, env=surroundings, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]


def test_there_are_such_files():
    assert len(FILES) == 3
