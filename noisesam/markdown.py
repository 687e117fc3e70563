"""Tables and generated sections of Markdown files; imports nothing but the standard library and the errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from noisesam.errors import InputError


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Lay out a Markdown table; a bar in a cell is escaped, a line break is a blank.

    Args:
        columns: Headings.
        rows: Cells as text.

    Returns:
        The table, without a line break at its end.

    Example:
        >>> print(markdown_table(("a", "b"), [("||g||", "1")]))
        | a | b |
        |---|---|
        | \|\|g\|\| | 1 |
    """
    lines = [columns, *((cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(columns), *text[1:]])


def replaced(text: str, section: str, content: str) -> str:
    """Put content between the comments that delimit a section.

    Args:
        text: The whole file.
        section: Name of the section, which stands between <!-- name --> and <!-- /name -->.
        content: What it holds from now on.

    Returns:
        The whole file.

    Raises:
        InputError: There is no such section.

    Example:
        >>> print(replaced("<!-- a -->old<!-- /a -->", "a", "new"))
        <!-- a -->
        new
        <!-- /a -->
    """
    pattern = _section(section)
    if not pattern.search(text):
        raise InputError(f"The file has no section {section}", expected=f"<!-- {section} --> and <!-- /{section} -->")
    return pattern.sub(lambda _: _delimited(section, content), text)


def with_section(text: str, section: str, content: str) -> str:
    """Replace a section as `replaced` does, or add it at the end of the text.

    Example:
        >>> once = with_section("# Figures", "a", "old")
        >>> with_section(once, "a", "new") == with_section("# Figures", "a", "new")
        True
    """
    if _section(section).search(text):
        return replaced(text, section, content)
    return f"{text.rstrip()}\n\n{_delimited(section, content)}\n"


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)


def _delimited(name: str, content: str) -> str:
    return f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
