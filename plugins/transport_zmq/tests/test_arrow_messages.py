"""Messages of Arrow from elsewhere: what is compressed is not read, in whatever part of a message it is."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from headrace import RAW_SCHEMA
from headrace.testing import event_batch, raw_batch
from headrace_transport_zmq.arrow_messages import read_batch, read_stream

PLAIN = event_batch(200)
SIZE_AT = 4


def stream_of(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def messages_of(stream: bytes) -> list[bytes]:
    """Schema, dictionaries, batch."""
    return [message.serialize().to_pybytes() for message in pa.ipc.MessageReader.open_stream(stream)]


def test_what_is_not_compressed_is_read_as_it_was_written() -> None:
    assert read_batch(raw_batch(7).serialize(), RAW_SCHEMA).equals(raw_batch(7))
    assert read_stream(stream_of(PLAIN)).equals(PLAIN)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("part", ["dictionary", "batch", "bare"])
def test_what_is_compressed_is_refused(compression: str, part: str) -> None:
    raw = pa.RecordBatch.from_arrays([pa.array([column[0].as_py()] * 9999, column.type) for column in raw_batch(1)], schema=RAW_SCHEMA)
    packed = messages_of(stream_of(raw if part == "bare" else PLAIN, compression))
    if part != "bare":
        whole = messages_of(stream_of(PLAIN))
        assert len(whole) == 3
        packed = [packed[index] if index == (1 if part == "dictionary" else 2) else whole[index] for index in range(3)]
    with pytest.raises(ValueError, match="not compressed"):
        read_batch(packed[-1], RAW_SCHEMA) if part == "bare" else read_stream(b"".join(packed))


def test_the_older_way_to_say_so_and_the_older_framing_are_refused_too() -> None:
    old = pa.ipc.IpcWriteOptions(use_legacy_format=True, metadata_version=pa.ipc.MetadataVersion.V4)
    with pytest.raises(ValueError, match="expected an Arrow IPC message"):
        read_batch(raw_batch(3).serialize()[4:], RAW_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAIN.schema, options=old) as writer:
        writer.write_batch(PLAIN)
    with pytest.raises(ValueError, match="expected an Arrow IPC message"):
        read_stream(sink.getvalue())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAIN.schema) as writer:
        writer.write_batch(PLAIN, custom_metadata={"ARROW:experimental_compression": "zstd"})
    with pytest.raises(ValueError, match="not compressed"):
        read_stream(sink.getvalue())


@pytest.mark.parametrize("whole", [raw_batch(5).serialize().to_pybytes(), stream_of(event_batch(5))], ids=["bare", "stream"])
def test_damaged_messages_are_told_as_such(whole: bytes) -> None:
    rng = random.Random(5)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        _read(bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))]))


def _read(payload: bytes) -> Any:
    try:
        batch = read_stream(payload) if len(payload) > 1000 else read_batch(payload, RAW_SCHEMA)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError):
        pass
