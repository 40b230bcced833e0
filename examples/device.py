"""A device: sends the readings that come as lines of JSON, keeps them until they are acked, and goes on after every break.

echo '{"temperature": 21.5}' | .venv/bin/python examples/device.py ws://127.0.0.1:8080 pump-7

It needs aiohttp. Nothing is lost and nothing doubled as long as it runs; the protocol is in docs/protocol.md.
"""

import asyncio
import json
import random
import secrets
import sys
from collections import deque

import aiohttp

HELD_MAX = 100_000
FINAL = {1002, 1003, 1007, 1008, 1009, 4409}  # close codes after which connecting again is no use


class Device:
    def __init__(self, url: str, name: str) -> None:
        # a new session at each start: our memory of the numbers ends with the process
        self.url = f"{url}/v1/devices/{name}/events?session={secrets.token_hex(8)}&acked="
        self.acked = self.sent = self.window = 0  # durable or refused up to here; so many behind it are on the wire, or may be
        self.held, self.rejects, self.news = deque(), {}, asyncio.Event()  # messages acked + 1, ...; rejects by number

    def measure(self, reading: dict) -> None:
        if len(self.held) < HELD_MAX:  # a full device takes no more
            self.held.append(json.dumps(reading))
            self.news.set()

    def take(self, text: dict) -> None:
        self.rejects |= {text["reject"]: text} if "reject" in text else {}
        while self.acked < text.get("ack", 0):
            self.acked, self.sent, message = self.acked + 1, self.sent - 1, self.held.popleft()
            reject = self.rejects.pop(self.acked, {})
            if "retry_ms" in reject:  # a new message, with a new number
                asyncio.get_running_loop().call_later(reject["retry_ms"] / 1000, self.measure, json.loads(message))
            elif reject:
                print(f"refused: {message}: {reject['code']}", file=sys.stderr)
        self.news.set()

    async def write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while await self.news.wait():
            self.news.clear()
            while self.sent < min(len(self.held), self.window):
                self.sent += 1
                await ws.send_str(self.held[self.sent - 1])

    async def talk(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        hello = (await ws.receive_json())["hello"]  # nothing is sent before it is here
        self.rejects = {reject["reject"]: reject for reject in hello["refused"]}
        self.take({"ack": hello["resume"] or 0})  # null: the server cannot tell, and all that is held goes again
        self.sent, self.window = 0, hello["window"]
        writer = asyncio.create_task(self.write(ws))
        try:
            async for frame in ws:
                self.take(json.loads(frame.data))
        finally:
            writer.cancel()

    async def run(self) -> None:
        ceiling, code = 0.1, None
        while code not in FINAL:
            acked, floor = self.acked, 0.0
            try:
                async with (
                    aiohttp.ClientSession() as http,
                    http.ws_connect(f"{self.url}{acked}", protocols=["headrace.v1.json"], heartbeat=30) as ws,
                ):
                    await self.talk(ws)
                code = ws.close_code
            except (aiohttp.ClientError, OSError, TypeError) as error:  # TypeError: closed where the hello was expected
                floor = float((getattr(error, "headers", None) or {}).get("Retry-After", 0))
                print(f"no connection: {error}", file=sys.stderr)
            ceiling = 0.1 if self.acked > acked else min(10.0, 2 * ceiling)
            await asyncio.sleep(floor + random.uniform(0, ceiling))


async def main(url: str, name: str) -> None:
    device = Device(url, name)
    running = asyncio.create_task(device.run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        device.measure(json.loads(line))
    while device.held and not running.done():
        await asyncio.wait([running], timeout=0.1)
    print(f"acked {device.acked}, held {len(device.held)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
