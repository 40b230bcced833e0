"""Device sessions on a real site: over restarts, beyond the number that is remembered, and taken over."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import websockets

from headrace.testing.site import SiteProcess


class Client:
    """One connection of a session."""

    def __init__(self, ws: websockets.ClientConnection, hello: dict[str, Any]) -> None:
        self.ws, self.resume, self.refused = ws, hello["resume"], hello["refused"]

    async def send(self, *texts: str, upto: int) -> None:
        """Send, and wait for the ack of message `upto`."""
        for text in texts:
            await self.ws.send(text)
        while json.loads(await self.ws.recv()).get("ack") != upto:
            pass


async def connect(site: SiteProcess, device: str, session: str, acked: int = 0) -> Client:
    url = site.wait_for_url("devices").replace("http", "ws", 1)
    address = f"{url}/v1/devices/{device}/events?session={session}&acked={acked}"
    ws = await websockets.connect(address, subprotocols=[websockets.Subprotocol("headrace.v1.json")])
    return Client(ws, json.loads(await ws.recv())["hello"])


def test_sessions_survive_restarts_and_the_oldest_idle_is_forgotten(site: SiteProcess, lake: Any) -> None:
    site.overrides.append("tiers.site.queue.sessions_max=3")

    async def first_life() -> None:
        a = await connect(site, "a", "s")
        assert (a.resume, a.refused) == (0, [])
        await a.send('{"id":"a1"}', "no event", '{"id":"a3"}', "no event either", upto=4)
        for device in ("b", "c"):
            await (await connect(site, device, "s")).send('{"id":"%s1"}' % device, upto=1)  # noqa: UP031
        newer = await connect(site, "a", "s", acked=2)
        assert (newer.resume, newer.refused) == (4, [{"reject": 4, "code": "payload_invalid"}])
        await a.ws.wait_closed()
        assert a.ws.close_code == 4409
        await newer.send('{"id":"a5"}', upto=5)

    async def second_life() -> None:
        a = await connect(site, "a", "s", acked=3)  # it had no ack of 4 and 5, nor of the hello that spoke of 4
        assert (a.resume, a.refused) == (5, [{"reject": 4, "code": "payload_invalid"}])
        d = await connect(site, "d", "s")
        await d.send('{"id":"d1"}', upto=1)
        b = await connect(site, "b", "s", acked=1)  # the oldest idle: d came in its place
        assert b.resume is None
        await b.send('{"id":"b2"}', upto=2)
        again = await connect(site, "b", "s", acked=1)
        assert again.resume == 2
        assert site.metric("queue_evicted_sessions_total") == 2
        assert site.metric("ingest_session_hellos_total", resume="unknown") == 1
        for client in (a, b, d, again):
            client.ws.transport.abort()  # else the site waits for them when it stops

    site.start()
    asyncio.run(first_life())
    site.kill()
    site.start()
    asyncio.run(second_life())
    site.stop()
    assert lake.ids() == dict.fromkeys(("a1", "a3", "a5", "b1", "b2", "c1", "d1"), 1)
