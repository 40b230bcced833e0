"""A real partition: edge and middle on hosts of their own (network namespaces), and the cable between them is pulled under load."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.namespaces import Hosts, unavailable
from headrace.testing.oracle import Oracle, Verdict
from headrace.testing.site import SiteProcess

FILE = Path(__file__).with_name("edge_and_middle.toml")
#: How long the cable is out: for a minute, or until the edge has found out.
CUT_S = 60.0 if "HEADRACE_FULL" in os.environ else 0.0
WAIT_S = 60.0
PORT = 5555

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)


class Tiers:
    """The edge on the near host, the middle on the far one, and devices at the edge."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.hosts = hosts
        environ = {"HEADRACE_DATA": str(folder / "data")}
        common = ["admin.listen=127.0.0.1:0"]
        edge = ["tiers.edge.sources.devices.listen=127.0.0.1:0", *self.uplink(hosts.far_address)]
        edge += [
            "tiers.edge.outputs.uplink.reconnect_ms_max=200",
            "tiers.edge.outputs.uplink.dead_after_s=2",
            "tiers.edge.queue.segment_bytes=8388608",
        ]
        middle = [
            "tiers.middle.outputs.live.listen=127.0.0.1:0",
            "tiers.middle.outputs.lake.flush_interval_s=0.2",
            "tiers.middle.outputs.lake.flush_rows=256",  # several rolls, however fast it catches up
            "tiers.middle.engine.read_rows_max=256",
            *self.links(hosts.far_address),
        ]
        for name in ("edge", "middle"):
            (folder / name).mkdir()
        self.edge = SiteProcess(FILE, folder / "edge", [*common, *edge], {**environ, "HEADRACE_NAME": "edge"}, ["edge"])
        self.middle = SiteProcess(FILE, folder / "middle", [*common, *middle], {**environ, "HEADRACE_NAME": "middle"}, ["middle"])
        for process in (self.edge, self.middle):
            process.forks = False  # a fork would be on the host of the one that is forked
        self.oracle = Oracle(devices=4, pause_s=0.02)
        self._done = threading.Event()
        self._devices: threading.Thread | None = None

    # both are addresses of a network that nobody else is on
    @staticmethod
    def uplink(address: str) -> list[str]:
        return [f"tiers.edge.outputs.uplink.connect=tcp://{address}:{PORT}", "tiers.edge.outputs.uplink.insecure=true"]

    @staticmethod
    def links(address: str) -> list[str]:
        return [f"tiers.middle.sources.links.listen=tcp://{address}:{PORT}", "tiers.middle.sources.links.insecure=true"]

    def start(self, *processes: SiteProcess) -> None:
        for process in processes:
            self.hosts.on(self.host_of(process), lambda process=process: process.start(timeout_s=WAIT_S))  # type: ignore[misc]

    def host_of(self, process: SiteProcess) -> str:
        return self.hosts.near if process is self.edge else self.hosts.far

    def metric(self, process: SiteProcess, name: str, **labels: str) -> float:
        return self.hosts.on(self.host_of(process), lambda: process.metric(name, **labels))

    def connected(self) -> bool:
        return self.metric(self.edge, "link_connected", component="uplink") == 1

    def let_devices_send(self) -> None:
        """From now on, until `settle`."""

        async def drive() -> None:
            done = asyncio.Event()
            sending = asyncio.ensure_future(self.oracle.run(lambda: self.edge.url("devices"), done))
            await asyncio.to_thread(self._done.wait)
            done.set()
            await sending
            await self.oracle.settle(lambda: self.edge.url("devices"))

        self._devices = threading.Thread(target=lambda: self.hosts.on(self.hosts.near, lambda: asyncio.run(drive())))
        self._devices.start()

    def let_devices_stop(self) -> None:
        self._done.set()
        if self._devices is not None:
            self._devices.join()

    def acked_more(self, than: int, by: int = 200) -> Callable[[], bool]:
        return lambda: len(self.oracle.acked) >= than + by

    def drained(self, lake: Any) -> Verdict:
        """Stop everything, the edge first; what the lake holds then."""
        self.let_devices_stop()
        self.edge.stop()
        self.middle.stop()
        ((rows, ids),) = lake.query("select count(*), count(distinct (origin, position)) from {lake}")
        assert rows == ids
        return self.oracle.verdict(lake.ids())


def wait_for(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, f"waited {WAIT_S:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    with Hosts() as hosts:
        made = Tiers(tmp_path, hosts)
        with made.edge, made.middle:
            try:
                yield made
            finally:
                made.let_devices_stop()


def test_an_edge_that_is_cut_off_under_load_goes_on_and_drains_in_order_afterwards(tiers: Tiers, lake: Any, capsys: Any) -> None:
    tiers.start(tiers.middle, tiers.edge)
    tiers.let_devices_send()
    wait_for(tiers.acked_more(0), "events")
    wait_for(tiers.connected, "the link")
    tiers.hosts.pull()
    before, since = len(tiers.oracle.acked), time.monotonic()
    wait_for(lambda: not tiers.connected(), "the edge to find out")
    wait_for(tiers.acked_more(before), "devices to be acked all the same")
    time.sleep(max(0.0, CUT_S - (time.monotonic() - since)))
    cut_s, meanwhile = time.monotonic() - since, len(tiers.oracle.acked) - before
    tiers.hosts.plug()
    wait_for(tiers.connected, "the link")
    verdict = tiers.drained(lake)
    with capsys.disabled():
        print(f"\n  cut off for {cut_s:.1f} s, {meanwhile:,} events acked meanwhile: {verdict}")
    assert not verdict.lost
    assert not verdict.doubled
    rolls = rolls_of(lake)
    bounds = [position for _, first, last in rolls for position in (first, last)]
    assert len(rolls) > 2
    assert bounds == sorted(bounds), rolls


def rolls_of(lake: Any) -> list[tuple[int, int, int]]:
    """For each roll: where it begins in the middle's queue, by which its files are named, and the first and the last of the edge's
    positions in it. (Within a roll the lake sorts.)"""
    found: list[tuple[int, int, int]] = lake.query(
        "select cast(regexp_extract(filename, '[0-9a-f-]{36}-([0-9]+)-', 1) as bigint), min(position), max(position) "
        f"from read_parquet('{lake.files}', filename = true, hive_partitioning = false) group by 1 order by 1"
    )
    return found


def test_a_middle_that_comes_back_at_its_address_or_at_another_one_gets_everything_once(tiers: Tiers, lake: Any, capsys: Any) -> None:
    tiers.start(tiers.middle, tiers.edge)
    tiers.let_devices_send()
    wait_for(tiers.connected, "the link")
    wait_for(tiers.acked_more(0), "events")
    tiers.middle.kill()
    before = len(tiers.oracle.acked)
    wait_for(tiers.acked_more(before), "devices to be acked all the same")
    tiers.start(tiers.middle)
    wait_for(tiers.connected, "the link to the same address")
    tiers.middle.kill()
    tiers.middle.overrides += tiers.links(tiers.hosts.other_far_address)
    tiers.start(tiers.middle)
    tiers.edge.kill()
    tiers.edge.overrides += tiers.uplink(tiers.hosts.other_far_address)
    tiers.start(tiers.edge)
    wait_for(tiers.connected, "the link to another address")
    before = len(tiers.oracle.acked)
    wait_for(tiers.acked_more(before), "events over it")
    verdict = tiers.drained(lake)
    with capsys.disabled():
        print(f"\n  the middle at the same and at another address: {verdict}")
    assert not verdict.lost
    assert not verdict.doubled
