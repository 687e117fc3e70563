"""What no example changes: buffers, frozen parameters, and what a model computes from these or from no tensor at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.arguments import tensors_in

_HAND_OUT_MEMORY: set[Callable[..., Any]] = {
    getattr(torch.Tensor, name) for name in ("numpy", "__array__", "data_ptr", "untyped_storage")
} | {getattr(torch.Tensor, "data").__get__}  # noqa: B009 (an attribute that type checkers take for a tensor)
_DRAWN = {"randperm", "randint", "randint_like", "multinomial"}


class Constants:
    """Those of one evaluation, known by identity as long as nobody writes to them."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], int, bool]] = {}
        for value in held:
            self._add(value, held=True)

    def __contains__(self, value: Tensor) -> bool:
        found = self._found.get(id(value))
        # The number of an object that is gone may come back; what was written to may hold data of the examples.
        return found is not None and found[0]() is value and found[1] == value._version

    def holds(self, value: Tensor) -> bool:
        """Whether the model holds this, or has computed it from what it holds: it has no example axis, whatever its shape."""
        return value in self and self._found[id(value)][2]

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
        held = False
        for value in tensors:
            if value not in self:
                return function(*args, **kwargs)
            held = held or self.holds(value)
        result = function(*args, **kwargs)
        if getattr(function, "__name__", "") in _DRAWN:
            return result  # other rows are chosen by it in every pass
        for value in tensors_in((result,)):
            self._add(value, held)
        return result

    def _add(self, value: Tensor, held: bool) -> None:
        if not torch.is_inference(value):  # such a tensor does not say when it is written to
            self._found[id(value)] = (weakref.ref(value), value._version, held)
