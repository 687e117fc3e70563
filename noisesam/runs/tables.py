"""The two tables of a run as parquet: columns of the schema to bytes, and bytes of anybody back to columns."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from noisesam.errors import InputError, RunError, first_line
from noisesam.runs.files import cannot_read, inside
from noisesam.runs.schema import EXAMPLES_COLUMNS, METRICS_COLUMNS, Column

COLUMNS: dict[str, tuple[Column, ...]] = {"metrics": METRICS_COLUMNS, "examples": EXAMPLES_COLUMNS}
KEYS = {"metrics": ["step", "split", "group", "metric"], "examples": ["step", "example"]}
"""What a row is about: of two rows with equal keys the one of the later part stands."""

ROW_LIMIT = 20_000_000
_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
_PART = re.compile(r"part-(\d{1,18})\.parquet")
_PART_REMEDY = "Restore the part from a copy of the run, or delete the whole run and train it again"


def part_name(step: int) -> str:
    """Return the file name of the part flushed at `step`.

    Example:
        >>> part_name(120)
        'part-000000120.parquet'
    """
    return f"part-{step:09d}.parquet"


def parts(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every part in a folder, by step; other files are none of ours."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _PART.fullmatch(path.name))]
    return sorted(found)


def as_frame(table: str, rows: Iterable[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Bring rows or columns into the documented columns and types of one table; further columns follow behind.

    Raises:
        InputError: A documented column is missing, or a value does not fit its type.

    Example:
        >>> row = {"step": 0, "epoch": 0, "split": "test", "group": "all", "metric": "accuracy", "value": 0.1}
        >>> as_frame("metrics", [row])["epoch"].dtype
        dtype('float64')
    """
    columns = COLUMNS[table]
    if isinstance(rows, pd.DataFrame):
        frame = rows.reset_index(drop=True)
    elif isinstance(rows, Mapping):
        frame = pd.DataFrame({name: np.asarray(values) for name, values in rows.items()})
    else:
        listed = [dict(row) for row in rows]
        frame = pd.DataFrame(listed) if listed else empty(table)
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise InputError(
            f"The {table} table lacks the column {missing[0]!r}",
            expected=", ".join(column.name for column in columns),
            remedy="Add it, with NaN (or -1 for a label) where it was not measured",
        )
    converted: dict[str, Any] = {}
    for column in columns:
        try:
            converted[column.name] = _convert(frame[column.name], column)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"Column {column.name!r} of the {table} table: {error}", expected=column.dtype) from error
    extra = {name: frame[name] for name in frame.columns if name not in converted}
    return pd.DataFrame({**converted, **extra}, index=frame.index)


def _convert(values: pd.Series, column: Column) -> pd.Series:
    if column.dtype == "string":
        if not all(isinstance(value, str) for value in values):
            raise ValueError("a value is not a string")
        return values
    if column.dtype == "float64":
        return values.astype("float64")
    numbers = pd.to_numeric(values)
    whole = numbers.astype("int64")
    if not bool((whole == numbers).all()):
        raise ValueError("a value is not a whole number")
    return whole


def empty(table: str) -> pd.DataFrame:
    """Return the table without rows, its columns typed."""
    return schema(table).empty_table().to_pandas()


def schema(table: str) -> pa.Schema:
    """Return the documented columns as an Arrow schema."""
    return pa.schema([pa.field(column.name, _TYPES[column.dtype]) for column in COLUMNS[table]])


def to_parquet(table: str, frame: pd.DataFrame) -> bytes:
    """Return the parquet bytes of a frame from `as_frame`; equal frames give equal bytes."""
    documented = schema(table)
    extra = [name for name in frame.columns if name not in documented.names]
    arrays = [pa.array(frame[field.name], type=field.type, from_pandas=False) for field in documented]
    arrays += [pa.array(frame[name]) for name in extra]
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, names=[*documented.names, *extra]), buffer, compression="zstd")
    return buffer.getvalue()


def read_part(root: Path, path: Path, table: str) -> pa.Table:
    """Read one part of a run that may come from anybody: documented columns by type, further ones if they are plain.

    Raises:
        RunError: Truncated or no parquet, a documented column missing or of a wrong type, an empty cell where none may be.
    """
    real = inside(root, path)
    try:
        with pq.ParquetFile(real) as file:
            stored = file.schema_arrow
            if file.metadata.num_rows > ROW_LIMIT:
                raise RunError(f"{path} states {file.metadata.num_rows} rows", expected=f"at most {ROW_LIMIT}")
            names = [name for name in stored.names if stored.names.count(name) == 1]
            missing = [column.name for column in COLUMNS[table] if column.name not in names]
            if missing:
                raise RunError(
                    f"{path} lacks the column {missing[0]!r}",
                    expected=f"the columns of the {table} table: {', '.join(c.name for c in COLUMNS[table])}",
                    remedy=_PART_REMEDY,
                )
            documented = [column.name for column in COLUMNS[table]]
            plain = [name for name in names if name not in documented and _plain(stored.field(name).type)]
            content = file.read(columns=[*documented, *plain])
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = first_line(error)
        raise RunError(f"{path} is truncated or not a parquet file ({reason})", remedy=_PART_REMEDY) from error
    return _typed(content.replace_schema_metadata(None), path, table)


def _plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)
    )


def _typed(content: pa.Table, path: Path, table: str) -> pa.Table:
    for column in COLUMNS[table]:
        position = content.schema.get_field_index(column.name)
        try:
            values = content.column(position).cast(_TYPES[column.dtype])
        except pa.ArrowException as error:
            found = content.schema.field(position).type
            raise RunError(
                f"{path} has {found} in column {column.name!r}", expected=column.dtype, remedy=_PART_REMEDY
            ) from error
        if values.null_count and column.dtype != "float64":
            raise RunError(
                f"{path} has empty cells in column {column.name!r}", expected="a value in each row", remedy=_PART_REMEDY
            )
        content = content.set_column(position, pa.field(column.name, _TYPES[column.dtype]), values)
    return content


def join_parts(table: str, contents: list[pa.Table]) -> pd.DataFrame:
    """Join parts in the order of their steps: one row per key, that of the later part, sorted by step."""
    if not contents:
        return empty(table)
    try:
        joined = pa.concat_tables(contents, promote_options="permissive")
    except pa.ArrowException:
        # Further columns of clashing types cannot be joined; the documented ones always can.
        joined = pa.concat_tables([content.select(schema(table).names) for content in contents])
    frame = joined.to_pandas(ignore_metadata=True)
    frame = frame.drop_duplicates(KEYS[table], keep="last").sort_values("step", kind="stable")
    return frame.reset_index(drop=True)
