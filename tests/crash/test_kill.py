"""kill -9 of the whole site at every fault point and at random moments under load: nothing acked is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
from typing import Any

import pytest

from headrace.engine.outputs import FAULT_POINTS
from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteProcess
from headrace_enricher_context import EnricherContext
from headrace_ingest_ws import IngestWs
from headrace_queue_pmem import QueuePmem
from headrace_sink_lake import SinkLake

#: At which pass a point kills: late enough that there is traffic, where the point is passed often.
HIT = {"queue_pmem.span_begun": 1, "engine.after_plan": 1, "context_read": 1, "context_written": 1, "context_swapped": 1}
#: Passed only when an event is refused, which this load does not provoke; tests/integration/test_bad_input.py does.
ELSEWHERE = {"engine.after_dead_letters"}
#: Small segments and rolls, so that each way is taken often.
SMALL = (
    "tiers.site.queue.segment_bytes=8388608",
    "tiers.site.outputs.lake.flush_interval_s=0.2",
    "tiers.site.outputs.lake.flush_rows=3000",
)
POINTS = [
    point
    for source in (FAULT_POINTS, QueuePmem.fault_points, SinkLake.fault_points, IngestWs.fault_points, EnricherContext.fault_points)
    for point in source
    if point not in ELSEWHERE
]
#: Where a message becomes durable and is acked.
AROUND_THE_ACK = {
    *IngestWs.fault_points,
    *(f"queue_pmem.{name}" for name in ("span_begun", "before_write", "after_write", "after_persist")),
}
#: Passed when a segment is full: with larger events that is soon.
FILL_SEGMENTS = {"queue_pmem.segment_added", "queue_pmem.before_release", "queue_pmem.after_release"}
RANDOM_KILLS = 50 if "HEADRACE_FULL" not in os.environ else 500
CHUNKS = 5


async def under_load(site: SiteProcess, oracle: Oracle, scenario: Any) -> None:
    """Run `scenario` while the oracle's devices send; then let them settle, on a site that is up."""
    done = asyncio.Event()
    sending = asyncio.ensure_future(oracle.run(lambda: site.url("devices"), done))
    try:
        await scenario()
    finally:
        done.set()
        await sending
    await oracle.settle(lambda: site.url("devices"))


def check(site: SiteProcess, oracle: Oracle, lake: Any, capsys: Any, what: str) -> None:
    site.stop()
    verdict = oracle.verdict(lake.ids())
    with capsys.disabled():
        print(f"\n  {what}: {verdict}")
    assert verdict.acked > 0
    assert not verdict.lost
    assert not verdict.doubled


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_fault_point_loses_and_doubles_nothing(site: SiteProcess, lake: Any, capsys: Any, point: str) -> None:
    site.overrides += SMALL
    give_context(site, 8)
    # devices that resume sessions allow no message twice, and must hear of every refusal; without, they send more
    sessions = point in AROUND_THE_ACK
    oracle = Oracle(devices=8, pad_bytes=2000 if point in FILL_SEGMENTS else 40, sessions=sessions, bad_every=7 if sessions else 0)

    async def scenario() -> None:
        if point == "engine.after_plan":  # a range is planned when events wait at the start
            site.start(faults="engine.before_flush=kill", ready=False)
            await asyncio.to_thread(wait_until_killed, site)
        site.start(faults=f"{point}=kill@{HIT.get(point, 3)}", ready=False)
        code = await asyncio.to_thread(wait_until_killed, site)
        assert code == -9, f"the site ended with {code} instead of being killed at {point}\n{site.log_end()}"
        await asyncio.to_thread(site.start)
        await asyncio.sleep(0.3)

    asyncio.run(under_load(site, oracle, scenario))
    check(site, oracle, lake, capsys, point)


def give_context(site: SiteProcess, devices: int) -> None:
    """Classes for the oracle's devices, so that a roll has several partitions."""
    folder = site.folder / "data"
    folder.mkdir()
    with sqlite3.connect(folder / "context.db") as db:
        db.execute("create table devices (device text primary key, class text, type text, site text, latitude real, longitude real)")
        rows = [(f"oracle-{number}", f"class-{number % 3}", "t", "s", 1.0, 2.0) for number in range(devices)]
        db.executemany("insert into devices values (?, ?, ?, ?, ?, ?)", rows)
    db.close()


def wait_until_killed(site: SiteProcess) -> int:
    """Until the fault kills it."""
    try:
        return site.wait_until_dead(timeout_s=30)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the point was not passed\n{site.log_end()}") from None


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_kills_at_random_moments_lose_and_double_nothing(site: SiteProcess, lake: Any, capsys: Any, chunk: int) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    site.overrides += SMALL
    give_context(site, 20)
    sessions = chunk % 2 == 1
    oracle = Oracle(devices=20, sessions=sessions, bad_every=11 if sessions else 0)

    async def scenario() -> None:
        for _ in range(RANDOM_KILLS // CHUNKS):
            await asyncio.to_thread(site.start, "", rng.random() < 0.7)
            await asyncio.sleep(rng.uniform(0, 0.5))
            site.kill()
        await asyncio.to_thread(site.start)

    asyncio.run(under_load(site, oracle, scenario))
    what = "with sessions" if sessions else "without sessions"
    check(site, oracle, lake, capsys, f"{RANDOM_KILLS // CHUNKS} random kills {what}, seed {seed}")
