"""A device that is not the CPU, where there is no accelerator: it computes on the CPU and behaves otherwise like one.

Its tensors name another device, and an operation that mixes them with tensors of the CPU fails, as on a GPU. So code takes
the ways that it takes there, with numbers to compare, and what it asks of the device can be counted: operations, each of
which is a launch, and waits, at which the host stands still until the device has computed all that it was asked before.

Importing this registers the device for the whole process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (  # pyright: ignore[reportPrivateUsage]
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "standin"


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)

# Copies may, and so may what has no axis; a tensor of the device takes indices of the CPU, one of the CPU none of the device.
_COPIES = {"aten::_to_copy", "aten::copy_"}
_INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
_WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2", "aten::bincount",
    "aten::repeat_interleave",
}  # fmt: skip
_LAUNCH_NOTHING = {
    f"aten::{name}" for name in (
        "view", "_unsafe_view", "t", "transpose", "unsqueeze", "squeeze", "expand", "slice", "select", "detach", "alias",
        "permute", "as_strided", "split", "split_with_sizes", "unbind", "_reshape_alias", "chunk", "unfold", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_local_scalar_dense",
    )
}  # fmt: skip


class _Generator(torch.Generator):
    """Draws on the CPU for every device."""

    def __new__(cls, device: object = "cpu") -> _Generator:
        del device
        return super().__new__(cls)


class StandIn(Tensor):
    """A tensor on the stand-in device, around one of the CPU."""

    @staticmethod
    def __new__(cls, within: Tensor) -> StandIn:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            within.size(),
            strides=within.stride(),
            storage_offset=within.storage_offset(),
            dtype=within.dtype,
            device=DEVICE,
        )

    def __init__(self, within: Tensor) -> None:
        self.within = within

    def data_ptr(self) -> int:
        return self.within.data_ptr()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"StandIn({self.within!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, None)


class StandInMode(TorchDispatchMode):
    """While active, tensors may be made on the stand-in device; counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self.counts)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], counts: Counter[str] | None) -> Any:
    name = func._schema.name
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    lent = [tensor for tensor in tensors if isinstance(tensor, StandIn)]
    others = [tensor for tensor in tensors if not isinstance(tensor, StandIn)]
    must_match = [] if name in _COPIES else others
    if name in _INDEXED and isinstance(args[0], StandIn):
        must_match = [value for value in args[2:] if isinstance(value, Tensor) and not isinstance(value, StandIn)]
    if lent and any(tensor.dim() for tensor in must_match):
        shapes = [(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {shapes}")
    asked_for = kwargs.get("device")
    on_device = torch.device(asked_for).type == NAME if asked_for is not None else bool(lent)
    if name == "aten::copy_":
        on_device = isinstance(args[0], StandIn)
    if counts is not None and (lent or on_device):
        moved = name in _COPIES and ((bool(lent) and not on_device) or any(tensor.dim() for tensor in others))
        indices = [index for index in args[1] if index is not None] if name in _INDEXED else []
        asked = any(index.dtype == torch.bool or not isinstance(index, StandIn) for index in indices)
        counts["waits"] += (name in _WAITS and bool(lent)) or moved or asked
        counts["operations"] += name not in _LAUNCH_NOTHING
    known = {id(tensor.within if isinstance(tensor, StandIn) else tensor): tensor for tensor in tensors}
    found = func(*tree_map(_within, args), **tree_map(_within, kwargs))

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known.get(id(value), StandIn(value) if on_device else value)

    return tree_map(outside, found)


def _within(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.within
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def lend(value: Tensor) -> StandIn:
    """Return the tensor on the stand-in device, in the same memory."""
    return StandIn(value.detach())


def hand_back(value: Tensor) -> Tensor:
    """Return the tensor on the CPU."""
    return value.within if isinstance(value, StandIn) else value


@contextmanager
def on_stand_in(model: nn.Module) -> Iterator[StandInMode]:
    """Put the model on the stand-in device for the length of a block; its weights stay in the memory they are in."""
    places: list[tuple[Any, str, Any]] = []
    lent: dict[int, Any] = {}
    own_generator = torch.Generator
    torch.Generator = _Generator  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with StandInMode() as mode:
            for module in model.modules():
                for held in (module._parameters, module._buffers):
                    for name, value in held.items():
                        if value is None:
                            continue
                        if id(value) not in lent:
                            own = lend(value)
                            trained = isinstance(value, nn.Parameter)
                            lent[id(value)] = nn.Parameter(own, requires_grad=value.requires_grad) if trained else own
                        places.append((held, name, value))
                        held[name] = lent[id(value)]
            yield mode
    finally:
        torch.Generator = own_generator
        for held, name, value in places:
            held[name] = value
