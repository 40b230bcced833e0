"""Runs of small frames read together give what reading frame by frame gives, whatever lies in the segment.

`HEADRACE_SEED` repeats a run, `HEADRACE_FULL` makes it longer.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, ORIGIN_SCHEMA, RAW_SCHEMA, Origin, QueueRead, origin_batch
from headrace.position import ORIGIN_MISSING, ORIGIN_SESSION
from headrace_queue_pmem import joining, reading
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.frame import encode
from headrace_queue_pmem.layout import FRAME_MAGIC
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.messages import joined
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.state import Options

sys.path.insert(0, str(Path(__file__).parent))
from shadow import ShadowMedium

SEGMENT = 64 << 10
ROUNDS = 200 if "HEADRACE_FULL" in os.environ else 12
HEADER = struct.pack("<I", FRAME_MAGIC)


def random_rows(chance: random.Random, count: int) -> pa.RecordBatch:
    """Rows of odd sizes: empty texts, devices beyond ASCII, payloads that look like frames."""
    devices = ["", "d", "gerät-9", "device-" + "x" * chance.randrange(80)]
    payloads = [b"", b"{}", chance.randbytes(chance.randrange(300)), HEADER * chance.randrange(1, 200), b"y" * chance.randrange(2000)]
    return pa.RecordBatch.from_pydict(
        {
            "device": [chance.choice(devices) for _ in range(count)],
            "received": [chance.randrange(-(2**40), 2**40) for _ in range(count)],
            "encoding": [chance.randrange(256) for _ in range(count)],
            "payload": [chance.choice(payloads) for _ in range(count)],
        },
        schema=RAW_SCHEMA,
    )


def random_origins(chance: random.Random, rows: int) -> pa.RecordBatch:
    """None, sessions with and without notes, queues, gaps."""
    kind = chance.random()
    note = chance.choice([None, b"", b"note"])
    if kind < 0.4:
        return NO_ORIGINS
    if kind < 0.7:
        return origin_batch([Origin(f"d{chance.randrange(9)}/s", 1, max(rows, 1), 0, ORIGIN_SESSION, note)])
    first = chance.randrange(1, 1000)
    queue = Origin("up/0", first, first + rows - 1)
    if kind < 0.9 and rows:
        return origin_batch([queue])
    both = [Origin("up/1", 5, 9, 0, ORIGIN_MISSING, b"released"), Origin("d/s", 1, 1, 0, ORIGIN_SESSION, note)]
    return origin_batch([*both[:1], *([queue] if rows else []), *both[1:]][: 1 if not rows else 2])


def filled(chance: random.Random) -> Ring:
    """A ring of small frames, some large ones among them, over several segments."""
    ring, _ = recover("runs", "shadow", ShadowMedium(chance.randrange(2**30)), Options(SEGMENT, 40 * SEGMENT), Marks(1000, 1000, 1000))
    for _ in range(chance.randrange(200, 600)):
        rows = chance.choice([1, 1, 1, 1, 1, 2, 5, 0, 40])
        origins = random_origins(chance, rows)
        if rows == 0 and origins.num_rows == 0:
            continue
        entry = encode(random_rows(chance, rows).slice(chance.randrange(rows) if rows > 4 else 0), NO_ORIGINS if rows > 4 else origins, 1)
        ring.reserve(entry)
        ring.commit([entry])
    return ring


def all_reads(ring: Ring, chance: random.Random) -> list[QueueRead]:
    after, found = 0, []
    while (part := reading.read(ring, "anybody", after, chance.choice([1, 7, 50, 4096]), chance.choice([1, 5000, 1 << 20]))) is not None:
        found.append(part)
        after = part.last
    return found


def same(one: list[QueueRead], other: list[QueueRead]) -> None:
    assert [(part.first, part.last, part.missing) for part in one] == [(part.first, part.last, part.missing) for part in other]
    for left, right in zip(one, other, strict=True):
        for name in ("batch", "origins"):
            got, wanted = getattr(left, name), getattr(right, name)
            assert (got is None) == (wanted is None)
            if got is not None:
                got.validate(full=True)
                assert got.equals(wanted, check_metadata=True), (left.first, left.last, name)


def test_runs_give_what_frame_by_frame_gives(monkeypatch):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    runs = frames = damaged = 0
    real = reading.find_run

    def counted(*args: Any) -> Any:
        nonlocal runs, frames
        run = real(*args)
        if run is not None:
            runs, frames = runs + 1, frames + len(run.offsets)
        return run

    for number in range(ROUNDS):
        chance = random.Random(seed + number)
        ring = filled(chance)
        if number % 3 == 2:
            for segment in ring.segments:
                area = reading.area_for_reading(ring, segment)
                for _ in range(3):
                    area.view[chance.randrange(8192, segment.end)] ^= 1 << chance.randrange(8)
                    damaged += 1
        bounds = chance.randrange(2**30)
        monkeypatch.setattr(reading, "find_run", counted)
        together = all_reads(ring, random.Random(bounds))
        monkeypatch.setattr(reading, "find_run", lambda *_: None)
        monkeypatch.setattr(joining, "joined", lambda *_: None)
        same(together, all_reads(ring, random.Random(bounds)))
        monkeypatch.setattr(joining, "joined", joined)
    print(f"{runs} runs of {frames} frames, {damaged} flipped bits")
    assert runs > ROUNDS
    assert frames > 20 * ROUNDS


def area_of(messages: list[bytes]) -> tuple[Area, Any, Any, Any]:
    """An area with these messages, each on a line of its own."""
    starts, content = [], bytearray()
    for message in messages:
        starts.append(len(content))
        content += message.ljust(-(-len(message) // 64) * 64, b"\0")
    memory = np.frombuffer(bytearray(content.ljust(8192, b"\0")), np.uint8)
    area = Area(memory.ctypes.data, len(memory), lambda _a, _l: None, lambda _a, _l: None, None)
    return area, np.array(starts), np.array([len(message) for message in messages]), memory


def test_messages_that_are_not_alike_are_left_to_arrow():
    def message(batch: pa.RecordBatch) -> bytes:
        return bytes(batch.serialize())

    def compressed(batch: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_batch(batch)
        messages = pa.ipc.MessageReader.open_stream(sink.getvalue())
        messages.read_next_message()  # the schema
        return bytes(messages.read_next_message().serialize())

    chance = random.Random(1)
    one, two = message(random_rows(chance, 1)), message(random_rows(chance, 3))
    origins = message(origin_batch([Origin("a", 1, 1)]))
    sound = area_of([one, two])
    assert joined(*sound[:3], RAW_SCHEMA) is not None
    squeezed = compressed(random_rows(chance, 50))
    for others in ([one, origins], [origins, one], [squeezed, squeezed], [b"", one], [one[:100], one], [bytes(400), bytes(400)]):
        area, starts, sizes, _memory = area_of(others)
        assert joined(area, starts, sizes, RAW_SCHEMA) is None
    area, starts, sizes, _memory = area_of([origins, origins])
    assert joined(area, starts, sizes, ORIGIN_SCHEMA) is not None
    assert joined(area, starts, sizes, RAW_SCHEMA) is None


@pytest.mark.parametrize("schema", [RAW_SCHEMA, ORIGIN_SCHEMA], ids=["raw", "origins"])
def test_no_metadata_makes_it_read_outside_of_a_message(schema):
    """Frames are protected by their checksum: this is for those that somebody else wrote."""
    chance = random.Random(1)
    refused = 0
    for _ in range(3000):
        batches = (
            [random_rows(chance, 2), random_rows(chance, 1)]
            if schema is RAW_SCHEMA
            else [random_origins(chance, 2), random_origins(chance, 2)]
        )
        if not all(batch.num_rows for batch in batches):
            continue
        messages = [bytearray(batch.serialize()) for batch in batches]
        which = chance.randrange(2)
        place = chance.randrange(0, min(420, len(messages[which])))
        messages[which][place] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        area, starts, sizes, _memory = area_of([bytes(message) for message in messages])
        found = joined(area, starts, sizes, schema)
        if found is None:
            refused += 1
        else:
            found[0].validate()
    assert refused > 100
