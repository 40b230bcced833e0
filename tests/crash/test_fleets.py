"""kill -9 of an edge with two middles, and of either middle, under load: over both lakes nothing acked is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.crash.two_middles import MIDDLES, TwoMiddles

from headrace.testing.oracle import Oracle

UPLINKS = """
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
ROUNDS = 1 if "HEADRACE_FULL" not in os.environ else 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[TwoMiddles]:
    with TwoMiddles(tmp_path, UPLINKS) as made:
        yield made


@pytest.mark.timeout(300 + 20 * ROUNDS)
def test_whoever_is_killed_nothing_is_lost_or_doubled_over_both(
    fleet: TwoMiddles, tmp_path: Path, lake_of: Callable[[Path], Any], capsys: Any
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracle = Oracle(devices=8, pause_s=0.03)

    async def scenario() -> None:
        for tier in ("two", "one", "edge"):
            await fleet.start(tier)
        for round_ in range(ROUNDS):
            await fleet.received("one")
            fleet.sides["one"].kill()
            await fleet.received("two")  # it took over; what the other may hold waits
            if round_ % 2 == 0 or rng.random() < 0.5:
                fleet.edge.kill()
                await fleet.start("edge")
                await fleet.received("two")
            await fleet.start("one")
            if rng.random() < 0.5:
                fleet.sides["two"].kill()
                await fleet.received("one")
                await fleet.start("two")
        await asyncio.sleep(rng.uniform(0, 0.5))

    asyncio.run(fleet.under_load(oracle, scenario))
    lanes = fleet.edge.metric("link_lanes_total")
    for side in fleet.sides.values():  # the edge first
        side.stop()
    lakes = [lake_of(tmp_path / "data" / name) for name in MIDDLES]
    verdict = oracle.verdict(sum((lake.ids() for lake in lakes), Counter[str]()))
    names = [set(lake.query("select origin, position from {lake}")) for lake in lakes]
    with capsys.disabled():
        print(f"\n  two middles, seed {seed}: {verdict}; {len(names[0]):,} and {len(names[1]):,} events, {lanes:.0f} lanes")
    assert all(names), "both took part"
    assert not verdict.lost
    assert not verdict.doubled
    assert not names[0] & names[1], "a position is in both"
