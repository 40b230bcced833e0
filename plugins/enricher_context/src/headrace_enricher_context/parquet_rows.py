"""Rows of a Parquet file of devices, with the row that each stands in; its types decide the columns' kinds."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from headrace_enricher_context.csv_rows import FileError, Kind, Row

ROWS_PER_BATCH = 1000


@dataclass
class ParquetFile:
    """A Parquet file with one row per device. Cells are given as the texts that a CSV file would hold."""

    path: Path
    unit: ClassVar[str] = "row"

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self._open().metadata.num_rows)

    def header(self) -> list[str]:
        """The names of the columns. Raises FileError where one is empty or stands twice, or there are none."""
        names = list(self._open().schema_arrow.names)
        for name in names:
            if not name.strip() or names.count(name) > 1:
                problem = f"{name!r} twice" if name.strip() else "a column without a name"
                raise self.error(0, "column names that differ", f"{problem}, in {', '.join(map(repr, names))}")
        if not names:
            raise self.error(0, "at least one column", "none")
        return names

    def kinds(self) -> list[Kind]:
        """What the columns are, by their types."""
        return [_kind(field.type) for field in self._open().schema_arrow]

    def rows(self, width: int, progress: Callable[[int], None] = lambda size: None) -> Iterator[Row]:
        """The rows, counted from 1; `progress` is told of each. Raises FileError."""
        number = 0
        try:
            for batch in self._open().iter_batches(batch_size=ROWS_PER_BATCH):
                columns = [self._cells(column, number) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    progress(1)
                    yield Row(number, list(cells))
        except (pa.ArrowException, OSError) as error:
            raise self.error(number + 1, "a row that can be read", str(error)) from error

    def error(self, line: int, expected: str, came: str) -> FileError:
        """An error at a row of this file; row 0 is the file as a whole."""
        return FileError(f"{self.path}{f': row {line}' if line else ''}: expected {expected}, got {came}")

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self.error(0, "a Parquet file", f"one that cannot be read: {error}") from error

    def _cells(self, column: pa.Array, before: int) -> Sequence[str | None]:
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        cells: list[str | None] = []
        for index, value in enumerate(_values(column)):
            try:
                cells.append(_text(value.as_py()) or None)
            except (UnicodeDecodeError, ValueError, OverflowError) as error:
                raise self.error(before + index + 1, "a value that can be written as text", str(error)) from error
        return cells


def _values(column: pa.Array) -> pa.Array:
    # Python's times end at microseconds
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _kind(kind: pa.DataType) -> Kind:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "int"
    return "float" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "text"


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            value.encode()
            return value
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.decode()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
