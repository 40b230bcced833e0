"""A live receiver among strangers: what they send is refused and counted, nothing is lost, and the link beside them notices nothing.

Raw sockets without manners and keys are in test_link_security.py; here strangers speak ZeroMQ, and know the protocol.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zmq
import zmq.asyncio
from test_transport_zmq import LABELS, QUEUE, Bench, info, numbers, opened, positions, send, until

from headrace.testing import ScriptedDeliver, event_batch, raw_batch, run
from headrace.tier import TierDeliver
from headrace_transport_zmq import TransportZmq, identities, wire
from headrace_transport_zmq.wire import Frame

OTHER = "00000000-0000-4000-8000-000000000002"
SECRET = b"s" * 16
FUZZED = 600 if "HEADRACE_FULL" not in os.environ else 50_000
HONEST = 200


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Stranger:
    """Somebody who speaks to the receiver, on a new connection for each message: who sends nonsense for long is cut."""

    def __init__(self, address: str) -> None:
        self._address, self._zmq = address, zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None

    def connect(self) -> zmq.asyncio.Socket:
        if self._socket is not None:
            self._socket.close(linger=1000)
        self._socket = self._zmq.socket(zmq.DEALER)
        self._socket.connect(self._address)
        return self._socket

    async def asks(self, message: list[Any]) -> Frame:
        """Its answer, on a connection of its own."""
        socket = self.connect()
        await socket.send_multipart(message)
        return wire.decode(await socket.recv_multipart())

    def close(self) -> None:
        self._zmq.destroy(linger=0)


@asynccontextmanager
async def stranger_to(bench: Bench) -> AsyncIterator[Stranger]:
    stranger = Stranger(bench.address)
    try:
        yield stranger
    finally:
        stranger.close()


def hello(queue_id: str = OTHER, secret: bytes = b"theirs", session: bytes = b"x" * 16, lane: int = 1, output: str = "uplink") -> Frame:
    text = wire.Hello(queue_id=queue_id, output=output, level="process", proof=identities.proof(secret))
    return Frame(wire.HELLO, session, lane=lane, parts=(wire.pack_text(text),))


def data(first: int, last: int, session: bytes = b"x" * 16, flags: int = 0, prev: int | None = None) -> Frame:
    payload, kind = wire.pack_batch(raw_batch(last - first + 1, first))
    parts = (wire.pack_missing(()), b"", payload)
    return Frame(wire.DATA, session, flags | kind, first - 1 if prev is None else prev, first, last, last - first + 1, 1, parts)


def count(component: TransportZmq, name: str, **labels: str) -> float:
    at = {**LABELS, "component": component.context.id, **labels}
    value: float | None = component.context.metrics.registry.get_sample_value(f"headrace_link_{name}", at)
    return value or 0.0


def total(component: TransportZmq, name: str) -> float:
    """The sum over all labels."""
    families = component.context.metrics.registry.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == f"headrace_link_{name}")


def damaged(rng: random.Random) -> Iterator[list[bytes]]:
    """Frames of every type: with bits flipped, cut off, with parts too many or too few, of other versions, or whole and out of place."""
    while True:
        session = rng.randbytes(16)
        frame = rng.choice(
            (
                hello(session=session), data(rng.randint(1, 99), 100, session, wire.START), Frame(wire.BYE, session),
                Frame(wire.HEARTBEAT, session, wire.MARKED, last=rng.getrandbits(63)), Frame(wire.ACK, session, wire.MARKED, last=1),
                Frame(wire.RESUME, session), Frame(wire.WELCOME, session, parts=(b"{}",)), Frame(wire.REFUSE, session, parts=(b"{}",)),
            )
        )  # fmt: skip
        message = [bytearray(bytes(part)) for part in wire.encode(frame)]
        how = rng.randrange(6)
        if how == 0:
            part = rng.choice([part for part in message if part])
            part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
        elif how == 1:
            part = rng.choice([part for part in message if part])
            del part[rng.randrange(len(part)) :]
        elif how == 2:
            message.insert(rng.randint(0, len(message)), bytearray(rng.randbytes(rng.randint(0, 80))))
        elif how == 3:
            message.pop(rng.randrange(len(message)))
        elif how == 4:
            message[0][4] = rng.choice((0, 2, 3, 255))
        if how < 5 or frame.type != wire.HELLO:  # whole hellos have tests of their own
            yield [bytes(part) for part in message] or [b""]


def test_fuzzed_and_truncated_frames_are_counted_and_harm_no_link(bench: Bench) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    print(f"HEADRACE_SEED={seed}")
    rng = random.Random(seed)

    async def check() -> None:
        queue = await opened(bench)
        deliver = TierDeliver(queue, lambda error: None)
        async with bench.far(deliver) as far, bench.near(dead_after_s=20.0) as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)

            async def bother() -> None:
                frames = damaged(rng)
                for number in range(FUZZED):
                    if number % 50 == 0:
                        socket = stranger.connect()
                    await socket.send_multipart(next(frames))

            bothering = asyncio.create_task(bother())
            for first in range(1, HONEST * 5, 5):
                await send(near, first, first + 4)
            await bothering
            await until(lambda: total(far, "discarded_frames_total") + total(far, "refused_hellos_total") >= FUZZED / 3)
            await send(near, HONEST * 5 + 1, HONEST * 5 + 5)
            assert count(near, "sessions_total") == 1, "the honest link did not even begin anew"
            assert count(far, "discarded_frames_total", reason="malformed") > 0
            assert count(far, "refused_hellos_total", code="version") > 0
            assert count(far, "peers") == 1
        assert await positions(queue) == list(range(1, HONEST * 5 + 6))
        await queue.close()

    run(check(), timeout_s=120)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_and_told_so(bench: Bench, version: int) -> None:
    async def check() -> None:
        async with bench.far(ScriptedDeliver(info=info())) as far, stranger_to(bench) as stranger:
            message = [bytearray(bytes(part)) for part in wire.encode(hello())]
            message[0][4] = version
            answer = await stranger.asks([bytes(part) for part in message])
            assert (answer.type, answer.session) == (wire.REFUSE, b"x" * 16)
            assert wire.unpack_text(answer, wire.Refusal) == wire.Refusal(code="version", reason=f"version {version}, expected 1")
            assert count(far, "refused_hellos_total", code="version") == 1
            assert count(far, "peers") == 0

    run(check())


class Recorder:
    """Between an honest sender and the receiver: a ROUTER and a DEALER that keep what the sender says."""

    def __init__(self, bench: Bench, upstream: str) -> None:
        self._zmq = zmq.asyncio.Context()
        self._front, self._back = self._zmq.socket(zmq.ROUTER), self._zmq.socket(zmq.DEALER)
        self._front.bind(upstream)
        self._back.connect(bench.address)
        self.heard: list[list[bytes]] = []

    async def run(self) -> None:
        routing = b""

        async def there() -> None:
            nonlocal routing
            while True:
                routing, *message = await self._front.recv_multipart()
                self.heard.append(message)
                await self._back.send_multipart(message)

        async def back() -> None:
            while True:
                answer = await self._back.recv_multipart()
                await self._front.send_multipart([routing, *answer])

        await asyncio.gather(there(), back())

    def close(self) -> None:
        self._zmq.destroy(linger=0)


@asynccontextmanager
async def recorded(bench: Bench, wiretap: Bench) -> AsyncIterator[Recorder]:
    recorder = Recorder(bench, wiretap.address)
    recording = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        recorder.close()


def test_an_old_hello_said_once_more_is_refused_and_ends_no_session(bench: Bench, tmp_path: Path) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        wiretap = Bench(tmp_path)
        async with bench.far(deliver) as far, recorded(bench, wiretap) as recorder, wiretap.near() as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)
            await send(near, 1, 5)
            await near.transport_resume(QUEUE)
            await send(near, 6, 9)
            said = [wire.decode(message) for message in recorder.heard]
            hellos = [frame for frame in said if frame.type == wire.HELLO]
            assert len(hellos) == 2
            for old in hellos:
                answer = await stranger.asks(wire.encode(old))
                assert wire.unpack_text(answer, wire.Refusal).code == "replayed"
            # nor do the frames of a session do anything on another connection
            for old in [frame for frame in said if frame.type == wire.DATA]:
                assert (await stranger.asks(wire.encode(old))).type == wire.RESUME
            await send(near, 10, 12)
            assert count(far, "refused_hellos_total", code="replayed") == 2
            assert count(far, "discarded_frames_total", reason="session") == 2
            assert count(near, "sessions_total") == 2
        assert numbers(deliver) == list(range(1, 13))

    run(check())


def test_claims_of_another_ones_queue_id_are_refused_under_load_and_cost_the_owner_nothing(bench: Bench) -> None:
    """DELIVERY 15."""

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver) as far, bench.near(secret=SECRET) as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)

            async def claim() -> None:
                for number in range(20):
                    session = bytes([number]) * 16
                    answer = await stranger.asks(wire.encode(hello(QUEUE, b"guess %d" % number, session)))
                    assert wire.unpack_text(answer, wire.Refusal).code == "not_authorized"

            claiming = asyncio.create_task(claim())
            first = 1
            while not claiming.done():
                await send(near, first, first + 4)
                first += 5
            await claiming
            assert count(near, "sessions_total") == 1
            assert count(far, "refused_hellos_total", code="not_authorized") == 20
        assert numbers(deliver) == list(range(1, first))

    run(check())


def test_a_queue_id_of_ones_own_gives_no_way_into_another_ones(bench: Bench) -> None:
    """Its hello is accepted; what it sends under that session is its own, however it numbers it."""

    async def check() -> None:
        queue = await opened(bench)
        async with bench.far(TierDeliver(queue, lambda error: None)) as far, bench.near() as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)
            await send(near, 1, 5)
            socket = stranger.connect()
            await socket.send_multipart(wire.encode(hello()))
            assert wire.decode(await socket.recv_multipart()).type == wire.WELCOME
            await socket.send_multipart(wire.encode(data(101, 105, flags=wire.START)))
            assert wire.decode(await socket.recv_multipart()).mark == 105
            # content that no queue takes, under checksums that fit: refused, and nothing behind it is taken
            odd = data(106, 107)
            await socket.send_multipart(wire.encode(odd._replace(parts=(*odd.parts[:2], bytes(odd.parts[2])[:-40]))))
            refusal = wire.decode(await socket.recv_multipart())
            assert (refusal.type, refusal.last) == (wire.REFUSE, 107)
            await socket.send_multipart(wire.encode(data(108, 109)))
            await until(lambda: count(far, "discarded_frames_total", reason="gap") == 1)
            await send(near, 6, 9)
            assert await near.transport_resume(QUEUE) == 9
            assert count(far, "discarded_frames_total", reason="content") == 1
        assert await positions(queue) == [1, 2, 3, 4, 5, 101, 102, 103, 104, 105, 6, 7, 8, 9]
        await queue.close()

    run(check())


LAST = (1 << 63) - 1
EVENTS = event_batch(5)
#: Of 16 MB of bits each would have become a position of 8 bytes; one in two rows is there.
MANY_BITS = struct.pack("<BBHQI", 1, 1, 0, 1, 32_000_000) + b"\x55" * 4_000_000


def replaced(name: str, column: pa.Array) -> pa.RecordBatch:
    """EVENTS with another column."""
    columns = [column if one == name else EVENTS.column(one) for one in EVENTS.schema.names]
    return pa.RecordBatch.from_arrays(columns, names=EVENTS.schema.names).replace_schema_metadata(EVENTS.schema.metadata)


def compressed(batch: pa.RecordBatch) -> bytes:
    """The bare message of the batch, as Arrow compresses it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    *_, message = pa.ipc.MessageReader.open_stream(sink.getvalue())
    return bytes(message.serialize())


def carrying(batch: pa.RecordBatch) -> Frame:
    """A frame with these events."""
    payload, kind = wire.pack_batch(batch)
    return data(1, 5, flags=wire.START)._replace(flags=wire.START | kind, parts=(wire.pack_missing(()), b"", payload))


def at(first: int, last: int, prev: int) -> Frame:
    """A frame that says these positions; its content is good for five."""
    return data(1, 5, flags=wire.START)._replace(prev=prev, first=first, last=last)


def with_part(number: int, part: bytes, flags: int = 0) -> Frame:
    """A frame of which one part is another."""
    frame = data(1, 5, flags=wire.START | flags)
    return frame._replace(parts=(*frame.parts[:number], part, *frame.parts[number + 1 :]))


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        # acknowledged, it ended the process, and again at each start: what keeps dead letters has no such number
        (at((1 << 64) - 5, (1 << 64) - 1, (1 << 64) - 6), "positions"),
        (at(LAST - 3, LAST + 1, LAST - 4), "positions"),
        (at(0, 4, 0), "positions"),
        (at(10, 9, 9), "positions"),
        # 2 to 4 would be lost in silence: the mark goes on behind them
        (at(5, 9, 1), "neither a row nor missing"),
        (at(5, 9, 7), "neither a row nor missing"),
        # these came through, and ended the process, or stopped its outputs
        (carrying(replaced("context", pa.array(["c"] * 5))), "expected an event batch"),
        (carrying(replaced("readings", pa.array([1] * 5))), "expected an event batch"),
        (carrying(replaced("device", pa.array([1] * 5))), "expected an event batch"),
        (carrying(replaced("time", pa.array(["t"] * 5))), "expected an event batch"),
        (carrying(replaced("readings", pa.array([{"a": [1]}] * 5))), "expected readings that are"),
        (carrying(replaced("position", pa.array([1 << 63] * 5, pa.uint64()))), "expected positions"),
        # memory without bound, from little
        (with_part(2, compressed(raw_batch(5, payload_bytes=10_000))), "not compressed"),
        (with_part(1, MANY_BITS, wire.ROWS), "16000000 rows"),
    ],
)  # fmt: skip
def test_content_that_nothing_could_be_done_with_is_refused_before_it_is_stored(bench: Bench, frame: Frame, why: str) -> None:
    """From a peer that is welcome, under checksums that fit."""

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver) as far, bench.near() as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)
            socket = stranger.connect()
            await socket.send_multipart(wire.encode(hello()))
            assert wire.decode(await socket.recv_multipart()).type == wire.WELCOME
            await socket.send_multipart(wire.encode(frame))
            answer = wire.decode(await socket.recv_multipart())
            assert (answer.type, answer.last) == (wire.REFUSE, frame.last)
            refusal = wire.unpack_text(answer, wire.Refusal)
            assert refusal.code == "batch"
            assert why in refusal.reason
            await send(near, 1, 5)
            assert count(far, "discarded_frames_total", reason="content") == 1
            assert count(near, "sessions_total") == 1
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_links_beyond_the_bound_are_told_so_and_those_that_are_there_stay(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver, peers_max=2) as far, bench.near() as near, stranger_to(bench) as stranger:
            await near.transport_resume(QUEUE)
            for number in range(5):
                session = bytes([number + 1]) * 16
                answer = await stranger.asks(wire.encode(hello(f"{OTHER[:-1]}{number}", session=session)))
                expected = wire.WELCOME if number == 0 else wire.REFUSE
                assert answer.type == expected
            await send(near, 1, 5)
            assert count(far, "refused_hellos_total", code="busy") == 4
            assert count(near, "sessions_total") == 1
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())
