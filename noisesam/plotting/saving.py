"""A figure on disk: the picture for the screen, the picture for print and the numbers, beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from noisesam.errors import InputError, RunError
from noisesam.plotting.style import style

_SUFFIXES = (".png", ".pdf", ".csv")


@dataclass(frozen=True)
class SavedFigure:
    """The three files of one figure.

    Example:
        >>> SavedFigure(Path("a.png"), Path("a.pdf"), Path("a.csv")).table.name
        'a.csv'
    """

    png: Path
    pdf: Path
    table: Path


def save(figure: Figure, path: str | os.PathLike[str], table: pd.DataFrame) -> SavedFigure:
    """Write a figure as PNG (200 dpi) and PDF with its numbers as CSV beside them.

    Each file is written beside its place and renamed, so a reader never sees half a file. The files depend on the figure
    and the table alone: no time, host or program version is written into them, so equal runs give equal bytes.

    Args:
        figure: The figure, for example `ax.figure`.
        path: Where to, without a suffix: `figures/accuracy` gives `figures/accuracy.png`, `.pdf` and `.csv`. The folder
            is made where it is missing.
        table: The numbers that the figure draws.

    Returns:
        The three paths.

    Raises:
        InputError: If the path carries one of the three suffixes.
        RunError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from noisesam.plotting import plot_transition_matrix
        >>> ax = plot_transition_matrix(np.eye(2), ["cat", "dog"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save(ax.figure, Path(folder) / "noise", pd.DataFrame(np.eye(2)))
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['noise.csv', 'noise.pdf', 'noise.png']
    """
    stem = Path(path)
    if stem.suffix.lower() in _SUFFIXES:
        raise InputError(
            f"The path {str(stem)!r} ends in {stem.suffix}",
            expected="a path without a suffix, since three files are written",
            remedy=f"Pass {str(stem.with_suffix(''))!r} instead.",
        )
    files = SavedFigure(*(stem.with_name(stem.name + suffix) for suffix in _SUFFIXES))
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with style():
            _write(files.png, lambda file: figure.savefig(file, format="png", dpi=200, metadata={"Software": None}, **_WHOLE))
            _write(files.pdf, lambda file: figure.savefig(file, format="pdf", metadata=_NO_PDF_METADATA, **_WHOLE))
            _write(files.table, lambda file: table.to_csv(file, index=False, lineterminator="\n", encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"The figure cannot be written to {str(stem.parent)!r}: {error.strerror or error}",
            expected="a folder that can be written, on a disk with space left",
            remedy="Choose another folder or make room, then save again.",
        ) from error
    return files


_WHOLE: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.06}  # a legend beside the Axes of a user's figure is kept
_NO_PDF_METADATA = {"Creator": None, "Producer": None, "CreationDate": None}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the place and rename; a failed attempt leaves nothing behind."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
