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
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
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
    combined: Any = None
    values: list[Sequence[str]] = []
    # What each number of `combined` stands for: a row of indexes into the values of each key.
    meant = np.zeros((1, 0), dtype=np.int64)
    for key in keys:
        codes, texts = _coded(batch, key)
        values.append(texts)
        number, width = len(meant), len(texts)
        if codes is None:
            kept, width = np.arange(number), 1
        else:
            combined = codes if combined is None else combined * width + codes
            kept = np.arange(number * width)
            if len(kept) > CODES_MAX:
                kept, combined = np.unique(combined, return_inverse=True)
        meant = np.column_stack((meant[kept // width], kept % width))
    if combined is None:
        combined = np.zeros(batch.num_rows, dtype=np.int64)
    counts = np.bincount(combined, minlength=len(meant))
    used = np.flatnonzero(counts)
    parts = []
    for number, rows in zip(used.tolist(), counts[used].tolist(), strict=True):
        pairs = [(key, texts[code]) for key, texts, code in zip(keys, values, meant[number].tolist(), strict=True)]
        others = [(key, value if key in TIME_KEYS else OTHER) for key, value in pairs]
        parts.append(Part(folder_of(pairs), folder_of(others), rows))
    if len(used) == len(counts):
        return combined, parts
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


def _coded(batch: pa.RecordBatch, key: str) -> tuple[Any, Sequence[str]]:
    # Each row's value of one key as a number from 0, and the texts that the numbers stand for; None where all rows have the first.
    if key in TIME_KEYS:
        return _coded_time(batch.column("time"), TIME_KEYS[key])
    context = batch.column("context")
    if context.type.get_field_index(key) < 0:
        return None, [UNKNOWN]
    values = pc.struct_field(context, key)  # null where the struct is
    if not (pa.types.is_dictionary(values.type) and pa.types.is_string(values.type.value_type)):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
            return None, [UNKNOWN]
        values = values.cast(pa.string()).dictionary_encode()
    texts = [text or UNKNOWN for text in values.dictionary.to_pylist()]
    if not values.null_count:
        return (values.indices.to_numpy().astype(np.int64), texts) if len(texts) > 1 else (None, texts)
    return values.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64), [*texts, UNKNOWN]


def _coded_time(times: pa.Array, unit: str) -> tuple[Any, Sequence[str]]:
    microseconds = times.cast(pa.int64()).to_numpy()
    if unit == "h":
        return microseconds // HOUR_US % 24, [f"{hour:02}" for hour in range(24)]
    first, last = int(microseconds.min()) // DAY_US, int(microseconds.max()) // DAY_US
    if first == last:
        return None, [_day(first)]
    days, codes = np.unique(microseconds // DAY_US, return_inverse=True)
    return codes, [_day(day) for day in days.tolist()]


def _day(number: int) -> str:
    return str(np.datetime64(number, "D"))
