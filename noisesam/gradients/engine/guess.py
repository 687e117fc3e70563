"""What is guessed of the examples' axis where the shapes alone leave more than one answer."""

from __future__ import annotations

import enum


class Guess(enum.Enum):
    """A guess, in the order in which they are proven."""

    EXAMPLES_FIRST = enum.auto()
    """Of two axes as long as the batch the first is the examples'; what the model holds has no such axis."""
    POSITIONS_FIRST = enum.auto()
    """Of two such axes the second is the examples'."""
    EXAMPLES_IN_CONSTANTS = enum.auto()
    """As the first guess, and what the model holds has a row for every example where it has as many: it was expanded."""
