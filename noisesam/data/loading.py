"""Data sets by name or by path: where their files are looked for, and what to do when they are not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from noisesam.data import arrays, cifar, class_names, digits, idx, tabular
from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError, unknown_name

ROOT_VARIABLE = "NOISESAM_DATA"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Benchmark:
    """A named data set: its usual folders, how a split is recognised in one of them, and the reader."""

    folders: tuple[str, ...]
    find: Callable[[Path, str], Callable[[], NoisyDataset] | None]
    files: Callable[[str], str]
    archive: str | None = None


def _idx_benchmark(name: str, classes: tuple[str, ...], folders: tuple[str, ...]) -> _Benchmark:
    """Describe a data set in IDX files."""

    def find(folder: Path, split: str) -> Callable[[], NoisyDataset] | None:
        files = None if _is_folder_of_another(folder, name) else idx.find(folder, split)
        return None if files is None else lambda: idx.load(files, classes=classes, name=name)

    return _Benchmark(folders, find, idx.file_names)


def _cifar_benchmark(name: str, folders: tuple[str, ...], archive: str) -> _Benchmark:
    """Describe a data set in CIFAR's pickled batches."""

    def find(folder: Path, split: str) -> Callable[[], NoisyDataset] | None:
        found = cifar.find(folder, name, split)
        return None if found is None else lambda: cifar.load(found, name=name, split=split)

    return _Benchmark(folders, find, lambda split: cifar.file_names(name, split), archive)


_BENCHMARKS = {
    "fashion-mnist": _idx_benchmark(
        "fashion-mnist", class_names.FASHION_MNIST, ("fashion-mnist", "FashionMNIST/raw", "fashion_mnist", "fashion")
    ),
    "mnist": _idx_benchmark("mnist", class_names.DIGITS, ("mnist", "MNIST/raw", "MNIST")),
    "cifar10": _cifar_benchmark("cifar10", ("cifar-10-batches-py", "cifar10/cifar-10-batches-py"), "cifar-10-python.tar.gz"),
    "cifar100": _cifar_benchmark("cifar100", ("cifar-100-python", "cifar100/cifar-100-python"), "cifar-100-python.tar.gz"),
}


def names() -> tuple[str, ...]:
    """Return the names that `load` knows.

    Example:
        >>> names()
        ('digits', 'fashion-mnist', 'mnist', 'cifar10', 'cifar100')
    """
    return ("digits", *_BENCHMARKS)


def load(name: str | Path, *, split: str = "train", root: str | Path | None = None) -> NoisyDataset:
    """Load a data set by name, or a user's own data by path.

    Nothing is downloaded. `digits` comes with scikit-learn; the others are read from files that you already have. A path may
    lead to an `.npz` file, a `.csv` file, a folder of `.npy` files or a folder with `train.csv` and `test.csv`; the layouts
    stand in data/README.md.

    Args:
        name: One of `names()`, or a path.
        split: "train" or "test".
        root: Folder that holds the data set's files, or holds them under their usual sub-folder or as `<name>.npz`; None
            takes the environment variable NOISESAM_DATA. Not used for digits and paths.

    Returns:
        The data set; images are float32 (n, channels, height, width) in [0, 1]. Benchmark labels count as true.

    Raises:
        InputError: For an unknown name or split, and for missing or damaged files, with the places that were searched.

    Example:
        >>> load("digits")
        NoisyDataset(name='digits', n=1200, input_shape=(1, 8, 8), classes=10, noise='none')
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if str(name) == "digits":
        return digits.load_digits(split)
    if str(name) in _BENCHMARKS:
        return _load_benchmark(str(name), split, root)
    own = own_path(name)
    if own is not None:
        return _load_path(own, split)
    raise unknown_name("data set", str(name), [*names(), "a path to an .npz, a .csv or a folder"])


def own_path(name: str | Path) -> Path | None:
    """Return the place that `load` reads a user's own data from; None for a named data set and for an unknown name.

    Example:
        >>> own_path("digits"), own_path("mine.npz").name
        (None, 'mine.npz')
    """
    return None if str(name) in names() or not _is_path(str(name)) else Path(name).expanduser()


def data_root(root: str | Path | None) -> Path | None:
    """Return the folder in which data is looked for: `root`, else NOISESAM_DATA, else None."""
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    return None if chosen is None else Path(chosen).expanduser()


def not_found(what: str, searched: list[Path], files: str, hint: str = "") -> InputError:
    """Build the error for missing files: where was searched, what to put there, how to say where it is."""
    places = ", ".join(map(str, searched)) or f"nowhere, as no data folder is given and {ROOT_VARIABLE} is not set"
    return InputError(
        f"{what} was not found; searched: {places}",
        expected=files,
        remedy=hint
        + f"Put the files into one of these places, or name their folder with --data-root, root= or {ROOT_VARIABLE}",
    )


def _load_benchmark(name: str, split: str, root: str | Path | None) -> NoisyDataset:
    """Look for a named data set under the root, its usual sub-folders first."""
    benchmark, base = _BENCHMARKS[name], data_root(root)
    expected = f"the files {benchmark.files(split)}, or {name}.npz"
    if base is None:
        raise not_found(f"{name} ({split})", [], expected)
    folders = [*(base / folder for folder in benchmark.folders), base]
    for folder in folders:
        reader = benchmark.find(folder, split) if folder.is_dir() else None
        if reader is not None:
            return reader()
    packed = [base] if base.is_file() and base.suffix == ".npz" else [base / f"{name}.npz", base / name / f"{name}.npz"]
    for file in packed:
        if file.is_file():
            return arrays.load_npz(file, split, name=name)
    archive = benchmark.archive
    packed_archive = archive is not None and (base / archive).is_file()
    hint = f"Unpack {archive} there first. " if packed_archive else ""
    raise not_found(f"{name} ({split})", [*folders, *packed], expected, hint)


def _is_folder_of_another(folder: Path, name: str) -> bool:
    """Tell whether the folder's own name says that it belongs to a data set with the same file names."""
    parts = {part.lower().replace("_", "").replace("-", "") for part in folder.parts[-2:]}
    other = "mnist" if name == "fashion-mnist" else "fashionmnist"
    return other in parts and name.replace("-", "") not in parts


def _is_path(name: str) -> bool:
    """Tell a path from a misspelt name."""
    return Path(name).suffix in (".npz", ".npy", ".csv") or "/" in name or os.sep in name or Path(name).exists()


def _load_path(path: Path, split: str) -> NoisyDataset:
    """Read a user's own data."""
    if not path.exists():
        raise InputError(f"{path} does not exist", expected="an .npz file, a .csv file or a folder", remedy="Check the path")
    if path.is_dir() and (path / "train.csv").is_file():
        return tabular.load_csv(path, split, name=path.name)
    if path.is_dir():
        return arrays.load_folder(path, split, name=path.name)
    if path.suffix == ".npz":
        return arrays.load_npz(path, split, name=path.stem)
    if path.suffix == ".csv":
        return tabular.load_csv(path, split, name=path.stem)
    raise InputError(
        f"{path}: files ending in {path.suffix!r} are not read on their own",
        expected="an .npz file, a .csv file or a folder",
        remedy="Put inputs.npy and labels.npy into one folder and give the folder",
    )
