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
from headrace.testing.site import SiteError
from headrace_queue_pmem import QueuePmem

UPLINK = """
[tiers.edge.outputs.up-{name}]
use = "transport_zmq"
spread = "middles"
connect = "{{{name}}}"
peer = "{name}"
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
    with TwoMiddles(tmp_path, uplinks(*MIDDLES), KEPT) as made:
        yield made


def uplinks(*names: str) -> str:
    return "".join(UPLINK.format(name=name) for name in names)


async def arrived(spread: TwoMiddles, folder: Path) -> dict[str, list[str]]:
    """The edge hands over what is queued, and ends; by middle, what came, in its order."""
    await asyncio.to_thread(spread.edge.stop)
    came = {}
    for tier, side in spread.sides.items():
        if side is not spread.edge:
            await asyncio.to_thread(
                side._wait_for, lambda side=side: not side.metric("queue_reader_lag_events", reader="lake"), "to be through", 60
            )
            side.kill()
            came[tier] = await in_order(spread, tier, folder)
    return came


def by_device(ids: list[str]) -> dict[str, list[int]]:
    """The numbers of each device's events, in their order."""
    found: dict[str, list[int]] = {}
    for issued in ids:
        device, _, number = issued.rpartition("/")
        found.setdefault(device, []).append(int(number))
    return found


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

    async def main() -> dict[str, list[str]]:
        await spread.under_load(oracle, scenario)
        return await arrived(spread, tmp_path)

    came = asyncio.run(main())
    lakes = {name: lake_of(tmp_path / "data" / name) for name in MIDDLES}
    verdict = oracle.verdict(sum((lake.ids() for lake in lakes.values()), Counter[str]()))
    names = [set(lake.query("select origin, position from {lake}")) for lake in lakes.values()]
    devices = {tier: by_device(ids) for tier, ids in came.items()}
    with capsys.disabled():
        print(f"\n  spread over two middles, seed {seed}: {verdict}; devices {[len(found) for found in devices.values()]}")
    assert not verdict.lost
    assert not verdict.doubled
    assert all(devices.values()), "both took part"
    assert not devices["one"].keys() & devices["two"].keys(), "a device is at both"
    assert not names[0] & names[1], "a position is in both"
    for device, numbers in (devices["one"] | devices["two"]).items():
        assert numbers == sorted(set(numbers)), f"{device} arrived in another order"


def test_a_third_middle_comes_and_the_first_one_goes_under_load(tmp_path: Path, lake_of: Callable[[Path], Any], capsys: Any) -> None:
    """Each change is made by kill -9 of the edge, while a middle is dead that has events from before."""
    three = (*MIDDLES, "three")
    retired = UPLINK.format(name="one") + "spread_retired = true\n"
    oracle = Oracle(devices=8, pause_s=0.02, sessions=True)

    async def changed_to(outputs: str) -> None:
        """The edge is killed, and takes up again with these outputs."""
        spread.edge.kill()
        spread.configure(outputs)
        await spread.start("edge")

    def first() -> int:
        """The first position that is shared as now."""
        return int([line for line in spread.edge.lines() if line.get("message") == "outputs share events"][-1]["first"])

    async def passed(name: str, upto: int) -> None:
        await asyncio.to_thread(spread.edge.wait_for_metric, "queue_reader_position", upto, reader=f"up-{name}")

    async def scenario() -> None:
        for tier in (*three, "edge"):
            await spread.start(tier)
        for tier in MIDDLES:
            await spread.received(tier)

        spread.sides["two"].kill()
        await spread.received("one")
        await changed_to(uplinks(*three))
        await passed("one", first() - 1)
        await spread.acked(500)
        assert spread.sides["three"].metric("link_received_events_total") == 0, "two has events from before"
        await spread.start("two")
        for tier in three:
            await spread.received(tier)

        spread.sides["one"].kill()
        await spread.received("three")
        await changed_to(uplinks("two", "three") + retired)
        upto = first() - 1
        await spread.acked(500)
        with pytest.raises(SiteError, match="spread_retired = true, until its lag is 0"):
            await changed_to(uplinks("two", "three"))
        spread.configure(uplinks("two", "three") + retired)
        await spread.start("edge")
        await spread.start("one")
        await passed("one", upto)
        before = spread.sides["one"].metric("link_received_events_total")
        for tier in ("two", "three"):
            await spread.received(tier)
        assert spread.sides["one"].metric("link_received_events_total") == before, "it takes nothing new"

        await changed_to(uplinks("two", "three"))
        for tier in ("two", "three"):
            await spread.received(tier)

    async def main() -> dict[str, list[str]]:
        await spread.under_load(oracle, scenario)
        return await arrived(spread, tmp_path)

    with TwoMiddles(tmp_path, uplinks(*MIDDLES), KEPT, three) as spread:
        came = asyncio.run(main())
    verdict = oracle.verdict(sum((lake_of(tmp_path / "data" / name).ids() for name in three), Counter[str]()))
    devices = {tier: by_device(ids) for tier, ids in came.items()}
    with capsys.disabled():
        print(f"\n  a third middle, and one less: {verdict}; devices {[len(found) for found in devices.values()]}")
    assert not verdict.lost
    assert not verdict.doubled
    moved = {tier: devices[tier].keys() & devices["three"].keys() for tier in MIDDLES}
    assert all(moved.values()), "devices came to the third one from both"
    assert devices["one"].keys() <= devices["two"].keys() | devices["three"].keys(), "whose were the first one's have another now"
    for device in set().union(*devices.values()):
        stays = sorted(found[device] for found in devices.values() if device in found)
        numbers = list(itertools.chain(*stays))
        assert numbers == sorted(set(numbers)), f"{device} was at two middles at once, or arrived in another order"
