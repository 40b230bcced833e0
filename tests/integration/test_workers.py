"""A site with `workers = 2`: real processes that share a port, a lake and a file of types, and die one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.register import QueueRegister
from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteError, SiteProcess

SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[tiers.site]
workers = 2
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
segment_bytes = 8388608
size_bytes_max = 33554432
[tiers.site.engine]
read_wait_ms_max = 0
[tiers.site.outputs.lake]
use = "sink_lake"
path = "${HEADRACE_DATA}/lake"
partition_by = ["class", "date"]
flush_interval_s = 0.1
"""
OTHER = """
[tiers.other.sources.gateway]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.other.outputs.second]
use = "sink_lake"
path = "${HEADRACE_DATA}/second"
flush_interval_s = 0.1
"""
ONE = ("workers = 2", "workers = 1")
Make = Callable[..., SiteProcess]


@pytest.fixture
def site(site_of: Make) -> SiteProcess:
    return site_of(SITE)


def until(done: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.02)
    return found


@contextlib.asynccontextmanager
async def on_every_worker(site: SiteProcess) -> AsyncIterator[list[aiohttp.ClientWebSocketResponse]]:
    """A connection to each worker: as many as it takes are opened."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        found: dict[str, aiohttp.ClientWebSocketResponse] = {}
        for number in range(64):
            before = await asyncio.to_thread(connections, site)
            url = f"{site.url('devices')}/v1/devices/d{number}/events"
            socket = await stack.enter_async_context(session.ws_connect(url))
            after = await asyncio.to_thread(connections, site)
            (where,) = [name for name in after if after[name] > before[name]]
            found.setdefault(where, socket)
            if len(found) == len(after):
                break
        yield [found[name] for name in sorted(found)]


def connections(site: SiteProcess) -> dict[str, int]:
    return {name: per_worker(site, name, "ingest_connections") for name in ("site.0", "site.1")}


def per_worker(site: SiteProcess, name: str, metric: str) -> int:
    """A metric of one worker; 0 while it does not answer."""
    lines = site.probe(f"/workers/{name}/metrics")[1].splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(f"headrace_{metric}{{"))


async def sent(socket: aiohttp.ClientWebSocketResponse, *events: dict[str, Any]) -> None:
    """Send the events; they are acked."""
    await socket.send_str(json.dumps(events))
    await socket.receive_str()


def test_workers_share_a_port_a_lake_and_one_admin_page(site: SiteProcess, lake: Any) -> None:
    site.file.write_text(SITE + OTHER)
    site.start()
    assert list(site.workers()) == ["site.0", "site.1", "other"]

    async def main() -> None:
        async with on_every_worker(site) as (zero, one):
            await sent(zero, {"id": "a", "v": 1.5}, {"id": "b", "v": 2})
            await asyncio.to_thread(site.wait_for_metric, "sink_written_events_total", 2)
            await sent(one, {"id": "c", "v": "text"})

    asyncio.run(main())
    assert site.metric("ingest_acked_events_total", component="devices") == 3
    assert site.metric("worker_up") == 3
    assert site.metric("build_info") == 1
    assert site.metric("component_up", component="lake") == 1
    site.wait_for_metric("sink_written_events_total", 3)
    worked = {(row["component"], row["worker"]) for row in json.loads(site.probe("/components")[1])["components"]}
    assert {("lake", "site.0"), ("lake", "site.1"), ("second", "other")} <= worked
    assert site.probe("/readyz") == site.probe("/livez") == (200, "ok\n")
    assert site.probe("/workers/nobody/readyz")[0] == 404
    data = site.folder / "data"
    assert {path.name for path in data.iterdir()} >= {"queue", "queue.1", "site", "site.1", "other"}
    assert site.stop() == "received 3 events, acked 3, stored: lake 3, second 0"
    assert lake.ids() == {"a": 1, "b": 1, "c": 1}
    assert lake.query("select distinct readings.v from {lake} where readings.id = 'c'") == [(None,)], "the first type holds for all"
    assert QueueRegister(data).entries() == []
    assert not list(data.glob("workers-*"))


def test_a_reload_reaches_every_worker_or_none(site: SiteProcess) -> None:
    site.start()
    assert site.process is not None
    site.file.write_text(SITE.replace("flush_interval_s = 0.1", 'flush_interval_s = "soon"'))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: site.metric("config_reload_success") == 0, "the bad file is refused")
    kill_worker(site, "site.1")
    until(lambda: site.workers()["site.1"]["state"] == "running", "a worker starts with the old text, whatever stands in the file")
    assert not [line for line in site.lines() if line["message"] == "reloaded"]

    site.file.write_text(SITE.replace(*ONE))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: any("tiers.site.workers" in line.get("error", "") for line in site.lines()), "another number of workers is refused")

    site.file.write_text(SITE.replace("flush_interval_s = 0.1", "flush_interval_s = 0.2"))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: site.metric("config_reload_success") == 1, "the good file is taken")
    took = [line.get("worker") for line in site.lines() if line["message"] == "reloaded"]
    assert sorted(took, key=str) == [None, "site.0", "site.1"]
    site.stop()


def kill_worker(site: SiteProcess, name: str) -> None:
    pid = site.workers()[name]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: site.workers()[name]["pid"] != pid, "the death is noticed")


async def under_load(site: SiteProcess, oracle: Oracle, scenario: Callable[[], None]) -> None:
    """Run `scenario` in a thread while the oracle's devices send; then let them settle."""
    done = asyncio.Event()
    sending = asyncio.ensure_future(oracle.run(lambda: site.url("devices"), done))
    try:
        await asyncio.to_thread(scenario)
    finally:
        done.set()
        await sending
    await oracle.settle(lambda: site.url("devices"))


def stored(site: SiteProcess, oracle: Oracle, lake: Any, capsys: Any) -> None:
    verdict = oracle.verdict(lake.ids())
    with capsys.disabled():
        print(f"\n  {verdict}")
    assert verdict.acked > 0
    assert not verdict.lost
    assert not verdict.doubled


def test_a_killed_worker_is_started_again_and_nothing_is_lost(site: SiteProcess, lake: Any, capsys: Any) -> None:
    site.start()
    oracle = Oracle(devices=8, sessions=True)  # which allow no second time, whichever worker they come to
    seen: list[float] = []

    def scenario() -> None:
        for name in ("site.0", "site.1", "site.0"):
            until(lambda: site.metric("ingest_acked_events_total") > (seen[-1] if seen else 0) + 500, "there is traffic")
            seen.append(site.metric("ingest_acked_events_total"))
            kill_worker(site, name)
            seen.append(site.metric("ingest_acked_events_total"))
            until(lambda: site.probe("/readyz")[0] == 200, "it is back")

    asyncio.run(under_load(site, oracle, scenario))
    assert seen == sorted(seen), "a sum of counters never goes back"
    assert site.metric("worker_restarts_total", worker="site.0") == 2
    assert site.metric("worker_restarts_total", worker="site.1") == 1
    assert any(line["message"] == "worker ended and is started again" and line["ended_with"] == "SIGKILL" for line in site.lines())
    site.stop()
    stored(site, oracle, lake, capsys)


def test_a_killed_supervisor_leaves_workers_that_drain_and_make_way(site: SiteProcess, lake: Any, capsys: Any) -> None:
    site.start()
    oracle = Oracle(devices=8)
    pids = [row["pid"] for row in site.workers().values()]

    def scenario() -> None:
        until(lambda: site.metric("ingest_acked_events_total") > 1000, "there is traffic")
        site.kill()
        until(lambda: not any(map(alive, pids)), "the workers have drained and ended")
        site.start()

    asyncio.run(under_load(site, oracle, scenario))
    gone = [line.get("worker") for line in map(json.loads, log_lines(site)) if line["message"] == "the supervisor is gone: draining"]
    assert sorted(gone) == ["site.0", "site.1"]
    site.stop()
    stored(site, oracle, lake, capsys)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def log_lines(site: SiteProcess) -> Iterator[str]:
    return (line for line in site.log.read_text().splitlines() if line.startswith("{"))


def test_a_start_right_behind_a_killed_supervisor_waits_for_the_old_workers(site: SiteProcess) -> None:
    site.start()
    site.file.write_text(SITE.replace('"127.0.0.1:0"\nauth', f'"{(site.url("devices") or "").removeprefix("http://")}"\nauth'))
    pids = leave_stopped_workers(site)
    site.start(ready=False)

    def told(message: str) -> bool:
        return any(line["message"] == message for line in site.lines())

    until(lambda: told("address cannot be had yet"), "the old workers' port is waited for")
    assert "cannot be listened on" in site.probe("/readyz")[1]
    assert site.probe("/livez")[0] == 200
    os.kill(pids[1], signal.SIGKILL)
    os.kill(pids[0], signal.SIGKILL)
    until(site.is_ready, "the new workers are ready")
    post(site, "a")
    site.stop()


def leave_stopped_workers(site: SiteProcess) -> list[int]:
    """Kill the supervisor; its workers do not notice, because they are stopped. Their pids."""
    pids = [row["pid"] for row in site.workers().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    site.kill()
    return pids


def post(site: SiteProcess, *ids: str, key: bool = False) -> None:
    """POST events with these ids, each over a connection of its own; `key`: with an Idempotency-Key for each id."""

    async def main() -> None:
        for issued in ids:
            headers = {"Idempotency-Key": issued} if key else {}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{site.url('devices')}/v1/devices/d/events", json={"id": issued}, headers=headers) as answer,
            ):
                assert answer.status == 200, await answer.text()

    asyncio.run(main())


def test_a_lower_number_of_workers_still_empties_every_queue(site: SiteProcess, lake: Any) -> None:
    site.file.write_text(SITE.replace(*ONE))
    site.overrides.append("tiers.site.outputs.lake.flush_interval_s=3600")
    site.start()
    assert site.workers() == {}, "one worker is the process itself"
    post(site, "first")
    site.kill()

    site.file.write_text(SITE)
    site.start()
    more = [f"more-{number}" for number in range(24)]
    post(site, *more)
    assert site.metric("queue_head_position") == 25, "worker 0 goes on with the queue that was there"
    for pid in leave_stopped_workers(site):
        os.kill(pid, signal.SIGKILL)

    site.file.write_text(SITE.replace(*ONE))
    site.overrides.pop()
    site.start()
    assert list(site.workers()) == ["site.0", "site.1"]
    assert site.workers()["site.1"]["former"]
    until(lambda: site.workers()["site.1"]["state"] == "ended", "the former worker has emptied its queue")
    site.stop()
    assert lake.ids() == dict.fromkeys(["first", *more], 1)

    site.start()
    assert site.workers() == {}, "nothing is left to empty"
    site.stop()


def test_a_config_that_no_worker_can_start_with_ends_the_site(site: SiteProcess) -> None:
    site.overrides += ["tiers.site.queue.path=/dev/shm/headrace-test-queue", "tiers.site.queue.level=power"]
    with pytest.raises(SiteError, match="code 78"):
        site.start()
    assert "does not survive power loss" in site.log_end()


def test_hook_ingest_give_up(site: SiteProcess, lake: Any) -> None:
    """A session goes from worker to worker: the older one gives it up, and the newer one knows where it goes on."""
    site.start()

    async def main() -> None:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:

            async def connect(away_from: str, acked: int) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any], str]:
                """Connect until another worker has it; each connection takes the session from the one before."""
                url = f"{site.url('devices')}/v1/devices/d/events?session=s&acked={acked}"
                while True:
                    before = await asyncio.to_thread(opened, site)
                    try:
                        socket = await stack.enter_async_context(session.ws_connect(url, protocols=["headrace.v1.json"]))
                    except aiohttp.WSServerHandshakeError as error:
                        if error.status != 503:  # a worker is started again
                            raise
                        continue
                    hello = json.loads(await socket.receive_str())["hello"]
                    after = await asyncio.to_thread(opened, site)
                    (where,) = [name for name in after if after[name] > before[name]]
                    if where != away_from:
                        return socket, hello, where

            one, hello, first = await connect("", 0)
            assert hello["resume"] == 0
            for text in ('{"id": "1"}', "no event", '{"id": "3"}'):
                await one.send_str(text)
            told: list[dict[str, Any]] = []
            while {"ack": 3} not in told:
                told.append(json.loads(await one.receive_str()))
            assert [frame["reject"] for frame in told if "reject" in frame] == [2]

            two, hello, second = await connect(first, 1)
            assert (hello["resume"], [refused["reject"] for refused in hello["refused"]]) == (3, [2])
            assert (await one.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert one.close_code == 4409
            await two.send_str('{"id": "4"}')
            assert json.loads(await two.receive_str())["ack"] == 4

            await asyncio.to_thread(kill_worker, site, second)
            three, hello, third = await connect("", 3)  # whoever takes it, the dead one's queue is asked
            assert hello["resume"] == 4
            await three.send_str('{"id": "5"}')
            assert json.loads(await three.receive_str())["ack"] == 5
            _, hello, _ = await connect(third, 5)
            assert hello["resume"] == 5

    asyncio.run(main())
    post(site, *["6"] * 8, key=True)  # to whichever worker each comes
    site.stop()
    assert lake.ids() == dict.fromkeys("13456", 1)


def opened(site: SiteProcess) -> dict[str, int]:
    return {name: per_worker(site, name, "ingest_connections_opened_total") for name in ("site.0", "site.1")}
