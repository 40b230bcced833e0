"""kill -9 of an edge with two middles, and of either middle, under load: over both lakes nothing acked is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteProcess

SITE = """
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "{data}/edge-queue"
size_bytes_max = 134_217_728
[tiers.edge.outputs.uplink]
use = "transport_zmq"
heartbeat_s = 0.1
dead_after_s = 0.5
reconnect_ms_max = 200
[[tiers.edge.outputs.uplink.peers]]
name = "one"
connect = "{one}"
[[tiers.edge.outputs.uplink.peers]]
name = "two"
connect = "{two}"
"""
MIDDLE = """
[tiers.{name}.sources.links]
use = "transport_zmq"
listen = "{address}"
[tiers.{name}.queue]
use = "queue_pmem"
path = "{data}/{name}-queue"
size_bytes_max = 134_217_728
[tiers.{name}.outputs.lake]
use = "sink_lake"
path = "{data}/{name}/lake"
flush_interval_s = 0.2
"""
ROUNDS = 1 if "HEADRACE_FULL" not in os.environ else 20


class Fleet:
    """An edge and two middles, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as first, socket.socket() as second:
            for probe in (first, second):
                probe.bind(("127.0.0.1", 0))
            one, two = (f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in (first, second))
        data, file = folder / "data", folder / "site.toml"
        middles = (MIDDLE.format(name=name, address=address, data=data) for name, address in (("one", one), ("two", two)))
        file.write_text(SITE.format(data=data, one=one, two=two) + "".join(middles))
        for tier in ("edge", "one", "two"):
            (folder / tier).mkdir()
            setattr(self, tier, SiteProcess(file, folder / tier, [], {"HEADRACE_DATA": str(data)}, [tier]))

    edge: SiteProcess
    one: SiteProcess
    two: SiteProcess


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    with made.edge, made.one, made.two:
        yield made


@pytest.mark.timeout(300 + 20 * ROUNDS)
def test_whoever_is_killed_nothing_is_lost_or_doubled_over_both(
    fleet: Fleet, tmp_path: Path, lake_of: Callable[[Path], Any], capsys: Any
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracle = Oracle(devices=8, pause_s=0.03)

    async def received(side: SiteProcess, more: float = 200) -> None:
        wanted = await asyncio.to_thread(side.metric, "link_received_events_total") + more
        await asyncio.to_thread(side.wait_for_metric, "link_received_events_total", wanted)

    async def scenario() -> None:
        for side in (fleet.two, fleet.one, fleet.edge):
            await asyncio.to_thread(side.start)
        for round_ in range(ROUNDS):
            await received(fleet.one)
            fleet.one.kill()
            await received(fleet.two)  # it took over; what the other may hold waits
            if round_ % 2 == 0 or rng.random() < 0.5:
                fleet.edge.kill()
                await asyncio.to_thread(fleet.edge.start)
                await received(fleet.two)
            await asyncio.to_thread(fleet.one.start)
            if rng.random() < 0.5:
                fleet.two.kill()
                await received(fleet.one)
                await asyncio.to_thread(fleet.two.start)
        await asyncio.sleep(rng.uniform(0, 0.5))

    async def main() -> None:
        done = asyncio.Event()
        load = asyncio.ensure_future(oracle.run(lambda: fleet.edge.url("devices"), done))
        try:
            await scenario()
        finally:
            done.set()
            await load
        await oracle.settle(lambda: fleet.edge.url("devices"))

    asyncio.run(main())
    lanes = fleet.edge.metric("link_lanes_total")
    for side in (fleet.edge, fleet.one, fleet.two):
        side.stop()
    lakes = [lake_of(tmp_path / "data" / name) for name in ("one", "two")]
    verdict = oracle.verdict(sum((lake.ids() for lake in lakes), Counter[str]()))
    names = [set(lake.query("select origin, position from {lake}")) for lake in lakes]
    with capsys.disabled():
        print(f"\n  two middles, seed {seed}: {verdict}; {len(names[0]):,} and {len(names[1]):,} events, {lanes:.0f} lanes")
    assert all(names), "both took part"
    assert not verdict.lost
    assert not verdict.doubled
    assert not names[0] & names[1], "a position is in both"
