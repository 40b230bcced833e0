"""Text columns as dictionaries, from the batch to the Parquet page: a code of four bytes a row is cheap to join, order and encode. No I/O.

Readers see text: a dictionary is how it is held here, and how Parquet writes it (`encoding.schema_metadata`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace_sink_lake.repetition import hardly_repeats

CODED: Final = pa.dictionary(pa.int32(), pa.string())
#: Batches of fewer rows do not tell whether a text repeats.
TELLING_ROWS: Final = 256
#: A row group's dictionary may have words of other rows, as long as there are so many rows for each: leaving them out costs 7 ns a row.
WORD_ROWS: Final = 64


class Texts:
    """Codes the texts of batches that are stored together; a column that hardly repeats in the first of them stays plain in all."""

    def __init__(self) -> None:
        self._plain: dict[str, bool] = {}

    def coded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The same rows, texts of readings and context as `CODED`; the batch's offsets are in order (`columns.bad_rows`)."""

        def child(path: str, array: pa.Array) -> pa.Array:
            if pa.types.is_string(array.type):
                if path == "device":
                    return array
                if path not in self._plain and len(array) >= TELLING_ROWS:
                    self._plain[path] = hardly_repeats(array)
                if self._plain.get(path):
                    return array
            return coded(array)

        return mapped(batch, child)


def coded(array: pa.Array) -> pa.Array:
    """A text as `CODED`, each value once in the dictionary; other arrays as they are."""
    if pa.types.is_string(array.type):
        return array.dictionary_encode()
    if not pa.types.is_dictionary(array.type):
        return array
    words = array.dictionary
    if not pa.types.is_string(words.type):
        return array.dictionary_decode()
    # From a plugin: Parquet's writer would take a word that stands there twice for two.
    if words.null_count or pc.count_distinct(words).as_py() != len(words):
        return array.dictionary_decode().dictionary_encode()
    return array if array.type == CODED else array.cast(CODED)


def compacted(rows: pa.Table) -> pa.Table:
    """The same rows with dictionaries that have few words of other rows, as they go into one row group."""
    batches = rows.combine_chunks().to_batches()
    if len(batches) != 1:
        return rows
    return pa.Table.from_batches([mapped(batches[0], lambda _, array: _used(array) if isinstance(array, pa.DictionaryArray) else array)])


def _used(array: pa.DictionaryArray) -> pa.Array:
    words = array.dictionary
    if len(words) * WORD_ROWS <= len(array):
        return array
    indices = array.indices
    codes = indices.fill_null(len(words)).to_numpy(zero_copy_only=False) if indices.null_count else indices.to_numpy()
    used = np.zeros(len(words) + 1, dtype=np.bool_)
    used[codes] = True
    used = used[:-1]
    if used.all():
        return array
    numbers = np.append(np.cumsum(used) - 1, 0).astype(np.int32)
    renumbered = pa.array(numbers[codes], mask=codes == len(words) if indices.null_count else None)
    return pa.DictionaryArray.from_arrays(renumbered, words.take(pa.array(np.flatnonzero(used))))


def mapped(batch: pa.RecordBatch, change: Callable[[str, pa.Array], pa.Array]) -> pa.RecordBatch:
    """The batch with `change(path, array)` in place of each column and of each child of a struct."""
    columns, fields = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        changed = _struct(field, column, change) if pa.types.is_struct(field.type) else change(field.name, column)
        columns.append(changed)
        fields.append(field.with_type(changed.type))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))


def _struct(field: pa.Field, array: pa.StructArray, change: Callable[[str, pa.Array], pa.Array]) -> Any:
    before = [array.field(number) for number in range(field.type.num_fields)]
    after = [change(f"{field.name}.{child.name}", one) for child, one in zip(field.type, before, strict=True)]
    if all(one is other for one, other in zip(before, after, strict=True)):
        return array  # also a struct without children, whose length nothing else says
    fields = [child.with_type(one.type) for child, one in zip(field.type, after, strict=True)]
    return pa.StructArray.from_arrays(after, fields=fields, mask=array.is_null() if array.null_count else None)
