"""A frame: one appended batch with its origins, as it lies in a segment. No I/O, no asyncio."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, ORIGIN_SCHEMA, RAW_SCHEMA
from headrace.position import ORIGIN_QUEUE, ORIGIN_ROWS, Origin, rows_of
from headrace.schema import kind_of
from headrace_queue_pmem.layout import (
    FRAME_MAGIC,
    FRAME_PREFIX,
    FRAME_TAIL,
    KIND_EVENT,
    KIND_RAW,
    LINE,
    align,
    checksum,
    frame_bytes,
)

_MAGIC: Final = struct.pack("<I", FRAME_MAGIC)


class FrameHeader(NamedTuple):
    """What a frame says of itself. `last` is first - 1 for a frame without rows."""

    nonce: int
    first: int
    rows: int
    generation: int
    durable_upto: int
    time_us: int
    origins_bytes: int
    payload_bytes: int
    body_crc: int
    kind: int
    flags: int

    @property
    def last(self) -> int:
        return self.first + self.rows - 1

    @property
    def size(self) -> int:
        """Bytes in the segment, header and padding included."""
        return frame_bytes(self.origins_bytes, self.payload_bytes)


@dataclass(slots=True, eq=False)
class Entry:
    """A frame that is not written yet. `first`, `generation` and the rest of its header are set when it is placed."""

    kind: int
    count: int
    origins: Any  # bytes-like
    payload: Any  # bytes-like
    time_us: int
    marks: tuple[Any, ...] = ()
    first: int = 0
    size: int = 0
    body_crc: int = 0
    waiter: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.size = frame_bytes(len(self.origins), len(self.payload))
        self.body_crc = checksum(self.origins, self.payload) if len(self.origins) else checksum(self.payload)

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def header(self, nonce: int, generation: int, durable_upto: int, flags: int) -> bytes:
        """The 64 bytes that go before origins and payload."""
        tail = FRAME_TAIL.pack(
            nonce,
            self.first,
            self.count,
            generation,
            durable_upto,
            self.time_us,
            len(self.origins),
            len(self.payload),
            self.body_crc,
            self.kind,
            flags,
        )
        return FRAME_PREFIX.pack(FRAME_MAGIC, checksum(tail)) + tail


def encode(batch: pa.RecordBatch, origins: pa.RecordBatch, time_us: int) -> Entry:
    """A batch as an entry: a raw batch as a bare IPC message (its schema is fixed), an event batch as a whole IPC stream."""
    schema = batch.schema
    if schema.equals(RAW_SCHEMA, check_metadata=True):
        kind, payload = KIND_RAW, batch.serialize()
    else:
        kind_of(schema)  # a ValueError here costs one caller, and not every reader
        kind, payload = KIND_EVENT, _stream(batch)
    return Entry(kind, batch.num_rows, origins.serialize() if origins.num_rows else b"", payload, time_us)


def read_header(memory: memoryview, offset: int, nonce: int) -> FrameHeader | None:
    """The frame header at `offset`, or None when there is none of this segment's present use (its nonce)."""
    raw = bytes(memory[offset : offset + LINE])
    if raw[:4] != _MAGIC or len(raw) < LINE:
        return None
    header = FrameHeader._make(FRAME_TAIL.unpack_from(raw, 8))
    if header.nonce != nonce or checksum(raw[8:]) != int.from_bytes(raw[4:8], "little"):
        return None
    return header


def body_intact(memory: memoryview, offset: int, header: FrameHeader) -> bool:
    """Whether origins and payload are what was written."""
    start = offset + LINE
    if start + align(header.origins_bytes) + header.payload_bytes > len(memory):
        return False  # the file was cut off
    payload = start + align(header.origins_bytes)
    if header.origins_bytes == 0:
        return checksum(memory[payload : payload + header.payload_bytes]) == header.body_crc
    return checksum(memory[start : start + header.origins_bytes], memory[payload : payload + header.payload_bytes]) == header.body_crc


def find_header(memory: memoryview, start: int, end: int, nonce: int) -> int | None:
    """The offset of the next frame header at or behind `start`, or None. Looks at one word per cache line."""
    start = align(start)
    lines = (min(end, len(memory)) - start) // LINE
    if lines <= 0:
        return None
    words = np.frombuffer(memory[start : start + lines * LINE], dtype="<u4").reshape(lines, LINE // 4)[:, 0]
    for line in np.flatnonzero(words == FRAME_MAGIC).tolist():
        offset = start + int(line) * LINE
        if read_header(memory, offset, nonce) is not None:
            return offset
    return None


def any_frame(memory: memoryview) -> bool:
    """Whether anything in here looks like a frame, of whatever use of the segment."""
    lines = len(memory) // LINE
    words = np.frombuffer(memory[: lines * LINE], dtype="<u4").reshape(lines, LINE // 4)[:, 0]
    return bool((words == FRAME_MAGIC).any())


def decode_batch(kind: int, payload: pa.Buffer) -> pa.RecordBatch:
    """The batch of a frame, as views into `payload`."""
    if kind == KIND_RAW:
        return pa.ipc.read_record_batch(pa.ipc.read_message(payload), RAW_SCHEMA)
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_next_batch()


def decode_origins(raw: bytes) -> pa.RecordBatch:
    """The origins of a frame."""
    return pa.ipc.read_record_batch(pa.py_buffer(raw), ORIGIN_SCHEMA) if raw else NO_ORIGINS


def shift_origins(origins: pa.RecordBatch, skip: int, rows: int, offset: int) -> list[dict[str, Any]]:
    """Origins of rows skip..skip+rows of a frame, as rows whose offsets count from `offset`."""
    listed: list[dict[str, Any]] = origins.to_pylist()
    ends = [row["row_offset"] for row in listed[1:]] + [skip + rows]
    kept = []
    for row, end in zip(listed, ends, strict=True):
        start = row["row_offset"]
        if row["kind"] == ORIGIN_QUEUE:
            low, high = max(start, skip), min(end, skip + rows)
            if low >= high:
                continue
            row["first"], row["last"] = row["first"] + low - start, row["first"] + high - start - 1
        elif row["kind"] == ORIGIN_ROWS and start < end and max(start, skip) < min(end, skip + rows):
            # rows that go elsewhere are of no use to a reader: it asks for names, and the marks have been kept
            positions = rows_of(Origin(row["id"], row["first"], row["last"], note=row["note"])).positions
            row["first"], row["last"] = int(positions[max(start, skip) - start]), int(positions[min(end, skip + rows) - start - 1])
        elif (start < skip and end <= skip) or row["kind"] == ORIGIN_ROWS:
            continue
        row["row_offset"] = max(start - skip, 0) + offset
        kept.append(row)
    return kept


def _stream(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()
