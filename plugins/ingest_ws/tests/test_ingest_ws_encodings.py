"""The same readings in every encoding, over WebSocket and POST, to a live server."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import cbor2
import msgspec
import pytest
import websockets
from aiohttp import ClientSession

from headrace import ENCODING_JSON
from headrace.encodings import decode
from headrace.schema import ENCODING_CBOR, ENCODING_MSGPACK

pytestmark = pytest.mark.usefixtures("each_loop")

READINGS = [{"temp": 21.5, "on": True, "mode": "eco"}, {"temp": 22, "on": False, "mode": "öko"}]
RECORDS = [
    {"bn": "d1:", "bt": 1_795_435_200, "n": "temp", "v": 21.5},
    {"n": "on", "vb": True},
    {"n": "mode", "vs": "eco"},
    {"t": 1, "n": "temp", "v": 22},
]
LABELS = {"bn": -2, "bt": -3, "n": 0, "v": 2, "vs": 3, "vb": 4, "t": 6}
RESOLVED = [{"ts": 1_795_435_200, "temp": 21.5, "on": True, "mode": "eco"}, {"ts": 1_795_435_201, "temp": 22}]

#: encoding, content type, the message, what is decoded of it, and the number that it is stored under.
CASES = [
    ("json", "application/json", msgspec.json.encode(READINGS), READINGS, ENCODING_JSON),
    ("msgpack", "application/msgpack", msgspec.msgpack.encode(READINGS), READINGS, ENCODING_MSGPACK),
    ("cbor", "application/cbor", cbor2.dumps(READINGS), READINGS, ENCODING_CBOR),
    ("senml", "application/senml+json", json.dumps(RECORDS).encode(), RESOLVED, ENCODING_JSON),
    (
        "senml-cbor",
        "application/senml+cbor",
        cbor2.dumps([{LABELS[label]: value for label, value in record.items()} for record in RECORDS]),
        RESOLVED,
        ENCODING_JSON,
    ),
]


def stored(site: Any) -> tuple[list[dict[str, Any]], set[int]]:
    """The readings of every durable event, and the numbers of their encodings."""
    rows = [row for batch in site.deliver.durable for row in batch.to_pylist()]
    return [decode([row["payload"]], row["encoding"])[0][0] for row in rows], {row["encoding"] for row in rows}


def connect(site: Any, encoding: str) -> Any:
    return websockets.connect(f"{site.url()}?encoding={encoding}", ping_interval=None)


@pytest.mark.parametrize(("encoding", "kind", "message", "readings", "number"), CASES, ids=[case[0] for case in CASES])
def test_each_encoding_is_taken_over_both(
    kit: SimpleNamespace, encoding: str, kind: str, message: bytes, readings: list[Any], number: int
) -> None:
    async def scenario() -> None:
        async with kit.running() as site, connect(site, encoding) as ws:
            await ws.send(message.decode() if encoding in ("json", "senml") else message)
            assert await kit.receive_until_ack(ws, 1) == [{"ack": 1}]
            assert stored(site) == (readings, {number})
            async with ClientSession() as http:
                for _ in range(2):
                    headers = {"Content-Type": kind}
                    async with http.post(site.url(scheme="http"), data=message, headers=headers) as answer:
                        assert (answer.status, await answer.json()) == (200, {"accepted": 2, "rejected": []})
            assert stored(site) == (readings * 3, {number})
            assert site.metric("ingest_received_events_total") == site.metric("ingest_acked_events_total") == 6

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", ["json", "senml", "msgpack", "cbor", "senml-cbor"])
def test_the_other_kind_of_message_is_rejected_and_the_connection_stays(kit: SimpleNamespace, encoding: str) -> None:
    async def scenario() -> None:
        message, number = next((case[2], case[4]) for case in CASES if case[0] == encoding)
        text = encoding in ("json", "senml")
        async with kit.running() as site, connect(site, encoding) as ws:
            await ws.send(message if text else '{"a":1}')
            reject, ack = await kit.receive_until_ack(ws, 1)
            assert (reject["reject"], reject["code"], ack) == (1, "payload_invalid", {"ack": 1})
            assert reject["reason"] == f"expected a {'text' if text else 'binary'} message, got a {'binary one' if text else 'text'}"
            await ws.send(message.decode() if text else message)
            await kit.receive_until_ack(ws, 2)
            assert stored(site)[1] == {number}

    asyncio.run(scenario())


@pytest.mark.parametrize(("encoding", "kind", "message"), [case[:3] for case in CASES], ids=[case[0] for case in CASES])
def test_a_bad_element_is_named_over_both(kit: SimpleNamespace, encoding: str, kind: str, message: bytes) -> None:
    async def scenario() -> None:
        bad = msgspec.msgpack.encode([{}, 7]) if encoding == "msgpack" else b"\x82\xa0\x07" if "cbor" in encoding else b"[{},7]"
        if encoding == "senml":
            bad = b'[{"n":"a","v":1},7]'
        async with kit.running() as site, connect(site, encoding) as ws:
            await ws.send(bad.decode() if encoding in ("json", "senml") else bad)
            reject, _ = await kit.receive_until_ack(ws, 1)
            assert (reject["code"], reject["index"]) == ("payload_invalid", 1)
            headers = {"Content-Type": kind}
            assert site.deliver.calls == 0
            async with ClientSession() as http, http.post(site.url(scheme="http"), data=bad, headers=headers) as answer:
                # over POST an array's events are taken or refused one by one, a pack as a whole
                assert answer.status == (400 if "senml" in encoding else 200)
                (rejected,) = (await answer.json())["rejected"]
                assert {"reject": 1, **rejected} == reject

    asyncio.run(scenario())


def test_objects_on_a_senml_connection_are_no_packs(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, connect(site, "senml") as ws:
            for _ in range(3):
                await ws.send('{"n":"a","v":1}')
            frames = await kit.receive_until_ack(ws, 3)
            rejects = [frame for frame in frames if "reject" in frame]
            assert [frame["reject"] for frame in rejects] == [1, 2, 3]
            assert all("expected a SenML pack" in frame["reason"] for frame in rejects)

    asyncio.run(scenario())


def test_relative_times_count_from_the_arrival(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, connect(site, "senml") as ws:
            await ws.send('[{"n":"a","v":1,"t":-60}]')
            await kit.receive_until_ack(ws, 1)
            ((row,),) = [batch.to_pylist() for batch in site.deliver.durable]
            assert abs(row["received"].timestamp() - 60 - json.loads(row["payload"])["ts"]) < 1

    asyncio.run(scenario())


def test_an_encoding_that_nobody_knows_is_refused_before_the_upgrade(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, ClientSession() as http:
            headers = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            async with http.get(f"{site.url(scheme='http')}?encoding=xml", headers=headers) as answer:
                assert (answer.status, (await answer.json())["code"]) == (400, "encoding_unknown")

    asyncio.run(scenario())
