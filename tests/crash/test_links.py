"""kill -9 of either side of a link, at each of its fault points and at random moments, under load: nothing acked is lost, nothing
doubled. Edge and middle are processes of their own, run from `edge_and_middle.toml`."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.oracle import Oracle, Verdict
from headrace.testing.site import SiteProcess
from headrace_transport_zmq import receiving, sending

FILE = Path(__file__).with_name("edge_and_middle.toml")
#: At which pass a point kills: late enough that there is traffic, where the point is passed often.
HIT = {sending.BEFORE_HELLO: 1, receiving.AFTER_WELCOME: 1}
RANDOM_KILLS = 2 if "HEADRACE_FULL" not in os.environ else 200


class Tiers:
    """The edge and the middle of one file, on one data folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:  # the middle has to come back where the edge looks for it
            probe.bind(("127.0.0.1", 0))
            link = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        overrides = {
            "edge": ["tiers.edge.sources.devices.listen=127.0.0.1:0", f"tiers.edge.outputs.uplink.connect={link}",
                     "tiers.edge.outputs.uplink.reconnect_ms_max=200", "tiers.edge.queue.segment_bytes=8388608"],
            "middle": [f"tiers.middle.sources.links.listen={link}", "tiers.middle.outputs.live.listen=127.0.0.1:0",
                       "tiers.middle.outputs.lake.flush_interval_s=0.2", "tiers.middle.queue.segment_bytes=8388608"],
        }  # fmt: skip
        for tier, own in overrides.items():
            (folder / tier).mkdir()
            environ = {"HEADRACE_DATA": str(folder / "data"), "HEADRACE_NAME": tier}
            process = SiteProcess(
                Path(__file__).with_name("edge_and_middle.toml"), folder / tier, ["admin.listen=127.0.0.1:0", *own], environ, [tier]
            )
            setattr(self, tier, process)

    edge: SiteProcess
    middle: SiteProcess

    async def under_load(self, oracle: Oracle, scenario: Callable[[], Awaitable[None]]) -> None:
        """Run `scenario` while the oracle's devices send to the edge; then let them settle, with both sides up."""
        done = asyncio.Event()
        sending_ = asyncio.ensure_future(oracle.run(lambda: self.edge.url("devices"), done))
        try:
            await scenario()
        finally:
            done.set()
            await sending_
        await oracle.settle(lambda: self.edge.url("devices"))

    def drained(self, oracle: Oracle, lake: Any) -> Verdict:
        """Drain both, the edge first; what the lake holds then."""
        self.edge.stop()
        self.middle.stop()
        ((rows, ids),) = lake.query("select count(*), count(distinct (origin, position)) from {lake}")
        assert rows == ids, f"{rows - ids} rows are there twice under their global id"
        return oracle.verdict(lake.ids())


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    made = Tiers(tmp_path)
    with made.edge, made.middle:
        yield made


def check(tiers: Tiers, oracle: Oracle, lake: Any, capsys: Any, what: str) -> None:
    verdict = tiers.drained(oracle, lake)
    with capsys.disabled():
        print(f"\n  {what}: {verdict}")
    assert verdict.acked > 0
    assert not verdict.lost
    assert not verdict.doubled


def test_a_kill_at_each_fault_point_of_the_link_loses_and_doubles_nothing(tiers: Tiers, lake: Any, capsys: Any) -> None:
    oracle = Oracle(devices=8, pause_s=0.05)

    async def killed_at(side: SiteProcess, point: str) -> None:
        side.start(faults=f"{point}=kill@{HIT.get(point, 3)}", ready=False)
        code = await asyncio.to_thread(side.wait_until_dead, 30)
        assert code == -9, f"the process ended with {code} instead of being killed at {point}\n{side.log_end()}"

    async def scenario() -> None:
        tiers.middle.start(ready=False)
        for point in sending.FAULT_POINTS:
            await killed_at(tiers.edge, point)
        tiers.edge.start(ready=False)
        tiers.middle.kill()
        for point in receiving.FAULT_POINTS:
            await killed_at(tiers.middle, point)
        await asyncio.to_thread(tiers.middle.start)

    asyncio.run(tiers.under_load(oracle, scenario))
    check(tiers, oracle, lake, capsys, "each fault point of the link")


def test_kills_of_either_side_at_random_moments_lose_and_double_nothing(tiers: Tiers, lake: Any, capsys: Any) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracle = Oracle(devices=8, pause_s=0.05)

    async def scenario() -> None:
        for side in (tiers.edge, tiers.middle):
            await asyncio.to_thread(side.start)
        for _ in range(RANDOM_KILLS):
            await asyncio.sleep(rng.uniform(0, 0.8))
            side = rng.choice((tiers.edge, tiers.middle))
            side.kill()
            await asyncio.to_thread(side.start, "", rng.random() < 0.5)

    asyncio.run(tiers.under_load(oracle, scenario))
    check(tiers, oracle, lake, capsys, f"{RANDOM_KILLS} random kills, seed {seed}")
