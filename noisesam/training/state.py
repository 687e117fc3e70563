"""Any tree of states as safetensors bytes and JSON, bit for bit, with no pickle.

Trees are dictionaries (with keys of any plain type), lists and tuples of tensors, numpy arrays and numbers, strings, booleans,
None. Tensors go into one flat safetensors file under their path; everything else stays in the JSON, which names the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from noisesam.errors import RunError

_TENSOR, _ARRAY, _ENTRIES, _TUPLE, _FLOAT = "$tensor", "$array", "$entries", "$tuple", "$float"
_MARKS = {_TENSOR, _ARRAY, _ENTRIES, _TUPLE, _FLOAT}


def pack(tree: Any) -> tuple[bytes, Any]:
    """Split a tree of states into safetensors bytes and a JSON-able description.

    Tensors that share one memory (tied weights) are stored once and come back with equal values.

    Args:
        tree: nested dictionaries, lists and tuples of tensors and plain values.

    Returns:
        The bytes of a safetensors file, and the tree with every tensor replaced by its name in that file.

    Raises:
        RunError: a leaf of another type, named with its path.

    Example:
        >>> tensors, description = pack({"momentum": [torch.ones(2), None], 0: 0.1})
        >>> description
        {'$entries': [['momentum', [{'$tensor': 'momentum.0'}, None]], [0, 0.1]]}
        >>> unpack(tensors, description)
        {'momentum': [tensor([1., 1.]), None], 0: 0.1}
    """
    tensors: dict[str, Tensor] = {}
    description = _describe(tree, "", tensors, {})
    return safetensors.torch.save(tensors), description


def unpack(tensors: bytes, description: Any) -> Any:
    """Put a tree together again from what `pack` returned.

    Args:
        tensors: bytes of the safetensors file.
        description: the JSON beside it.

    Returns:
        The tree, its tensors on the CPU.

    Raises:
        RunError: the two do not belong together.
    """
    try:
        return _restore(description, safetensors.torch.load(tensors))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"A checkpoint cannot be put together: {error}",
            expected="a safetensors file and the JSON written with it",
            remedy="Delete both files to resume from the checkpoint before.",
        ) from error


def _describe(tree: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    """Move the tensors of a tree to `tensors` and return what is left."""
    if isinstance(tree, Tensor):
        return {_TENSOR: _store(tree, path, tensors, seen)}
    if isinstance(tree, np.ndarray):
        return {_ARRAY: _store(torch.from_numpy(np.ascontiguousarray(tree).copy()), path, tensors, {})}
    if isinstance(tree, np.generic):
        return _describe(tree.item(), path, tensors, seen)
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) for key in tree) and not _MARKS & set(tree):
            return {key: _describe(value, _joined(path, key), tensors, seen) for key, value in tree.items()}
        for key in tree:
            if not isinstance(key, str | int | float | bool):
                raise _not_storable(_joined(path, repr(key)), key)
        return {_ENTRIES: [[key, _describe(value, _joined(path, key), tensors, seen)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [_describe(value, _joined(path, number), tensors, seen) for number, value in enumerate(tree)]
        return {_TUPLE: items} if isinstance(tree, tuple) else items
    if isinstance(tree, float) and not math.isfinite(tree):
        return {_FLOAT: repr(float(tree))}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise _not_storable(path, tree)


def _restore(description: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_describe`."""
    if isinstance(description, list):
        return [_restore(value, tensors) for value in description]
    if not isinstance(description, dict):
        return description
    if len(description) == 1:
        ((mark, value),) = description.items()
        if mark == _TENSOR:
            return tensors[value].clone()
        if mark == _ARRAY:
            return tensors[value].numpy().copy()
        if mark == _ENTRIES:
            return {key: _restore(inner, tensors) for key, inner in value}
        if mark == _TUPLE:
            return tuple(_restore(inner, tensors) for inner in value)
        if mark == _FLOAT:
            return float(value)
    return {key: _restore(value, tensors) for key, value in description.items()}


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> str:
    """Put one tensor under a name of its own and return the name; the same memory is stored once."""
    identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    if tensor.numel() and identity in seen:
        return seen[identity]
    name = path or "value"
    while name in tensors:  # the paths "a.b" and "a" -> "b" read the same
        name += "'"
    # safetensors refuses views and shared memory, so every tensor gets a memory of its own.
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    seen[identity] = name
    return name


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _not_storable(path: str, value: Any) -> RunError:
    return RunError(
        f"State {path!r} is of type {type(value).__name__}",
        expected="tensors, arrays, numbers, strings, booleans, None, and dictionaries, lists and tuples of them",
        remedy="A method's state_dict() must hold nothing else, so that checkpoints need no pickle.",
    )
