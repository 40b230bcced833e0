"""Sites with `workers = 2`: real processes that share a port, a lake and a file of types, and die one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
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
MIDDLE = """
[tiers.site.outputs.uplink]
use = "transport_zmq"
connect = "tcp://127.0.0.1:${UPLINK}"
[tiers.middle.sources.links]
use = "transport_zmq"
listen = "tcp://127.0.0.1:${UPLINK}"
[tiers.middle.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/middle-queue"
segment_bytes = 8388608
size_bytes_max = 33554432
[tiers.middle.outputs.second]
use = "sink_lake"
path = "${HEADRACE_DATA}/second/lake"
partition_by = ["class", "date"]
flush_interval_s = 0.1
"""
ONE = ("workers = 2", "workers = 1")
KILLS = 2 if "HEADRACE_FULL" not in os.environ else 60
WORKERS = ("site.0", "site.1")
Make = Callable[..., SiteProcess]
LakeOf = Callable[[Path], Any]

# a process costs a second of CPU: one running site serves most tests of the module
pytestmark = pytest.mark.xdist_group("workers")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    """Two workers of one tier, each with a link to the other tier, which has a process of its own. Tests leave it running."""
    folder = tmp_path_factory.mktemp("workers")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "site.toml").write_text(SITE + MIDDLE)
    with SiteProcess(folder / "site.toml", folder, environ={"UPLINK": str(port)}) as site:
        site.start()
        yield site
        post(site, "at the end")
        site.stop()
        assert QueueRegister(folder / "data").entries() == [], "tier after tier: what the first sent while it drained, the next one took"
        assert not list((folder / "data").glob("workers-*"))


@pytest.fixture
def site(site_of: Make) -> SiteProcess:
    """A site that a test has for itself."""
    return site_of(SITE)


# --- one site that looks as one process does ---


def test_workers_share_a_port_a_lake_and_one_admin_page(running: SiteProcess, lake_of: LakeOf) -> None:
    assert list(running.workers()) == ["site.0", "site.1", "middle"]

    async def main() -> None:
        async with on_every_worker(running) as (zero, one):
            await sent(zero, {"id": "a", "v": 1.5}, {"id": "b", "v": 2})
            await asyncio.to_thread(running.wait_for_metric, "sink_written_events_total", 2, component="lake")
            await sent(one, {"id": "c", "v": "text"})

    asyncio.run(main())
    assert running.metric("ingest_acked_events_total", component="devices") == 3
    assert running.metric("worker_up") == 3
    assert running.metric("build_info") == 1
    assert running.metric("component_up", component="lake") == 1
    rows = {(row["component"], row["worker"]) for row in json.loads(running.probe("/components")[1])["components"]}
    assert {("lake", "site.0"), ("lake", "site.1"), ("uplink", "site.1"), ("second", "middle")} <= rows
    assert running.probe("/readyz") == running.probe("/livez") == (200, "ok\n")
    assert running.probe("/workers/site.1/readyz") == (200, "ok\n")
    assert running.probe("/workers/nobody/readyz")[0] == 404
    assert {path.name for path in (running.folder / "data").iterdir()} >= {"queue", "queue.1", "site", "site.1", "middle"}
    lake = at_rest(running, lake_of)
    assert {issued: lake.ids()[issued] for issued in "abc"} == {"a": 1, "b": 1, "c": 1}
    assert lake.query("select readings.v from {lake} where readings.id = 'c'") == [(None,)], "the first type holds for all workers"


def test_a_reload_reaches_every_worker_or_none(running: SiteProcess) -> None:
    assert running.process is not None
    running.file.write_text(SITE.replace("flush_interval_s = 0.1", 'flush_interval_s = "soon"') + MIDDLE)
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.metric("config_reload_success") == 0, "the bad file is refused")
    kill_worker(running, "site.1")
    until(lambda: running.workers()["site.1"]["state"] == "running", "a worker starts with the old text, whatever stands in the file")
    assert not [line for line in running.lines() if line["message"] == "reloaded"]

    running.file.write_text(SITE.replace(*ONE) + MIDDLE)
    running.process.send_signal(signal.SIGHUP)
    until(lambda: any("tiers.site.workers" in line.get("error", "") for line in running.lines()), "another number of workers is refused")

    running.file.write_text(SITE.replace("flush_interval_s = 0.1", "flush_interval_s = 0.05") + MIDDLE)
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.metric("config_reload_success") == 1, "the good file is taken")
    took = [line.get("worker") for line in running.lines() if line["message"] == "reloaded"]
    assert sorted(took, key=str) == [None, "middle", "site.0", "site.1"]


def test_hook_ingest_give_up(running: SiteProcess, lake_of: LakeOf) -> None:
    """A session goes from worker to worker: the older one gives it up, and the newer one knows where it goes on."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:

            async def connect(away_from: str, acked: int) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any], str]:
                """Connect until another worker has it; each connection takes the session from the one before."""
                url = f"{running.url('devices')}/v1/devices/d/events?session=s&acked={acked}"
                while True:
                    before = await asyncio.to_thread(per_worker, running, "ingest_connections_opened_total")
                    try:
                        socket = await stack.enter_async_context(session.ws_connect(url, protocols=["headrace.v1.json"]))
                    except aiohttp.WSServerHandshakeError as error:
                        if error.status != 503:  # a worker is started again
                            raise
                        continue
                    hello = json.loads(await socket.receive_str())["hello"]
                    after = await asyncio.to_thread(per_worker, running, "ingest_connections_opened_total")
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

            await asyncio.to_thread(kill_worker, running, second)
            three, hello, third = await connect("", 3)  # whoever takes it, the dead one's queue is asked
            assert hello["resume"] == 4
            await three.send_str('{"id": "5"}')
            assert json.loads(await three.receive_str())["ack"] == 5
            _, hello, _ = await connect(third, 5)
            assert hello["resume"] == 5

    asyncio.run(main())
    post(running, *["6"] * 8, key=True)  # to whichever worker each comes
    ids = at_rest(running, lake_of).ids()
    assert {issued: ids[issued] for issued in "123456"} == {"1": 1, "2": 0, "3": 1, "4": 1, "5": 1, "6": 1}


@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_workers_are_started_again_and_nothing_is_lost_or_doubled(running: SiteProcess, lake_of: LakeOf, capsys: Any) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    oracle = Oracle(devices=8, sessions=True, pause_s=0.05)  # which allow no second time, whichever worker they come to
    seen: list[float] = []
    before = running.metric("worker_restarts_total")

    def scenario() -> None:
        for number in range(KILLS):
            until(lambda: running.metric("ingest_acked_events_total") > (seen[-1] if seen else 0) + 500, "there is traffic")
            seen.append(running.metric("ingest_acked_events_total"))
            kill_worker(running, "middle" if number == 0 else rng.choice(("middle", *WORKERS)))
            seen.append(running.metric("ingest_acked_events_total"))
            until(lambda: running.probe("/readyz")[0] == 200, "it is back")

    asyncio.run(under_load(running, oracle, scenario))
    assert seen == sorted(seen), "a sum of counters never goes back"
    assert running.metric("worker_restarts_total") - before == KILLS
    assert any(line["message"] == "worker ended and is started again" and line["ended_with"] == "SIGKILL" for line in running.lines())
    compare(oracle, at_rest(running, lake_of), capsys, f"{KILLS} kills of workers, seed {seed}")
    compare(oracle, lake_of(running.folder / "data" / "second"), capsys, "behind the links")


# --- the supervisor dies ---


def test_a_killed_supervisor_leaves_workers_that_drain_and_the_next_one_waits_for(site: SiteProcess, lake: Any, capsys: Any) -> None:
    site.start()
    site.file.write_text(SITE.replace('"127.0.0.1:0"\nauth', f'"{(site.url("devices") or "").removeprefix("http://")}"\nauth'))
    oracle = Oracle(devices=8, sessions=True, pause_s=0.05)
    drains, hangs = (site.workers()[name]["pid"] for name in WORKERS)

    def scenario() -> None:
        until(lambda: site.metric("ingest_acked_events_total") > 1000, "there is traffic")
        os.kill(hangs, signal.SIGSTOP)  # it cannot notice
        site.kill()
        until(lambda: not alive(drains), "the other worker has drained and ended")
        assert any(line["message"] == "the supervisor is gone: draining" and line["worker"] == "site.0" for line in site.lines())
        site.start(ready=False)
        until(lambda: any(line["message"] == "address cannot be had yet" for line in site.lines()), "the old worker's port is waited for")
        assert "cannot be listened on" in site.probe("/readyz")[1]
        assert site.probe("/livez")[0] == 200
        os.kill(hangs, signal.SIGKILL)
        until(site.is_ready, "the new workers are ready")

    asyncio.run(under_load(site, oracle, scenario))
    assert site.stop().startswith("received ")
    compare(oracle, lake, capsys, "a kill of the supervisor")


# --- more workers, fewer workers, none that can start ---


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
    assert [Path(entry.path).name for entry in QueueRegister(site.folder / "data").entries()] == ["queue"]
    site.stop()
    assert lake.ids() == dict.fromkeys(["first", *more], 1)


def test_a_config_that_no_worker_can_start_with_ends_the_site(site: SiteProcess) -> None:
    site.overrides += ["tiers.site.queue.path=/dev/shm/headrace-test-queue", "tiers.site.queue.level=power"]
    with pytest.raises(SiteError, match="code 78"):
        site.start()
    assert "does not survive power loss" in site.log_end()


def test_an_admin_address_that_is_taken_is_told_without_a_traceback(site: SiteProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.overrides.append(f"admin.listen=127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(SiteError, match="code 1") as caught:
            site.start()
    assert "headrace: admin.listen: 127.0.0.1:" in str(caught.value)
    assert "Traceback" not in site.log_end()


# --- helpers ---


def until(done: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
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
        while len(found) < len(WORKERS):
            before = await asyncio.to_thread(per_worker, site, "ingest_connections_opened_total")
            socket = await stack.enter_async_context(session.ws_connect(f"{site.url('devices')}/v1/devices/d/events"))
            after = await asyncio.to_thread(per_worker, site, "ingest_connections_opened_total")
            (where,) = [name for name in after if after[name] > before[name]]
            found.setdefault(where, socket)
        yield [found[name] for name in WORKERS]


def per_worker(site: SiteProcess, metric: str) -> dict[str, int]:
    """A metric of each worker; 0 of one that does not answer."""
    pages = {name: site.probe(f"/workers/{name}/metrics")[1].splitlines() for name in WORKERS}
    return {
        name: sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(f"headrace_{metric}{{"))
        for name, lines in pages.items()
    }


async def sent(socket: aiohttp.ClientWebSocketResponse, *events: dict[str, Any]) -> None:
    """Send the events; they are acked."""
    await socket.send_str(json.dumps(events))
    await socket.receive_str()


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


def kill_worker(site: SiteProcess, name: str) -> None:
    pid = site.workers()[name]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: site.workers()[name]["pid"] != pid, "the death is noticed")


def leave_stopped_workers(site: SiteProcess) -> list[int]:
    """Kill the supervisor; its workers do not notice, because they are stopped. Their pids."""
    pids = [row["pid"] for row in site.workers().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    site.kill()
    return pids


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


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


def at_rest(site: SiteProcess, lake_of: LakeOf) -> Any:
    """The site's lake, once everything acked is in it."""
    until(lambda: site.metric("worker_up") == len(site.workers()) and site.metric("queue_size_events") == 0, "the queues are empty")
    return lake_of(site.folder / "data")


def compare(oracle: Oracle, lake: Any, capsys: Any, what: str) -> None:
    verdict = oracle.verdict(lake.ids())
    with capsys.disabled():
        print(f"\n  {what}: {verdict}")
    assert verdict.acked > 0
    assert not verdict.lost
    assert not verdict.doubled
