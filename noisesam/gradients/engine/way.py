"""The way that a model goes in one pass, as one number: which functions it calls, with which tensors, axes, sizes and places.

Two passes with the same number compute alike, example by example, if one of them does: what was proven of one holds for the
other. So the number tells apart what may move an example to another row or axis. It leaves out fractions, which choose neither
(rates and temperatures may change from step to step), and the values of tensors: where these choose, see `data_sizes`.
"""

from __future__ import annotations

import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.weight_functions import copies, words

_NO_STEP = {torch.Tensor.register_hook, torch.Tensor.retain_grad, torch._C._set_grad_enabled}
"""Who looks at gradients from a step on changes no way, nor does a block without gradients that puts back what was before."""
_MADE_OF_NUMBERS = {"tensor", "as_tensor", "asarray", "new_tensor"}
_PLACES = words(
    "__getitem__ __setitem__ getitem select narrow transpose swapaxes swapdims permute movedim moveaxis view reshape flatten "
    "unflatten squeeze unsqueeze index_select chunk split unbind expand repeat tile cat concat stack roll flip rot90 diagonal "
    "tril triu unfold sum mean prod softmax log_softmax logsumexp cumsum cumprod sort argsort topk kthvalue argmax argmin amax "
    "amin norm var std gather take_along_dim scatter scatter_add index_add index_copy glu"
)
"""Functions for which a whole number in a tensor is an axis, a size or a place, and not a factor."""


class Way:
    """That of one pass, as far as it has gone."""

    def __init__(self) -> None:
        self.number = 0
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0

    def step(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: Iterable[Tensor],
        *,
        shapes: bool,
    ) -> None:
        """Add a call with these tensors among its arguments; their shapes, where asked for, are part of the way."""
        if function in _NO_STEP:
            return
        name = getattr(function, "__name__", "")
        read = _contents if name in _MADE_OF_NUMBERS else _place if name in _PLACES else _plain
        plain = [part for value in args if (part := read(value)) is not None]
        if kwargs:
            plain += [(name, read(value)) for name, value in kwargs.items()]
        found = [(self._of(value), value.shape) for value in tensors] if shapes else [self._of(value) for value in tensors]
        self.number = hash((self.number, function, *plain, *found))

    def meet(self, held: Iterable[tuple[int, int]]) -> None:
        """Add what the model holds by which rows are chosen: tensors by their numbers, and those of their versions."""
        self.number = hash((self.number, *sorted(held)))

    def read(self, number: bool | int | float) -> None:
        """Add a number that the model has read off a tensor where no function tells what it does with it."""
        self.number = hash((self.number, number))

    def made(self, function: Callable[..., Any], args: tuple[Any, ...], result: Any) -> None:
        """Remember what the call has returned; a copy is the same to the way: where nothing is to be done it is none."""
        if isinstance(result, Tensor):
            if copies(function) and args and isinstance(args[0], Tensor):
                self._known[id(result)] = (weakref.ref(result), self._of(args[0]))
            else:
                self._add(result)
        elif isinstance(result, (tuple, list, dict)):
            for value in tensors_in((result,)):
                self._add(value)

    def _of(self, value: Tensor) -> int:
        found = self._known.get(id(value))
        # The number of an object that is gone may come back.
        return found[1] if found is not None and found[0]() is value else self._add(value)

    def _add(self, value: Tensor) -> int:
        self._count += 1
        self._known[id(value)] = (weakref.ref(value), self._count)
        return self._count


def _plain(value: Any) -> Any:
    """Return what of an argument is no tensor and no fraction, in a form that can be hashed; None where nothing is."""
    if isinstance(value, Tensor):
        return None
    kind = type(value)
    if kind is bool or kind is str:
        return value
    if kind is int or isinstance(value, int):
        number = int(value)
        return number if number >= 0 else ("below zero", -number)  # -1 and -2 have one hash
    if kind is tuple or kind is list or isinstance(value, (tuple, list)):
        return tuple(_plain(part) for part in value)
    if kind is slice:
        # A bound may be a tensor of one number, of whatever axes; an index of one number chooses a row, as longer ones do.
        bounds = (value.start, value.stop, value.step)
        return tuple(_place(part.reshape(()) if isinstance(part, Tensor) and part.numel() == 1 else part) for part in bounds)
    if isinstance(value, numpy.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, (numpy.integer, numpy.bool_)):
        return _plain(value.item())
    if isinstance(value, (Sequence, array, deque)):  # strings are behind us
        return _plain(tuple(value))
    return None


def _place(value: Any) -> Any:
    """Return the same of an index: a whole number in a tensor counts as that number."""
    if isinstance(value, (tuple, list)):
        return tuple(_place(part) for part in value)
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point() and not value.is_complex():
        return _plain(value.item())
    return _plain(value)


def _contents(value: Any, *, several: bool = False) -> Any:
    """Return the same of numbers of which a tensor is made, fractions among them where there are several: they choose rows."""
    if isinstance(value, (Sequence, array, deque)) and not isinstance(value, str):
        several = several or len(value) > 1
        return tuple(_contents(part, several=several) for part in value)
    if several and isinstance(value, (float, complex, numpy.floating, numpy.complexfloating)):
        return complex(value)
    return _plain(value)
