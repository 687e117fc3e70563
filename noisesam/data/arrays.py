"""A user's own data as named arrays: one `.npz` file, or a folder of `.npy` files with the same names.

The names are `[train_|test_]` (none means train) before

    images         uint8 (n, height, width, channels) or (n, height, width); labels count as true unless clean_labels is there
    inputs         float (n, ...), or uint8 pixels with the channels first; nothing is assumed about the labels' truth
    labels         integers (n,)
    clean_labels   integers (n,), optional: the true labels
    index          integers (n,), optional: stable ids

and `classes`, optional: the class names.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.data.images import unit_pixels
from noisesam.data.transitions import given_noise
from noisesam.data.validation import MissingSplitError, numbered_classes
from noisesam.errors import InputError

LAYOUT = (
    "train_images (uint8, n x height x width x channels) or train_inputs (float, n x ...) and train_labels, "
    "and the same with test_"
)


def load_npz(path: Path, split: str, *, name: str) -> NoisyDataset:
    """Read a split of an `.npz` file in the layout above; pickled arrays are refused.

    Args:
        path: The file.
        split: "train" or "test".
        name: Name of the resulting data set.

    Returns:
        The data set; inputs are float32, images (n, channels, height, width) in [0, 1].

    Raises:
        InputError: For a file that is no `.npz`, lacks the arrays of the split, or holds unusable ones.
    """
    with open_npz(path) as archive:
        return _build(archive.files, lambda key: archive[key], split, path, name)


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an `.npz` file without unpickling, and turn what can go wrong with it into one error."""
    with path.open("rb") as stream:
        try:
            if not zipfile.is_zipfile(stream):
                raise zipfile.BadZipFile("no archive of arrays")
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            _refuse_repeated_names(path, archive)
            yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InputError(
                f"{path}: not a readable .npz file ({error})",
                expected="a whole file with named arrays",
                remedy="Write it with numpy.savez, or fetch it again",
            ) from None


def _refuse_repeated_names(path: Path, archive: np.lib.npyio.NpzFile) -> None:
    """Refuse an archive of which one array would be read and another of the same name passed over."""
    assert archive.zip is not None
    counted = Counter(name.removesuffix(".npy") for name in archive.zip.namelist())
    repeated = [name for name, times in counted.items() if times > 1]
    if repeated:
        raise InputError(
            f"{path}: {counted[repeated[0]]} arrays are named {repeated[0]!r}",
            expected="one array of each name",
            remedy="Write it anew with numpy.savez; zip tools that add to an archive leave the old entry in it.",
        )


def load_folder(folder: Path, split: str, *, name: str) -> NoisyDataset:
    """Read a split of a folder of `.npy` files named as in the layout above.

    Args:
        folder: The folder.
        split: "train" or "test".
        name: Name of the resulting data set.

    Returns:
        As `load_npz`.

    Raises:
        InputError: As `load_npz`.
    """
    keys = [file.stem for file in sorted(folder.glob("*.npy"))]
    return _build(keys, lambda key: np.load(folder / f"{key}.npy", allow_pickle=False), split, folder, name)


def _build(keys: Collection[str], read: Callable[[str], np.ndarray], split: str, where: Path, name: str) -> NoisyDataset:
    """Put the arrays of one split together."""

    def key_of(part: str, of: str = split) -> str | None:
        candidates = (f"{of}_{part}", part) if of == "train" else (f"{of}_{part}",)
        return next((key for key in candidates if key in keys), None)

    def array(key: str) -> np.ndarray:
        try:
            values = read(key)
            if not isinstance(values, np.ndarray):
                raise ValueError("it is no array")
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise InputError(
                f"{where}: array {key!r} cannot be read ({error})",
                expected="plain numbers or strings",
                remedy="Save it with a numeric or string dtype, not as Python objects",
            ) from None
        return values

    def integers(part: str, of: str = split) -> Tensor | None:
        key = key_of(part, of)
        if key is None:
            return None
        values = array(key)
        if values.dtype.kind not in "iu":
            raise InputError(
                f"{where}: {key!r} of type {values.dtype}", expected="integers", remedy="Save class numbers from 0"
            )
        return torch.from_numpy(values.astype(np.int64))

    images_key, inputs_key = key_of("images"), key_of("inputs")
    labels = integers("labels")
    if labels is None or (images_key is None and inputs_key is None):
        absent = labels is None and images_key is None and inputs_key is None
        raise (MissingSplitError if absent else InputError)(
            f"{where}: no {split} examples, its arrays are {', '.join(sorted(keys)) or 'none'}",
            expected=LAYOUT,
            remedy=f"Add the arrays of the {split} split, or ask for another split",
        )
    if images_key is not None:
        inputs = _channels_first(array(images_key), images_key, where)
    else:
        inputs = _numbers(array(str(inputs_key)), str(inputs_key), where)
    clean = integers("clean_labels")
    if clean is None and images_key is not None:
        clean = labels.clone()
    if "classes" in keys:
        classes = tuple(str(c) for c in np.atleast_1d(array("classes")))
    else:
        # Both splits are looked at: a class that the test images lack must still have its number.
        present = [integers(part, of) for part in ("labels", "clean_labels") for of in ("train", "test")]
        largest = max((int(part.max()) for part in present if part is not None and part.numel()), default=0)
        classes = numbered_classes(largest, str(where))
    index = integers("index")
    dataset = NoisyDataset(
        inputs,
        labels,
        clean_labels=clean,
        index=torch.arange(labels.numel()) if index is None else index,
        classes=classes,
        name=name,
    )
    return given_noise(dataset, source=where.name)


def _channels_first(pixels: np.ndarray, key: str, where: Path) -> Tensor:
    """Turn stored images into (n, channels, height, width) in [0, 1]."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise InputError(
            f"{where}: {key!r} of type {pixels.dtype} and shape {pixels.shape}",
            expected="uint8 of shape (n, height, width, channels) or (n, height, width)",
            remedy="Store floating images with the channels first under the name `inputs`",
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return unit_pixels(pixels.transpose(0, 3, 1, 2))


def _numbers(values: np.ndarray, key: str, where: Path) -> Tensor:
    """Turn stored inputs into float32: floating values as they are, bytes as pixels."""
    if values.dtype == np.uint8:
        return unit_pixels(values)
    if values.dtype.kind != "f":
        raise InputError(
            f"{where}: {key!r} of type {values.dtype}",
            expected="floating values, or uint8 pixels",
            remedy="Save it with .astype('float32')",
        )
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is refused as such.
        return torch.from_numpy(np.asarray(values, dtype=np.float32))
