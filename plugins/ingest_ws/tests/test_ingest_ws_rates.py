"""Per-device rates and ages of connections: the logic, and what clients see of it."""

from __future__ import annotations

import asyncio
import json
import math
import os
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.testing import FakeClock
from headrace_ingest_ws.ages import ends_at
from headrace_ingest_ws.rates import Limit, Rate, Rates, limit_of

# --- the logic -------------------------------------------------------------------------------------------------------


def test_no_limit_is_none_and_one_alone_leaves_the_other_open() -> None:
    assert limit_of(0.0, 0.0, 10.0) is None
    assert limit_of(5.0, 0.0, 10.0) == Limit(5.0, math.inf, 10.0)
    rate = Rate(Limit(math.inf, 100.0, 1.0), 0.0)
    assert rate.take(1_000_000, 100, 0.0)
    rate.charge(1, 50)
    assert (rate.wait_ms(0.0), rate.reason()) == (501, "more than 100 bytes/s")
    assert rate.wait_ms(0.502) == 0


def test_a_burst_passes_at_once_and_then_the_rate_holds() -> None:
    rate = Rate(Limit(10.0, math.inf, 2.0), 100.0)
    assert rate.take(20, 1, 100.0)
    assert not rate.take(1, 1, 100.0)
    assert rate.wait_ms(100.0) == 1
    assert rate.take(5, 1, 100.5)
    assert rate.full(102.0) is False
    assert rate.full(102.51) is True


def test_a_message_larger_than_the_burst_passes_and_is_paid_for_afterwards() -> None:
    rate = Rate(Limit(10.0, math.inf, 1.0), 0.0)
    assert not rate.take(100, 1, 0.0)
    assert rate.wait_ms(0.0) == 0
    rate.charge(100, 1)
    assert rate.wait_ms(0.0) == 9001
    assert rate.wait_ms(9.002) == 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    rate = Rate(Limit(10.0, math.inf, 1.0), 5.0)
    rate.charge(20, 0)
    assert rate.wait_ms(5.0) == rate.wait_ms(4.0) == 1001


def test_over_any_time_nobody_gets_more_than_burst_and_rate_and_one_message() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = Random(seed)
    rate, now, passed = Rate(Limit(50.0, 1000.0, 2.0), 0.0), 0.0, [0, 0]
    for _ in range(5000):
        now += rng.choice((0.0, 0.001, 0.02, 0.5))
        events, size = rng.randrange(1, 30), rng.randrange(400)
        if rate.take(events, size, now):
            passed[0], passed[1] = passed[0] + events, passed[1] + size
        elif not rate.wait_ms(now):
            rate.charge(events, size)
            passed[0], passed[1] = passed[0] + events, passed[1] + size
        assert passed[0] <= 50 * (now + 2) + 30
        assert passed[1] <= 1000 * (now + 2) + 400


def test_all_connections_of_a_device_share_a_rate_and_idle_devices_are_forgotten() -> None:
    rates = Rates(Limit(10.0, math.inf, 1.0))
    one, two = rates.enter("d1", 0.0), rates.enter("d1", 0.0)
    assert one is two
    one.charge(50, 0)
    rates.leave(one)
    rates.sweep(100.0)
    assert len(rates) == 1, "one connection is left"
    assert two.wait_ms(100.0) == 0
    two.charge(50, 0)
    rates.leave(two)
    rates.sweep(100.5)
    assert len(rates) == 1, "it has sent more than it may, and nobody forgets that"
    rates.sweep(106.0)
    assert len(rates) == 0


def test_the_table_is_bounded_whoever_comes() -> None:
    rates = Rates(Limit(10.0, math.inf, 1.0), devices_max=100)
    held = rates.enter("held", 0.0)
    for number in range(1000):
        rates.of(f"d{number}", 0.0)
    assert len(rates) == 100
    assert rates.of("held", 0.0) is held


def test_a_sweep_comes_round_to_every_device() -> None:
    rates = Rates(Limit(10.0, math.inf, 1.0))
    busy = [rates.enter(f"busy{number}", 0.0) for number in range(2000)]
    for number in range(500):
        rates.of(f"idle{number}", 0.0)
    for second in range(5):
        rates.sweep(10.0 + second)
    assert len(rates) == len(busy)


def test_connections_that_came_together_do_not_end_together() -> None:
    random = Random(1)
    assert ends_at(5.0, 0.0, 0.2, random) == math.inf
    assert ends_at(5.0, 100.0, 0.0, random) == 105.0
    ends = [ends_at(0.0, 100.0, 0.2, random) for _ in range(1000)]
    assert 80.0 <= min(ends) < 82.0
    assert 98.0 < max(ends) <= 100.0


# --- what clients see ------------------------------------------------------------------------------------------------


async def texts_until_ack(client: Any, last: int) -> list[dict[str, Any]]:
    texts: list[dict[str, Any]] = []
    while not texts or texts[-1].get("ack") != last:
        texts.append(json.loads((await asyncio.wait_for(client.receive(), 10))[1]))
    return texts


@pytest.mark.usefixtures("each_loop")
def test_what_is_over_the_rate_is_rejected_before_its_ack_and_passes_after_retry_ms(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, device_events_per_s_max=1.0, device_burst_s=3.0) as site:
            client, other = await site.raw(), await site.raw("d2")
            client.send(b"".join(kit.frame(1, b'{"n":%d}' % number) for number in range(5)))
            texts = await texts_until_ack(client, 5)
            rejects = [text for text in texts if "reject" in text]
            assert [text["reject"] for text in rejects] == [4, 5]
            assert {text["code"] for text in rejects} == {"rate"}
            assert rejects[0]["reason"] == "more than 1 events/s"
            assert site.deliver.payloads == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
            assert site.metric("ingest_rejected_events_total", reason="rate") == 2
            other.text(b'{"other":1}')
            assert await other.receive() == (1, b'{"ack":1}')
            await clock.advance(1.0 + rejects[0]["retry_ms"] / 1000)
            client.text(b'{"n":3}')
            assert await texts_until_ack(client, 6) == [{"ack": 6}]

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_a_device_has_one_rate_whatever_it_sends_on(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(clock=FakeClock(), device_bytes_per_s_max=10.0, device_burst_s=2.0) as site:
            one, two = await site.raw(), await site.raw()
            one.text(b'[{"n":123456789},{"n":123456789}]')  # 33 bytes: more than the burst of 20, and paid for later
            assert (await texts_until_ack(one, 1)) == [{"ack": 1}]
            two.text(b"bad")
            two.text(b"{}")
            texts = await texts_until_ack(two, 2)
            assert [(text["reject"], text["code"]) for text in texts if "reject" in text] == [(1, "rate"), (2, "rate")]
            assert texts[0]["retry_ms"] == 1301
            body = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
            status, headers, answer = await kit.http(site.address, body)
            assert (status, headers["retry-after"]) == (429, "2")
            assert json.loads(answer) == {"code": "rate", "reason": "more than 10 bytes/s", "retry_ms": 1301}
            assert site.metric("ingest_refused_requests_total", status="429", reason="rate") == 1
            assert (await kit.http(site.address, body.replace(b"/d1/", b"/d2/")))[0] == 200

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_posts_count_against_the_rate_too(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(clock=FakeClock(), device_events_per_s_max=2.0, device_burst_s=1.0) as site:
            body = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n[{},{},{}]"
            assert (await kit.http(site.address, body))[0] == 200
            assert (await kit.http(site.address, body))[0] == 429
            client = await site.raw()
            client.text(b"{}")
            assert (await texts_until_ack(client, 1))[0]["code"] == "rate"

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_an_old_connection_is_closed_with_1012_after_its_acks(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock, deliver = FakeClock(), kit.FakeDeliver()
        options = {"connection_age_s_max": 100.0, "connection_age_jitter_ratio": 0.2, "idle_timeout_s": 1000.0}
        async with kit.running(deliver, clock=clock, **options) as site:
            client = await site.raw()
            await clock.advance(79.0)
            assert site.metric("ingest_connections") == 1
            deliver.gate.clear()
            client.text(b"{}")
            await kit.until(lambda: deliver.under_way == 1)
            await clock.advance(23.0)
            deliver.gate.set()
            assert await client.receive_until_closed() == ([{"ack": 1}], 1012)
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1012") == 1)

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
@pytest.mark.parametrize("kind", ["header", "payload", "fragments"])
def test_a_message_byte_by_byte_has_to_end_in_time(kit: SimpleNamespace, kind: str) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, message_timeout_s=20.0, idle_timeout_s=1000.0) as site:
            slow, honest = await site.raw(), await site.raw("d2")
            slow.text(b"{}")
            assert await slow.receive() == (1, b'{"ack":1}')
            stream = {
                "header": b"\x81",
                "payload": kit.frame(1, b"{" * 60)[:40],
                "fragments": b"".join(kit.frame(1 if not part else 0, b" ", fin=False) + kit.frame(10, b"") for part in range(5)),
            }[kind]
            for at in range(0, len(stream), 4):
                slow.send(stream[at : at + 4])
                await clock.advance(1.0)
                await asyncio.sleep(0.002)
            honest.text(b"{}")
            assert await honest.receive() == (1, b'{"ack":1}')
            assert site.metric("ingest_connections") == 2
            await clock.advance(22.0)
            assert (await slow.receive_until_closed())[1] == 1008
            assert site.metric("ingest_refused_connections_total", reason="message_timeout") == 1
            honest.text(b"{}")
            assert await honest.receive() == (1, b'{"ack":2}')

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_a_long_message_that_cannot_go_on_for_our_sake_has_all_the_time(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock, deliver = FakeClock(), kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, clock=clock, message_timeout_s=20.0, idle_timeout_s=1000.0, window_messages=1) as site:
            client = await site.raw()
            late = kit.frame(1, b'{"n":2}')
            client.send(kit.frame(1, b'{"n":1}') + late[:8])
            await kit.until(lambda: deliver.under_way == 1)
            await clock.advance(60.0)
            deliver.gate.set()
            assert await client.receive() == (1, b'{"ack":1}')
            client.send(late[8:])
            assert await client.receive() == (1, b'{"ack":2}')

    asyncio.run(scenario())
