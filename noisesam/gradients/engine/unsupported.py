"""The signal by which the fast engine says that it has no exact rule."""

from __future__ import annotations


class UnsupportedParameterUse(Exception):  # noqa: N818 - a signal between engine and selection, never shown
    """A torch function uses a parameter in a way for which no exact rule stands; the reference engine takes over."""


FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What torch's functions raise where a tensor has not the shape or type that they want."""

_MARK = "_noisesam_of_a_function"


def mark_as_of_a_function(error: Exception) -> None:
    """Say that a torch function has raised this, and not the model itself; what it is stays as it is: a model may catch it."""
    setattr(error, _MARK, True)


def is_of_a_function(error: Exception) -> bool:
    """Whether a torch function has raised this under the fast engine, where each example may have a row too many for it."""
    return getattr(error, _MARK, False)
