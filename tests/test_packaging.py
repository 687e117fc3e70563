"""What a fresh clone promises: the Makefile, the pins, the package data, the lazy import, the citation."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import noisesam

ROOT = Path(__file__).resolve().parents[1]


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def distribution(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-").replace(".", "-")


def requirements() -> list[str]:
    project = pyproject()["project"]
    return project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {distribution(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", requirements())
def test_every_requirement_is_pinned(requirement):
    assert distribution(requirement) in pins()


def test_the_separate_functorch_distribution_is_not_required():
    assert "functorch" not in {distribution(one) for one in requirements()} | set(pins())


def test_the_tested_torch_is_the_stated_one():
    assert pins()["torch"] == "2.13.0"


def test_the_makefile_installs_through_the_constraints_and_knows_its_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [
        line for line in makefile.splitlines() if "install" in line and "pip" in line.lower() and not line.startswith("#")
    ]
    assert all("$(INSTALL)" in line or "--constraint constraints.txt" in line for line in installs)
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"lint", "test"} <= set(re.findall(r"^make ([a-z]+)$", ci, re.MULTILINE)) <= targets


def test_make_demo_calls_a_command_that_exists(tmp_path):
    dry = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "noisesam demo --workers 2" in dry.stdout


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {noisesam.__version__, pyproject()["project"]["version"], citation["version"]}
    assert len(versions) == 1
    assert f"## {versions.pop()}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == pyproject()["project"]["license"] == "Apache-2.0"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
    assert "arXiv:2405.03676" in {one["value"] for reference in citation["references"] for one in reference["identifiers"]}


def test_importing_the_package_or_reading_runs_loads_no_torch():
    code = "import sys, noisesam, noisesam.runs, noisesam.analysis; noisesam.open_runs; sys.exit('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_every_promised_name_is_there():
    for name in noisesam.__all__:
        assert getattr(noisesam, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'OnSAM'"):
        _ = noisesam.OnSAM


def test_package_data_travels_with_the_package():
    for name in ("py.typed", "cli/demo.toml"):
        assert (ROOT / "noisesam" / name).is_file()


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_local_links_in_the_documents_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert f'<a id="{anchor}"></a>' in linked.read_text(encoding="utf-8"), f"{path.name} links to {target}"
