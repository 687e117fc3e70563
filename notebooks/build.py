"""Make the .ipynb of every notebook from its .py: run it, keep what it showed, leave out who ran it and where.

python notebooks/build.py                   every notebook, at its full preset
python notebooks/build.py 02_linear_theory  one of them
python notebooks/build.py --text            take over changed text alone, nothing is run; refused where code has changed
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
PRESET = "NOISESAM_PRESET"
TIMEOUT = 3600  # seconds that one cell may take: nobody waits for a cell that hangs, and a busy machine is slow


def sources() -> list[Path]:
    """Return the notebooks in their order, as text."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read_source(path: Path) -> NotebookNode:
    """Read a notebook from its .py, with cell names that stay the same from one build to the next."""
    notebook = jupytext.read(path, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key == "tags"})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: NotebookNode, *, preset: str, folder: Path = HERE) -> NotebookNode:
    """Run every cell in a fresh kernel, one thread; an exception in a cell is an exception here."""
    given = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # the kernel draws into the notebook
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # this checkout's noisesam, installed or not
    environment = given | {PRESET: preset, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
    )
    return client.execute(env=environment)


TRACES = {
    "an absolute path": r"(?<![\w.:/<])/(?:bin|etc|home|mnt|opt|private|root|srv|tmp|Users|usr|var|work)\b|\b[A-Za-z]:\\",
    "a user at a host": r"\b[\w.-]+@[\w-]+\b",
    "an address in memory": r"\bat 0x[0-9a-f]+",
}


def private_traces(notebook: NotebookNode, **patterns: str) -> list[str]:
    """Say what in the stored outputs would tell where or by whom they were made, apart from pictures."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = [str(content) for kind, content in output.get("data", {}).items() if not kind.startswith("image/")]
            texts += [output.get("text", ""), *shown, *output.get("traceback", [])]
    return [
        f"{what}: {found.group()}"
        for what, pattern in (TRACES | patterns).items()
        for text in texts
        for found in re.finditer(pattern, text)
    ]


def with_stored_outputs(notebook: NotebookNode, path: Path) -> NotebookNode:
    """Give the code cells of a source the outputs that are stored for them, if they are the same cells."""
    stored = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in stored]:
        raise SystemExit(f"The code of {path.stem} has changed: run it again, without --text")
    for cell, before in zip(code, stored, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return notebook


def main() -> int:
    """Build the notebooks that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 02_linear_theory; all if none is given")
    parser.add_argument("--text", action="store_true", help="run nothing, take over changed text")
    given = parser.parse_args()
    known = {path.stem: path for path in sources()}
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no notebook {unknown[0]!r}; there are {', '.join(known)}")
    # The machine that builds knows its own names; a test elsewhere can only look for what looks like one.
    own = {"host": rf"\b{re.escape(socket.gethostname())}\b", "user": rf"\b{re.escape(getpass.getuser())}\b"}
    for name in given.names or known:
        print(name, flush=True)
        source, target = read_source(known[name]), HERE / f"{name}.ipynb"
        notebook = with_stored_outputs(source, target) if given.text else execute(source, preset="full")
        notebook.metadata = read_source(known[name]).metadata  # the kernel has added its version
        nbformat.validate(notebook)
        traces = private_traces(notebook, **own)
        if traces:
            raise SystemExit(f"{name} shows " + "; ".join(traces))
        nbformat.write(notebook, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
