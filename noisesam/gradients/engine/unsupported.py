"""The signal by which the fast engine says that it has no exact rule."""

from __future__ import annotations


class UnsupportedParameterUse(Exception):  # noqa: N818 - a signal between engine and selection, never shown
    """A torch function uses a parameter in a way for which no exact rule stands; the reference engine takes over."""
