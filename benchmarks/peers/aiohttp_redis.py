"""What people build instead: an aiohttp WebSocket service that adds each message to a Redis stream, then acks.

    python peers/aiohttp_redis.py PORT REDIS_PORT

The good version of it: uvloop, all messages that have gathered go to Redis in one pipeline, one cumulative ack a connection.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import redis.asyncio
import uvloop
from aiohttp import WSMsgType, web


class Service:
    """Messages gather while a pipeline is under way; the next takes them all."""

    def __init__(self, redis_port: int) -> None:
        self.redis = redis.asyncio.Redis(port=redis_port)
        self.gathered: list[tuple[web.WebSocketResponse, int, str, str]] = []
        self.work = asyncio.Event()

    async def device(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        count, device = 0, request.match_info["device"]
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            msgspec.json.decode(message.data)
            count += 1
            self.gathered.append((socket, count, device, message.data))
            self.work.set()
        return socket

    async def store(self) -> None:
        while True:
            await self.work.wait()
            self.work.clear()
            messages, self.gathered = self.gathered, []
            pipeline = self.redis.pipeline(transaction=False)
            for _, _, device, text in messages:
                pipeline.xadd("events", {"device": device, "payload": text})
            await pipeline.execute()
            # stored: acknowledge
            for socket, last in {socket: count for socket, count, _, _ in messages}.items():
                if not socket.closed:
                    await socket.send_str(f'{{"ack":{last}}}')


async def main(port: int, redis_port: int) -> None:
    service = Service(redis_port)
    app = web.Application()
    app.router.add_get("/v1/devices/{device}/events", service.device)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    print("READY", flush=True)
    await service.store()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
