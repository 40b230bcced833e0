"""A site whose database dies, comes back, and fills its disk, under load: no loss, no doubles, and the lake does not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from headrace.testing.oracle import Oracle
from headrace.testing.postgres import PASSWORD, PostgresServer
from headrace.testing.site import SiteProcess

pytestmark = pytest.mark.xdist_group("postgres")

SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
[tiers.site.engine]
retry_base_ms = 20
retry_max_ms = 500
[tiers.site.outputs.lake]
use = "sink_lake"
path = "${HEADRACE_DATA}/lake"
flush_interval_s = 0.2
[tiers.site.outputs.db]
use = "sink_sql"
database = "${DATABASE}"
flush_interval_s = 0.2
"""


@pytest.fixture
def site(postgres: PostgresServer, tmp_path: Path) -> Iterator[SiteProcess]:
    (tmp_path / "site.toml").write_text(SITE)
    with SiteProcess(tmp_path / "site.toml", tmp_path, environ={"DATABASE": postgres.url}) as process:
        yield process


def written(site: SiteProcess, output: str) -> float:
    return site.metric("sink_written_events_total", component=output)


async def until(done: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(done):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    del what  # stands in the traceback


async def goes_on(site: SiteProcess, oracle: Oracle, *outputs: str) -> None:
    """Acks, and what these outputs store, grow from now on."""
    acked = len(oracle.acked)
    before = {output: await asyncio.to_thread(written, site, output) for output in outputs}
    await until(lambda: len(oracle.acked) > acked, "acks go on")
    for output in outputs:
        await until(lambda output=output: written(site, output) > before[output], f"{output} stores on")


async def degraded(site: SiteProcess) -> str:
    await until(lambda: site.components()["db"]["status"] == "degraded", "the output says that the database is away")
    return str(site.components()["db"]["reason"])


def verify(site: SiteProcess, oracle: Oracle, server: PostgresServer) -> None:
    """Both stores hold what was acked, each event once."""
    assert len(oracle.acked) > 100
    rows = server.execute("select readings->>'id', count(*) from events group by 1")
    verdict = oracle.verdict({name: int(count) for name, count in rows})
    assert (verdict.lost, verdict.doubled) == ([], []), str(verdict)
    words = [sys.executable, "-m", "headrace", "lake", "verify", str(site.folder / "data" / "lake")]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert PASSWORD not in site.log.read_text()


def test_a_database_that_is_killed_and_comes_back_loses_and_doubles_nothing(site: SiteProcess, postgres: PostgresServer) -> None:
    site.start()
    oracle = Oracle(devices=4, sessions=True, pause_s=0.002)

    async def main() -> None:
        done = asyncio.Event()
        running = asyncio.ensure_future(oracle.run(lambda: site.url("devices"), done))
        await goes_on(site, oracle, "lake", "db")
        # the whole server
        await asyncio.to_thread(postgres.kill)
        await degraded(site)
        await goes_on(site, oracle, "lake")
        await asyncio.to_thread(postgres.start)
        await goes_on(site, oracle, "lake", "db")
        # one backend: its death makes the server restart all of them
        backends = postgres.execute("select pid from pg_stat_activity where application_name = 'headrace sink_sql'")
        os.kill(backends[0][0], signal.SIGKILL)
        await until(lambda: site.metric("sink_failures_total", component="db") > 1, "that is noticed")
        await asyncio.to_thread(postgres.start)
        await goes_on(site, oracle, "lake", "db")
        done.set()
        await running
        await oracle.settle(lambda: site.url("devices"))
        await until(lambda: site.metric("queue_reader_lag_events") == 0, "all is stored")

    asyncio.run(main())
    assert site.components()["db"]["status"] == "ok"
    site.stop()
    verify(site, oracle, postgres)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_database_that_fills_its_disk_is_waited_for(site: SiteProcess, postgres: PostgresServer, tmp_path: Path) -> None:
    small = Path(f"/tmp/headrace-small-{os.getpid()}")
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,mode=777 tmpfs {small} 2>/dev/null") != 0:
        small.rmdir()
        pytest.skip("tmpfs cannot be mounted here")
    folder = small / "space"
    folder.mkdir()
    owner = postgres.folder.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    try:
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as server:
            server.execute(f"create tablespace small location '{folder}'".encode())
            server.execute("alter role site set default_tablespace = small")
        site.start()
        oracle = Oracle(devices=4, pad_bytes=400, sessions=True, pause_s=0.001)

        async def main() -> None:
            done = asyncio.Event()
            running = asyncio.ensure_future(oracle.run(lambda: site.url("devices"), done))
            assert "No space left" in await degraded(site)
            await goes_on(site, oracle, "lake")
            done.set()
            await running
            assert await asyncio.to_thread(os.system, f"mount -o remount,size=256m {small}") == 0
            await oracle.settle(lambda: site.url("devices"))
            await until(lambda: site.metric("queue_reader_lag_events") == 0, "all is stored")

        asyncio.run(main())
        assert site.components()["db"]["status"] == "ok"
        site.stop()
        verify(site, oracle, postgres)
    finally:
        site.__exit__()
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as server:
            server.execute("alter role site reset default_tablespace")
            server.execute("drop schema public cascade")
            server.execute("drop tablespace small")
        os.system(f"umount {small}")
        small.rmdir()
