"""What every command shares: two consoles, tables that fit a terminal, JSON, progress bars, errors in three parts."""

from __future__ import annotations

import json
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

from noisesam.errors import NoisesamError

out = Console(highlight=False)
"""Results. Rich looks up sys.stdout at every print, so that redirection and tests see them."""

err = Console(stderr=True, highlight=False)
"""Progress, problems and errors."""


def harmless(text: str) -> str:
    r"""Write control characters as their escapes, so that no name out of a file can move the cursor or colour the terminal.

    Line breaks stay. Escaped are also the characters that turn the direction of writing, and halves of surrogate pairs, which
    no terminal can be sent.

    Example:
        >>> harmless("run\x1b[2J")
        'run\\x1b[2J'
    """
    if text.isprintable():
        return text
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        ascii(character)[1:-1] if character != "\n" and unicodedata.category(character) in hidden else character
        for character in text
    )


def say(text: str = "", *, style: str | None = None) -> None:
    """Print a line of words, wrapped to the terminal; brackets in it are brackets."""
    out.print(Text(harmless(text), style=style or ""))


def say_path(label: str, path: object) -> None:
    """Print where something lies; a path is never wrapped, so that it can be copied."""
    out.print(Text.assemble((label, ""), " ", (harmless(str(path)), "bold")), soft_wrap=True)


def warn(text: str) -> None:
    """Print a problem that does not end the command."""
    err.print(Text.assemble(("problem: ", "yellow"), harmless(text)), soft_wrap=True)


def show_error(error: NoisesamError) -> None:
    """Print an error as given / expected / remedy, one line each."""
    err.print(Text.assemble(("error: ", "bold red"), harmless(error.given)), soft_wrap=True)
    if error.expected:
        err.print(Text.assemble(("expected: ", "bold"), harmless(error.expected)), soft_wrap=True)
    if error.remedy:
        err.print(Text.assemble(("remedy: ", "bold"), harmless(error.remedy)), soft_wrap=True)


def plain(value: Any) -> Any:
    """Turn numpy scalars, tuples and NaN into what JSON knows: NaN and infinities become null.

    Example:
        >>> plain({"a": (1.0, float("nan"))})
        {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as JSON objects, in full precision."""
    return [plain(row) for row in frame.astype(object).to_dict("records")]


def print_json(data: Any) -> None:
    """Print one JSON document on stdout and nothing else."""
    out.file.write(json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    right: Sequence[int] = (),
    keep: Sequence[int] = (0,),
) -> None:
    """Print a table that fits the terminal: the columns in `keep` are never broken, the others wrap.

    Args:
        columns: Headings; a newline in one stacks it.
        rows: Cells as text.
        title: Line above the table.
        right: Positions of the columns of numbers, set right.
        keep: Positions of the columns that must stay on one line.
    """
    if title:
        out.print(Text(title, style="bold"))
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1),
        header_style="bold",
        show_edge=False,
        show_header=any(columns),
        collapse_padding=True,
    )
    for position, heading in enumerate(columns):
        table.add_column(
            heading,
            justify="right" if position in right else "left",
            no_wrap=position in keep or position in right,
            overflow="fold",
            vertical="top",
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    out.print(table)


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: fixed digits, a dash where there is none.

    Example:
        >>> number(0.94851), number(float("nan")), number(12, 0)
        ('0.949', '-', '12')
    """
    if value is None:
        return "-"
    value = float(value)
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


@contextmanager
def warnings_in_words(tell: Callable[[str], None] = warn) -> Iterator[None]:
    """Show the library's warnings to the user as lines of text, when they are raised; other kinds stay as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, UserWarning):
                tell(str(message))
            else:
                shown(message, category, *place)

        warnings.showwarning = show
        yield


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Progress]:
    """A progress bar on stderr with its one task, drawn only on a terminal and gone when it is done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with bar:
        bar.add_task(description, total=total)
        yield bar
