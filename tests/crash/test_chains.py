"""Chains of tiers over links: what is in the lake carries the names that the edges gave, and a storage tier without a queue loses and
doubles nothing, whenever it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.outputs import FAULT_POINTS as ENGINE
from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteProcess
from headrace_sink_lake import SinkLake
from headrace_transport_zmq import receiving

FULL = "HEADRACE_FULL" in os.environ
#: Where the storage tier is killed: wherever something is safe on one side and not known on the other.
POINTS = (receiving.AFTER_COMMIT, "sink_lake.before_commit", "sink_lake.after_commit")
#: All of them, but those that this tier does not pass.
ALL_POINTS = tuple(
    point
    for point in (*receiving.FAULT_POINTS, *ENGINE, *SinkLake.fault_points)
    # nothing is refused, a roll here has one file, and attempts are counted only for what is there when the process starts
    if point not in ("engine.after_dead_letters", "sink_lake.mid_rename", "engine.after_plan")
)
#: Passed once for each link.
ONCE = (receiving.AFTER_WELCOME,)
RANDOM_KILLS = 60 if FULL else 1

EDGE = """
[tiers.{name}.sources.{name}_devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.{name}.queue]
use = "queue_pmem"
path = "{data}/{name}-queue"
size_bytes_max = 67_108_864
[tiers.{name}.outputs.uplink]
use = "transport_zmq"
connect = "{middle}"
peer = "middle"
"""
REST = """
[tiers.middle.sources.links]
use = "transport_zmq"
listen = "{middle}"
[tiers.middle.queue]
use = "queue_pmem"
path = "{data}/middle-queue"
size_bytes_max = 67_108_864
[tiers.middle.outputs.store]
use = "transport_zmq"
connect = "{storage}"
peer = "storage"
[tiers.storage.sources.inlet]
use = "transport_zmq"
listen = "{storage}"
[tiers.storage.outputs.lake]
use = "sink_lake"
path = "{data}/lake"
flush_interval_s = 0.2
"""
QUEUE = """
[tiers.storage.queue]
use = "queue_pmem"
path = "{data}/storage-queue"
size_bytes_max = 67_108_864
"""


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("storage", ["without a queue", *(["with a queue"] if FULL else [])])
def test_events_keep_the_edges_names_over_two_links(tmp_path: Path, site_of: Callable[..., SiteProcess], lake: Any, storage: str) -> None:
    places = {"data": str(tmp_path / "data"), "middle": free_address(), "storage": free_address()}
    text = '[admin]\nlisten = "127.0.0.1:0"\n' + "".join(EDGE.format(name=name, **places) for name in ("north", "south"))
    text += (REST + (QUEUE if storage == "with a queue" else "")).format(**places)
    site = site_of(text)
    expected = []
    for life in range(2):  # each has queue ids of its own
        site.start()
        for round_ in range(3):
            for edge in ("north", "south"):
                ids = [f"{life}-{edge}-{round_}-{number}" for number in range(2)]
                site.post(f"{edge}_devices", "boiler", ids)
                queue_id = next(queue["queue_id"] for queue in json.loads(site.probe("/components")[1])["queues"] if queue["name"] == edge)
                first = life * 6 + round_ * 2 + 1
                expected += [(one, queue_id, first + number) for number, one in enumerate(ids)]
        site.wait_for_metric("sink_written_events_total", 12, component="lake")
        site.stop()
    assert sorted(lake.query("select readings.id, origin, position from {lake}")) == sorted(expected)


class Chain:
    """Two edges in one process, and a storage tier without a queue in another."""

    def __init__(self, folder: Path) -> None:
        places = {"data": str(folder / "data"), "middle": free_address(), "storage": free_address()}
        places["middle"] = places["storage"]
        text = '[admin]\nlisten = "127.0.0.1:0"\n' + "".join(EDGE.format(name=name, **places) for name in ("north", "south"))
        file = folder / "site.toml"
        file.write_text(text + "[tiers.storage.sources" + REST.format(**places).partition("[tiers.storage.sources")[2])
        for name in ("edges", "storage"):
            (folder / name).mkdir()
        quick = [f"tiers.{name}.outputs.uplink.reconnect_ms_max=200" for name in ("north", "south")]
        environ = {"HEADRACE_DATA": str(folder / "data")}
        self.edges = SiteProcess(file, folder / "edges", quick, environ, ["north", "south"])
        self.storage = SiteProcess(file, folder / "storage", [], environ, ["storage"])

    async def under_load(self, oracles: dict[str, Oracle], scenario: Callable[[], Any]) -> None:
        done = asyncio.Event()
        loads = [asyncio.ensure_future(oracle.run(self._url(name), done)) for name, oracle in oracles.items()]
        try:
            await scenario()
        finally:
            done.set()
            await asyncio.gather(*loads)
        await asyncio.gather(*(oracle.settle(self._url(name)) for name, oracle in oracles.items()))

    def _url(self, name: str) -> Callable[[], str | None]:
        return lambda: self.edges.url(f"{name}_devices")


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path)
    with made.edges, made.storage:
        yield made


@pytest.mark.timeout(300 + 20 * RANDOM_KILLS)
def test_a_storage_tier_without_a_queue_may_be_killed_anywhere(chain: Chain, lake: Any, capsys: Any) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracles = {name: Oracle(devices=4, pause_s=0.03, name=name) for name in ("north", "south")}

    async def scenario() -> None:
        await asyncio.to_thread(chain.edges.start)
        for point in ALL_POINTS if FULL else POINTS:
            hit = 1 if point in ONCE else rng.randint(1, 3)
            chain.storage.start(faults=f"{point}=kill@{hit}", ready=False)
            code = await asyncio.to_thread(chain.storage.wait_until_dead, 60)
            assert code == -9, f"ended with {code} instead of being killed at {point}\n{chain.storage.log_end()}"
        for _ in range(RANDOM_KILLS):
            await asyncio.to_thread(chain.storage.start)
            await asyncio.sleep(rng.uniform(0, 0.8))
            chain.storage.kill()
        await asyncio.to_thread(chain.storage.start)

    asyncio.run(chain.under_load(oracles, scenario))
    chain.edges.stop()
    chain.storage.stop()
    ((rows, names),) = lake.query("select count(*), count(distinct (origin, position)) from {lake}")
    stored = lake.ids()
    for oracle in oracles.values():
        verdict = oracle.verdict({issued: count for issued, count in stored.items() if issued in oracle.sent})
        with capsys.disabled():
            print(f"\n  storage without a queue, seed {seed}: {verdict}")
        assert verdict.acked > 0
        assert not verdict.lost
        assert not verdict.doubled
    assert rows == names, "a position is there twice"
