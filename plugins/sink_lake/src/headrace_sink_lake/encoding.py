"""How a Parquet file of events is written: compression, the encoding of each column, and what readers skip by. No I/O."""

from __future__ import annotations

import base64
import inspect
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace_sink_lake.repetition import SAMPLE_ROWS, hardly_repeats

BLOOM_FPP = 0.01
#: Values that pyarrow takes at a time; with its default of 1,024 a column costs 2 to 8 ns a value more.
WRITE_BATCH_ROWS = 1 << 14
#: The default of 20,000 costs 40 ns an event and makes files a quarter larger: each page of each column is compressed by itself.
PAGE_ROWS_MAX = 1 << 16
DELTA, SPLIT, PLAIN = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", ""
#: Growing columns of every file: half the size and half the time of plain or dictionary pages.
STEADY = ("time", "received", "position")
#: Older versions of pyarrow have no bloom filters (before 24), or no say in how long pages are.
_PARAMETERS = inspect.signature(pq.ParquetWriter).parameters
HAS_BLOOM = "bloom_filter_options" in _PARAMETERS
HAS_PAGE_ROWS = "max_rows_per_page" in _PARAMETERS


def parquet_options(rows: pa.Table, compression_level: int) -> dict[str, Any]:
    """How a file that begins with these rows (its first row group) is written: zstd, dictionaries where they pay, differences for
    the columns that grow steadily, and all that readers skip by: order, page index, a bloom filter on device."""
    without = {**dict.fromkeys(STEADY, DELTA), **scattered(rows)}
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": compression_level,
        "use_dictionary": [leaf for leaf in leaves(rows.schema) if leaf not in without],
        "column_encoding": {leaf: encoding for leaf, encoding in without.items() if encoding},
        "sorting_columns": pq.SortingColumn.from_ordering(rows.schema, [("device", "ascending"), ("time", "ascending")]),
        "write_page_index": True,
        "write_batch_size": WRITE_BATCH_ROWS,
    }
    if HAS_PAGE_ROWS:
        options["max_rows_per_page"] = PAGE_ROWS_MAX
    if HAS_BLOOM:
        options["bloom_filter_options"] = {"device": {"ndv": _device_runs(rows), "fpp": BLOOM_FPP}}
    return options


def schema_metadata(schema: pa.Schema) -> dict[bytes, bytes]:
    """What a file with this schema has as metadata, Arrow's own form of the schema included.

    pyarrow's writer would put down the types that it is given, and its readers would find dictionaries where others find text.
    """
    return {**(schema.metadata or {}), b"ARROW:schema": base64.b64encode(schema.serialize().to_pybytes())}


def scattered(rows: pa.Table) -> dict[str, str]:
    """The readings whose values hardly ever repeat, with their encodings.

    A counter as float64 that is split into streams of bytes takes a third of the time of plain values, and half the bytes; noise
    costs 13 ns a value more than plain, and is 8 % smaller.
    """
    if rows.num_rows < SAMPLE_ROWS:
        return {}
    readings = rows.column("readings").combine_chunks() if rows.column("readings").num_chunks != 1 else rows.column("readings").chunk(0)
    return {
        f"readings.{field.name}": _encoding(field.type)
        for field in readings.type
        if not pa.types.is_nested(field.type) and not pa.types.is_boolean(field.type) and hardly_repeats(readings.field(field.name))
    }


def _encoding(kind: pa.DataType) -> str:
    if kind in (pa.float32(), pa.float64()):
        return SPLIT
    return DELTA if pa.types.is_integer(kind) else PLAIN


def leaves(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns, as far as structs go."""
    return [leaf for field in schema for leaf in _leaves(field, field.name)]


def _leaves(field: pa.Field, path: str) -> list[str]:
    if not pa.types.is_struct(field.type):
        return [path]
    return [leaf for child in field.type for leaf in _leaves(child, f"{path}.{child.name}")]


def _device_runs(rows: pa.Table) -> int:
    """How many devices the rows have, which are in the order of device."""
    device = rows.column("device")
    if pa.types.is_dictionary(device.type):
        return sum(len(chunk.dictionary) for chunk in device.chunks)
    return 1 + sum(
        int(pc.sum(pc.not_equal(chunk.slice(1), chunk.slice(0, len(chunk) - 1))).as_py() or 0) + 1 for chunk in device.chunks if len(chunk)
    )
