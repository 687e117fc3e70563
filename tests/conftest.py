"""What every test starts from: one torch thread, no display, and Hypothesis without chance or clock."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# A stand-in device, once registered, is torch's accelerator for the whole process: tests/test_other_devices.py runs these files
# in processes of their own. Named on the command line they run as they are.
collect_ignore_glob = ["*/test_on_another_device.py"]

hypothesis.settings.register_profile("noisesam", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("noisesam")


def pytest_report_header() -> str:
    """Say whether the tests on data sets that are not bundled can run; where the data lies is nobody's business."""
    given = "set: tests on data sets on disk run" if os.environ.get("NOISESAM_DATA") else "not set: bundled data only"
    return f"NOISESAM_DATA is {given}"


@pytest.fixture(autouse=True)
def _figures_are_closed():
    """A test that draws leaves no figure open for the next one (matplotlib warns at twenty)."""
    yield
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `noisesam demo --quick` has filled, made once and shared by all test workers; do not write into it."""
    from filelock import FileLock  # comes with torch
    from typer.testing import CliRunner

    from noisesam.cli import app

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, output = shared / "quick-demo", shared / "quick-demo-output.txt"
    with FileLock(shared / "quick-demo.lock"):
        if not output.exists():
            result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(folder)])
            assert result.exit_code == 0, result.output
            output.write_text(result.output, encoding="utf-8")
    return folder
