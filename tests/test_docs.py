"""Every Python block of the documentation runs, and the cost table of the README is the one that was measured."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from noisesam.gradients.engine import interception

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_python_blocks_of_the_documentation_run(page, monkeypatch):
    monkeypatch.setattr(interception, "_RULES", dict(interception._RULES))  # a rule that a page registers stays on the page
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    ("row", "contender"),
    [
        ("batch SAM, plain torch", "torch-sam"),
        ("**1-SAM**", "1-sam"),
        ("**J-SAM**", "j-sam"),
        ("**L-SAM**", "l-sam"),
        ("per-example gradient norms", "norms"),
        ("1-SAM, one example at a time", "loop"),
        ("1-SAM, best `vmap`", "best-vmap"),
    ],
)
def test_the_cost_table_of_the_readme_is_the_one_that_was_measured(row, contender):
    document = json.loads((ROOT / "benchmarks" / "amd-epyc-2-cores.json").read_text(encoding="utf-8"))
    measured = {
        timing["model"]: timing["ratio_to_sgd"]
        for timing in document["timings"]
        if (timing["contender"], timing["threads"], timing["precision"]) == (contender, 1, "float32")
    }
    assert len(measured) == 7
    line = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row} |"))
    shown = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    assert [float(cell) for cell in shown] == [pytest.approx(measured[one["model"]], rel=5e-3) for one in document["models"]]


def test_the_architectures_of_the_readme_are_those_that_were_looked_at():
    rows = json.loads((ROOT / "benchmarks" / "architectures.json").read_text(encoding="utf-8"))["architectures"]
    engines = Counter(row["engine"] for row in rows)
    libraries = Counter(row["library"] for row in rows)
    refused = [row["family"] for row in rows if row["engine"] == "refused"]
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"Of {len(rows)} published architectures taken as they are ({libraries['timm']} families of timm, "
        f"{libraries['transformers']} of transformers), {engines['fast']} run on the fast engine, "
        f"{engines['reference'] + engines['moved-weights']} on a slower one, and one is refused"
    ) in words
    assert refused == ["csatv2"]
    fast = [row for row in rows if row["engine"] == "fast"]
    assert "off by 2e-14 in float64, or by less than the last digit of the weights changes, and by 7e-7 in float32" in words
    assert all(row["error"] < (7e-7 if row["dtype"] == "float32" else max(2e-14, row["rounding"])) for row in fast)


def test_the_ratios_of_the_second_machine_are_those_that_were_measured():
    document = json.loads((ROOT / "benchmarks" / "intel-xeon-2-cores.json").read_text(encoding="utf-8"))
    seconds = {(one["contender"], one["model"], one["threads"]): one["ratio_to_sgd"] for one in document["timings"]}
    line = next(
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| Intel Xeon |")
    )
    shown = [[float(number) for number in cell.split("/")] for cell in line.strip("|").split("|")[1:]]
    for one, numbers in zip(document["models"], shown, strict=True):
        for threads, number in zip((1, 2), numbers, strict=True):
            measured = seconds["1-sam", one["model"], threads] / seconds["torch-sam", one["model"], threads]
            assert number == pytest.approx(measured, abs=5.1e-3)
