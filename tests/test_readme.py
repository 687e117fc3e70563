"""Everything the README shows is run: its Python, its commands at their small preset, its make targets, its method table."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noisesam.cli import app
from noisesam.cli.readme import methods_table, replaced
from noisesam.cli.readme_report import SECTIONS, fill_report
from noisesam.cli.readme_scoreboard import full_table, kept_tables, scoreboard_section

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()]


@pytest.fixture
def beside_a_demo(quick_demo: Path, monkeypatch, tmp_path: Path) -> Path:
    """A folder that looks like the one the README is read in: after `noisesam demo --quick`, with the examples."""
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output" / "quick").symlink_to(quick_demo)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippets_run_one_after_the_other(beside_a_demo, capsys):
    assert len(SNIPPETS) >= 4
    namespace: dict = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README.md, snippet {number + 1}", "exec"), namespace)
    assert "nan" not in capsys.readouterr().out.split("run ")[0]


def test_the_loop_of_one_s_own_is_fifteen_lines_and_the_regulariser_three():
    loop, regulariser = (next(one for one in SNIPPETS if name in one) for name in ("method.backward", "JSAMRegularizer"))
    assert len([line for line in loop.splitlines() if line.strip()]) <= 15
    assert len(regulariser.splitlines()) == 3


def test_the_commands_are_small_or_dry():
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "noisesam"
        if words[1] == "demo":
            assert "--quick" in words
        if words[1] in ("train", "sweep", "scoreboard", "reproduce"):
            assert "--dry-run" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_exit_with_zero(command, beside_a_demo):
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    if "--json" in command:
        assert json.loads(result.stdout)


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    assert named - targets <= {"sure"}


def test_the_method_table_is_the_registry_s():
    assert replaced(README, "methods-table", methods_table()) == README, "rewrite it: noisesam readme"


def test_the_demo_table_is_that_of_kept_runs_and_its_picture_is_there():
    section = README.split("<!-- demo-table -->")[1].split("<!-- /demo-table -->")[0]
    manifests = json.loads((ROOT / "figures" / "demo-manifests.json").read_text(encoding="utf-8"))
    methods = {manifest["configuration"]["method"]["name"] for manifest in manifests}
    shown = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert shown == methods
    assert all(manifest["status"] == "finished" for manifest in manifests)
    seeds = {manifest["configuration"]["seed"] for manifest in manifests}
    assert f"over {len(seeds)} seeds" in section
    assert (ROOT / "figures" / "demo.png").is_file()
    told = (ROOT / "figures" / "demo.md").read_text(encoding="utf-8")
    assert all(line in told for line in section.splitlines() if line.startswith("- "))


def test_the_scoreboard_is_the_one_of_the_kept_tables():
    assert replaced(README, "scoreboard-table", scoreboard_section(ROOT / "figures")) == README
    for name, table in kept_tables(ROOT / "figures").items():
        assert full_table(table) in (ROOT / "figures" / f"scoreboard-{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", kept_tables(ROOT / "figures"))
def test_the_manifests_behind_a_scoreboard_are_all_of_its_runs_and_of_one_commit(name):
    manifests = json.loads((ROOT / "figures" / f"scoreboard-{name}-manifests.json").read_text(encoding="utf-8"))
    table = kept_tables(ROOT / "figures")[name]
    tried = sum(1 for line in (ROOT / "figures" / f"scoreboard-{name}-tuning.csv").read_text("utf-8").splitlines()[1:] if line)
    tuned = tried - 1  # SGD has nothing to choose
    assert len(manifests) == tuned + 2 * int(table["seeds"].sum())
    assert {one["status"] for one in manifests} == {"finished"}
    assert {(one["git"]["commit"], one["git"]["dirty"]) for one in manifests} == {(manifests[0]["git"]["commit"], False)}


REPORT = (ROOT / "REPORT.md").read_text(encoding="utf-8")


def test_the_report_s_tables_are_those_of_the_kept_runs():
    assert fill_report(REPORT, ROOT / "figures") == REPORT, "rewrite it: noisesam readme"
    assert all(f"<!-- {name} -->" in REPORT for name in SECTIONS)


def test_the_report_is_about_two_pages_and_its_links_lead_somewhere():
    text = re.sub(r"<!-- report-.*?<!-- /report-[a-z]+ -->", "", REPORT, flags=re.DOTALL)
    assert len(text.split()) <= 1400  # two full pages, the tables apart
    for target in re.findall(r"\]\(([^)\s]+)\)", REPORT):
        if "://" not in target:
            assert (ROOT / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("scale", ["cpu", "controls"])
def test_the_manifests_behind_a_scale_are_all_of_its_runs_and_of_one_commit(scale):
    manifests = json.loads((ROOT / "figures" / f"baek2024-{scale}-manifests.json").read_text(encoding="utf-8"))
    runs = (ROOT / "figures" / f"baek2024-{scale}-settings.csv").read_text(encoding="utf-8")
    settings = [dict(zip(rows[0], row, strict=True)) for rows in [[*csv.reader(runs.splitlines())]] for row in rows[1:]]
    assert len(manifests) == sum(int(one["runs"]) for one in settings)
    assert {one["status"] for one in manifests} == {"finished"}
    assert {(one["git"]["commit"], one["git"]["dirty"]) for one in manifests} == {(manifests[0]["git"]["commit"], False)}
