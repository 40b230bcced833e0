"""A device: sends readings, keeps those that are not acked, and goes on after every break; nothing is lost, nothing doubled.

.venv/bin/python examples/device.py ws://127.0.0.1:8080 pump-7      (needs aiohttp; the protocol is in docs/protocol.md)
"""

import asyncio
import json
import random
import secrets
import sys
import time
from collections import deque

import aiohttp

FINAL = {1002, 1003, 1007, 1008, 1009, 4409}  # close codes after which connecting again is no use


class Device:
    def __init__(self, url: str, name: str) -> None:
        self.url = f"{url}/v1/devices/{name}/events"
        self.session = secrets.token_hex(8)  # a new one at each start: our memory of the numbers ends with the process
        self.acked = 0  # every message of the session up to this number is durable, or was refused
        self.held: deque[str] = deque(maxlen=100_000)  # messages acked + 1, acked + 2, ...
        self.sent = self.window = 0  # so many of them are on the wire, so many may be
        self.rejects: dict[int, dict] = {}  # by number; they count once the ack that covers them is there
        self.news = asyncio.Event()

    def measure(self, reading: dict) -> None:
        if len(self.held) < self.held.maxlen:  # a full device takes no more
            self.held.append(json.dumps(reading))
            self.news.set()

    def take(self, text: dict) -> None:
        if "reject" in text:
            self.rejects[text["reject"]] = text
        while self.acked < text.get("ack", 0):
            self.acked, self.sent, message = self.acked + 1, self.sent - 1, self.held.popleft()
            reject = self.rejects.pop(self.acked, None)
            if reject and "retry_ms" in reject:  # a new message, with a new number
                asyncio.get_running_loop().call_later(reject["retry_ms"] / 1000, self.measure, json.loads(message))
            elif reject:
                print(f"refused: {message}: {reject['code']}", file=sys.stderr)
        self.news.set()

    async def write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            self.news.clear()
            while self.sent < min(len(self.held), self.window):
                self.sent += 1
                await ws.send_str(self.held[self.sent - 1])
            await self.news.wait()

    async def talk(self, http: aiohttp.ClientSession) -> int | None:
        url = f"{self.url}?session={self.session}&acked={self.acked}"
        async with http.ws_connect(url, protocols=["headrace.v1.json"], heartbeat=30) as ws:
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
            return ws.close_code

    async def run(self) -> None:
        ceiling, code = 0.1, None
        async with aiohttp.ClientSession() as http:
            while code not in FINAL:
                acked, floor = self.acked, 0.0
                try:
                    code = await self.talk(http)
                except aiohttp.WSServerHandshakeError as error:
                    floor = float((error.headers or {}).get("Retry-After", 0))
                except (aiohttp.ClientError, OSError, TypeError) as error:  # TypeError: closed where the hello was expected
                    print(f"no connection: {error}", file=sys.stderr)
                ceiling = 0.1 if self.acked > acked else min(10.0, 2 * ceiling)
                await asyncio.sleep(floor + random.uniform(0, ceiling))


async def main(url: str, name: str, count: str = "1000000000", every_s: str = "1") -> None:
    device = Device(url, name)
    running = asyncio.create_task(device.run())
    for number in range(1, int(count) + 1):
        device.measure({"ts": time.time(), "number": number, "temperature": round(random.gauss(21, 0.5), 2)})
        await asyncio.sleep(float(every_s))
    while device.held and not running.done():
        await asyncio.wait([running], timeout=0.1)
    print(f"acked {device.acked}, held {len(device.held)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
