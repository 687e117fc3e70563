"""TOML from a user's file or command line: what is none is said in words, whatever the parser raises."""

from __future__ import annotations

import tomllib
from typing import Any

from noisesam.errors import ConfigurationError


def parse_toml(text: str, *, given: str, expected: str, remedy: str = "") -> dict[str, Any]:
    """Return what a TOML text says.

    Args:
        text: The text.
        given: What it is, for the message: a file's name, say.
        expected: What it should have been.
        remedy: What to do instead.

    Raises:
        ConfigurationError: It is no TOML, is nested too deeply, or holds a number of too many digits.

    Example:
        >>> parse_toml("seeds = [0, 1]", given="mine.toml", expected="an experiment")
        {'seeds': [0, 1]}
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigurationError(f"{given} is not valid TOML: nested too deeply", expected=expected, remedy=remedy) from error
    except ValueError as error:  # a TOMLDecodeError, or Python's limit on digits
        raise ConfigurationError(f"{given} is not valid TOML: {error}", expected=expected, remedy=remedy) from error
