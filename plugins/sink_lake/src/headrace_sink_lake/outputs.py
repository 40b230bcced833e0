"""Parquet files of about a given size, one after the other. Blocking I/O; may raise OSError and pyarrow's errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from headrace_sink_lake.encoding import parquet_options, schema_metadata
from headrace_sink_lake.store import OutFile
from headrace_sink_lake.texts import compacted


class ParquetFiles:
    """Writes rows that are in the order of device and time; ends a file behind the row group that makes it large enough.

    `schema` is what readers see; the rows may have its texts as dictionaries. `create()` opens the next file; `written(file, rows,
    bytes)` is told of each that is complete, and is to `finish` it.
    """

    def __init__(
        self,
        schema: pa.Schema,
        *,
        compression_level: int,
        row_group_rows: int,
        target_bytes: int,
        create: Callable[[], OutFile],
        written: Callable[[OutFile, int, int], None],
    ) -> None:
        self._schema, self._row_group_rows, self._target_bytes = schema, row_group_rows, target_bytes
        self._create, self._written = create, written
        self._compression_level = compression_level
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._file: OutFile | None = None
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Take rows; they are written in whole row groups."""
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= self._row_group_rows:
            self._write_groups(self._waiting_rows - self._waiting_rows % self._row_group_rows)

    def end(self) -> None:
        """Write what is left, and complete the last file."""
        self._write_groups(self._waiting_rows)
        self._end_file()

    def _write_groups(self, rows: int) -> None:
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting)
        for start in range(0, rows, self._row_group_rows):
            group = compacted(table.slice(start, min(self._row_group_rows, rows - start)))
            writer = self._writer or self._begin_file(group)
            writer.write_table(group, row_group_size=self._row_group_rows)
            self._rows += group.num_rows
            assert self._file is not None
            if self._file.stream.tell() >= self._target_bytes:
                self._end_file()
        rest = table.slice(rows)
        self._waiting, self._waiting_rows = ([rest] if rest.num_rows else []), rest.num_rows

    def _begin_file(self, rows: pa.Table) -> pq.ParquetWriter:
        self._file = self._create()
        options = parquet_options(rows, self._compression_level)
        self._writer = pq.ParquetWriter(self._file.stream, rows.schema, store_schema=False, **options)
        return self._writer

    def _end_file(self) -> None:
        if self._writer is None or self._file is None:
            return
        self._writer.add_key_value_metadata(schema_metadata(self._schema))
        self._writer.close()
        file, rows = self._file, self._rows
        self._writer, self._file, self._rows = None, None, 0
        self._written(file, rows, file.stream.tell())

    def abandon(self) -> None:
        """Let go of a file that is under way; nothing where all are complete. The file itself is its creator's."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer = None
