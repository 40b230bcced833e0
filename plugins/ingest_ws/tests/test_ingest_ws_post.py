"""The same events over POST."""

from __future__ import annotations

import asyncio
import gzip
import json
from types import SimpleNamespace
from typing import Any

import cbor2
import msgspec
import pyarrow as pa
import pytest
from aiohttp import ClientSession

from headrace import TransientError
from headrace.encodings import decode

pytestmark = pytest.mark.usefixtures("each_loop")


JSON, NDJSON = "application/json", "application/x-ndjson"


async def post(site: Any, body: bytes, kind: str = JSON, **headers: str) -> tuple[int, Any]:
    async with ClientSession() as http, http.post(site.url(scheme="http"), data=body, headers={"Content-Type": kind, **headers}) as answer:
        return answer.status, await answer.json()


def test_object_array_and_ndjson_are_taken(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            assert await post(site, b'{"a":1}') == (200, {"accepted": 1, "rejected": []})
            assert await post(site, b'[{"a":2},{"a":3}]') == (200, {"accepted": 2, "rejected": []})
            assert await post(site, b'{"a":4}\n{"a":5}\r\n\n[{"a":6},{"a":7}]\n', NDJSON) == (200, {"accepted": 4, "rejected": []})
            assert [json.loads(payload)["a"] for payload in site.deliver.payloads] == [1, 2, 3, 4, 5, 6, 7]
            assert {device for device, _ in site.deliver.rows} == {"d1"}
            assert site.metric("ingest_acked_events_total") == 7

    asyncio.run(scenario())


def test_the_200_comes_after_the_commit(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            answer = asyncio.create_task(post(site, b"{}"))
            await kit.until(lambda: deliver.under_way == 1)
            done, _ = await asyncio.wait([answer], timeout=0.1)
            assert not done
            deliver.gate.set()
            assert (await answer)[0] == 200

    asyncio.run(scenario())


def test_bad_lines_of_ndjson_are_named_and_the_good_ones_stored(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            status, answer = await post(site, b'{"a":1}\n\nnope\n{"a":2}\n[{},3]', NDJSON)
            assert (status, answer["accepted"]) == (200, 2)
            assert [(item["index"], item["code"]) for item in answer["rejected"]] == [(2, "payload_invalid"), (4, "payload_invalid")]
            assert site.deliver.payloads == [b'{"a":1}', b'{"a":2}']
            assert site.metric("ingest_rejected_events_total", reason="payload_invalid") == 3

    asyncio.run(scenario())


ARRAYS = {
    JSON: b'[{"a":1},3,{"a":2},[{}]]',
    "application/msgpack": msgspec.msgpack.encode([{"a": 1}, 3, {"a": 2}, [{}]]),
    "application/cbor": cbor2.dumps([{"a": 1}, 3, {"a": 2}, [{}]]),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_events_of_an_array_are_named_and_the_good_ones_stored(kit: SimpleNamespace, kind: str, compressed: bool) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            body = gzip.compress(ARRAYS[kind]) if compressed else ARRAYS[kind]
            status, answer = await post(site, body, kind, **({"Content-Encoding": "gzip"} if compressed else {}))
            assert (status, answer["accepted"]) == (200, 2)
            assert [(item["index"], item["code"]) for item in answer["rejected"]] == [(1, "payload_invalid"), (3, "payload_invalid")]
            batch = pa.Table.from_batches(site.deliver.durable)
            rows, bad = decode(batch.column("payload").to_pylist(), batch.column("encoding")[0].as_py())
            assert (rows, bad) == ([{"a": 1}, {"a": 2}], [])
            assert site.deliver.calls == 1
            assert site.metric("ingest_rejected_events_total", reason="payload_invalid") == 2
            assert site.metric("ingest_received_events_total") == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'[{"n":"a","v":1},{"n":"b"}]', "application/senml+json"),
        (b"\x82\xa0\x1c", "application/cbor"),
        (b"\x92\x80", "application/msgpack"),
    ],
    ids=["pack", "cbor", "msgpack"],
)
def test_what_cannot_be_taken_apart_is_refused_as_a_whole(kit: SimpleNamespace, body: bytes, kind: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            status, answer = await post(site, body, kind)
            assert (status, answer["accepted"], len(answer["rejected"])) == (400, 0, 1)
            assert site.deliver.calls == 0

    asyncio.run(scenario())


def test_a_repetition_names_the_same_bad_events(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            first, again = [await post(site, b'[{"a":1},3]', **{"Idempotency-Key": "k"}) for _ in range(2)]
            assert first == again
            assert (first[0], first[1]["accepted"], first[1]["rejected"][0]["index"]) == (200, 1, 1)
            assert site.deliver.payloads == [b'{"a":1}']

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", JSON, 400, "payload_invalid"),
        (b"nope", JSON, 400, "payload_invalid"),
        (b'{"a":"\xff"}', JSON, 400, "payload_invalid"),
        (b"[{},", JSON, 400, "payload_invalid"),
        (b"[1,[{}]]", JSON, 400, "payload_invalid"),
        (b"[]", JSON, 400, "payload_invalid"),
        (b"a\nb\n", NDJSON, 400, "payload_invalid"),
        (b"\n\n", NDJSON, 400, "payload_invalid"),
        (b"[{},{},{},{}]", JSON, 413, "too_large"),
        (b"{}\n{}\n{}\n{}\n", NDJSON, 413, "too_large"),
        (b"[{},{},{}]\n{}", NDJSON, 413, "too_large"),
        (b"{}\n[{},{},{}]", NDJSON, 413, "too_large"),
        (b"[{},{},{},{}]\n", NDJSON, 413, "too_large"),
    ],
)
def test_a_body_without_one_good_event_gets_an_error_with_the_reason(
    kit: SimpleNamespace, body: bytes, kind: str, status: int, code: str
) -> None:
    async def scenario() -> None:
        async with kit.running(events_per_message_max=3) as site:
            got, answer = await post(site, body, kind)
            assert (got, answer["accepted"], answer["rejected"][0]["code"]) == (status, 0, code)
            assert answer["rejected"][0]["reason"]
            assert site.deliver.calls == 0
            assert site.metric("ingest_refused_requests_total", status=str(status), reason=code) == 1
            assert site.metric("ingest_received_events_total") == site.metric("ingest_rejected_events_total", reason=code)

    asyncio.run(scenario())


def test_a_body_over_the_limit_gets_413_and_one_of_the_limit_is_taken(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(post_bytes_max=100) as site:
            fits = b'{"a":"' + b"x" * 92 + b'"}'
            assert (await post(site, fits))[0] == 200
            status, answer = await post(site, fits + b" ")
            assert (status, answer["code"]) == (413, "too_large")
            assert len(site.deliver.payloads) == 1

    asyncio.run(scenario())


def test_types_and_encodings_that_are_not_read_get_415(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            assert (await post(site, b"<a/>", "application/xml"))[0] == 415
            assert (await post(site, b"{}", **{"Content-Encoding": "br"}))[0] == 415
            assert (await post(site, b"{}", "application/x-www-form-urlencoded"))[0] == 200, "what curl -d sends"

    asyncio.run(scenario())


def test_a_body_is_asked_for_only_where_it_may_come(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(post_bytes_max=100) as site:

            async def asked(extra: str) -> bytes:
                """The answer to a header alone, and where that is "go on", to its body."""
                reader, writer = await asyncio.open_connection(*site.address)
                writer.write(f"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
                head: bytes = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                if b" 100 " in head:
                    writer.write(b"{}")
                    head += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                writer.close()
                return head

            granted = await asked("Content-Length: 2\r\nExpect: 100-continue\r\n")
            assert granted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
            assert (await asked("Content-Length: 999\r\nExpect: 100-Continue\r\n")).startswith(b"HTTP/1.1 413 ")
            assert (await asked("Content-Length: 2\r\nExpect: 100-continue\r\nContent-Type: a/b\r\n")).startswith(b"HTTP/1.1 415 ")

    asyncio.run(scenario())


@pytest.mark.parametrize(("version", "expected"), [("1.1", "99-bottles"), ("1.0", "100-continue")])
def test_other_expectations_change_nothing(kit: SimpleNamespace, version: str, expected: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            headers = f"Host: x\r\nConnection: close\r\nContent-Length: 2\r\nExpect: {expected}\r\n"
            request = f"POST /v1/devices/d1/events HTTP/{version}\r\n{headers}\r\n{{}}"
            assert (await kit.http(site.address, request.encode()))[0] == 200

    asyncio.run(scenario())


def test_events_of_a_failed_commit_are_answered_with_503(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(kit.FakeDeliver(TransientError("disk"))) as site:
            status, answer = await post(site, b"{}")
            assert (status, answer["code"]) == (503, "busy")
            assert answer["retry_ms"] == 5000
            with pytest.raises(TransientError):
                await site.task

    asyncio.run(scenario())


def test_a_post_under_way_is_answered_before_the_drain_ends(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            answer = asyncio.create_task(post(site, b"{}"))
            await kit.until(lambda: deliver.under_way == 1)
            drained = asyncio.create_task(site.component.drain(10.0))
            await asyncio.sleep(0.02)
            assert not drained.done()
            deliver.gate.set()
            assert (await answer)[0] == 200
            await drained
            await asyncio.wait_for(site.task, 5)

    asyncio.run(scenario())


def test_posts_max_refuses_with_503(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, posts_max=1) as site:
            first = asyncio.create_task(post(site, b"{}"))
            await kit.until(lambda: deliver.under_way == 1)
            assert (await post(site, b"{}"))[0] == 503
            deliver.gate.set()
            assert (await first)[0] == 200
            assert (await post(site, b"{}"))[0] == 200

    asyncio.run(scenario())


def test_a_post_whose_body_ends_in_a_full_queue_waits_no_longer_than_it_may(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full")
        async with kit.running(deliver, post_wait_s=0.2, posts_max=2) as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            await kit.until(lambda: site.component._server and site.component._server._posting._posts)
            async with site.connect("d2") as ws:
                await ws.send("{}")
                await kit.until(lambda: site.component._intake.paused)
                writer.write(b"}")
                head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
                assert head.startswith("HTTP/1.1 503 ")
                assert "Retry-After: 5" in head
                deliver.has_room.set()
                await kit.receive_until_ack(ws, 1)
            writer.close()
            assert deliver.payloads == [b"{}"]
            assert site.metric("ingest_refused_requests_total", status="503", reason="queue_full") == 1

    asyncio.run(scenario())


def test_posts_and_connections_share_commits(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, commits_in_flight=1) as site, site.connect("d2") as ws:
            await ws.send("{}")
            await kit.until(lambda: deliver.under_way == 1)
            answers = [asyncio.create_task(post(site, b"{}")) for _ in range(5)]
            await ws.send("{}")
            await kit.until(lambda: site.metric("ingest_received_events_total") == 7)
            deliver.gate.set()
            assert [status for status, _ in await asyncio.gather(*answers)] == [200] * 5
            await kit.receive_until_ack(ws, 2)
            assert [batch.num_rows for batch in deliver.durable] == [1, 6]

    asyncio.run(scenario())
