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
from headrace_sink_lake.shape import Column, Kind, Leaf, Shape

CODED: Final = pa.dictionary(pa.int32(), pa.string())
#: Batches of fewer rows do not tell whether a text repeats.
TELLING_ROWS: Final = 256
#: Larger dictionaries are looked at in each batch.
WORDS_BYTES_MAX: Final = 1 << 20
#: A row group's dictionary may have words of other rows, as long as there are so many rows for each: leaving them out costs 7 ns a row.
WORD_ROWS: Final = 64


class Texts:
    """Codes the texts of batches that are stored together; a column that hardly repeats in the first of them stays plain in all."""

    def __init__(self) -> None:
        self._plain: dict[str, bool] = {}
        #: The dictionary last found good of each path: mostly the next batch has the same.
        self._words: dict[str, pa.Array] = {}
        self._shape: Shape | None = None

    def coded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The same rows, texts of readings and context as `CODED`, by names that all readers take.

        pa.ArrowInvalid where a text is not UTF-8, or an offset or a code leads elsewhere; nothing is read through such a one.
        A word is looked at once, not in each row.
        """
        batch.validate()
        if self._shape is None or not batch.schema.equals(self._shape.schema, check_metadata=True):
            self._shape = Shape(batch.schema)
        shape, columns = self._shape, batch.columns
        for column in shape.columns:
            array = columns[column.place]
            columns[column.place] = self._struct(shape, column, array) if column.named else self._held(column.leaves[0], array)
        if shape.held is None or not all(map(_is_of, columns, shape.held)):
            fields = [field.with_type(array.type) for field, array in zip(batch.schema, columns, strict=True)]
            shape.held = pa.schema(fields, batch.schema.metadata)
        return pa.RecordBatch.from_arrays(columns, schema=shape.held)

    def _struct(self, shape: Shape, column: Column, array: pa.StructArray) -> pa.StructArray:
        children = [self._held(leaf, array.field(leaf.child)) for leaf in column.leaves]
        fields = shape.held_fields.get(column.place)
        if fields is None or not all(map(_is_of, children, fields)):
            fields = tuple(field.with_type(child.type) for field, child in zip(column.named, children, strict=True))
            shape.held_fields[column.place] = fields
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null() if array.null_count else None)

    def _held(self, leaf: Leaf, array: pa.Array) -> pa.Array:
        if leaf.kind is Kind.AS_IT_IS:
            return array
        if leaf.kind is Kind.TEXT:
            return self._text(leaf.path, array)
        if leaf.kind is Kind.NESTED:
            look_at(array)
            return array
        if leaf.kind is Kind.WORDS:
            return self._of_words(leaf.path, array)
        array.validate(full=True)
        return array

    def _text(self, path: str, array: pa.Array) -> pa.Array:
        look_at_offsets(array)
        if path != "device":
            if path not in self._plain and len(array) >= TELLING_ROWS:
                self._plain[path] = hardly_repeats(array)
            if not self._plain.get(path):
                array = array.dictionary_encode()
                array.dictionary.validate(full=True)
                return array
        array.validate(full=True)
        return array

    def _of_words(self, path: str, array: pa.DictionaryArray) -> pa.Array:
        words = array.dictionary
        known = self._words.get(path)
        if known is not None and not array.null_count and array.type.equals(CODED) and len(words) == len(known) and words.equals(known):
            # The words were good: what is left is that each code is one of them; seen as unsigned, a negative one is too large.
            if len(array) and array.indices.to_numpy().view(np.uint32).max() >= len(known):
                raise pa.ArrowInvalid("expected codes of words that are there")
            return array
        array.validate(full=True)
        held = coded(array)
        if held is array and words.nbytes <= WORDS_BYTES_MAX:
            self._words[path] = pa.concat_arrays([words, words[:0]])  # a copy: what is kept may be a view of the queue's memory
        return held


def _is_of(array: pa.Array, field: pa.Field) -> bool:
    return bool(array.type.equals(field.type))


def look_at(array: pa.Array) -> None:
    """All of a nested array: pa.ArrowInvalid as in `Texts.coded`."""
    if pa.types.is_struct(array.type):
        array.validate()
        for number in range(array.type.num_fields):
            look_at(array.field(number))
        return
    if pa.types.is_string(array.type):
        look_at_offsets(array)
    array.validate(full=True)


def look_at_offsets(array: pa.Array) -> None:
    """pa.ArrowInvalid where a text's offsets fall; the array is otherwise in order."""
    if len(array):
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        if not (offsets[1:] >= offsets[:-1]).all():
            raise pa.ArrowInvalid("expected offsets that do not fall")


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
