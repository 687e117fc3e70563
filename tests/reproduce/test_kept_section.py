"""The section on a scale in figures/README.md."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from noisesam.reproduce.baek2024 import Findings
from noisesam.reproduce.claims import JUDGED, verdicts
from noisesam.reproduce.outputs import Written, section
from noisesam.reproduce.settings import scale_named


def test_a_figure_of_one_setting_goes_with_the_verdicts_of_that_setting():
    rows = [("C1", "gains", "digits", "supported", "", "", 5), ("C1", "gains", "cifar10", "undecided", "", "", 3)]
    claims = pd.DataFrame(rows, columns=[*JUDGED])
    findings = Findings(scale_named("cpu"), claims, verdicts(claims))
    folder = Path("kept")
    figures = {folder / name / "accuracy.png": (name, ("C1",)) for name in ("digits", "cifar10", "toy")}
    lines = section(findings, Written("baek2024-cpu", folder, {}, figures, {}, ""), "noisesam reproduce").splitlines()
    said = {line.split("`")[1].split("/")[0]: line.split("|")[3].strip() for line in lines if "accuracy.png" in line}
    assert said == {"digits": "C1 supported", "cifar10": "C1 undecided", "toy": "C1 supported"}
