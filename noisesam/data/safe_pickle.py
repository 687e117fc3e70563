"""Unpickling that can make numpy arrays and built-in values and nothing else.

Several data sets are published as Python pickles. A pickle is a program: it may name any importable function and call it.
This reader looks every name up in a short table and refuses all others, so nothing is imported or called on a file's behalf.
Arrays are rebuilt here from their shape, type code and bytes: numpy's own restoring code trusts what it is handed.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from noisesam.errors import InputError

_FAILURES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    RecursionError,
)
_SIMPLE_CODE = re.compile(r"[?biufcSU]\d*|O")


class _Refused(pickle.UnpicklingError):
    """The pickle names something outside the allow-list."""


class _Dtype:
    """A dtype being read: a type code, then a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        text = "O" if text == "O8" else text
        if not isinstance(text, str) or not _SIMPLE_CODE.fullmatch(text):
            raise _Refused(f"the array type {code!r}")
        self.code: str = text
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("a structured array type")
        self.order = order

    def build(self) -> np.dtype:
        """Return the dtype."""
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """An array being read: made empty, then given its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        """Make the array from its bytes, or from a list for an array of objects."""
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without a type")
        kind = dtype.build()
        if kind.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise pickle.UnpicklingError("an array of objects of the wrong size")
            flat = np.empty(len(content), dtype=object)
            for k, element in enumerate(content):
                flat[k] = element
        else:
            flat = np.frombuffer(_as_bytes(content), dtype=kind).copy()
        self.value = flat.reshape(shape, order=order)


class _Callable:
    """A function that a pickle may call but whose attributes it cannot set (there are no slots to set)."""

    __slots__ = ()
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return type(self).function(*arguments)


def _sealed(function: Callable[..., Any]) -> _Callable:
    """Wrap a function so that a pickle can call it and not change it."""
    return type(function.__name__, (_Callable,), {"__slots__": (), "function": staticmethod(function)})()


def _ndarray(*_: Any) -> Any:
    """Stand for numpy.ndarray, which pickles name and never call."""
    raise pickle.UnpicklingError("an array made in an unexpected way")


def _reconstruct(subtype: Any, *_: Any) -> _Array:
    """Make the empty array that a pickled array starts from."""
    if subtype is not _NDARRAY:
        raise pickle.UnpicklingError("an array of an unexpected kind")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Make an array from its bytes (pickle protocol 5)."""
    array = _Array()
    array.fill(content, dtype, shape, order)
    return array


def _dtype(code: Any, *_: Any) -> _Dtype:
    """Start a dtype from its code."""
    return _Dtype(code)


def _scalar(dtype: Any, content: Any) -> Any:
    """Make a numpy number from its bytes."""
    array = _frombuffer(content, dtype, (1,), "C").value
    return array[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Turn text into the bytes that it stands for; other codecs could unpack or transform."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the codec {encoding!r}")
    return _as_bytes(text)


def _no_bytes() -> bytes:
    """Return the empty byte string, the only one that older pickles make by calling `bytes`."""
    return b""


def _as_bytes(content: Any) -> bytes:
    """Return bytes, which older pickles hold as text."""
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))


_NDARRAY = _sealed(_ndarray)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _sealed(_dtype),
    ("_codecs", "encode"): _sealed(_encode),
    ("builtins", "bytes"): _sealed(_no_bytes),
    ("__builtin__", "bytes"): _sealed(_no_bytes),
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _sealed(_reconstruct)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _sealed(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _sealed(_frombuffer)
for _builtins in ("builtins", "__builtin__"):
    for _type in (bool, int, float, complex, str, list, tuple, dict, set, frozenset):
        _ALLOWED[_builtins, _type.__name__] = _type


class AllowListUnpickler(pickle.Unpickler):
    """An unpickler whose every name comes out of a fixed table of array parts and built-in types."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the table's entry; nothing is ever imported by name."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any, /) -> Any:
        """Refuse references to data outside the pickle, which hold tensors."""
        raise _Refused(f"a stored tensor ({type(pid).__name__} reference)")


def load_pickle(stream: io.BufferedIOBase, where: Path | str, *, encoding: str = "latin1") -> Any:
    """Read one pickled value of numpy arrays and built-in values.

    Args:
        stream: Open binary file, at the pickle's first byte.
        where: Name of the file for messages.
        encoding: How Python 2 strings are read, as in `pickle.load`.

    Returns:
        The value.

    Raises:
        InputError: If the pickle names anything else, is truncated, or is no pickle.

    Example:
        >>> load_pickle(io.BytesIO(pickle.dumps({"labels": np.arange(2)})), "batch")
        {'labels': array([0, 1])}
        >>> load_pickle(io.BytesIO(pickle.dumps(print)), "batch")
        Traceback (most recent call last):
        noisesam.errors.InputError: batch: the pickle asks for builtins.print, which was refused...
    """
    try:
        value = AllowListUnpickler(stream, encoding=encoding).load()
        return _finished(value, {})
    except _Refused as error:
        raise InputError(
            f"{where}: the pickle asks for {error}, which was refused",
            expected="numpy arrays and built-in values only",
            remedy="Take the file from its original source; if you trust it, convert it to .npz yourself",
        ) from None
    except _FAILURES as error:
        raise InputError(
            f"{where}: not a readable pickle ({type(error).__name__}: {error})",
            expected="a complete pickle of numpy arrays and built-in values",
            remedy="Fetch the file again",
        ) from None


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Replace the arrays being read by arrays, everywhere in a nested value, each part once however often it occurs."""
    if id(value) not in done:
        done[id(value)] = _finish_one(value, done)
    return done[id(value)]


def _finish_one(value: Any, done: dict[int, Any]) -> Any:
    """Finish one part of the value."""
    if isinstance(value, _Array):
        if value.value.dtype.hasobject:
            for k, element in enumerate(value.value.flat):
                value.value.flat[k] = _finished(element, done)
        return value.value
    if isinstance(value, dict):
        return {_finished(key, done): _finished(entry, done) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(entry, done) for entry in value)
    if isinstance(value, _Dtype):
        return value.build()
    return value
