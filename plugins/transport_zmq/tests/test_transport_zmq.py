"""Both ends of a link in one process, over real sockets: into a real queue, or into a `deliver` whose behaviour is written down."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zmq
import zmq.asyncio

from headrace import NO_ORIGINS, Missing, Origin, PermanentError, QueueInfo, RangeKey, TransientError, origin_batch, origins_of
from headrace.component import SystemClock
from headrace.position import ORIGIN_MISSING, ORIGIN_QUEUE, ORIGIN_SESSION, Named, named_rows
from headrace.testing import FakeContext, ScriptedDeliver, fake_context, raw_batch, run
from headrace.tier import TierDeliver
from headrace_queue_pmem import QueuePmem
from headrace_transport_zmq import TransportZmq, wire
from headrace_transport_zmq.config import TransportConfig, problem

QUEUE = "00000000-0000-4000-8000-000000000001"
ORIGIN = f"{QUEUE}/uplink.1"


def info(level: str = "process") -> QueueInfo:
    return QueueInfo("far", QUEUE, level, "ext4", "page-cache", 0, 1, 0, 0, 1 << 20, None, (), ())


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class Bench:
    """One link on a free port: `near()` is its sending component, `far()` its receiving one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, free_address()

    def context(self, name: str) -> FakeContext:
        return fake_context(self.folder / name, clock=SystemClock(), id=name, plugin="transport_zmq")

    @asynccontextmanager
    async def far(self, deliver: Any, name: str = "links", **options: Any) -> AsyncIterator[TransportZmq]:
        component = TransportZmq(TransportConfig(listen=self.address, **options), self.context(name))
        await component.open()
        serving = asyncio.create_task(component.transport_serve(deliver))
        try:
            yield component
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            await component.close()
            component.context.close()

    @asynccontextmanager
    async def near(
        self, name: str = "uplink", secret: bytes = b"s" * 16, level: str = "process", **options: Any
    ) -> AsyncIterator[TransportZmq]:
        settings = {"heartbeat_s": 0.05, "dead_after_s": 1.0, "reconnect_ms_max": 50, **options}
        component = TransportZmq(TransportConfig(connect=self.address, **settings), self.context(name))
        await component.open()
        running = asyncio.create_task(component.run())
        await component.transport_queue(info(level)._replace(name="near"), secret)
        try:
            yield component
        finally:
            running.cancel()
            await asyncio.wait([running])
            await component.close()


async def send(component: TransportZmq, first: int, last: int, **key: Any) -> None:
    missing = sum(hole.size for hole in key.get("missing", ())) + len(key.get("dead", ()))
    await component.transport_send(raw_batch(last - first + 1 - missing, first), NO_ORIGINS, RangeKey(QUEUE, first, last, **key))


def numbers(deliver: ScriptedDeliver) -> list[int]:
    return [int(payload[5:-1]) for taken in deliver.committed for payload in taken.batch.column("payload").to_pylist()]


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; `run` bounds it."""
    while not reached():  # noqa: ASYNC110  what is waited for is in another library's thread
        await asyncio.sleep(0.002)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_batches_arrive_once_in_order_and_the_far_side_says_how_far(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver) as far, bench.near() as near:
            assert await near.transport_resume(QUEUE) is None
            await asyncio.gather(*(send(near, first, first + 9) for first in range(1, 101, 10)))
            assert numbers(deliver) == list(range(1, 101))
            assert await near.transport_resume(QUEUE) == 100
            assert far.context.metrics.registry.get_sample_value("headrace_link_peers", LABELS) == 1
            assert deliver.calls < 10, "what came together is appended together"
        assert {origin.id for taken in deliver.committed for origin in origins_of(taken.origins)} == {ORIGIN}

    run(check())


LABELS = {"tier": "site", "component": "links", "plugin": "transport_zmq"}


def test_nothing_is_reported_before_it_is_durable(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(then="hold", info=info())
        async with bench.far(deliver), bench.near() as near:
            await near.transport_resume(QUEUE)
            sending = asyncio.create_task(send(near, 1, 5))
            await deliver.until_held()
            await asyncio.wait([sending], timeout=0.3)
            assert not sending.done(), "heartbeats went to and fro meanwhile"
            deliver.let_go()
            await sending

    run(check())


def test_a_full_queue_stops_the_link_and_costs_no_session(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver("full", info=info())
        async with bench.far(deliver), bench.near(dead_after_s=0.3) as near:
            await near.transport_resume(QUEUE)
            sending = [asyncio.create_task(send(near, first, first)) for first in range(1, 9)]
            await deliver.until_room_awaited()
            await asyncio.wait(sending, timeout=1.0)
            assert not any(task.done() for task in sending)
            deliver.make_room()
            await asyncio.gather(*sending)
            labels = {**LABELS, "component": "uplink"}
            assert near.context.metrics.registry.get_sample_value("headrace_link_sessions_total", labels) == 1
        assert numbers(deliver) == list(range(1, 9))

    run(check())


def test_frames_that_came_together_are_all_taken_however_many_they_are(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver) as far, bench.near(dead_after_s=20.0) as near:
            await near.transport_resume(QUEUE)
            sending = [asyncio.create_task(send(near, first, first)) for first in range(1, 701)]
            await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251  nobody reads meanwhile: they gather in the receiver's socket
            await asyncio.gather(*sending)
            counted = far.context.metrics.registry.get_sample_value("headrace_link_discarded_frames_total", {**LABELS, "reason": "gap"})
            assert not counted, "each took its turn"
            assert deliver.calls < 50, "and they were appended together"
        assert numbers(deliver) == list(range(1, 701))

    run(check())


def test_what_came_from_several_edges_is_one_append(bench: Bench) -> None:
    edges = {f"edge-{number}": QUEUE[:-1] + f"{number}" for number in range(4)}

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(bench.far(deliver))
            nears = {}
            for name, queue in edges.items():
                nears[queue] = await stack.enter_async_context(bench.near(name, secret=queue[:16].encode(), dead_after_s=20.0))
                await nears[queue].transport_resume(queue)
            for number in range(1, 21):
                keys = [RangeKey(queue, number, number) for queue in nears]
                sending = [asyncio.create_task(nears[key.queue_id].transport_send(raw_batch(1, number), NO_ORIGINS, key)) for key in keys]
                for _ in range(3):
                    await asyncio.sleep(0)
                time.sleep(0.05)  # noqa: ASYNC251  nobody reads meanwhile: what all have sent is there
                await asyncio.gather(*sending)
                appended = [{origin.id.partition("/")[0] for origin in origins_of(taken.origins)} for taken in deliver.committed]
                if set(edges.values()) in appended:
                    return
        raise AssertionError(f"no append for all of them, the largest was for {max(map(len, appended))}")

    run(check())


def test_an_append_that_failed_is_sent_again(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver("transient", info=info())
        async with bench.far(deliver), bench.near() as near:
            await near.transport_resume(QUEUE)
            await asyncio.gather(*(send(near, first, first) for first in range(1, 9)))
        assert numbers(deliver) == list(range(1, 9))

    run(check())


def test_a_far_side_that_is_replaced_in_mid_stream_gets_everything_once(bench: Bench) -> None:
    async def check() -> None:
        queue = await opened(bench)
        deliver = TierDeliver(queue, lambda error: None)
        async with bench.near() as near:
            sending: list[asyncio.Task[None]] = []
            for life in range(4):
                async with bench.far(deliver, name=f"links{life}"):
                    if not life:
                        await near.transport_resume(QUEUE)
                    for first in range(life * 40 + 1, life * 40 + 41, 4):
                        sending.append(asyncio.create_task(send(near, first, first + 3)))
                    # the first of them has arrived, of the others nobody knows
                    await asyncio.wait([sending[life * 10]])
            async with bench.far(deliver, name="last"):
                await asyncio.gather(*sending)
        assert await positions(queue) == list(range(1, 161))
        await queue.close()

    run(check())


def test_gaps_and_dead_letters_travel_as_missing(bench: Bench) -> None:
    async def check() -> None:
        queue = await opened(bench)
        async with bench.far(TierDeliver(queue, lambda error: None)), bench.near() as near:
            await near.transport_resume(QUEUE)
            await send(near, 1, 10, missing=(Missing(3, 4, "corrupt"),), dead=(7,))
            await send(near, 11, 20, missing=(Missing(11, 20, "window"),))
            await send(near, 21, 22)
            assert await near.transport_resume(QUEUE) == 22
        read = await queue.queue_read("x", 0, 1000, 1 << 20)
        rows = [(row.first, row.last, row.row_offset) for row in origins_of(read.origins) if row.kind == ORIGIN_QUEUE]
        assert rows == [(1, 2, 0), (5, 6, 2), (8, 10, 4), (21, 22, 7)]
        gaps = [(row.first, row.last, row.note) for row in origins_of(read.origins) if row.kind == ORIGIN_MISSING]
        assert gaps == [(3, 4, b"corrupt"), (7, 7, b"dead_letter"), (11, 20, b"window")]
        await queue.close()

    run(check())


def test_the_sessions_of_devices_stay_where_they_are(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver), bench.near() as near:
            await near.transport_resume(QUEUE)
            origins = origin_batch([Origin("device/session", 1, 2, 0, ORIGIN_SESSION), Origin(f"{QUEUE}/up.1", 7, 7, 2)])
            await near.transport_send(raw_batch(3), origins, RangeKey(QUEUE, 1, 3))
        (taken,) = deliver.committed
        assert {origin.id for origin in origins_of(taken.origins)} == {ORIGIN}
        assert named_rows(taken.origins)[-1] == Named(2, 1, QUEUE, 7)

    run(check())


def test_who_claims_a_queue_id_without_its_secret_is_refused(bench: Bench) -> None:
    """DELIVERY 15; also after the receiver's restart."""

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver), bench.near() as near:
            await near.transport_resume(QUEUE)
            await send(near, 1, 5)
        async with bench.far(deliver), bench.near(name="thief", secret=b"another") as thief:
            asking = asyncio.create_task(thief.transport_resume(QUEUE))
            await until(lambda: any("not_authorized" in reason for _, reason in thief.context.statuses))
            assert not asking.done()
            asking.cancel()
            async with bench.near() as near:
                assert await near.transport_resume(QUEUE) == 5
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_a_far_side_of_a_lower_level_is_refused(bench: Bench) -> None:
    async def check() -> None:
        async with bench.far(ScriptedDeliver(info=info("process"))), bench.near(level="power") as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(lambda: any("allow_lower_level" in reason for _, reason in near.context.statuses))
            assert not asking.done()
            asking.cancel()
        async with bench.far(ScriptedDeliver(info=info("process"))), bench.near(level="power", allow_lower_level=True) as near:
            assert await near.transport_resume(QUEUE) is None

    run(check())


def test_foreign_bytes_harm_nobody(bench: Bench) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        stranger = zmq.asyncio.Context()
        async with bench.far(deliver) as far, bench.near() as near:
            await near.transport_resume(QUEUE)
            foreign = stranger.socket(zmq.DEALER)
            foreign.connect(bench.address)
            other_version = bytearray(wire.encode(wire.Frame(wire.HELLO, bytes(16), parts=(b"{}",)))[0])
            other_version[4] = 9
            hello = wire.encode(wire.Frame(wire.HELLO, bytes(16), parts=(b"{}",)))
            unheard = wire.encode(wire.Frame(wire.DATA, b"x" * 16, parts=(b"", b"", b"")))
            for message in ([b""], [b"GET / HTTP/1.1"], [b"HRLK"], hello, [bytes(other_version), b"{}"], unheard):
                await foreign.send_multipart(message)
            answers = [wire.decode(await foreign.recv_multipart()) for _ in range(2)]
            assert [answer.type for answer in answers] == [wire.REFUSE, wire.RESUME]
            assert wire.unpack_text(answers[0], wire.Refusal).code == "version"
            await send(near, 1, 5)
            counted = far.context.metrics.registry.get_sample_value
            assert counted("headrace_link_discarded_frames_total", {**LABELS, "reason": "malformed"}) == 4
            assert counted("headrace_link_refused_hellos_total", {**LABELS, "code": "version"}) == 1
            foreign.close(linger=0)
        stranger.destroy(linger=0)
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_a_batch_that_the_queue_never_takes_is_refused_for_good(bench: Bench) -> None:
    class Picky(ScriptedDeliver):
        async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
            if b'{"n":7}' in batch.column("payload").to_pylist():
                raise PermanentError("no sevens")
            return await super().__call__(batch, origins)

    async def check() -> None:
        deliver = Picky(info=info())
        async with bench.far(deliver), bench.near() as near:
            await near.transport_resume(QUEUE)
            sending = [asyncio.create_task(send(near, first, first + 4)) for first in (1, 6, 11)]
            done, _ = await asyncio.wait(sending, return_when=asyncio.FIRST_EXCEPTION)
            assert sending[1] in done
            with pytest.raises(PermanentError, match="no sevens"):
                await sending[1]
            sending[2].cancel()
            assert await near.transport_resume(QUEUE) == 5
            rest = pa.concat_batches([raw_batch(1, 6), raw_batch(3, 8)])
            await near.transport_send(rest, NO_ORIGINS, RangeKey(QUEUE, 6, 10, (), (7,)))
        assert numbers(deliver) == [1, 2, 3, 4, 5, 6, 8, 9, 10], "nothing passed the refused batch"

    run(check())


def test_another_peer_does_not_get_what_is_bound_to_the_old_one(bench: Bench) -> None:
    """DELIVERY 13."""

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver):
            async with bench.near(peer="middle-a") as near:
                await near.transport_resume(QUEUE)
                await send(near, 1, 5)
            async with bench.near(peer="middle-b") as near:
                with pytest.raises(TransientError, match="bound to peer 'middle-a'"):
                    await near.transport_resume(QUEUE)
            async with bench.near(peer="middle-b", resend_bound=True) as near:
                assert await near.transport_resume(QUEUE) is None, "a lane of its own: the mark of the other is not its"
            async with bench.near(peer="middle-b") as near:
                assert await near.transport_resume(QUEUE) is None

    run(check())


def test_close_ends_the_calls_under_way(bench: Bench) -> None:
    async def check() -> None:
        async with bench.near() as near:
            waiting = [asyncio.create_task(near.transport_resume(QUEUE)), asyncio.create_task(send(near, 1, 5))]
            await asyncio.sleep(0)
        for task in waiting:
            with pytest.raises(TransientError):
                await task

    run(check())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "got none"),
        ({"listen": "tcp://127.0.0.1:1", "connect": "tcp://127.0.0.1:1"}, "got listen and connect"),
        ({"listen": "tcp://0.0.0.0:5555"}, "not a loopback address"),
        ({"connect": "tcp://middle.example:5555"}, "not a loopback address"),
        ({"connect": "tcp://[::1]:5555", "heartbeat_s": 6.0}, "dead_after_s"),
        ({"connect": "tcp://middle.example:5555", "insecure": True}, ""),
        ({"listen": "tcp://localhost:0"}, ""),
    ],
)
def test_options_that_make_no_link_are_told(options: dict[str, Any], complaint: str) -> None:
    found = problem(TransportConfig(**options))
    assert complaint in found
    assert bool(found) == bool(complaint)


async def opened(bench: Bench) -> Any:
    config = QueuePmem.Config(path=str(bench.folder / "queue"), medium="file", segment_bytes=8 << 20, size_bytes_max=32 << 20)
    queue = QueuePmem(config, bench.context("queue"))
    await queue.open()
    return queue


async def positions(queue: Any) -> list[int]:
    """The numbers of the events in the queue, in its order."""
    found: list[int] = []
    head = queue.queue_info().head
    while len(found) < head:
        read = await queue.queue_read("x", len(found), 1000, 1 << 20)
        found += [int(payload[5:-1]) for payload in read.batch.column("payload").to_pylist()]
    return found
