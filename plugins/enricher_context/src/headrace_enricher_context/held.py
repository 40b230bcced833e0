"""The context as it is held: the added fields, packed where they can be, and an index over the devices. No I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace_enricher_context.lookup import DeviceIndex, hash_order
from headrace_enricher_context.packing import Packing

#: Name of the key column, which no added field can have.
KEY: Final = "headrace.key"

#: A text column is kept dictionary-encoded where that saves more than this, or where it has few words.
COMPACT_BYTES_MIN: Final = 1 << 20

#: A dictionary of so few words goes to the outputs as it is; a larger one would have to be looked through with each batch.
WORDS_MAX: Final = 1024

#: So many rows of a batch tell whether its devices repeat.
SAMPLE_ROWS: Final = 256


class Held:
    """What is known of every device at one moment; never changed after it was built.

    `table` has the column KEY (string, no nulls) and one per field, in any row order; of rows with the same key the last
    one counts. `replaced` says how many rows that left out.
    """

    def __init__(self, table: pa.Table, fields: pa.Schema) -> None:
        keys = _one_chunk(table.column(KEY))
        order, hashes, self.replaced = hash_order(keys)
        rows = pa.array(order)
        keys = keys.take(rows)
        columns = [_compact(_one_chunk(table.column(name)).take(rows)) for name in fields.names]
        self.fields, self._keys, self._packing = fields, keys, Packing(columns)
        self._index = DeviceIndex(keys, hashes, beside=self._packing.pack(columns, len(keys)))

    def with_rows(self, table: pa.Table) -> Held:
        """The context with these rows in place of those of the same keys; this one where they say nothing new.

        Costs what copying the columns costs; the index is built again only for new devices.
        """
        keys = _one_chunk(table.column(KEY))
        order, hashes, _ = hash_order(keys)
        rows = pa.array(order)
        keys = keys.take(rows)
        columns = [_one_chunk(table.column(name)).take(rows) for name in self.fields.names]
        there, beside = self._index.find(keys)
        known = there.is_valid().to_numpy(zero_copy_only=False)
        if known.all() and all(_plain(old).equals(new) for old, new in zip(self._packing.take(there, beside), columns, strict=True)):
            return self
        # the row of each device, the new rows counted behind the old ones
        source = np.arange(len(self))
        source[there.drop_null().to_numpy()] = len(self) + np.flatnonzero(known)
        merged = Held.__new__(Held)
        merged.fields, merged.replaced, merged._keys, index = self.fields, 0, self._keys, self._index
        if not known.all():
            new = np.flatnonzero(~known)
            places = np.searchsorted(index.hashes, hashes[new], side="right")
            source = np.insert(source, places, len(self) + new)
            merged._keys = pa.concat_arrays([self._keys, keys]).take(pa.array(source))
            hashes = np.insert(index.hashes, places, hashes[new])
        takes = pa.array(source)
        columns = [_joined(*both).take(takes) for both in zip(self._columns(), columns, strict=True)]
        merged._packing = Packing(columns)
        words = merged._packing.pack(columns, len(source))
        merged._index = index.with_beside(words) if known.all() else DeviceIndex(merged._keys, hashes, beside=words)
        return merged

    @classmethod
    def empty(cls, fields: pa.Schema) -> Held:
        """The context that knows no device."""
        return cls(read_schema(fields).empty_table(), fields)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def table(self) -> pa.Table:
        """The column KEY and one per field: a copy."""
        return pa.table([self._keys, *self._columns()], [KEY, *self.fields.names])

    @property
    def nbytes(self) -> int:
        """Bytes held, index included."""
        return int(self._keys.nbytes) + self._packing.nbytes + self._index.nbytes

    def _columns(self) -> list[pa.Array]:
        return self._packing.columns(self._index.beside)

    def same_as(self, other: Held) -> bool:
        """Whether both say the same of the same devices."""
        return bool(self.fields.equals(other.fields)) and all(
            # the same words in another order are the same texts
            _plain(_one_chunk(one)).equals(_plain(_one_chunk(two)))
            for one, two in zip(self.table.columns, other.table.columns, strict=True)
        )

    def join(self, devices: pa.StringArray) -> Joined:
        """The fields of each device, row by row."""
        if _mostly_differ(devices):
            rows, beside = self._index.find(devices)
            unknown = devices.filter(rows.is_null()).unique() if rows.null_count else devices.slice(0, 0)
        else:
            encoded = devices.dictionary_encode()
            found = self._index.find(encoded.dictionary)
            rows, beside = found.rows.take(encoded.indices), found.beside.take(encoded.indices.to_numpy(), axis=0)
            unknown = encoded.dictionary.filter(found.rows.is_null()) if rows.null_count else encoded.dictionary.slice(0, 0)
        columns = [column if _has_few_words(column) else _plain(column) for column in self._packing.take(rows, beside)]
        return Joined(pa.RecordBatch.from_arrays(columns, self.fields.names), rows.null_count, unknown)


class Joined(NamedTuple):
    """The added fields, texts of few words as dictionaries; how many rows are of unknown devices, and which those are (each once)."""

    added: pa.RecordBatch
    unknown_events: int
    unknown: pa.StringArray


def read_schema(fields: pa.Schema) -> pa.Schema:
    """The schema of a table that `Held` takes."""
    return pa.schema([pa.field(KEY, pa.string()), *fields])


def _mostly_differ(devices: pa.StringArray) -> bool:
    """Whether finding each device once is not worth the while: a look at some of a large batch; never in a small one (100 us of 350)."""
    return len(devices) < 4 * SAMPLE_ROWS or len(devices.slice(len(devices) // 2, SAMPLE_ROWS).unique()) > SAMPLE_ROWS * 3 // 4


def _joined(old: pa.Array, new: pa.Array) -> pa.Array:
    return pa.concat_arrays([old, new.dictionary_encode() if isinstance(old, pa.DictionaryArray) else new])


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _compact(column: pa.Array) -> pa.Array:
    # A class or a site repeats: four bytes a device rather than its text, and nothing to copy for each event.
    if not pa.types.is_string(column.type):
        return column
    encoded = column.dictionary_encode()
    if 2 * len(encoded.dictionary) <= len(column) and _has_few_words(encoded):
        return encoded
    return encoded if encoded.nbytes + COMPACT_BYTES_MIN < column.nbytes else column


def _has_few_words(column: pa.Array) -> bool:
    return isinstance(column, pa.DictionaryArray) and len(column.dictionary) <= WORDS_MAX


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
