"""A far end of the last version: hellos and welcomes have only the fields that they began with. Texts by hand, not by our structs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from test_link_hostile import OTHER, SECRET, data, stranger_to
from test_transport_zmq import QUEUE, Bench, info, numbers, send

from headrace import QueueSpan
from headrace.testing import ScriptedDeliver, run
from headrace_transport_zmq import identities, wire
from headrace_transport_zmq.wire import Frame

HELLO = {"queue_id": OTHER, "output": "uplink", "level": "process", "proof": identities.proof(SECRET), "host": ""}
WELCOME = {"level": "process", "window_bytes": 1 << 20, "window_events": 1000, "frame_bytes": 1 << 20, "host": ""}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def text(content: dict[str, Any]) -> tuple[bytes]:
    return (json.dumps(content).encode(),)


@pytest.mark.parametrize("added", [{}, {"of_a_later_version": [1]}])
def test_a_sender_of_the_last_version_is_taken(bench: Bench, added: dict[str, Any]) -> None:
    """And one of a later one, which says more."""

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver), stranger_to(bench) as sender:
            socket = sender.connect()
            for session, mark in ((b"1" * 16, None), (b"2" * 16, 10)):
                await socket.send_multipart(wire.encode(Frame(wire.HELLO, session, lane=1, parts=text({**HELLO, **added}))))
                welcome = wire.decode(await socket.recv_multipart())
                assert welcome.type == wire.WELCOME
                assert json.loads(bytes(welcome.parts[0])).keys() >= WELCOME.keys() - {"host"}
                assert (welcome.last if welcome.flags & wire.MARKED else None) == mark
                first = 1 if mark is None else mark + 1
                await socket.send_multipart(wire.encode(data(first, first + 9, session, wire.START if mark is None else 0)))
                answer = wire.decode(await socket.recv_multipart())
                assert (answer.type, answer.last) == (wire.ACK, first + 9)
        assert numbers(deliver) == list(range(1, 21))

    run(check())


@pytest.mark.parametrize("added", [{}, {"of_a_later_version": [1]}])
def test_a_receiver_of_the_last_version_is_sent_to(bench: Bench, added: dict[str, Any]) -> None:
    """It passes over what the hello says more, also over released ids; these stay in the ledger and are named again."""
    hellos: list[dict[str, Any]] = []
    taken: list[tuple[int, int, int]] = []

    async def receive(socket: zmq.asyncio.Socket) -> None:
        mark = 0
        while True:
            peer, *message = await socket.recv_multipart()
            frame = wire.decode(message)
            held = wire.MARKED if mark else 0
            if frame.type == wire.HELLO:
                hellos.append(json.loads(bytes(frame.parts[0])))
                mark = mark if hellos[-1]["queue_id"] == QUEUE else 0
                held = wire.MARKED if mark else 0
                answer = Frame(wire.WELCOME, frame.session, held, last=mark, lane=frame.lane, parts=text({**WELCOME, **added}))
            elif frame.type == wire.DATA:
                taken.append((frame.first, frame.last, frame.flags & (wire.ROWS | wire.EVENTS)))
                mark = frame.last
                answer = Frame(wire.ACK, frame.session, last=mark, lane=frame.lane)
            elif frame.type == wire.HEARTBEAT:
                answer = Frame(wire.HEARTBEAT, frame.session, held, last=mark, lane=frame.lane)
            else:
                continue
            await socket.send_multipart([peer, *wire.encode(answer)])

    async def check() -> None:
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        socket.bind(bench.address)
        receiving = asyncio.create_task(receive(socket))
        try:
            async with bench.near() as near:
                assert await near.transport_resume(OTHER) is None
            for round_, mark in enumerate((None, 10)):  # two lives of the sender; of OTHER its queue has nothing any more
                async with bench.near() as near:
                    await near.transport_queue(info()._replace(spans=(QueueSpan(QUEUE, 1, None),)), SECRET)
                    assert await near.transport_resume(QUEUE) == mark
                    await send(near, 10 * round_ + 1, 10 * round_ + 10)
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])
            context.destroy(linger=0)

    run(check())
    assert taken == [(1, 10, 0), (11, 20, 0)]
    assert [f"{OTHER}/1" in hello.get("released", ()) for hello in hellos if hello["queue_id"] == QUEUE] == [True, True]
    assert all(hello.keys() >= HELLO.keys() - {"host"} for hello in hellos)
