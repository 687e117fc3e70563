"""The notebooks: text and stored form agree, what is stored names nobody, and nothing went wrong; nbmake runs every cell."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()
NOTEBOOKS = build.sources()
each_notebook = pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)


def stored(source: Path) -> NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def cells(notebook: NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def test_every_notebook_is_there_in_both_forms():
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.ipynb")}
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"({path.stem}.ipynb)" in readme


@each_notebook
def test_the_text_and_the_stored_form_hold_the_same_cells(source):
    assert cells(stored(source)) == cells(build.read_source(source)), f"rebuild it: python notebooks/build.py {source.stem}"


@each_notebook
def test_the_stored_form_was_run_from_top_to_bottom_without_an_error(source):
    notebook = stored(source)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


@each_notebook
def test_what_is_stored_names_no_host_no_user_and_no_absolute_path(source):
    notebook = stored(source)
    assert build.private_traces(notebook) == []
    assert notebook.metadata == build.read_source(source).metadata
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@pytest.mark.parametrize(
    "text", ["/home/ann/runs", "'/opt/x'", "saved in /tmp/tmpab12", "C:\\Users\\ann", "ann@machine7", "<object at 0x7f3a2c>"]
)
def test_traces_of_a_person_or_a_machine_are_seen(text):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"fine\n{text}\n")]
    assert build.private_traces(notebook)


def test_no_trace_is_seen_in_what_every_notebook_shows():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    shown = (
        "<table><tr><td>1/2</td></tr></table> clean/noisy ../figures/demo.png ||g_s||/||g|| https://arxiv.org/abs/2405.03676"
    )
    notebook.cells[0].outputs = [nbformat.v4.new_output("execute_result", data={"text/html": shown})]
    assert build.private_traces(notebook) == []


def test_one_s_own_model_and_data_take_under_thirty_lines():
    notebook = build.read_source(FOLDER / "06_your_own_model.py")
    (cell,) = [cell for cell in notebook.cells if "thirty-lines" in cell.metadata.get("tags", [])]
    assert len([line for line in cell.source.splitlines() if line.strip()]) < 30


def test_links_of_the_notebooks_lead_somewhere():
    for source in NOTEBOOKS:
        for cell in build.read_source(source).cells:
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source if cell.cell_type == "markdown" else ""):
                if "://" not in target:
                    file, _, anchor = target.partition("#")
                    assert (FOLDER / file).exists(), f"{source.name} links to {target}"
                    assert not anchor or f'<a id="{anchor}"></a>' in (FOLDER / file).read_text(encoding="utf-8"), target


def test_the_kernel_that_runs_them_is_this_interpreter():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys; print(sys.prefix)")])
    assert build.execute(notebook, preset="small").cells[0].outputs[0].text.strip() == sys.prefix
