"""Many small Arrow messages of one schema, decoded as one batch by a few array operations for all of them.

Arrow's own reader takes about 10 us for a record batch of one row. The messages here were written by one program, so their
metadata (a flatbuffer, see Arrow's Message.fbs) are the same but for the numbers in them: the first is looked through, the
others are compared with it. Whatever is otherwise than expected makes `joined` return None, and Arrow reads message by message.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace_queue_pmem.area import Area

Ints = npt.NDArray[np.int64]

_PREFIX: Final = 8  # a marker and the metadata's length
_RECORD_BATCH: Final = 3  # MessageHeader
_WORD: Final = 8


class _Layout(NamedTuple):
    """Where the numbers stand in a message, in words of 8 bytes; `words` is where the body begins."""

    words: int
    length: int
    body_length: int
    nodes: int
    nodes_count: int
    buffers: int
    buffers_count: int

    def fixed(self) -> npt.NDArray[np.bool_]:
        """Which words are the same in all messages of one writer and schema."""
        same = np.ones(self.words, bool)
        same[[self.length, self.body_length]] = False
        same[self.nodes : self.nodes + 2 * self.nodes_count] = False
        same[self.buffers : self.buffers + 2 * self.buffers_count] = False
        return same


class _Column(NamedTuple):
    """The buffers of one column in all messages: where each begins in the area, and its bytes."""

    nulls: Ints
    starts: list[Ints]
    sizes: list[Ints]


def joined(area: Area, starts: Ints, sizes: Ints, schema: pa.Schema) -> tuple[pa.RecordBatch, Ints] | None:
    """The rows of all messages as one batch (a copy), and how many each has; None where this shortcut does not do.

    Message n is the `sizes[n]` bytes at `starts[n]` of the area, in rising order.
    """
    found = _columns(area, starts, sizes, schema)
    if found is None:
        return None
    rows, columns = found
    memory = np.frombuffer(area.view, np.uint8)
    arrays = []
    for field, column in zip(schema, columns, strict=True):
        array = _gather(area, memory, field.type, column, rows)
        if array is None:
            return None
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema), rows


def _columns(area: Area, starts: Ints, sizes: Ints, schema: pa.Schema) -> tuple[Ints, list[_Column]] | None:
    start = int(starts[0])
    layout = _layout(area.view[start : start + int(sizes[0])])
    if layout is None or layout.nodes_count != len(schema) or (starts % _WORD).any() or (sizes < layout.words * _WORD).any():
        return None
    whole = area.size // _WORD * _WORD
    memory = np.frombuffer(area.view[:whole], np.int64)
    words = memory[(starts // _WORD)[:, None] + np.arange(layout.words)]
    fixed = layout.fixed()
    if (words[:, fixed] != words[0, fixed]).any():
        return None
    rows: Ints = words[:, layout.length]
    bodies = starts + layout.words * _WORD
    room = sizes - layout.words * _WORD
    columns = []
    number = 0
    for index, field in enumerate(schema):
        count = 3 if pa.types.is_string(field.type) or pa.types.is_binary(field.type) else 2
        node = layout.nodes + 2 * index
        offsets = [words[:, layout.buffers + 2 * buffer] for buffer in range(number, number + count)]
        lengths = [words[:, layout.buffers + 2 * buffer + 1] for buffer in range(number, number + count)]
        number += count
        if (words[:, node] != rows).any() or any(
            ((offset < 0) | (offset > room) | (length < 0) | (length > room - offset)).any()
            for offset, length in zip(offsets, lengths, strict=True)
        ):
            return None
        columns.append(_Column(words[:, node + 1], [bodies + offset for offset in offsets], lengths))
    sound = number == layout.buffers_count and ((rows > 0) & (rows <= room)).all()
    return (rows, columns) if sound else None


def _gather(area: Area, memory: npt.NDArray[np.uint8], kind: pa.DataType, column: _Column, rows: Ints) -> pa.Array | None:
    total = int(rows.sum())
    validity = _validity(memory, column, rows) if column.nulls.any() else None
    if len(column.starts) == 2:
        width = kind.bit_width // 8
        if (column.sizes[1] < rows * width).any() or (column.starts[1] % width).any():
            return None
        values = memory[: len(memory) // width * width].view(f"<u{width}")[_each(column.starts[1] // width, rows)]
        return pa.Array.from_buffers(kind, total, [validity, pa.py_buffer(values)])
    if (column.sizes[1] < (rows + 1) * 4).any() or (column.starts[1] % 4).any():
        return None
    # Each message has one more offset than rows: the ends are the starts one further.
    offsets = memory[: len(memory) // 4 * 4].view("<i4")[_each(column.starts[1] // 4, rows + 1)].astype(np.int64)
    last = np.cumsum(rows + 1) - 1
    if (offsets[last - rows] < 0).any() or (offsets[last] > column.sizes[2]).any():
        return None
    offsets += np.repeat(column.starts[2], rows + 1)
    bounds = np.empty((total, 2), np.int64)
    bounds[:, 0] = np.delete(offsets, last)
    bounds[:, 1] = np.delete(offsets, last - rows)
    pairs = bounds.ravel()
    base, size = int(pairs[0]), int(pairs[-1] - pairs[0])
    if (pairs[1:] < pairs[:-1]).any() or size >= 2**31:
        return None
    # To Arrow the stretch of the area is an array of values and, between them, what we do not want.
    stretch = pa.foreign_buffer(area.address + base, size, area)
    everything = pa.Array.from_buffers(kind, 2 * total - 1, [None, pa.py_buffer((pairs - base).astype(np.int32)), stretch])
    values = everything.take(pa.array(np.arange(0, 2 * total, 2)))
    return pa.Array.from_buffers(kind, total, [validity, *values.buffers()[1:]]) if validity is not None else values


def _each(starts: Ints, counts: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... for counts[0] numbers, then the same for each of the others."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _validity(memory: npt.NDArray[np.uint8], column: _Column, rows: Ints) -> pa.Buffer:
    """One bitmap of all messages; those without nulls may have none of their own."""
    bits = _each(np.zeros_like(rows), rows)
    has = np.repeat(column.sizes[0] * 8 >= rows, rows)
    at = np.where(has, np.repeat(column.starts[0], rows) + bits // 8, 0)
    valid = ~has | ((memory[at] >> (bits % 8).astype(np.uint8)) & 1).astype(bool)
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


# --- the metadata of one message ---------------------------------------------------------------------------------------


def _layout(message: memoryview) -> _Layout | None:
    try:
        marker, size = struct.unpack_from("<iI", message)
        if marker != -1 or size % _WORD or _PREFIX + size > len(message):
            return None
        metadata = bytes(message[: _PREFIX + size])
        root = _indirect(metadata, _PREFIX)
        if metadata[_field(metadata, root, 1)] != _RECORD_BATCH:
            return None
        batch = _indirect(metadata, _field(metadata, root, 2))
        nodes, nodes_count = _vector(metadata, _field(metadata, batch, 1))
        buffers, buffers_count = _vector(metadata, _field(metadata, batch, 2))
        places = [_field(metadata, batch, 0), _field(metadata, root, 3), nodes, buffers]
        compressed = _optional(metadata, batch, 3)
    except (struct.error, IndexError, _Absent):
        return None
    end = len(metadata)
    behind = max(places[0] + _WORD, places[1] + _WORD, nodes + 16 * nodes_count, buffers + 16 * buffers_count)
    if compressed or any(place % _WORD for place in places) or behind > end:
        return None
    length, body_length = places[0] // _WORD, places[1] // _WORD
    return _Layout(end // _WORD, length, body_length, nodes // _WORD, nodes_count, buffers // _WORD, buffers_count)


class _Absent(Exception):
    """A field has its default value and is not written."""


def _indirect(metadata: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", metadata, at)[0])


def _vector(metadata: bytes, at: int) -> tuple[int, int]:
    """Where a vector's first element is, and how many there are."""
    start = _indirect(metadata, at)
    return start + 4, int(struct.unpack_from("<I", metadata, start)[0])


def _optional(metadata: bytes, table: int, number: int) -> int:
    """Where a table's field is, or 0."""
    vtable: Any = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + int(offset) if offset else 0


def _field(metadata: bytes, table: int, number: int) -> int:
    found = _optional(metadata, table, number)
    if not found:
        raise _Absent
    return found
