"""Which folder of the lake a row belongs to: hive partitions from the context and from the event's time. No I/O."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNKNOWN = "unknown"
OTHER = "_other"
TIME_KEYS = {"date": "D", "hour": "h"}
#: File names end at 255 bytes on most filesystems; the rest is for the key and a margin.
VALUE_BYTES_MAX = 180
#: Codes below it index small tables; above it they are renumbered, which sorts.
CODES_MAX = 1 << 16


class Part(NamedTuple):
    """One partition of a batch: `folder` below the lake's root, `overflow` the one for when there are too many, its rows."""

    folder: str
    overflow: str
    rows: int


def partition(batch: pa.RecordBatch, keys: Sequence[str]) -> tuple[Any, list[Part]]:
    """For each row the number of its partition (an int array), and the partitions that the numbers stand for."""
    if batch.num_rows == 0:
        return np.zeros(0, dtype=np.int64), []
    columns = [_coded(batch, key) for key in keys]
    combined = np.zeros(batch.num_rows, dtype=np.int64)
    for codes, values in columns:
        combined = combined * len(values) + codes
        if int(combined.max()) >= CODES_MAX:
            combined = np.unique(combined, return_inverse=True)[1].astype(np.int64)
    counts = np.bincount(combined)
    used = np.flatnonzero(counts)
    example = np.zeros(len(counts), dtype=np.int64)
    example[combined] = np.arange(batch.num_rows)
    parts = []
    for row, rows in zip(example[used].tolist(), counts[used].tolist(), strict=True):
        pairs = [(key, values[int(codes[row])]) for key, (codes, values) in zip(keys, columns, strict=True)]
        others = [(key, value if key in TIME_KEYS else OTHER) for key, value in pairs]
        parts.append(Part(folder_of(pairs), folder_of(others), rows))
    numbers = np.zeros(len(counts), dtype=np.int64)
    numbers[used] = np.arange(len(used))
    return numbers[combined], parts


def folder_of(pairs: Sequence[tuple[str, str]]) -> str:
    """`key=value/...`; values are percent-encoded, and cut with a hash where they are too long for a file name."""
    return "/".join(f"{key}={_encoded(value)}" for key, value in pairs)


@functools.lru_cache(maxsize=4096)
def _encoded(value: str) -> str:
    text = quote(value, safe="")
    if len(text) <= VALUE_BYTES_MAX:
        return text
    # Cut between characters: DuckDB refuses a folder whose name does not decode to UTF-8.
    head = value[:VALUE_BYTES_MAX]
    while len(quote(head, safe="")) > VALUE_BYTES_MAX - 20:
        head = head[:-1]
    return f"{quote(head, safe='')}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"


def _coded(batch: pa.RecordBatch, key: str) -> tuple[Any, list[str]]:
    # Each row's value of one key as a number from 0, and the texts that the numbers stand for.
    if key in TIME_KEYS:
        return _coded_time(batch.column("time"), TIME_KEYS[key])
    context = batch.column("context")
    if context.type.get_field_index(key) < 0:
        return np.zeros(batch.num_rows, dtype=np.int64), [UNKNOWN]
    values = pc.struct_field(context, key)  # null where the struct is
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        return np.zeros(batch.num_rows, dtype=np.int64), [UNKNOWN]
    coded = values.cast(pa.string()).dictionary_encode()
    texts = coded.dictionary.to_pylist()
    codes = coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, [text or UNKNOWN for text in texts] + [UNKNOWN]


def _coded_time(times: pa.Array, unit: str) -> tuple[Any, list[str]]:
    moments = times.cast(pa.int64()).to_numpy().view("datetime64[us]").astype("datetime64[D]" if unit == "D" else "datetime64[h]")
    numbers = moments.astype(np.int64)
    if unit == "h":
        return numbers % 24, [f"{hour:02}" for hour in range(24)]
    first = int(numbers.min())
    if int(numbers.max()) == first:
        return np.zeros(len(numbers), dtype=np.int64), [str(moments[0])]
    days, codes = np.unique(numbers, return_inverse=True)
    return codes.astype(np.int64), [str(day) for day in days.view("datetime64[D]")]
