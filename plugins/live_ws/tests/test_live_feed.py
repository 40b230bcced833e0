"""live_ws over real sockets: what clients get, and that no client harms another."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import msgspec
import pytest

from headrace import TransientError

Running = Callable[..., AbstractAsyncContextManager[Any]]
CLASSES = ("thermostat", "meter", "pump")


def fleet(count: int, start: int = 0, **readings: Any) -> list[dict[str, Any]]:
    """One event of each of `count` devices."""
    return [
        {
            "device": f"d{index:04}",
            "readings": {"value": float(index), **readings},
            "context": {"class": CLASSES[index % 3], "type": f"t{index % 2}", "site": f"s{index % 5}"},
        }
        for index in range(start, start + count)
    ]


async def next_frame(ws: aiohttp.ClientWebSocketResponse, kind: str) -> Any:
    """The next frame that has this key."""
    async with asyncio.timeout(20):
        while True:
            frame = msgspec.json.decode(await ws.receive_str())
            if kind in frame:
                return frame[kind]


async def next_events(ws: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while len(events) < count:
        events += await next_frame(ws, "events")
    return events


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop its turns until the condition holds."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


def devices(events: list[dict[str, Any]]) -> list[str]:
    return [event["device"] for event in events]


# --- events and filters


def test_client_gets_each_event_as_documented(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws = await live.connect()
            await live.write(
                [{"device": "Zähler-漢", "readings": {"t": 21.5, "note": "<b>🌊"}, "context": {"class": "meter", "site": None}}]
            )
            await live.write([{"device": "bare"}])
            first, second = await next_events(ws, 2)
            assert first == {
                "device": "Zähler-漢",
                "time": "2025-11-23T20:33:20.000000Z",
                "received": "2025-11-23T20:33:20.000000Z",
                "readings": {"t": 21.5, "note": "<b>🌊"},
                "context": {"class": "meter"},
                "origin": "5f0c7f9e",
                "position": 1,
            }
            assert (second["device"], second["readings"], second["context"], second["position"]) == ("bare", {}, {}, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?class=thermostat", [0, 3, 6, 9]),
        ("?class=thermostat,meter&type=t0", [0, 4, 6, 10]),
        ("?class=thermostat&class=pump&site=s1", [6, 11]),
        ("?device=d0001,d0002", [1, 2]),
        ("?device=*1*", [1, 10, 11]),
        ("?device=%25", []),
        ("?site=nowhere", []),
    ],
)
def test_filter_of_the_query_decides_what_comes(feed: Running, query: str, expected: list[int]) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws, all_ws = await live.connect(query), await live.connect()
            await live.write(fleet(12))
            await next_events(all_ws, 12)
            assert devices(await next_events(ws, len(expected))) == [f"d{index:04}" for index in expected]

    asyncio.run(scenario())


def test_filter_can_be_changed_and_holds_for_all_that_follows_the_answer(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws = await live.connect("?class=pump")
            await ws.send_str('{"filter":{"class":["meter"],"device":"d*"}}')
            assert await next_frame(ws, "filter") == {"device": ["d*"], "class": ["meter"], "type": [], "site": []}
            await live.write(fleet(12))
            assert {event["context"]["class"] for event in await next_events(ws, 4)} == {"meter"}
            await ws.send_str('{"filter":{},"snapshot":true}')
            await next_frame(ws, "filter")
            assert len(await next_frame(ws, "snapshot")) == 12

    asyncio.run(scenario())


def test_events_that_waited_when_the_filter_changed_do_not_come_under_the_new_one(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(tick_ms=10_000) as live:
            ws = await live.connect("?class=pump")
            await live.write(fleet(3))
            await next_events(ws, 1)  # the tick is over, the next is far
            await live.write(fleet(3))
            await ws.send_str('{"filter":{}}')
            await next_frame(ws, "filter")
            await live.write(fleet(1, 7))
            await live.live._hub.tick()
            assert devices(await next_events(ws, 1)) == ["d0007"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"filter":5}',
        '{"filter":{"class":5}}',
        '{"filter":{},"more":1}',
        '{"filter":{},"snapshot":2}',
        "\x00",
        b"{}",
    ],
)
def test_bad_message_is_answered_with_an_error_and_changes_nothing(feed: Running, message: str | bytes) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws = await live.connect("?class=pump")
            await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
            assert "expected" in await next_frame(ws, "error")
            await live.write(fleet(3))
            assert devices(await next_events(ws, 1)) == ["d0002"]
            assert live.metric("live_invalid_messages_total") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("query", ["?clas=pump", "?mode=fast", "?snapshot=yes", f"?device={'x' * 300}"])
def test_bad_query_is_refused_before_the_upgrade(feed: Running, query: str) -> None:
    async def scenario() -> None:
        async with feed() as live, live.session.get(f"{live.url}/v1/live{query}") as response:
            assert response.status == 400
            assert "expected" in (await response.json())["error"]

    asyncio.run(scenario())


def test_large_message_ends_the_connection_with_1009(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(message_bytes_max=200) as live:
            ws = await live.connect()
            await ws.send_str("x" * 1000)
            await until_closed(ws)
            assert ws.close_code == 1009
            await until(lambda: live.metric("live_clients") == 0)

    asyncio.run(scenario())


async def until_closed(ws: aiohttp.ClientWebSocketResponse) -> None:
    async with asyncio.timeout(20):
        async for _ in ws:
            pass


# --- snapshot


def test_snapshot_holds_the_newest_event_of_each_device_that_passes_the_filter(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            await live.write(fleet(10))
            await live.write(fleet(4, extra="new"))
            ws = await live.connect("?snapshot=1&class=thermostat")
            snapshot = await next_frame(ws, "snapshot")
            assert {event["device"]: event["position"] for event in snapshot} == {"d0000": 11, "d0003": 14, "d0006": 7, "d0009": 10}
            await live.write(fleet(1))
            assert devices(await next_events(ws, 1)) == ["d0000"]

    asyncio.run(scenario())


def test_snapshot_forgets_the_oldest_devices_beyond_its_bound(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(devices_max=100) as live:
            for start in range(0, 20_000, 1000):
                await live.write(fleet(1000, start))
            ws = await live.connect("?snapshot=1")
            assert sorted(devices(await next_frame(ws, "snapshot"))) == [f"d{index}" for index in range(19_900, 20_000)]
            assert live.metric("live_evicted_devices_total") == 19_900

    asyncio.run(scenario())


def test_snapshot_too_large_for_a_client_keeps_the_newest_and_says_how_many_are_left_out(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(client_bytes_max=10_000) as live:
            await live.write(fleet(500))
            ws = await live.connect("?snapshot=1")
            async with asyncio.timeout(20):
                frame = msgspec.json.decode(await ws.receive_str())
            got = devices(frame["snapshot"])
            assert sorted(got) == [f"d{index:04}" for index in range(500 - len(got), 500)]
            assert frame["left_out"] == 500 - len(got)

    asyncio.run(scenario())


# --- slow clients


class DeafClient:
    """Does the handshake and then does not read until told to."""

    def __init__(self, url: str, query: str = "") -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            f"GET /v1/live{query} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.socket.setblocking(False)
        self._bytes = b""

    async def frames(self) -> list[dict[str, Any]]:
        """Read from now on, until the server is silent for a while or closes; all text frames so far."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                async with asyncio.timeout(0.5):
                    data = await loop.sock_recv(self.socket, 1 << 20)
                if not data:
                    break
                self._bytes += data
        except (TimeoutError, ConnectionError):
            pass
        rest = self._bytes.partition(b"\r\n\r\n")[2]
        frames = []
        while len(rest) >= 2:
            opcode, size, header = rest[0] & 15, rest[1] & 127, 2
            if size == 126:
                size, header = int.from_bytes(rest[2:4]), 4
            elif size == 127:
                size, header = int.from_bytes(rest[2:10]), 10
            if len(rest) < header + size:
                break
            if opcode == 1:
                frames.append(msgspec.json.decode(rest[header : header + size]))
            rest = rest[header + size :]
        return frames


def total(frames: list[dict[str, Any]], filter_: Callable[[dict[str, Any]], int]) -> int:
    return sum(filter_(frame) for frame in frames)


PADDING = "x" * 2000


def test_client_that_never_reads_slows_nobody_is_bounded_and_is_disconnected(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(client_events_max=300, client_bytes_max=1 << 20, client_timeout_s=0.5) as live:
            deaf = DeafClient(live.url)
            await until(lambda: live.metric("live_clients") == 1)
            ws = await live.connect("?class=meter")
            read = 0
            for _ in range(60):
                await live.write(fleet(30, note=PADDING))
                read += len(await next_events(ws, 10))
                assert sum(client.backlog.events for client in live.live._hub.clients) <= 300
                assert sum(client.backlog.bytes for client in live.live._hub.clients) <= 1 << 20
            assert read == 600
            await until(lambda: live.metric("live_clients") == 1)
            assert live.metric("live_closed_clients_total", reason="slow client") == 1
            sent = live.metric("live_sent_events_total") - read
            # What sat in the frame that never went through, and behind it, is counted when the connection ends.
            gone = live.metric("live_gap_events_total", reason="slow client") + live.metric("live_gap_events_total", reason="closed")
            assert sent + gone <= 1800
            assert gone > 0
            deaf.socket.close()

    asyncio.run(scenario())


def test_what_a_slow_client_got_and_what_it_was_told_it_missed_is_all_that_was_written(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(client_events_max=200, heartbeat_s=1000) as live:
            slow = DeafClient(live.url, "?class=pump,meter")
            await until(lambda: live.metric("live_clients") == 1)
            ws = await live.connect("?device=d0000")
            for _ in range(100):
                await live.write(fleet(30, note=PADDING))
                await next_events(ws, 1)
            frames = await slow.frames()
            sent = total(frames, lambda frame: len(frame.get("events", ())))
            missed = total(frames, lambda frame: frame.get("gap", {}).get("events", 0))
            assert {frame["gap"]["reason"] for frame in frames if "gap" in frame} == {"slow client"}
            assert missed > 0
            assert sent + missed == 2000
            assert live.metric("live_gap_events_total", reason="slow client") == missed
            positions = [event["position"] for frame in frames for event in frame.get("events", ())]
            assert positions == sorted(positions)
            slow.socket.close()

    asyncio.run(scenario())


def test_slow_client_in_mode_latest_gets_the_newest_of_each_device_and_every_event_is_accounted_for(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(client_events_max=25, heartbeat_s=1000) as live:
            slow = DeafClient(live.url, "?mode=latest")
            await until(lambda: live.metric("live_clients") == 1)
            ws = await live.connect("?device=d0000")
            for number in range(100):
                await live.write(fleet(30 if number < 50 else 20, note=PADDING, number=number))
                await next_events(ws, 1)
            frames = await slow.frames()
            last = {event["device"]: event["readings"]["number"] for frame in frames for event in frame.get("events", ())}
            assert [last[f"d{index:04}"] for index in range(20)] == [99] * 20
            sent = total(frames, lambda frame: len(frame.get("events", ())))
            conflated = total(frames, lambda frame: frame.get("conflated", 0))
            missed = total(frames, lambda frame: frame.get("gap", {}).get("events", 0))
            assert min(conflated, missed) > 0
            assert sent + conflated + missed == 2500
            assert live.metric("live_conflated_events_total") == conflated
            slow.socket.close()

    asyncio.run(scenario())


def test_more_events_than_the_budget_of_a_tick_are_left_out_and_counted_for_each_filter(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(events_per_tick_max=50, tick_ms=10_000) as live:
            every, meters, one = await live.connect(), await live.connect("?class=meter"), await live.connect("?device=d0007")
            await live.write(fleet(300))
            for _ in range(4):  # beyond what may wait for a tick
                await live.write(fleet(300))
            await live.live._hub.tick()
            gaps, events = await gap_and_events(every, 1500)
            assert len(events) == 50
            assert gaps == 1450
            gaps, events = await gap_and_events(meters, 500)
            assert gaps + len(events) == 500
            gaps, events = await gap_and_events(one, 5)
            assert gaps + len(events) == 5
            assert live.metric("live_rendered_events_total") == 50

    asyncio.run(scenario())


async def gap_and_events(ws: aiohttp.ClientWebSocketResponse, written: int) -> tuple[int, list[dict[str, Any]]]:
    missed = 0
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while missed + len(events) < written:
            frame = msgspec.json.decode(await ws.receive_str())
            missed += frame.get("gap", {}).get("events", 0)
            events += frame.get("events", [])
    return missed, events


def test_client_that_comes_while_events_wait_gets_only_what_follows(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(tick_ms=10_000) as live:
            early = await live.connect()
            await live.write(fleet(1))
            await next_events(early, 1)  # the tick is over, the next is far
            await live.write(fleet(1, 1))
            late = await live.connect()
            await live.write(fleet(1, 2))
            await live.live._hub.tick()
            assert devices(await next_events(early, 2)) == ["d0001", "d0002"]
            assert devices(await next_events(late, 1)) == ["d0002"]

    asyncio.run(scenario())


def test_positions_that_never_came_are_told_to_every_client(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws = await live.connect("?class=pump")
            await live.write(fleet(3))
            await next_events(ws, 1)
            live.position += 40  # the host went on at the head
            await live.write(fleet(3))
            assert await next_frame(ws, "gap") == {"events": 40, "reason": "skipped"}
            assert (await next_events(ws, 1))[0]["position"] == 46
            assert live.metric("live_gap_events_total", reason="skipped") == 40

    asyncio.run(scenario())


def test_nothing_is_rendered_or_kept_waiting_without_clients(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            ws = await live.connect()
            await ws.close()
            await until(lambda: live.metric("live_clients") == 0)
            for _ in range(5):
                await live.write(fleet(100))
            await live.live._hub.tick()
            assert live.metric("live_rendered_events_total") == 0

    asyncio.run(scenario())


# --- the door


def test_page_of_another_origin_is_refused_and_of_the_same_or_an_allowed_one_is_not(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(origins_allowed=["https://ops.example"]) as live:
            for origin in ("https://evil.example", "null", live.url.replace("127.0.0.1", "localhost")):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await live.connect(origin=origin)
                assert refused.value.status == 403
            for origin in (live.url, "https://ops.example", None):
                await live.connect(origin=origin)
            assert live.metric("live_refused_clients_total", reason="origin") == 3

    asyncio.run(scenario())


def test_clients_beyond_the_bound_are_refused_until_one_leaves(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(clients_max=2) as live:
            first, _ = await live.connect(), await live.connect()
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await live.connect()
            assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "5")  # type: ignore[index]
            await first.close()
            await until(lambda: live.metric("live_clients") == 1)
            await live.connect()

    asyncio.run(scenario())


def test_drain_sends_what_waits_then_closes_with_1012_and_refuses_newcomers(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(tick_ms=10_000) as live:
            ws = await live.connect()
            await live.write(fleet(1))
            await next_events(ws, 1)
            await live.write(fleet(2, 1))
            drain = asyncio.create_task(live.live.drain(5.0))
            assert devices(await next_events(ws, 2)) == ["d0001", "d0002"]
            await until_closed(ws)
            await drain
            assert ws.close_code == 1012
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await live.connect()
            assert refused.value.status == 503

    asyncio.run(scenario())


def test_drain_does_not_wait_longer_than_its_deadline_for_a_client_that_does_not_read(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(client_timeout_s=1000, client_events_max=10_000) as live:
            deaf = DeafClient(live.url)
            await until(lambda: live.metric("live_clients") == 1)
            ws = await live.connect("?device=d0000")
            for _ in range(40):
                await live.write(fleet(30, note=PADDING))
                await next_events(ws, 1)
            async with asyncio.timeout(10):
                await live.live.drain(0.1)
                await live.live.close()
            deaf.socket.close()

    asyncio.run(scenario())


def test_silent_feed_sends_heartbeats(feed: Running) -> None:
    async def scenario() -> None:
        async with feed(heartbeat_s=0.1) as live:
            ws = await live.connect()
            assert (await next_frame(ws, "heartbeat"))["interval_s"] == 0.1

    asyncio.run(scenario())


def test_address_in_use_is_a_transient_error(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            taken = live.url.removeprefix("http://")
            with pytest.raises(TransientError, match=f"cannot listen on {taken}"):
                async with feed(listen=taken):
                    pass
            other = type(live.live)(msgspec.convert({"listen": taken}, type(live.live).Config), live.context)
            await other.close()  # without open

    asyncio.run(scenario())


@pytest.mark.parametrize("listen", ["8081", "host", "host:port", "http://host:1", ":1", "a b:1"])
def test_listen_address_without_host_and_port_is_refused_by_the_config(feed: Running, listen: str) -> None:
    async def scenario() -> None:
        async with feed(listen=listen):
            pass

    with pytest.raises(msgspec.ValidationError, match="listen"):
        asyncio.run(scenario())


def test_plain_request_to_the_feed_is_told_to_upgrade(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live, live.session.get(f"{live.url}/v1/live") as response:
            assert response.status == 426

    asyncio.run(scenario())


# --- the page


def test_page_and_its_files_are_served_with_a_strict_policy_and_point_nowhere_else(feed: Running) -> None:
    async def scenario() -> None:
        async with feed() as live:
            async with live.session.get(f"{live.url}/") as response:
                page = await response.text()
            named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
            assert {"app.js", "style.css"} <= named
            for name in {"", *named}:
                async with live.session.get(f"{live.url}/{name}") as response:
                    text = await response.text()
                    policy = response.headers["Content-Security-Policy"]
                    assert response.status == 200
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert not re.search(r"https?://(?!www\.w3\.org/)", text)
                assert "innerHTML" not in text

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/nothing", "/../live.py", "/%2e%2e/live.py", "/__init__.py"])
def test_other_paths_are_not_found(feed: Running, path: str) -> None:
    async def scenario() -> None:
        async with feed() as live, live.session.get(f"{live.url}{path}") as response:
            assert response.status == 404

    asyncio.run(scenario())
