"""How nbmake runs the notebooks: at their small preset, one thread, warnings as errors, and nothing written beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
collect_ignore_glob = ["*.py"]  # the stored form is run; its text twin is no module

STARTUP = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("default", module=r"ipykernel|traitlets|zmq|tornado")  # the kernel's own housekeeping
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Give the kernel its environment for as long as one notebook runs; a notebook that leaves files behind fails."""
    before, files = dict(os.environ), sorted(HERE.iterdir())
    with tempfile.TemporaryDirectory() as settings:
        startup = Path(settings) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-warnings.py").write_text(STARTUP, encoding="utf-8")
        paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # this checkout's noisesam, installed or not
        given = {"IPYTHONDIR": settings, "NOISESAM_PRESET": "small", "OMP_NUM_THREADS": "1"}
        os.environ.update(given | {"PYTHONPATH": os.pathsep.join(paths)})
        os.environ.pop("MPLBACKEND", None)  # the kernel draws into the notebook
        try:
            result = yield
        finally:
            os.environ.clear()
            os.environ.update(before)
    left = [path.name for path in sorted(HERE.iterdir()) if path not in files]
    assert not left, f"the notebook left {left} behind"
    return result
