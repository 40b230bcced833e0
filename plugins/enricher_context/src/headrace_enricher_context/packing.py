"""Columns of fixed width with a device's values side by side, to lie beside its key. No I/O.

What the join of a batch does is wait for memory: this way it waits once a device, and not once more for each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace_enricher_context.lookup import Words

#: A bit for each of them says which values are null.
COLUMNS_MAX: Final = 32

_NULLS: Final = "nulls"
_WIDTHS: Final = {8: np.int64, 4: np.int32}


class Packing:
    """How columns are packed: those of fixed width side by side, as many as there are bits for, the others as they are."""

    def __init__(self, columns: Sequence[pa.Array]) -> None:
        chosen = [number for number, column in enumerate(columns) if _width(column.type)][:COLUMNS_MAX]
        # the widest first, so that each lies at a multiple of its width
        self._chosen = sorted(chosen, key=lambda number: -_width(columns[number].type))
        widths = [_width(columns[number].type) for number in self._chosen]
        self._layout = np.dtype(
            {
                "names": [*(f"f{number}" for number in self._chosen), _NULLS],
                "formats": [*(_WIDTHS[width] for width in widths), np.uint32],
                "offsets": [sum(widths[:place]) for place in range(len(widths) + 1)],
                "itemsize": -(-(sum(widths) + 4) // 8) * 8,
            }
        )
        # what is kept of a packed column is its type, and its words
        self._columns = [_emptied(column) if number in self._chosen else column for number, column in enumerate(columns)]

    @property
    def nbytes(self) -> int:
        """Bytes held beside what is packed."""
        return sum(int(column.nbytes) for column in self._columns)

    def pack(self, columns: Sequence[pa.Array], rows: int) -> Words:
        """The words of so many rows; the columns are those that this was made for."""
        words = np.zeros((rows, self._layout.itemsize // 8), np.uint64)
        records = self._records(words)
        for bit, number in enumerate(self._chosen):
            column = columns[number]
            records[f"f{number}"] = _values(column)
            if column.null_count:
                records[_NULLS] |= column.is_null().to_numpy(zero_copy_only=False).astype(np.uint32) << np.uint32(bit)
        return words

    def columns(self, words: Words) -> list[pa.Array]:
        """All columns, from the words of all rows: a copy."""
        taken = self._taken(words, None)
        return [taken.get(number, column) for number, column in enumerate(self._columns)]

    def take(self, rows: pa.Int64Array, words: Words) -> list[pa.Array]:
        """The columns' values of these rows, whose words these are; null where the row is."""
        taken = self._taken(words, rows.is_null().to_numpy(zero_copy_only=False) if rows.null_count else None)
        return [taken[number] if number in taken else column.take(rows) for number, column in enumerate(self._columns)]

    def _taken(self, words: Words, missing: npt.NDArray[np.bool_] | None) -> dict[int, pa.Array]:
        records = self._records(words)
        nulls = records[_NULLS]
        if missing is not None:
            nulls = np.where(missing, np.uint32(2**32 - 1), nulls)
        some = bool(nulls.any())
        found = {}
        for bit, number in enumerate(self._chosen):
            mask = ((nulls >> np.uint32(bit)) & np.uint32(1)).astype(np.bool_) if some else None
            found[number] = _array(self._columns[number], np.array(records[f"f{number}"]), mask)
        return found

    def _records(self, words: Words) -> npt.NDArray[np.void]:
        records: npt.NDArray[np.void] = words.view(self._layout)[:, 0]
        return records


def _width(kind: pa.DataType) -> int:
    """The bytes of a value, 0 for those that cannot be packed."""
    if pa.types.is_dictionary(kind):
        return _width(kind.index_type)
    return kind.bit_width // 8 if pa.types.is_primitive(kind) and kind.bit_width // 8 in _WIDTHS else 0


def _emptied(column: pa.Array) -> pa.Array:
    """Its type, and the words of texts; a slice would hold all of it."""
    if isinstance(column, pa.DictionaryArray):
        return pa.DictionaryArray.from_arrays(pa.array([], column.type.index_type), column.dictionary)
    return pa.array([], column.type)


def _values(column: pa.Array) -> npt.NDArray[Any]:
    """The bits of each value, as a number; of a text its code."""
    values = column.indices if isinstance(column, pa.DictionaryArray) else column
    return np.frombuffer(values.buffers()[1], _WIDTHS[_width(column.type)])[values.offset : values.offset + len(values)]


def _array(like: pa.Array, values: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> pa.Array:
    """These values with the type of `like`, null where the mask says so."""
    nulls = int(mask.sum()) if mask is not None else 0
    valid = None
    if mask is not None and nulls:
        values[mask] = 0
        valid = pa.py_buffer(np.packbits(~mask, bitorder="little"))
    kind = like.type.index_type if isinstance(like, pa.DictionaryArray) else like.type
    array = pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(values)], nulls)
    return pa.DictionaryArray.from_arrays(array, like.dictionary, safe=False) if isinstance(like, pa.DictionaryArray) else array
