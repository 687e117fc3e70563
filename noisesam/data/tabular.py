"""A user's own data as a table: one row per example in a `.csv` file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.data.transitions import given_noise
from noisesam.data.validation import MissingSplitError, name_rows, numbered_classes
from noisesam.errors import InputError

_RESERVED = ("label", "clean_label", "index")


def load_csv(path: Path, split: str, *, name: str) -> NoisyDataset:
    """Read a `.csv` file with a header line, or `train.csv` and `test.csv` of a folder.

    Columns `label` (without one, the last column), `clean_label` and `index` (both optional) are what they say; every other
    column is a feature. Labels are class numbers from 0 or class names; names are numbered in alphabetical order over both
    files of a folder.

    Args:
        path: A `.csv` file, which is the training split, or a folder with `train.csv` and perhaps `test.csv`.
        split: "train" or "test".
        name: Name of the resulting data set.

    Returns:
        A data set with inputs of shape (n, features), float32.

    Raises:
        InputError: For a missing split, features that are no numbers, or unusable labels.
    """
    files = {"train": path} if path.is_file() else {part: path / f"{part}.csv" for part in ("train", "test")}
    if split not in files or not files[split].is_file():
        raise MissingSplitError(
            f"{path}: no {split} split",
            expected="a folder with train.csv and test.csv",
            remedy="Put both files into one folder under these names and give the folder",
        )
    tables = {part: _read(file) for part, file in files.items() if file.is_file()}
    table = tables[split]
    columns = [column for column in table.columns if column not in _RESERVED]
    if any([c for c in other.columns if c not in _RESERVED] != columns for other in tables.values()):
        raise InputError(
            f"{path}: train.csv and test.csv differ in their features", expected="the same columns", remedy="Align them"
        )
    classes = _class_names(list(tables.values()), path)
    labels = _numbers_of(table["label"], classes, files[split])
    assert labels is not None
    dataset = NoisyDataset(
        _features(table[columns], files[split]),
        labels,
        clean_labels=_numbers_of(table.get("clean_label"), classes, files[split]),
        index=_ids(table, files[split]),
        classes=classes,
        name=name,
    )
    return given_noise(dataset, source=files[split].name)


def _read(file: Path) -> pd.DataFrame:
    """Read the table, and call the last column `label` if none has that name."""
    _check_fields(file)
    try:
        table = pd.read_csv(file, index_col=False, encoding="utf-8-sig", skipinitialspace=True)
        # A class may be called NA or None: only an empty cell is none.
        texts = pd.read_csv(
            file, index_col=False, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=False, na_values=[""]
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: not a readable table ({error})", expected="a .csv file with a header", remedy="Check it"
        ) from None
    table.columns = texts.columns = [str(name).strip() for name in table.columns]
    if "label" not in table.columns and table.columns[-1] not in _RESERVED:
        last = {table.columns[-1]: "label"}
        table, texts = table.rename(columns=last), texts.rename(columns=last)
    for name in {"label", "clean_label"} & set(table.columns):
        if not pd.api.types.is_numeric_dtype(texts[name]):
            table[name] = texts[name].str.strip().replace("", None)
    if not len(table):
        raise InputError(f"{file}: a header and no rows", expected="one row per example", remedy="Add the examples below it")
    if "label" not in table.columns or table.shape[1] < 2:
        raise InputError(
            f"{file}: columns {', '.join(map(str, table.columns))}",
            expected="a column `label` and at least one feature",
            remedy="Add them",
        )
    return table


def _check_fields(file: Path) -> None:
    """Refuse a table whose rows do not fit its header: read as they are, they would lose a column or an example in silence."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle)
            header = next(rows, [])
            odd = next(((rows.line_num, row) for row in rows if row and len(row) != len(header)), None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: not a readable table ({error})", expected="a .csv file with a header, in UTF-8", remedy="Check it"
        ) from None
    if len(header) == 1:
        other = next((sign for sign in (";", "\t", "|") if sign in header[0]), None)
        if other is not None:
            raise InputError(
                f"{file}: columns separated by {other!r} ({header[0][:60]!r})",
                expected="columns separated by commas",
                remedy="Save the table with commas",
            )
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"{file}: two columns are called {twice!r}", expected="a name of its own for every column", remedy="Rename one"
        )
    alike = next((name for name in names if name not in _RESERVED and name.lower().replace(" ", "_") in _RESERVED), None)
    if alike is not None:
        raise InputError(
            f"{file}: a column {alike!r}, which would be a feature",
            expected=f"{alike.lower().replace(' ', '_')!r} for what it seems to be",
            remedy="Rename it",
        )
    if odd is not None:
        raise InputError(
            f"{file}: {len(header)} columns in the header, {len(odd[1])} in line {odd[0]}",
            expected="as many values in every row as columns in the header",
            remedy="Name every column in the first line, or mend the row",
        )
    if header and all(_number(name) is not None for name in header) and header != [str(k) for k in range(len(header))]:
        raise InputError(
            f"{file}: a first line of numbers alone ({', '.join(header[:4])}{', ...' if len(header) > 4 else ''})",
            expected="a header with the names of the columns",
            remedy="Write the names above the first example",
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _class_names(tables: list[pd.DataFrame], path: Path) -> tuple[str, ...]:
    """Number the classes over all labels of all files."""
    columns = [table[column] for table in tables for column in ("label", "clean_label") if column in table.columns]
    if any(bool(column.isna().any()) for column in columns):
        raise InputError(f"{path}: empty labels", expected="a label in every row", remedy="Fill them or drop these rows")
    values = np.concatenate([column.to_numpy() for column in columns])
    if all(pd.api.types.is_integer_dtype(column) for column in columns):
        return numbered_classes(int(values.max(initial=0)), str(path))
    if any(pd.api.types.is_float_dtype(column) for column in columns):
        raise InputError(
            f"{path}: labels with a decimal point", expected="class numbers or names", remedy="Write whole numbers"
        )
    if any(pd.api.types.is_integer_dtype(column) for column in columns):
        raise InputError(
            f"{path}: class names in one column of labels, class numbers in another",
            expected="one kind in `label` and `clean_label` of every file",
            remedy="Write both as names or both as numbers",
        )
    return tuple(sorted({str(value) for value in values}))


def _numbers_of(column: pd.Series | None, classes: tuple[str, ...], file: Path) -> Tensor | None:
    """Turn class numbers or names into int64."""
    if column is None:
        return None
    if pd.api.types.is_integer_dtype(column):
        numbers = column.to_numpy().astype(np.int64)
    else:
        position = {name: k for k, name in enumerate(classes)}
        numbers = np.array([position[str(value)] for value in column], dtype=np.int64)
    if len(numbers) and numbers.min() < 0:
        raise InputError(f"{file}: label {numbers.min()}", expected="class numbers from 0", remedy="Renumber the classes")
    return torch.from_numpy(numbers)


def _features(table: pd.DataFrame, file: Path) -> Tensor:
    """Turn the feature columns into float32, naming columns and rows that are no numbers."""
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise InputError(
                f"{file}: column {column!r} holds text", expected="numbers", remedy="Encode it, or name it `label`"
            )
    missing = np.flatnonzero(table.isna().any(axis=1).to_numpy())
    if len(missing):
        raise InputError(
            f"{file}: empty cells in {name_rows(missing.tolist(), len(missing))}",
            expected="a number in every cell",
            remedy="Fill them",
        )
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is refused as such.
        return torch.from_numpy(table.to_numpy(dtype=np.float32, copy=True))


def _ids(table: pd.DataFrame, file: Path) -> Tensor:
    """Return the table's stable ids, or the row numbers."""
    if "index" not in table.columns:
        return torch.arange(len(table))
    if not pd.api.types.is_integer_dtype(table["index"]):
        raise InputError(f"{file}: column 'index' is not whole numbers", expected="distinct ids from 0", remedy="Leave it out")
    return torch.from_numpy(table["index"].to_numpy(dtype=np.int64, copy=True))
