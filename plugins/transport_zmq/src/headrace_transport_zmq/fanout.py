"""The messages of a fan-out, byte by byte: FANOUT.md explains them. No I/O.

A message has three parts: the topic, a header of 56 bytes, and an Arrow IPC stream of one event batch, which a reader understands
without any other message.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
from crc32c import crc32c

from headrace.schema import check_batch, kind_of
from headrace_transport_zmq.arrow_messages import read_stream
from headrace_transport_zmq.wire import Buffer, MalformedError

MAGIC: Final = b"HRPB"
VERSION: Final = 1
#: magic, version, flags, reserved, rows, crc of the third part, publisher, sequence, events, published (Unix microseconds).
HEADER: Final = struct.Struct("<4sBBHII16sQQQ")
assert HEADER.size == 56
#: In the flags: another message was published in the same moment, under this topic or another one.
FOLLOWED: Final = 1
#: A publisher and topic of which nothing came for longest is forgotten beyond so many.
TOPICS_MAX: Final = 4096


class Header(NamedTuple):
    """sequence: the message's number among those of this publisher and topic, from 1. events: how many events these had before it.
    followed: whether another one was published in the same moment."""

    rows: int
    publisher: bytes
    sequence: int
    events: int
    published_us: int
    followed: bool = False


class Numbering:
    """A publisher's numbers, by topic."""

    def __init__(self, publisher: bytes) -> None:
        self._publisher = publisher
        self._topics: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def next(self, topic: str, rows: int, published_us: int) -> Header:
        """The header of the next message. A topic that was forgotten begins at 1 again."""
        sequence, events = self._topics.pop(topic, (0, 0))
        self._topics[topic] = sequence + 1, events + rows
        if len(self._topics) > TOPICS_MAX:
            self._topics.popitem(last=False)
        return Header(rows, self._publisher, sequence + 1, events, published_us)


class Lost(NamedTuple):
    """What was published between two messages and did not come. None of either where that cannot be told."""

    messages: int
    events: int


class Tracking:
    """A subscriber's view of the numbers: what was lost on the way."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[bytes, str], tuple[int, int]] = OrderedDict()

    def came(self, topic: str, header: Header) -> Lost:
        """A message came; what should have come since the one before."""
        key = header.publisher, topic
        sequence, events = self._seen.pop(key, (0, 0))
        self._seen[key] = header.sequence, header.events + header.rows
        if len(self._seen) > TOPICS_MAX:
            self._seen.popitem(last=False)
        if not sequence or header.sequence <= sequence:
            return Lost(0, 0)  # the first that is seen of it, or it was forgotten over there and begins anew
        return Lost(header.sequence - sequence - 1, max(0, header.events - events))


def pieces(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """The batch in parts of about `bytes_max` at most; a larger event goes alone."""
    count = max(1, -(-batch.nbytes // bytes_max))
    rows = max(1, -(-batch.num_rows // count))
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)


def pack(topic: str, batch: pa.RecordBatch) -> tuple[bytes, Buffer]:
    """First and third part of a message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return topic.encode(), sink.getvalue()


def message(topic: bytes, header: Header, payload: Buffer) -> list[Buffer]:
    """The three parts."""
    fields = (header.rows, crc32c(payload), header.publisher, header.sequence, header.events, header.published_us)
    return [topic, HEADER.pack(MAGIC, VERSION, FOLLOWED if header.followed else 0, 0, *fields), payload]


def unpack(parts: Sequence[Buffer]) -> tuple[str, Header, pa.RecordBatch]:
    """Topic, header and event batch of a message. MalformedError when it is none."""
    if len(parts) != 3 or len(parts[1]) != HEADER.size:
        raise MalformedError(f"{len(parts)} parts, expected a topic, a header of {HEADER.size} bytes and a batch")
    magic, version, flags, _, rows, crc, *rest = HEADER.unpack(parts[1])
    if magic != MAGIC or version != VERSION:
        raise MalformedError(f"version {version} of {magic!r}, expected {VERSION} of {MAGIC!r}")
    if crc32c(parts[2]) != crc:
        raise MalformedError("the checksum does not fit")
    try:
        topic = bytes(parts[0]).decode()
        batch = _batch(parts[2])
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError) as error:
        raise MalformedError(f"batch: {error}") from error
    if batch.num_rows != rows:
        raise MalformedError(f"{batch.num_rows} rows, the header says {rows}")
    return topic, Header(rows, *rest)._replace(followed=bool(flags & FOLLOWED)), batch


def _batch(payload: Any) -> pa.RecordBatch:
    batch = read_stream(payload)
    batch.validate(full=True)
    if kind_of(batch.schema) != "event":
        raise ValueError("expected events, got a raw batch")
    check_batch(batch)
    return batch
