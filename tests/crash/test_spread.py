"""kill -9 of an edge whose events are spread over two middles by device, and of either middle, under load: nothing acked is lost,
nothing doubled, and each device's events arrive at one middle, in their order."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.crash.two_middles import MIDDLES, TwoMiddles

from headrace.testing import fake_context
from headrace.testing.oracle import Oracle
from headrace_queue_pmem import QueuePmem

UPLINKS = """
[tiers.edge.outputs.up-one]
use = "transport_zmq"
spread = "middles"
connect = "{one}"
peer = "one"
heartbeat_s = 0.1
dead_after_s = 0.5
reconnect_ms_max = 200
[tiers.edge.outputs.up-two]
use = "transport_zmq"
spread = "middles"
connect = "{two}"
peer = "two"
heartbeat_s = 0.1
dead_after_s = 0.5
reconnect_ms_max = 200
"""
#: Never there: the queue keeps everything, in the order in which it came.
KEPT = """
[tiers.{name}.outputs.kept]
use = "transport_zmq"
connect = "tcp://127.0.0.1:1"
"""
ROUNDS = 1 if "HEADRACE_FULL" not in os.environ else 20


async def in_order(spread: TwoMiddles, tier: str, folder: Path) -> list[str]:
    """The ids that a stopped middle's queue holds, in the order in which they came."""
    queue = QueuePmem(QueuePmem.Config(path=str(spread.data / f"{tier}-queue"), medium="file"), fake_context(folder / f"look-{tier}"))
    await queue.open()
    try:
        found: list[str] = []
        info, after = queue.queue_info(), queue.queue_info().tail - 1
        while after < info.head:
            read = await queue.queue_read("kept", after, 10_000, 1 << 24)
            found += [json.loads(payload)["id"] for payload in read.batch.column("payload").to_pylist()] if read.batch else []
            after = read.last
        return found
    finally:
        await queue.close()


@pytest.fixture
def spread(tmp_path: Path) -> Iterator[TwoMiddles]:
    with TwoMiddles(tmp_path, UPLINKS, KEPT) as made:
        yield made


@pytest.mark.timeout(300 + 20 * ROUNDS)
def test_whoever_is_killed_each_device_arrives_once_and_in_order_at_its_middle(
    spread: TwoMiddles, tmp_path: Path, lake_of: Callable[[Path], Any], capsys: Any
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracle = Oracle(devices=8, pause_s=0.02, sessions=True)

    async def scenario() -> None:
        for tier in ("two", "one", "edge"):
            await spread.start(tier)
        for _ in range(ROUNDS):
            down, other = rng.sample(MIDDLES, 2)
            await spread.received(down)
            spread.sides[down].kill()
            await spread.received(other)  # its devices are not held up
            if rng.random() < 0.7:
                spread.edge.kill()
                await spread.start("edge")
                await spread.received(other)
            await spread.start(down)
            await spread.received(down, 300)  # what waited, and more
            if rng.random() < 0.5:
                spread.edge.kill()
                await spread.start("edge")
        await asyncio.sleep(rng.uniform(0, 0.3))

    async def main() -> None:
        await spread.under_load(oracle, scenario)
        await asyncio.to_thread(spread.edge.stop)  # hands over what is queued
        for tier in MIDDLES:
            side = spread.sides[tier]
            await asyncio.to_thread(
                side._wait_for, lambda side=side: not side.metric("queue_reader_lag_events", reader="lake"), "to be through", 60
            )
            side.kill()
            came[tier] = await in_order(spread, tier, tmp_path)

    came: dict[str, list[str]] = {}
    asyncio.run(main())
    lakes = {name: lake_of(tmp_path / "data" / name) for name in MIDDLES}
    verdict = oracle.verdict(sum((lake.ids() for lake in lakes.values()), Counter[str]()))
    names = [set(lake.query("select origin, position from {lake}")) for lake in lakes.values()]
    devices = {tier: {issued.rpartition("/")[0] for issued in ids} for tier, ids in came.items()}
    with capsys.disabled():
        print(f"\n  spread over two middles, seed {seed}: {verdict}; devices {[len(found) for found in devices.values()]}")
    assert not verdict.lost
    assert not verdict.doubled
    assert all(devices.values()), "both took part"
    assert not devices["one"] & devices["two"], "a device is at both"
    assert not names[0] & names[1], "a position is in both"
    for ids in came.values():
        for device, of_device in itertools.groupby(
            sorted(ids, key=lambda issued: issued.rpartition("/")[0]), lambda i: i.rpartition("/")[0]
        ):
            numbers = [int(issued.rpartition("/")[2]) for issued in of_device]
            assert numbers == sorted(set(numbers)), f"{device} arrived in another order"
