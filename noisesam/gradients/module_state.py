"""What a forward pass may leave on the modules of a model: buffers, written to or others in their place, and attributes.

Both go together. A module that fills a table in its first pass notes that in an attribute, or by the table's size; with the
one put back and the other not, it would read a table that is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.traversal import modules_of

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: parameters, hooks, children, the mode. Buffers are among them, and looked at by entry."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


class ModuleState:
    """The buffers and attributes of all modules, as they are now; what a list or another object holds is not looked at.

    Args:
        model: The model.
        attributes: Whether attributes are among it. Between the passes of a proof they are not put back: a model that counts
            its calls in one, and computes with it, is to be found out.
    """

    def __init__(self, model: nn.Module, *, attributes: bool = True) -> None:
        self._of_modules = [_Kept(module, attributes) for module in modules_of(model)]

    def changed(self) -> list[nn.Module]:
        """Return the modules that have others now."""
        return [kept.module for kept in self._of_modules if kept.is_changed()]

    def restore(self, besides: Collection[nn.Module] = ()) -> None:
        """Put all back, in the same tensors, but for some modules."""
        for kept in self._of_modules:
            if not any(kept.module is module for module in besides):
                kept.restore()


class _Kept:
    def __init__(self, module: nn.Module, with_attributes: bool) -> None:
        self.module, self.with_attributes = module, with_attributes
        self.buffers = {name: (buffer, None if buffer is None else buffer.clone()) for name, buffer in module._buffers.items()}
        self.attributes = self._attributes()

    def is_changed(self) -> bool:
        buffers, attributes = self.module._buffers, self._attributes()
        if set(buffers.keys()) != self.buffers.keys() or attributes.keys() != self.attributes.keys():
            return True
        if any(not _same(attributes[name], value) for name, value in self.attributes.items()):
            return True
        return any(buffers[name] is not buffer or not _holds(buffer, copy) for name, (buffer, copy) in self.buffers.items())

    def restore(self) -> None:
        of_module, buffers = vars(self.module), self.module._buffers
        for name in self._attributes().keys() - self.attributes.keys():
            del of_module[name]
        for name, value in self.attributes.items():
            if of_module.get(name, self) is not value:
                of_module[name] = value
        for name in set(buffers.keys()) - self.buffers.keys():
            del buffers[name]
        with torch.no_grad():
            for name, (buffer, copy) in self.buffers.items():
                buffers[name] = buffer
                if buffer is not None and copy is not None and not _holds(buffer, copy):
                    buffer.copy_(copy)  # writing what is there would spoil a graph that somebody holds

    def _attributes(self) -> dict[str, Any]:
        if not self.with_attributes:
            return {}
        return {name: value for name, value in vars(self.module).items() if name not in _OF_TORCH}


def _same(value: Any, kept: Any) -> bool:
    return value is kept or (isinstance(kept, _PLAIN) and type(value) is type(kept) and value == kept)


def _holds(buffer: Tensor | None, copy: Tensor | None) -> bool:
    if buffer is None or copy is None:
        return buffer is copy
    if buffer.shape != copy.shape or buffer.layout != copy.layout:
        return False
    return all(torch.equal(one, other) for one, other in zip(_parts(buffer), _parts(copy), strict=True))


def _parts(buffer: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors that a buffer consists of: torch compares no sparse ones."""
    if buffer.layout == torch.strided:
        return (buffer,)
    if buffer.layout == torch.sparse_coo:
        return buffer._indices(), buffer._values()
    if buffer.layout in (torch.sparse_csr, torch.sparse_bsr):
        return buffer.crow_indices(), buffer.col_indices(), buffer.values()
    if buffer.layout in (torch.sparse_csc, torch.sparse_bsc):
        return buffer.ccol_indices(), buffer.row_indices(), buffer.values()
    return (buffer.to_dense(),)


@contextmanager
def modules_kept(model: nn.Module, *, attributes: bool = True) -> Iterator[None]:
    """Leave buffers and, where wanted, attributes of all modules as they were."""
    state = ModuleState(model, attributes=attributes)
    try:
        yield
    finally:
        state.restore()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back after a block: running statistics belong to the clean pass alone."""
    kept = [
        (module._buffers, name, buffer, buffer._version, buffer.clone())
        for module in modules_of(model)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, version, copy in kept:
                buffers[name] = buffer
                # The kernels of batch normalisation write to running statistics without a new version.
                if buffer._version != version or not _holds(buffer, copy):
                    buffer.copy_(copy)
