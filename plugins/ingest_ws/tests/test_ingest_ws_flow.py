"""Reading stops and goes on: what was read but not let in is kept, in order, and taken later or never."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("each_loop")


def test_hundreds_of_connections_wait_for_a_full_queue_and_all_are_read_again(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full")
        async with kit.running(deliver, batch_rows_max=50) as site:
            clients = [await site.raw(f"d{number}") for number in range(300)]
            clients[0].text(b'{"n":0}')
            await kit.until(lambda: site.metric("ingest_paused") == 1)
            for client in clients:
                client.send(b"".join(kit.frame(1, b'{"n":%d}' % number) for number in range(5)))
            await kit.until(lambda: site.component._intake._waiters)  # the poller, on behalf of all
            assert site.metric("ingest_received_events_total") == 1
            deliver.has_room.set()
            for client in clients:
                last = 6 if client is clients[0] else 5
                while (await asyncio.wait_for(client.receive(), 10))[1] != b'{"ack":%d}' % last:
                    pass
            assert max(batch.num_rows for batch in deliver.durable) <= 50
            for device in ("d0", "d1", "d299"):
                assert [payload for name, payload in deliver.rows if name == device][-5:] == [b'{"n":%d}' % n for n in range(5)]
            for client in clients:
                client.writer.transport.abort()

    asyncio.run(scenario())


def test_a_close_frame_behind_a_closed_window_waits_for_the_acks_before_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, window_messages=2) as site:
            client = await site.raw()
            client.send(b"".join(kit.frame(1, b'{"n":%d}' % number) for number in range(7)) + kit.frame(8, b"\x03\xe8"))
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2)
            deliver.gate.set()
            texts, code = await client.receive_until_closed()
            assert (texts[-1], code) == ({"ack": 7}, 1000)
            assert deliver.payloads == [b'{"n":%d}' % number for number in range(7)]

    asyncio.run(scenario())


def test_what_was_read_but_not_let_in_when_a_drain_begins_is_neither_stored_nor_acked(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, window_messages=2) as site:
            client = await site.raw()
            client.send(b"".join(kit.frame(1, b'{"n":%d}' % number) for number in range(7)))
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2)
            drained = asyncio.create_task(site.component.drain(10.0))
            await kit.until(lambda: site.component._server._draining)
            deliver.gate.set()
            texts, code = await client.receive_until_closed()
            assert ([text["ack"] for text in texts][-1], code) == (2, 1012)
            await drained
            assert deliver.payloads == [b'{"n":0}', b'{"n":1}']

    asyncio.run(scenario())


def test_a_connection_that_is_lost_while_it_waits_is_forgotten(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full")
        async with kit.running(deliver, close_timeout_s=0.2) as site:
            client, other = await site.raw(), await site.raw("d2")
            other.text(b'{"n":0}')
            await kit.until(lambda: site.metric("ingest_paused") == 1)
            client.text(b'{"lost":1}')
            await kit.until(lambda: site.component._intake._waiters)
            (connection,) = [one for one in site.component._server._connections if one._device == "d1"]
            connection._transport.abort()
            await kit.until(lambda: site.metric("ingest_connections") == 1)
            deliver.has_room.set()
            assert json.loads((await asyncio.wait_for(other.receive(), 10))[1]) == {"ack": 1}
            assert deliver.payloads == [b'{"n":0}']

    asyncio.run(scenario())


def test_runs_arrays_and_bad_messages_in_one_read_keep_their_numbers_and_order(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            sent = [b'{"a":1}', b'{"a":2}', b'[{"a":3},{"a":4}]', b'{"a":5}', b"bad", b'{"bad}', b'{"a":6}', b'{\n"a":7}', b" {}"]
            client.send(b"".join(kit.frame(1, message) for message in sent) + kit.frame(2, b"{}") + kit.frame(1, b'{"a":8}'))
            texts: list[dict[str, int]] = []
            while not texts or texts[-1].get("ack") != 11:
                texts.append(json.loads((await asyncio.wait_for(client.receive(), 10))[1]))
            assert [text["reject"] for text in texts if "reject" in text] == [5, 6, 10]
            taken = [b'{"a":1}', b'{"a":2}', b'{"a":3}', b'{"a":4}', b'{"a":5}', b'{"a":6}', b'{\n"a":7}', b" {}", b'{"a":8}']
            assert site.deliver.payloads == taken
            assert site.metric("ingest_received_bytes_total") == sum(map(len, sent)) + 2 + 7

    asyncio.run(scenario())


def test_aiohttp_keeps_nothing_of_an_upgraded_connection(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            clients = [await site.raw(f"d{number}") for number in range(10)]
            handlers = site.component._server._runner.server
            await kit.until(lambda: not handlers.connections)
            clients[3].text(b"{}")
            assert await clients[3].receive() == (1, b'{"ack":1}')

    asyncio.run(scenario())
