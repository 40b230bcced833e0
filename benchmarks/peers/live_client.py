"""One client of the live feed: how long events took from the device to here.

    python peers/live_client.py PORT SECONDS    # as JSON: events, p50_ms, p99_ms, max_ms, gaps

Events carry the moment at which they were sent (`at`, Unix time in milliseconds, by the same machine's clock).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
import msgspec


class Readings(msgspec.Struct):
    """Only what is looked at."""

    at: float


class Event(msgspec.Struct):
    """One event of a frame."""

    readings: Readings


class Frame(msgspec.Struct):
    """Events, or a gap."""

    events: list[Event] = []
    gap: dict[str, object] | None = None


async def main(port: int, seconds: float) -> None:
    decode = msgspec.json.Decoder(Frame).decode
    taken: list[float] = []
    gaps = 0
    async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://127.0.0.1:{port}/v1/live", max_msg_size=0) as socket:
        print("READY", flush=True)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                message = await socket.receive(timeout=left)
            except TimeoutError:
                break
            now = time.time() * 1000
            frame = decode(message.data)
            taken += [now - event.readings.at for event in frame.events]
            gaps += int(str(frame.gap["events"])) if frame.gap else 0
    taken.sort()

    def at(share: float) -> float:
        return taken[min(len(taken) - 1, int(share * len(taken)))] if taken else float("nan")

    print(json.dumps({"events": len(taken), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0), "gaps": gaps}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
