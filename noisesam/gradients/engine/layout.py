"""Where the examples are in an intermediate tensor: first axis, second axis (sequence first), or merged with positions.

The shape alone cannot tell when the number of positions equals the number of examples, so the guess made here is proven
per model and batch shape (`proof`); `prefers_second` is the other guess.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from noisesam.gradients.engine.interception import UnsupportedParameterUse
from noisesam.gradients.engine.tape import Tape


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
        return values.reshape(n, -1, *features), lambda out: out.reshape(*shape[:leading], *out.shape[2:])
    if second:
        swapped = values.transpose(0, 1)
        before = swapped.shape[:leading]
        return (
            swapped.reshape(n, -1, *features),
            lambda out: out.reshape(*before, *out.shape[2:]).transpose(0, 1),
        )
    if leading == 1 and shape[0] % n == 0:
        return values.reshape(n, -1, *features), lambda out: out.reshape(shape[0], *out.shape[2:])
    raise UnsupportedParameterUse(f"{what} sees a tensor of shape {tuple(shape)} for {n} examples")


def require_examples_first(tape: Tape, values: Tensor, what: str) -> None:
    """Refuse a tensor whose first axis cannot be the examples'."""
    if values.dim() < 2 or values.shape[0] != tape.examples:
        raise UnsupportedParameterUse(f"{what} sees a tensor of shape {tuple(values.shape)} for {tape.examples} examples")
