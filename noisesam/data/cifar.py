"""CIFAR-10 and CIFAR-100 in their own layout of Python pickles, read through an allow-list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from noisesam.data import class_names, images
from noisesam.data.dataset import NoisyDataset
from noisesam.data.safe_pickle import load_pickle
from noisesam.errors import InputError

_FILES = {
    "cifar10": {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}
_LABEL_KEY = {"cifar10": "labels", "cifar100": "fine_labels"}
_CLASSES = {"cifar10": class_names.CIFAR10, "cifar100": class_names.CIFAR100}
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def find(folder: Path, name: str, split: str) -> Path | None:
    """Return the folder if it holds any of the split's files (a partial copy is then an error, not a miss)."""
    return folder if any((folder / file).is_file() for file in _FILES[name][split]) else None


def file_names(name: str, split: str) -> str:
    """Say which files a split needs."""
    return ", ".join(_FILES[name][split])


def load(folder: Path, *, name: str, split: str) -> NoisyDataset:
    """Read one split; ids are positions in the concatenated batches, the order in which CIFAR-10N and -100N are published.

    Args:
        folder: `cifar-10-batches-py` or `cifar-100-python`.
        name: "cifar10" or "cifar100" (fine labels).
        split: "train" or "test".

    Returns:
        A data set with inputs of shape (n, 3, 32, 32), float32 in [0, 1].

    Raises:
        InputError: For a missing file, a pickle with anything but arrays and built-in values, or a wrong shape.

    References:
        Krizhevsky (2009). Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto.
    """
    parts = [_read(folder / file, name) for file in _FILES[name][split]]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *_SHAPE)
    labels = np.concatenate([labels for _, labels in parts])
    return images.benchmark(pixels, labels, classes=_CLASSES[name], name=name)


def _read(path: Path, name: str) -> tuple[UInt8[np.ndarray, "n pixels"], Int64[np.ndarray, " n"]]:
    """Read one batch file."""
    if not path.is_file():
        raise InputError(f"{path} is missing", expected="all batches of the data set", remedy="Unpack the archive again")
    with path.open("rb") as stream:
        batch = load_pickle(stream, path)
    pixels, labels = _entry(batch, "data"), _entry(batch, _LABEL_KEY[name])
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (_PIXELS,)):
        raise InputError(
            f"{path}: 'data' is {_describe(pixels)}", expected=f"bytes of shape (n, {_PIXELS})", remedy="Fetch the file again"
        )
    numbers = _integers(labels)
    if numbers is None or numbers.shape != (len(pixels),):
        raise InputError(
            f"{path}: {_LABEL_KEY[name]!r} is {_describe(labels)}",
            expected=f"a list of {len(pixels)} class numbers",
            remedy="Check that the folder belongs to the data set you named",
        )
    return pixels, numbers


def _integers(labels: Any) -> Int64[np.ndarray, " ..."] | None:
    """Return a list or an array of whole numbers as int64, None for anything else."""
    try:
        values = np.asarray(labels)
    except ValueError:  # Lists of different lengths.
        return None
    return values.astype(np.int64) if values.dtype.kind in "iu" else None


def _entry(batch: Any, key: str) -> Any:
    """Return an entry whose key may be text or, in files read as bytes, a byte string."""
    if not isinstance(batch, dict):
        return None
    return batch[key] if key in batch else batch.get(key.encode())


def _describe(value: Any) -> str:
    """Describe a value by type and shape."""
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else f"a {type(value).__name__}"
