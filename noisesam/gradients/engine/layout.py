"""Where the examples are in an intermediate tensor: first axis, second axis (sequence first), or merged with positions.

The shape alone cannot tell when the number of positions equals the number of examples, so the guess made here is proven
per model and batch shape (`proof`); `guess` has the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Dense, Factor, Shared


def examples_first(tape: Tape, values: Tensor, trailing: int, what: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the values as (n, positions, ...) with `trailing` axes behind the positions, and the way back.

    Args:
        tape: Knows the number of examples.
        values: An intermediate tensor.
        trailing: How many last axes belong to the layer (features), the rest being examples and positions.
        what: The layer's name, for the message.

    Raises:
        UnsupportedParameterUse: No axis can be the examples'.
    """
    n, shape = tape.examples, values.shape
    leading = values.dim() - trailing
    features = shape[leading:]
    second = leading >= 2 and shape[1] == n
    if leading >= 1 and shape[0] == n and not (second and tape.prefers_second):
        if leading == 2:
            return values, _as_it_is  # a view of the same shape would be one more node of the graph, there and back
        return values.reshape(n, -1, *features), lambda out: out.reshape(*shape[:leading], *out.shape[2:])
    if second:
        swapped = values.transpose(0, 1)
        before = swapped.shape[:leading]
        return (
            swapped.reshape(n, -1, *features),
            lambda out: out.reshape(*before, *out.shape[2:]).transpose(0, 1),
        )
    if leading >= 1 and shape[0] % n == 0:  # merged with positions, or with windows of them
        return values.reshape(n, -1, *features), lambda out: out.reshape(*shape[:leading], *out.shape[2:])
    raise UnsupportedParameterUse(f"{what} sees a tensor of shape {tuple(shape)} for {n} examples")


def _as_it_is(values: Tensor) -> Tensor:
    return values


class _RowsTape(Tape):
    """A tape for whom every row is an example: its perturbation is that of the row's example, and gradients are summed up.

    All that it does not have itself it asks of the tape whose rows these are.
    """

    def __init__(self, tape: Tape, each: int) -> None:  # of its own: it shares the other's state
        self._tape, self._each = tape, each
        self.examples = tape.examples * each

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def perturbation(self, parameter: Tensor | None) -> Factor | None:
        """Return eps_i of every row's example."""
        eps = self._tape.perturbation(parameter)
        return eps if eps is None or isinstance(eps, Shared) else Dense(eps.dense().repeat_interleave(self._each, 0))

    def record(self, parameter: Tensor, factor: Factor) -> None:
        """Add up what the rows of an example contribute."""
        rows = factor.dense()
        self._tape.temporary_bytes = max(self._tape.temporary_bytes, rows.numel() * rows.element_size())
        self._tape.record(parameter, Dense(rows.unflatten(0, (-1, self._each)).sum(1)))


def tape_of_rows(tape: Tape, values: Tensor, what: str) -> Tape:
    """Return a tape whose examples are the rows of this tensor: each one, or several merged with one (frames, windows).

    Raises:
        UnsupportedParameterUse: The first axis cannot be the examples'.
    """
    if values.dim() >= 2 and values.shape[0] == tape.examples:
        return tape
    if values.dim() < 2 or values.shape[0] % tape.examples:
        raise UnsupportedParameterUse(f"{what} sees a tensor of shape {tuple(values.shape)} for {tape.examples} examples")
    return _RowsTape(tape, values.shape[0] // tape.examples)
