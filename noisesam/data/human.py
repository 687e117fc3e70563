"""Human label noise: CIFAR-10N and CIFAR-100N, matched to the examples by their ids and checked against the true labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from noisesam.data.arrays import open_npz
from noisesam.data.dataset import NoisyDataset
from noisesam.data.loading import data_root, not_found
from noisesam.data.pickled_files import load_object_array, load_torch_file
from noisesam.data.validation import name_rows
from noisesam.errors import InputError, unknown_name

_AUTHORS_KEYS = {
    10: {
        "clean": "clean_label",
        "aggregate": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "worst": "worse_label",
    },
    100: {"clean": "clean_label", "noisy": "noisy_label"},
}
_FOLDERS = ("", "cifar10n", "cifar100n", "cifar-n", "cifar-10-100n", "cifar-10-100n/data")


def sources(classes: int) -> tuple[str, ...]:
    """Return the names of the human label sets for data of this many classes.

    Example:
        >>> sources(10), sources(100), sources(3)
        (('aggregate', 'random1', 'random2', 'random3', 'worst'), ('noisy',), ())
    """
    return tuple(key for key in _AUTHORS_KEYS.get(classes, ()) if key != "clean")


def human_labels(dataset: NoisyDataset, source: str, root: str | Path | None) -> Int64[np.ndarray, " n"]:
    """Return the human label of every example of a CIFAR training set or of a part of it.

    Labels are looked up by `dataset.index`, the position in the original training set, and the file's own true labels are
    compared with the data set's at all of these positions.

    Args:
        dataset: Examples of CIFAR-10 or CIFAR-100 with their true labels and original positions.
        source: CIFAR-10N: aggregate, random1, random2, random3 or worst; CIFAR-100N: noisy.
        root: A label file, or a folder that holds one; None takes NOISESAM_DATA.

    Returns:
        Class numbers of shape (n,).

    Raises:
        InputError: For other data sets, an unknown source, a missing or unusable file, or labels in another order.

    References:
        Wei, Zhu, Cheng, Liu, Niu, Liu (2022). Learning with Noisy Labels Revisited: A Study Using Real-World Human
        Annotations. arXiv 2110.12088.
    """
    classes = dataset.num_classes
    known = sources(classes)
    if not known:
        raise InputError(
            f"human labels for {dataset.name or 'a data set'} with {classes} classes",
            expected="the training images of CIFAR-10 or CIFAR-100",
            remedy="Load cifar10 or cifar100, or choose another kind of noise",
        )
    if source not in known:
        raise unknown_name(f"human label set for {classes} classes", source, known)
    path = _find(classes, root)
    table = _read(path)
    clean, noisy = _column(table, "clean", classes, path), _column(table, source, classes, path)
    if len(clean) != len(noisy):
        raise InputError(
            f"{path}: label sets of {len(clean)} and {len(noisy)} entries", expected="one length", remedy="Fetch it again"
        )
    return _matched(dataset, clean, noisy, path)


def _matched(
    dataset: NoisyDataset, clean: Int64[np.ndarray, " all"], noisy: Int64[np.ndarray, " all"], path: Path
) -> Int64[np.ndarray, " n"]:
    """Look the labels up by id, after the true labels have agreed at every id."""
    assert dataset.clean_labels is not None
    index, truth = dataset.index.cpu().numpy(), dataset.clean_labels.cpu().numpy()
    beyond = np.flatnonzero(index >= len(clean))
    if len(beyond):
        raise InputError(
            f"{path} has {len(clean)} labels, the data set ids up to {index.max()} ({name_rows(beyond.tolist(), len(beyond))})",
            expected="ids that are positions in the original training set",
            remedy="Keep `index` when you make or cut the data set",
        )
    wrong = np.flatnonzero(clean[index] != truth)
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"{path}: its true labels differ from the data set's at {len(wrong)} of {len(truth)} examples, "
            f"first at id {index[first]} (class {clean[index[first]]} there, {truth[first]} here)",
            expected="the training images in the order of the Python version of CIFAR",
            remedy="Files named *_ordered follow another order and cannot be used; test images have no human labels",
        )
    return noisy[index]


def _find(classes: int, root: str | Path | None) -> Path:
    """Find the label file under the root."""
    stem = f"CIFAR-{classes}_human"
    files = (f"cifar{classes}n_labels.npz", f"{stem}.pt", f"{stem}.npy", f"{stem}_ordered.npy")
    base = data_root(root)
    if base is not None and base.is_file():
        return base
    searched = [] if base is None else [base / folder for folder in _FOLDERS]
    for folder in searched:
        for file in files:
            if (folder / file).is_file():
                return folder / file
    raise not_found(f"the human labels for {classes} classes", searched, "one of " + ", ".join(files))


def _read(path: Path) -> Any:
    """Read the table of label sets from an .npz, .pt or .npy file, without executing anything in it."""
    if path.suffix == ".npz":
        with open_npz(path) as archive:
            try:
                return {key: archive[key] for key in archive.files}
            except (ValueError, MemoryError) as error:
                raise InputError(
                    f"{path}: not readable label sets ({error})", expected="arrays of class numbers", remedy="Fetch it again"
                ) from None
    table = load_object_array(path) if path.suffix == ".npy" else load_torch_file(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: a {type(table).__name__}", expected="a dictionary of label arrays", remedy="Fetch it again")
    return table


def _column(table: dict[str, Any], source: str, classes: int, path: Path) -> Int64[np.ndarray, " all"]:
    """Return one label set under this package's or the authors' key, checked for type and range."""
    key = next((key for key in (source, _AUTHORS_KEYS[classes][source]) if key in table), None)
    values = None if key is None else np.asarray(table[key])
    if values is None:
        raise InputError(
            f"{path}: no label set {source!r}, it has {', '.join(map(str, table))}",
            expected=f"{source} or {_AUTHORS_KEYS[classes][source]}",
            remedy=f"Check that the file belongs to data of {classes} classes",
        )
    if values.ndim != 1 or values.dtype.kind not in "iu" or not ((values >= 0) & (values < classes)).all():
        raise InputError(
            f"{path}: {key!r} is {values.dtype} of shape {values.shape}",
            expected=f"a flat array of class numbers 0 to {classes - 1}",
            remedy="Fetch the file again",
        )
    return values.astype(np.int64)
