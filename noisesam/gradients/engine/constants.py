"""What no example changes: buffers, frozen parameters, and what a model computes from these or from no tensor at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.weight_functions import RANDOM

_HAND_OUT_MEMORY: set[Callable[..., Any]] = {
    getattr(torch.Tensor, name) for name in ("numpy", "__array__", "data_ptr", "untyped_storage")
} | {getattr(torch.Tensor, "data").__get__}  # noqa: B009 (an attribute that type checkers take for a tensor)
_DRAWN = (RANDOM - {"empty_like", "new_empty", "new_empty_strided"}) | {
    "randperm",
    "randint",
    "rand",
    "randn",
    "normal",
    "seed",
}

Roots = frozenset[tuple[int, int]]
"""What a constant was computed from that the model holds: the numbers of those tensors, and of their versions."""


class Constants:
    """Those of one evaluation, known by identity as long as nobody writes to them."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], int, Roots, bool]] = {}
        self.fixed = FixedConstants(self)
        """Those among them that are the same in every pass: nothing that is drawn, nor what is computed from that."""
        for value in held:
            if not torch.is_inference(value):
                self._add(value, frozenset({(id(value), value._version)}), drawn=False)

    def __contains__(self, value: Tensor) -> bool:
        found = self._found.get(id(value))
        # The number of an object that is gone may come back; what was written to may hold data of the examples.
        return found is not None and found[0]() is value and found[1] == value._version

    def holds(self, value: Tensor) -> bool:
        """Whether the model holds this, or has computed it from what it holds: it has no example axis, whatever its shape."""
        return bool(self.roots(value))

    def roots(self, value: Tensor) -> Roots:
        """Return what the model holds of which this is computed, in the state in which it was."""
        return self._found[id(value)][2] if value in self else frozenset()

    def is_drawn(self, value: Tensor) -> bool:
        """Whether random numbers are in this constant."""
        return value in self and self._found[id(value)][3]

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Iterable[Tensor]
    ) -> Any:
        """Call the function with arguments in which there are these tensors; remember what it makes of constants alone."""
        if function in _HAND_OUT_MEMORY:
            # What is written there changes no version: as an index it would hold the rows of another pass.
            for value in args[:1]:
                if isinstance(value, Tensor) and not value.is_floating_point():
                    self._found.pop(id(value), None)
            return function(*args, **kwargs)
        roots: Roots = frozenset()
        drawn = getattr(function, "__name__", "") in _DRAWN
        for value in tensors:
            if value not in self:
                return function(*args, **kwargs)
            roots |= self.roots(value)
            drawn = drawn or self.is_drawn(value)
        result = function(*args, **kwargs)
        for value in tensors_in((result,)):
            self._add(value, roots, drawn=drawn)
        return result

    def _add(self, value: Tensor, roots: Roots, *, drawn: bool) -> None:
        if not torch.is_inference(value):  # such a tensor does not say when it is written to
            self._found[id(value)] = (weakref.ref(value), value._version, roots, drawn)


class FixedConstants:
    """Those of some constants that choose the same rows in every pass.

    Args:
        constants: All of them.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = weakref.proxy(constants)
        self._asked: Roots = frozenset()

    def asked(self) -> Roots:
        """Return what the model holds that has been asked for since the last call: other values there are another way."""
        asked, self._asked = self._asked, frozenset()
        return asked

    def __contains__(self, value: Tensor) -> bool:
        if value not in self._constants or self._constants.is_drawn(value):
            return False
        self._asked |= self._constants.roots(value)
        return True
