"""kill -9 of a real process at every fault point and at random moments: what was acked is durable."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import ingest_crash_child
import pytest
import websockets

from headrace.testing.forking import Forked

DEVICES = 5


class Device:
    """Sends numbered messages as fast as the window of the server allows, and remembers the highest ack."""

    def __init__(self, name: str, heard: Callable[[], None]) -> None:
        self.name, self.acked, self._heard = name, 0, heard

    async def run(self, url: str) -> None:
        try:
            async with websockets.connect(f"ws{url.removeprefix('http')}/v1/devices/{self.name}/events") as ws:
                sending = asyncio.create_task(self._send(ws))
                try:
                    async for text in ws:
                        self.acked = json.loads(text)["ack"]
                        self._heard()
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except (OSError, websockets.WebSocketException):
            return

    async def _send(self, ws: websockets.ClientConnection) -> None:
        number = 0
        while True:
            number += 1
            await ws.send(json.dumps({"device": self.name, "n": number}))
            if number % 20 == 0:
                await asyncio.sleep(0)


async def crash(folder: Path, faults: str, kill_after_acks: int | None) -> list[Device]:
    """Run a child under load until it is dead; what its devices saw."""
    child = Forked(ingest_crash_child.run, [str(folder), faults], stdout=True)
    assert child.stdout is not None
    with child.stdout as stdout:
        url = (await asyncio.wait_for(asyncio.to_thread(stdout.readline), 30)).strip()
    acks = 0

    def heard() -> None:
        nonlocal acks
        acks += 1
        if acks == kill_after_acks:
            os.kill(child.pid, signal.SIGKILL)

    devices = [Device(f"d{number}", heard) for number in range(DEVICES)]
    load = asyncio.gather(*(device.run(url) for device in devices))
    assert await asyncio.to_thread(child.wait, 30) == -signal.SIGKILL
    await asyncio.wait_for(load, 30)
    return devices


def durable_numbers(folder: Path) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {f"d{number}": [] for number in range(DEVICES)}
    path = folder / "durable"
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for line in lines[:-1]:  # the last one was cut off by the kill, or is empty
        event = json.loads(line)
        numbers[event["device"]].append(event["n"])
    return numbers


def check(folder: Path, devices: list[Device]) -> int:
    """Every acked message is durable, one time and in order; how many were acked."""
    durable = durable_numbers(folder)
    for device in devices:
        held = durable[device.name]
        assert held == list(range(1, len(held) + 1))
        assert device.acked <= len(held), f"{device.name}: acked {device.acked}, durable {len(held)}"
    return sum(device.acked for device in devices)


@pytest.mark.parametrize("point", ["before_deliver", "after_deliver", "after_ack"])
@pytest.mark.parametrize("hit", [1, 7])
def test_killed_at_a_fault_point_nothing_acked_is_lost(tmp_path: Path, point: str, hit: int) -> None:
    devices = asyncio.run(crash(tmp_path, f"ingest_ws.{point}=kill@{hit}", None))
    acked = check(tmp_path, devices)
    print("acked", acked)
    if hit == 1 and point != "after_ack":
        assert acked == 0


def test_killed_at_random_moments_nothing_acked_is_lost(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = random.Random(seed)
    for round_ in range(3):
        folder = tmp_path / str(round_)
        devices = asyncio.run(crash(folder, "", rng.randrange(1, 60)))
        acked = check(folder, devices)
        print("acked", acked)
        assert acked > 0
