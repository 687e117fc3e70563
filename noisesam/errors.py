"""Errors with three parts: what was given, what was expected, what to type instead.

This module imports nothing but the standard library, so that every room of the package can use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NoisesamError(Exception):
    """Root of every error that noisesam raises on purpose."""

    def __init__(self, given: str, *, expected: str = "", remedy: str = "") -> None:
        self.given = given
        self.expected = expected
        self.remedy = remedy
        parts = [given.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected {expected.rstrip('.')}.")
        if remedy:
            parts.append(remedy if remedy.endswith(("?", ".")) else remedy + ".")
        super().__init__(" ".join(parts))


class InputError(NoisesamError, ValueError):
    """A value handed to the library is not one that it can work with."""


class ConfigurationError(NoisesamError, ValueError):
    """A configuration names an unknown key, a wrong type or values that contradict each other."""


class RunError(NoisesamError):
    """A saved run, or one of its files, cannot be read or written."""


class MissingExtraError(NoisesamError, ImportError):
    """A feature needs an optional package that is not installed."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says, the name of its type where it says nothing.

    Example:
        >>> first_line(ValueError()), first_line(ValueError("too long\nby far"))
        ('ValueError', 'too long')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest_name(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to `name`, or None if none is close.

    Example:
        >>> nearest_name("symetric", ["symmetric", "pair-flip"])
        'symmetric'
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5) if isinstance(name, str) else []
    return matches[0] if matches else None


def unknown_name(what: str, name: object, valid: Iterable[str]) -> InputError:
    """Build the error for an unknown name, with the nearest valid one in the remedy.

    Example:
        >>> print(unknown_name("method", "1sam", ["sgd", "1-sam"]))
        Unknown method '1sam'. Expected one of: sgd, 1-sam. Did you mean '1-sam'?
    """
    names = list(valid)
    close = nearest_name(name, names)
    return InputError(
        f"Unknown {what} {name!r}",
        expected="one of: " + ", ".join(names),
        remedy=f"Did you mean {close!r}?" if close else f"Type one of these names for the {what}.",
    )
