"""Bad input and failing parts of a whole site: each gets the documented answer and a counter, and nothing else is lost."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.testing.site import SiteProcess

SMALL_QUEUE = ("tiers.site.queue.size_bytes_max=16777216", "tiers.site.queue.segment_bytes=8388608")


def until(done: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.05)


async def talk(
    site: SiteProcess, device: str, messages: list[str | bytes], answers_until_ack: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Send the messages; all answers up to that ack, or up to the close with its code."""
    answers: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{site.url('devices')}/v1/devices/{device}/events") as socket:
        for message in messages:
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
        async with asyncio.timeout(20):
            while not answers or answers[-1].get("ack", 0) < answers_until_ack:
                message = await socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return answers, socket.close_code
                answers.append(json.loads(message.data))
    return answers, None


async def post(site: SiteProcess, device: str, body: bytes) -> tuple[int, str, Any]:
    headers = {"Content-Type": "application/x-ndjson"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{site.url('devices')}/v1/devices/{device}/events", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


def test_refused_messages_are_named_and_counted_and_the_others_stored(site: SiteProcess, lake: Any) -> None:
    site.start()
    messages: list[str | bytes] = [
        '{"id":"a"}',
        "{broken",
        '"a string"',
        "[1, 2]",
        b'{"id":"binary"}',
        '[{"id":"b"},{"id":"c"}]',
        '[{"id":"never"}, 7]',
        '{"id":"d"}',
    ]
    answers, _ = asyncio.run(talk(site, "sensor", messages, 8))
    rejects = {answer["reject"]: answer["code"] for answer in answers if "reject" in answer}
    assert rejects == dict.fromkeys((2, 3, 4, 5, 7), "payload_invalid")
    assert site.metric("ingest_rejected_events_total", reason="payload_invalid") >= 5
    site.stop()
    assert lake.ids() == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_oversized_messages_close_with_1009_after_the_earlier_ones_are_safe(site: SiteProcess, lake: Any) -> None:
    site.start()
    answers, code = asyncio.run(talk(site, "sensor", ['{"id":"a"}', '{"id":"' + "x" * 200_000 + '"}'], answers_until_ack=99))
    assert [answer["code"] for answer in answers if "reject" in answer] == ["too_large"]
    assert answers[-1] == {"ack": 2}
    assert code == 1009
    status, _, _ = asyncio.run(post(site, "sensor", b'{"id":"b"}'))
    assert status == 200
    site.stop()
    assert lake.ids() == {"a": 1, "b": 1}


def test_wrong_utf_8_costs_one_message_or_its_connection_and_no_other(site: SiteProcess, lake: Any) -> None:
    site.start()
    status, text, _ = asyncio.run(post(site, "sensor", b'{"id":"\xff"}\n{"id":"a"}'))
    assert (status, "UTF-8" in text) in ((200, True), (400, True))
    status, _, _ = asyncio.run(post(site, "sensor", '{"id":"é"}'.encode()))
    assert status == 200
    site.stop()
    assert lake.ids()["é"] == 1


def test_an_unknown_device_passes_with_null_context_and_is_counted(site: SiteProcess, lake: Any) -> None:
    give_context(site, "known")
    site.start()
    for device in ("known", "stranger"):
        assert asyncio.run(post(site, device, b'{"id":"%s"}' % device.encode()))[0] == 200
    site.wait_for_metric("enrich_unknown_device_events_total", 1)
    site.stop()
    rows = lake.query("select device, context.class, context.site from {lake} order by 1")
    assert rows == [("known", "pump", "north"), ("stranger", None, None)]


def test_devices_that_disagree_about_a_type_cost_no_event(site: SiteProcess, lake: Any) -> None:
    site.start()
    # the feed follows from now on: were it to begin behind the first event, while the lake opens, it would decode the second before
    site.wait_for_line("output starts", "lake")
    for device, body in (("a", b'{"t":1.5}'), ("b", b'{"t":"warm"}'), ("c", b'{"t":true,"u":{"v":2}}'), ("d", b'{"u":3}')):
        assert asyncio.run(post(site, device, body))[0] == 200
    site.wait_for_metric("decode_misfit_values_total", 2)
    site.stop()
    rows = lake.query('select device, readings.t, readings."u.v", readings.u, readings._other from {lake} order by 1')
    assert rows == [
        ("a", 1.5, None, None, None),
        ("b", None, None, None, '{"t":"warm"}'),
        ("c", None, 2.0, None, '{"t":true}'),
        ("d", None, None, 3.0, None),
    ]


def test_a_wild_clock_is_filed_under_the_arrival_and_keeps_its_claim(site: SiteProcess, lake: Any) -> None:
    site.overrides.append("tiers.site.engine.time_past_max_s=86400")
    site.start()
    for body in (b'{"id":"old","ts":"1999-01-01T00:00:00Z"}', b'{"id":"odd","ts":"noon"}', b'{"id":"now","ts":%d}' % time.time()):
        assert asyncio.run(post(site, "sensor", body))[0] == 200
    assert site.wait_for_metric("decode_time_outside_total", 1) == 1
    # counted when decoded: the live feed, which begins at the head, may have had a read of its own
    assert site.wait_for_metric("decode_time_unreadable_total", 1) in (1, 2)
    site.stop()
    rows = lake.query("select readings.id, readings.ts, abs(epoch(time) - epoch(received)) < 2 from {lake} order by 1")
    assert rows == [("now", None, True), ("odd", "noon", True), ("old", "1999-01-01T00:00:00Z", True)]


def test_an_unwritable_lake_degrades_the_output_and_recovers_without_loss(site: SiteProcess, lake: Any, tmp_path: Path) -> None:
    target = tmp_path / "data" / "lake"
    target.parent.mkdir()
    target.write_text("not a folder")
    site.start()
    assert asyncio.run(post(site, "sensor", b'{"id":"a"}'))[0] == 200
    until(lambda: site.components()["lake"]["status"] == "degraded", "the lake is degraded")
    assert str(target) in site.components()["lake"]["reason"]
    assert site.probe("/livez")[0] == site.probe("/readyz")[0] == 200
    target.unlink()
    until(lambda: site.components()["lake"]["status"] == "ok", "the lake is ok again")
    assert asyncio.run(post(site, "sensor", b'{"id":"b"}'))[0] == 200
    site.stop()
    assert lake.ids() == {"a": 1, "b": 1}


def test_a_full_queue_refuses_with_503_stops_reading_and_recovers(site: SiteProcess, lake: Any, tmp_path: Path) -> None:
    site.overrides += SMALL_QUEUE
    target = tmp_path / "data" / "lake"
    target.parent.mkdir()
    target.write_text("not a folder")
    site.start()
    accepted = asyncio.run(fill(site))
    status, _, headers = asyncio.run(post(site, "sensor", b'{"id":"refused"}'))
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    assert site.probe("/readyz") == (503, "site: the queue is full\n")
    assert site.probe("/livez")[0] == 200
    target.unlink()
    until(lambda: site.probe("/readyz")[0] == 200, "the queue has room again", 60)
    assert asyncio.run(post(site, "sensor", b'{"id":"after"}'))[0] == 200
    site.stop()
    ids = lake.ids()
    # the POST that met the full queue was not answered: its events may be there, once
    assert {issued for issued in ids if not issued.startswith(f"{accepted}-")} == {
        *(f"{count}-{number}" for count in range(accepted) for number in range(100)),
        "after",
    }
    assert set(ids.values()) == {1}


async def fill(site: SiteProcess) -> int:
    """POST batches of 100 events until one is no longer taken; how many were."""
    for count in range(1000):
        body = b"\n".join(b'{"id":"%d-%d","pad":"%s"}' % (count, number, b"x" * 1000) for number in range(100))
        posting = asyncio.create_task(post(site, "sensor", body))
        while not (await asyncio.wait([posting], timeout=0.1))[0]:
            if await asyncio.to_thread(site.metric, "ingest_paused") == 1:
                posting.cancel()
                return count
        if posting.result()[0] != 200:
            return count
    raise AssertionError("the queue never became full")


def test_a_context_database_that_is_down_at_start_or_later_costs_no_event(site: SiteProcess, lake: Any, tmp_path: Path) -> None:
    site.overrides += ["tiers.site.enrichers.context.refresh_interval_s=1"]
    site.start()
    until(lambda: site.components()["context"]["status"] == "degraded", "the context is degraded")
    assert "headrace context import" in site.components()["context"]["reason"]
    assert asyncio.run(post(site, "known", b'{"id":"before"}'))[0] == 200
    site.wait_for_metric("enrich_unknown_device_events_total", 1)
    give_context(site, "known")
    until(lambda: site.components()["context"]["status"] == "ok", "the context is read", 60)
    (tmp_path / "data" / "context.db").unlink()
    until(lambda: site.components()["context"]["status"] == "degraded", "the context is degraded")
    assert asyncio.run(post(site, "known", b'{"id":"after"}'))[0] == 200
    site.stop()
    assert dict(lake.query("select readings.id, context.class from {lake}")) == {"before": None, "after": "pump"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_under_the_lake_is_waited_for(site: SiteProcess, lake: Any, tmp_path: Path) -> None:
    target = tmp_path / "data" / "lake"
    target.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=300k tmpfs {target} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        site.start()
        body = b"\n".join(b'{"id":"%d","pad":"%s"}' % (number, os.urandom(500).hex().encode()) for number in range(800))
        assert asyncio.run(post(site, "sensor", body))[0] == 200
        until(lambda: site.components()["lake"]["status"] == "degraded", "the lake is degraded")
        assert os.system(f"mount -o remount,size=64m {target}") == 0
        until(lambda: site.components()["lake"]["status"] == "ok", "the lake is ok again", 60)
        site.stop()
        ids = lake.ids()
        assert len(ids) == 800
        assert set(ids.values()) == {1}
    finally:
        site.__exit__()
        os.system(f"umount {target}")


def give_context(site: SiteProcess, device: str) -> None:
    folder = site.folder / "data"
    folder.mkdir(exist_ok=True)
    db = sqlite3.connect(folder / "context.db")
    db.execute("create table devices (device text primary key, class text, type text, site text, latitude real, longitude real)")
    db.execute("insert into devices values (?, 'pump', 'p100', 'north', 1.0, 2.0)", (device,))
    db.commit()
    db.close()
