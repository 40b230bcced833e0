"""`examples/tiers.toml`: what devices send to the edge is in the lake of the storage tier, under the edge's names, and on the live page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from headrace.check import check
from headrace.cli import main as headrace
from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteProcess

FILE: Final = Path(__file__).parents[2] / "examples" / "tiers.toml"
TIERS: Final = ("storage", "middle", "live", "edge")


def test_it_would_start(tmp_path: Path) -> None:
    findings = check(FILE, environ={"HEADRACE_DATA": str(tmp_path)}, ports=False)
    assert [finding.text for finding in findings if not finding.ok] == []


@pytest.fixture
def overrides() -> list[str]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        up, down, fan = (f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
    return [
        "admin.listen=127.0.0.1:0", "tiers.edge.sources.devices.listen=127.0.0.1:0", "tiers.live.outputs.page.listen=127.0.0.1:0",
        f"tiers.edge.outputs.uplink.connect={up}", f"tiers.middle.sources.links.listen={up}",
        f"tiers.middle.outputs.downlink.connect={down}", f"tiers.storage.sources.links.listen={down}",
        f"tiers.middle.outputs.fan.publish={fan}", f"tiers.live.sources.feed.subscribe={fan}",
    ]  # fmt: skip


def test_all_tiers_in_one_process(tmp_path: Path, lake: Any, overrides: list[str]) -> None:
    with SiteProcess(FILE, tmp_path, overrides) as site:
        for life in range(2):  # each has a queue id of its own at the edge
            site.start()
            body = b'[{"id":"%d-1"},{"id":"%d-2"}]' % (life, life)
            address = site.wait_for_url("devices") + "/v1/devices/boiler/events"
            with urllib.request.urlopen(urllib.request.Request(address, body, method="POST")) as answer:
                assert answer.status == 200
            site.wait_for_metric("link_received_events_total", 2, tier="storage")
            assert site.metric("link_connected", component="uplink") == 1
            assert site.stop().endswith("over links 6, stored: uplink 2, downlink 2, lake 2")
    assert lake.ids() == {"0-1": 1, "0-2": 1, "1-1": 1, "1-2": 1}
    ids = lake.query("select readings.id, origin, position from {lake} order by 1")
    assert [position for _, _, position in ids] == [1, 2, 3, 4], "the edge's positions, which go on over its restart"
    assert len({origin for _, origin, _ in ids}) == 2


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Every tier has a key, and lets in whom it has to."""
    folder = tmp_path / "keys"
    for tier in TIERS:
        assert headrace(["keys", "new", tier, "--out", str(folder)]) == 0
    ends = {
        "edge.outputs.uplink": "middle", "middle.sources.links": "", "middle.outputs.downlink": "storage", "storage.sources.links": "",
        "middle.outputs.fan": "", "live.sources.feed": "middle",
    }  # fmt: skip
    (folder / "allowed.keys").write_text("".join((folder / f"{tier}.pub").read_text() for tier in TIERS))
    overrides = []
    for end, server in ends.items():
        other = f"server_key=${{file:{folder}/{server}.pub}}" if server else f"allow_keys_file={folder}/allowed.keys"
        overrides += [f"tiers.{end}.key_file={folder}/{end.partition('.')[0]}.key", f"tiers.{end}.{other}"]
    return overrides


@pytest.fixture
def tiers(tmp_path: Path, overrides: list[str], keys: list[str]) -> Iterator[dict[str, SiteProcess]]:
    """Each tier as a process of its own, with the same file and the same data folder; started, storage first."""
    environ = {"HEADRACE_DATA": str(tmp_path / "data")}
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "context.db") as database:
        database.execute("create table devices (device text primary key, class text, type text, site text, latitude real, longitude real)")
        database.executemany("insert into devices values (?, 'pump', 'P-1', 'mill', 1, 2)", [(f"oracle-{n}",) for n in range(4)])
    with contextlib.ExitStack() as stack:
        made = {}
        for tier in TIERS:
            (tmp_path / tier).mkdir()
            own = [override for override in [*overrides, *keys] if override.startswith(("admin.", f"tiers.{tier}."))]
            made[tier] = stack.enter_context(SiteProcess(FILE, tmp_path / tier, own, {**environ, "HEADRACE_NAME": tier}, [tier]))
            made[tier].start()
        yield made


async def drive(tiers: dict[str, SiteProcess], oracle: Oracle, seen: set[str]) -> None:
    """Devices send to the edge while a client follows the live tier; ends when the client has seen enough of them."""
    page = tiers["live"].wait_for_url("page").replace("http", "ws") + "/v1/live?class=pump"
    async with aiohttp.ClientSession() as session, session.ws_connect(page) as live:
        done = asyncio.Event()
        sending = asyncio.ensure_future(oracle.run(lambda: tiers["edge"].url("devices"), done))
        async with asyncio.timeout(60):
            while len(seen) < 200:
                for event in json.loads(await live.receive_str()).get("events", ()):
                    assert event["context"] == {"class": "pump", "type": "P-1", "site": "mill", "latitude": 1.0, "longitude": 2.0}
                    seen.add(event["readings"]["id"])
        done.set()
        await sending
    await oracle.settle(lambda: tiers["edge"].url("devices"))


def niceness(site: SiteProcess) -> frozenset[int]:
    """Of all its threads, over this process's own."""
    assert site.process is not None
    own = os.getpriority(os.PRIO_PROCESS, 0)
    return frozenset(os.getpriority(os.PRIO_PROCESS, int(task.name)) - own for task in Path(f"/proc/{site.process.pid}/task").iterdir())


def test_four_tiers_as_four_processes_with_keys(tmp_path: Path, lake: Any, tiers: dict[str, SiteProcess]) -> None:
    oracle, seen = Oracle(devices=4, pause_s=0.005), set[str]()
    asyncio.run(drive(tiers, oracle, seen))
    assert {niceness(tiers[tier]) for tier in ("edge", "middle")} == {frozenset({0})}
    assert niceness(tiers["storage"]) == {0, 10}, "the lake's own threads"
    tiers["storage"].kill()
    asyncio.run(oracle.settle(lambda: tiers["edge"].url("devices")))
    tiers["storage"].start()
    for tier in ("edge", "middle", "storage", "live"):
        tiers[tier].stop()
    verdict = oracle.verdict(lake.ids())
    assert verdict.acked >= len(seen) >= 200
    assert not verdict.lost
    assert not verdict.doubled
    assert seen <= oracle.sent.keys()
    ((rows, ids, queues),) = lake.query("select count(*), count(distinct (origin, position)), count(distinct origin) from {lake}")
    assert rows == ids
    assert queues == 1, "the edge's name for them, over two links"
    assert {kind for (kind,) in lake.query("select distinct context.class from {lake}")} == {"pump"}
