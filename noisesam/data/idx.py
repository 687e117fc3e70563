"""MNIST and Fashion-MNIST in the IDX files in which they are published."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from noisesam.data import images
from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError

_UNSIGNED_BYTE = 0x08
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, " ..."]:
    """Read one IDX file of unsigned bytes, gzipped or not.

    The file is 00 00 08 ndim, then ndim sizes as big-endian 32-bit numbers, then the values.

    Args:
        path: The file; a name ending in .gz is decompressed.
        ndim: Expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        The array, uint8.

    Raises:
        InputError: For another kind of file, a truncated one, or one with bytes left over.

    References:
        LeCun, Cortes, Burges (1998). The MNIST database of handwritten digits.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})", expected="a whole file", remedy="Fetch the file again") from None
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, _UNSIGNED_BYTE, ndim]):
        raise InputError(
            f"{path}: the first bytes are {content[:4].hex() or 'missing'}",
            expected=f"an IDX header 000008{ndim:02x}, unsigned bytes in {ndim} dimensions",
            remedy="Check that images and labels were not exchanged, and fetch the file again",
        )
    shape = struct.unpack(f">{ndim}I", content[4:header])
    size = 1
    for length in shape:
        size *= length
    if len(content) - header != size:
        raise InputError(
            f"{path}: {len(content) - header} bytes of data",
            expected=f"{size} bytes for the shape {shape} in its header",
            remedy="The file is truncated or changed: fetch it again",
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def find(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return the image and label files of a split in this folder, or None if either is missing."""
    found = [
        next((path for path in _spellings(folder, split, part, ndim) if path.is_file()), None)
        for part, ndim in (("images", 3), ("labels", 1))
    ]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def file_names(split: str) -> str:
    """Say which files a split needs."""
    return " and ".join(f"{_PREFIX[split]}-{part}-idx{ndim}-ubyte.gz" for part, ndim in (("images", 3), ("labels", 1)))


def _spellings(folder: Path, split: str, part: str, ndim: int) -> list[Path]:
    """List the names under which the file is commonly stored."""
    stem = f"{_PREFIX[split]}-{part}"
    return [folder / f"{stem}{mark}idx{ndim}-ubyte{end}" for end in (".gz", "") for mark in ("-", ".")]


def load(files: tuple[Path, Path], *, classes: tuple[str, ...], name: str) -> NoisyDataset:
    """Make the data set from an image file and a label file."""
    pixels, labels = read_idx(files[0], 3), read_idx(files[1], 1)
    if len(pixels) != len(labels):
        raise InputError(
            f"{files[0]} holds {len(pixels)} images, {files[1].name} {len(labels)} labels",
            expected="as many labels as images",
            remedy="Take both files from the same copy of the data set",
        )
    return images.benchmark(pixels[:, None], labels.astype(np.int64), classes=classes, name=name)
