"""What a link says of its far side while it has nothing to send: whether it is there, speaks this version, and how durable it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from test_transport_zmq import QUEUE, Bench, info, send, until

from headrace.testing import ScriptedDeliver, run
from headrace.tier import TierDeliver
from headrace_queue_pmem import QueuePmem
from headrace_transport_zmq import lanes, wire
from headrace_transport_zmq.wire import Frame


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_idle_link_says_whether_its_far_side_is_there(bench: Bench) -> None:
    async def check() -> None:
        async with bench.near(dead_after_s=0.3) as near:  # nothing is asked, nothing is sent
            statuses = near.context.statuses
            await until(lambda: any(status == "degraded" and "no far side at" in reason for status, reason in statuses))
            async with bench.far(ScriptedDeliver(info=info())):
                await until(lambda: statuses[-1][0] == "ok")
                count = len(statuses)
                await asyncio.sleep(0.6)
                assert len(statuses) == count or {status for status, _ in statuses[count:]} == {"ok"}, "heartbeats are answered"
                assert await near.transport_resume(QUEUE) is None
            await until(lambda: statuses[-1][0] == "degraded")

    run(check())


def test_a_far_side_that_is_away_for_long_is_told_of_once_and_with_its_cause(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> int:
        return sum(record.message == "link ends its connection" and record.levelname == "WARNING" for record in caplog.records)

    async def check() -> None:
        async with bench.near(dead_after_s=0.3) as near:
            statuses = near.context.statuses
            async with bench.far(ScriptedDeliver(info=info())):
                await until(lambda: statuses and statuses[-1][0] == "ok")
            await until(lambda: sum("nothing listens there" in reason for _, reason in statuses) >= 3)
            assert told() == 1

    run(check())


def test_a_far_side_of_an_older_version_is_reported_and_tried_again(bench: Bench) -> None:
    """What a sender of version N+1 meets before the far tier is upgraded."""

    async def check() -> None:
        context = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        router.bind(bench.address)
        async with bench.near() as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            hellos = 0
            while hellos < 3:
                routing, *message = await router.recv_multipart()
                frame = wire.decode(message)
                if frame.type != wire.HELLO:
                    continue
                hellos += 1
                text = wire.pack_text(wire.Refusal(code="version", reason="version 2, expected 1"))
                await router.send_multipart([routing, *wire.encode(Frame(wire.REFUSE, frame.session, parts=(text,)))])
            await until(lambda: any("(version): version 2, expected 1" in reason for _, reason in near.context.statuses))
            assert not asking.done()
            router.close(linger=0)
            async with bench.far(ScriptedDeliver(info=info())):  # upgraded
                assert await asking is None
                await send(near, 1, 3)
        context.destroy(linger=0)

    run(check())


def test_a_lower_level_is_told_to_the_host_and_known_before_the_far_side_is_heard_of_again(bench: Bench) -> None:
    async def check() -> None:
        told: list[str] = []
        async with bench.far(ScriptedDeliver(info=info("process"))), bench.near(level="power", allow_lower_level=True) as near:
            near.context.far_level = told.append
            await near.transport_resume(QUEUE)
        assert told == ["process"]
        assert lanes.load_level(near.context.data_dir) == "process"
        again = bench.context("uplink")
        again.far_level = told.append
        component = type(near)(near.config, again)
        await component.open()
        await component.close()
        assert told == ["process"] * 2

    run(check())


def test_what_is_told_to_senders_is_the_lowest_level_that_events_come_to(bench: Bench) -> None:
    async def check() -> None:
        queue = QueuePmem(QueuePmem.Config(path=str(bench.folder / "queue"), segment_bytes=1 << 23), bench.context("queue"))
        await queue.open()
        levels: list[str] = []
        deliver = TierDeliver(queue, lambda error: None, far_levels=lambda: levels)
        own = deliver.queue_info()
        levels += ["power", "none"]
        below = deliver.queue_info()
        assert own is not None
        assert below is not None
        assert (own.level, below.level) == ("process", "none")
        await queue.close()

    run(check())
