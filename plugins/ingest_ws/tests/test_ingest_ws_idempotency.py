"""POSTs with an Idempotency-Key are stored once; gzip bodies are inflated within their bound."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession

from headrace import OriginMark, TransientError
from headrace.hookspecs import Elsewhere
from headrace.position import ORIGIN_SESSION
from headrace.testing import FakeClock
from headrace_ingest_ws.inflate import STEP_BYTES, Gunzip, TooLong
from headrace_ingest_ws.post import Remembered, idempotency_key, key_origin, pack, unpack

NDJSON = "application/x-ndjson"


async def post(site: Any, body: bytes, key: str | None = None, device: str = "d1", **headers: str) -> tuple[int, Any, bool]:
    """Status, answer, and whether it was one from memory."""
    if key is not None:
        headers["Idempotency-Key"] = key
    headers.setdefault("Content-Type", "application/json")
    async with ClientSession() as http, http.post(site.url(device, "http"), data=body, headers=headers) as answer:
        return answer.status, await answer.json(), "Idempotent-Replayed" in answer.headers


# --- Idempotency-Key -------------------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_same_answer_and_stores_nothing(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            body, kind = b'{"a":1}\nnope\n{"a":2}\n', {"Content-Type": NDJSON}
            status, answer, replayed = await post(site, body, "k1", **kind)
            assert (status, answer["accepted"], len(answer["rejected"]), replayed) == (200, 2, 1, False)
            for key in ("k1", '"k1"'):
                assert await post(site, body, key, **kind) == (200, answer, True)
            assert site.deliver.payloads == [b'{"a":1}', b'{"a":2}']
            (origin,) = site.deliver.origins
            assert (origin.id, origin.first, origin.last, origin.kind) == (key_origin("d1", "k1"), 1, 1, ORIGIN_SESSION)
            assert site.metric("ingest_repeated_posts_total") == 2
            assert site.metric("ingest_received_events_total") == 3, "a repetition is not received again"

    asyncio.run(scenario())


def test_keys_are_those_of_a_device_and_other_keys_store_again(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            for key, device in (("k1", "d1"), ("k2", "d1"), ("k1", "d2"), (None, "d1"), (None, "d1")):
                assert (await post(site, b"{}", key, device))[2] is False
            assert len(site.deliver.payloads) == 5

    asyncio.run(scenario())


def test_another_request_under_the_same_key_is_refused(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            await post(site, b'{"a":1}', "k1")
            status, answer, _ = await post(site, b'{"a":2}', "k1")
            assert (status, answer["code"]) == (422, "key_reused")
            assert len(site.deliver.payloads) == 1
            assert (await post(site, b'{"a":1}', "k1"))[2] is True

    asyncio.run(scenario())


def test_a_repetition_waits_for_the_first_and_gets_its_answer(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            requests = [asyncio.create_task(post(site, b"{}", "k1")) for _ in range(4)]
            await kit.until(lambda: deliver.under_way == 1 and len(site.component._server._posting._posts) == 4)
            deliver.gate.set()
            answers = await asyncio.gather(*requests)
            assert sorted(answers, key=lambda answer: answer[2]) == [(200, {"accepted": 1, "rejected": []}, n > 0) for n in range(4)]
            assert len(deliver.payloads) == 1

    asyncio.run(scenario())


def test_an_answer_that_came_too_late_is_remembered_all_the_same(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, post_wait_s=0.05) as site:
            assert (await post(site, b"{}", "k1"))[0] == 503
            assert (await post(site, b"{}", "k1"))[1]["reason"] == "an earlier request with this key still waits for its commit"
            deliver.gate.set()
            await kit.until(lambda: deliver.durable)
            assert await post(site, b"{}", "k1") == (200, {"accepted": 1, "rejected": []}, True)
            assert len(deliver.payloads) == 1

    asyncio.run(scenario())


def test_a_request_that_was_refused_or_failed_is_not_remembered(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            assert (await post(site, b"nope", "k1"))[0] == 400
            assert await post(site, b"{}", "k1") == (200, {"accepted": 1, "rejected": []}, False)
        async with kit.running(kit.FakeDeliver(TransientError("disk"))) as site:
            assert (await post(site, b"{}", "k1"))[0] == 503
            assert site.deliver.marks == {}

    asyncio.run(scenario())


def test_draining_between_key_and_commit_leaves_the_key_free(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full")
        async with kit.running(deliver) as site:
            filling = asyncio.create_task(post(site, b"{}"))
            await kit.until(lambda: deliver.calls == 1)
            posting = site.component._server._posting

            async def admit(request: Any) -> Any:
                return site.component._server._admission.identify(request, "d1")

            posting._admit = admit  # let it wait for room
            waiting = asyncio.create_task(post(site, b"{}", "k1"))
            await kit.until(lambda: len(posting._posts) == 2)
            site.component._server._draining = True
            deliver.has_room.set()
            assert (await waiting)[0] == 503
            assert (await filling)[0] == 200
            assert site.component._server.sessions._here._places == {}

    asyncio.run(scenario())


def test_memory_is_bounded_in_time_and_number(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, idempotency_keep_s=60, idempotency_keys_max=2) as site:
            for key in ("k1", "k2", "k3"):
                await post(site, b"{}", key)
            assert set(site.deliver.marks) == {key_origin("d1", "k2"), key_origin("d1", "k3")}
            assert (await post(site, b"{}", "k3"))[2] is True
            await clock.advance(61)
            assert (await post(site, b"{}", "k3"))[2] is False
            assert site.deliver.marks.keys() == {key_origin("d1", "k3")}
            assert site.deliver.origins[-1].last == 2, "marks of an origin never go back"

    asyncio.run(scenario())


def test_a_mark_that_is_none_of_ours_is_no_answer(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.marks[key_origin("d1", "k1")] = OriginMark(7, b"?")
        async with kit.running(deliver) as site:
            assert await post(site, b"{}", "k1") == (200, {"accepted": 1, "rejected": []}, False)
            assert deliver.origins[-1].first == 8

    asyncio.run(scenario())


def test_a_key_of_another_worker_is_known_and_one_that_nobody_can_tell_of_is_refused(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver) as site:
            await post(site, b"{}", "k1")
            mark = deliver.marks.pop(key_origin("d1", "k1"))
            deliver.elsewhere = Elsewhere(mark, True)
            assert (await post(site, b"{}", "k1"))[2] is True
            deliver.elsewhere = Elsewhere(None, False)
            assert (await post(site, b"{}", "k1"))[0] == 503
            assert len(deliver.payloads) == 1
            assert (await post(site, b"{}"))[0] == 200, "without a key nobody has to be asked"

    asyncio.run(scenario())


def test_without_a_queue_nothing_is_remembered(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.level = "none"
        async with kit.running(deliver) as site:
            for _ in range(2):
                assert await post(site, b"{}", "k1") == (200, {"accepted": 1, "rejected": []}, False)
            assert len(deliver.payloads) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "k\u00e9", '""', "a\x7f"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 printable ASCII characters"):
        idempotency_key(key)


def test_a_bad_key_is_refused_with_400(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            status, answer, _ = await post(site, b"{}", "x" * 256)
            assert (status, answer["code"]) == (400, "key_invalid")

    asyncio.run(scenario())


def test_what_is_remembered_survives_packing() -> None:
    remembered = Remembered(1_795_435_200.25, 17, b"x" * 16)
    assert unpack(pack(remembered)) == remembered
    assert len(pack(remembered)) < 40
    assert unpack(None) is unpack(b"") is unpack(b"\x93") is None


# --- gzip ------------------------------------------------------------------------------------------------------------


def inflate(body: bytes, bytes_max: int, piece: int = 1000) -> bytes:
    gunzip = Gunzip(bytes_max)
    steps = [step for at in range(0, len(body), piece) for step in gunzip.feed(body[at : at + piece])] + list(gunzip.end())
    assert all(len(step) <= STEP_BYTES for step in steps)
    return b"".join(steps)


def test_any_cutting_inflates_to_the_same() -> None:
    rng = random.Random(7)
    plain = rng.randbytes(5000) + b"a" * 300_000 + rng.randbytes(100)
    for body, expected in ((gzip.compress(plain), plain), (gzip.compress(b"x") + gzip.compress(plain) + gzip.compress(b""), b"x" + plain)):
        for piece in (1, 7, 1000, 1 << 20):
            assert inflate(body, len(expected), piece) == expected
        with pytest.raises(TooLong):
            inflate(body, len(expected) - 1)


def test_what_is_no_gzip_or_ends_too_early_is_refused() -> None:
    whole = gzip.compress(os.urandom(3000))
    for body in (b"{}", whole[:-1], whole[:20], whole + b"\0\0\0", whole[:100] + b"\xff\xff\xff" + whole[103:], zlib.compress(b"{}")):
        with pytest.raises(ValueError, match="gzip body"):
            inflate(body, 1 << 20)
    assert inflate(b"", 10) == b""


def test_gzip_is_read_in_every_type(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            for name in ("gzip", "GZIP", "x-gzip"):
                body = gzip.compress(b'{"a":1}\n{"a":2}\n')
                status, answer, _ = await post(site, body, **{"Content-Type": NDJSON, "Content-Encoding": name})
                assert (status, answer["accepted"]) == (200, 2)
            assert (await post(site, b"{}", **{"Content-Encoding": "identity"}))[0] == 200
            for body in (b"{}", gzip.compress(b'{"a":1}')[:-4]):
                status, answer, _ = await post(site, body, **{"Content-Encoding": "gzip"})
                assert (status, answer["code"]) == (400, "payload_invalid")
            for name in ("br", "deflate", "gzip, gzip"):
                assert (await post(site, b"{}", **{"Content-Encoding": name}))[0] == 415

    asyncio.run(scenario())


def test_a_compressed_bomb_is_refused_without_inflating_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        bomb = gzip.compress(b" " * (100 << 20))  # 100 KB
        async with kit.running(post_bytes_max=1 << 20) as site:
            status, answer, _ = await post(site, bomb, **{"Content-Encoding": "gzip"})
            assert (status, answer["code"]) == (413, "too_large")
            assert site.metric("ingest_refused_requests_total", status="413", reason="too_large") == 1
            fits = gzip.compress(b" " * ((1 << 20) - 2) + b"{}")
            assert (await post(site, fits, **{"Content-Encoding": "gzip"}))[0] == 200

    asyncio.run(scenario())
