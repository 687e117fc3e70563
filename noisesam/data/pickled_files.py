"""Containers of pickles: `.pt` files of torch.save and `.npy` files of object arrays, read through the allow-list."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from noisesam.data.safe_pickle import load_pickle
from noisesam.errors import InputError

MAX_BYTES = 1 << 28
"""Largest pickle read from inside an archive, 256 MiB; the human label files have a few."""

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def load_torch_file(path: Path) -> Any:
    """Read a `.pt` file that holds numpy arrays, without torch's unpickler.

    A file written by torch.save is a zip archive whose member `<name>/data.pkl` is the pickle, or in the older format a
    sequence of pickles of which the fourth is the value. Tensors are refused: label files hold numpy arrays.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        InputError: As `load_pickle`, and for archives without exactly one pickle or with one beyond 256 MiB.
    """
    with path.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            return load_pickle(_archived_pickle(stream, path), path)
        stream.seek(0)
        first = load_pickle(stream, path)
        if first != _TORCH_MAGIC:
            return first
        for _ in ("protocol version", "system"):
            load_pickle(stream, path)
        return load_pickle(stream, path)


def _archived_pickle(stream: io.BufferedIOBase, path: Path) -> io.BufferedIOBase:
    """Return the bytes of the archive's one `data.pkl`, after looking at its declared and its real size."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = [info for info in archive.infolist() if info.filename.split("/")[-1] == "data.pkl"]
            if len(members) != 1 or members[0].filename.count("/") > 1:
                raise InputError(
                    f"{path}: an archive with {len(members)} members named data.pkl",
                    expected="the one that torch.save writes",
                    remedy="Take the file from its original source",
                )
            if members[0].file_size > MAX_BYTES:
                raise InputError(
                    f"{path}: a pickle of {members[0].file_size} bytes",
                    expected=f"at most {MAX_BYTES}",
                    remedy="Check its origin",
                )
            with archive.open(members[0]) as member:
                return io.BytesIO(member.read(members[0].file_size))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: not a readable archive ({error})", expected="a whole .pt file", remedy="Fetch it again"
        ) from None


def load_object_array(path: Path) -> Any:
    """Read the pickled value out of an `.npy` file that holds an object array, for example a dictionary of label arrays.

    Args:
        path: The file.

    Returns:
        The single value for a zero-dimensional array, the array otherwise.

    Raises:
        InputError: As `load_pickle`, and for files that are no `.npy`.
    """
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(stream)
        except ValueError as error:
            raise InputError(
                f"{path}: not a readable .npy file ({error})", expected="an .npy file", remedy="Fetch it again"
            ) from None
        if not dtype.hasobject:
            stream.seek(0)
            try:
                return np.load(stream, allow_pickle=False)
            except (ValueError, EOFError, MemoryError) as error:
                raise InputError(
                    f"{path}: not a readable .npy file ({error})", expected="a whole array", remedy="Fetch it again"
                ) from None
        value = load_pickle(stream, path)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
