"""Writers, readers and a compaction that is killed again and again: no reader ever counts wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import compact_driver
import duckdb
import numpy as np
import pytest

from headrace.testing.forking import Forked
from headrace_sink_lake import LocalStore, live_files
from headrace_sink_lake.compact import Options, compact
from headrace_sink_lake.manifest import ORPHAN_S
from headrace_sink_lake.snapshot import read_manifest
from headrace_sink_lake.vacuum import vacuum
from headrace_sink_lake.verify import verify

FULL = "HEADRACE_FULL" in os.environ
QUEUES = ("q", "r")
POINTS = ("lake.before_merge", "lake.after_merge", "lake.before_manifest", "lake.after_manifest")
REMOVING = ("lake.after_link", "lake.mid_remove")


def start(log: Path, *arguments: str) -> Forked:
    return Forked(compact_driver.main, arguments, log=log)


@contextlib.contextmanager
def writers(lake: Path) -> Iterator[dict[str, Path]]:
    logs = {queue: lake.parent / f"{queue}.log" for queue in QUEUES}
    processes = [start(log, "write", str(lake), queue) for queue, log in logs.items()]
    try:
        yield logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


def safe_upto(log: Path) -> int:
    lines = log.read_text().splitlines()[-2:] if log.exists() else []  # the last one may be cut
    return max((int(line.split()[1]) for line in lines[:1] if line.startswith("safe ")), default=0)


def rows_upto(position: int) -> int:
    numbers = np.arange(1, position + 1)
    return int(np.count_nonzero((numbers % 11 != 0) & (numbers % 13 != 1)))


def check(files: str | list[str], safe: dict[str, int]) -> int:
    """Count as a reader does: every event that was safe before is there, and none is there twice."""
    with duckdb.connect() as database:
        database.execute("set threads = 1")
        rows = f"read_parquet({files!r}, union_by_name = true)"
        bounds = " or ".join(f"(origin = '{queue}' and position <= {upto})" for queue, upto in safe.items())
        counts = f"count(*), count(distinct position), count(*) filter ({bounds})"
        found = {row[0]: row[1:] for row in database.sql(f"select origin, {counts} from {rows} group by origin").fetchall()}
    for queue, upto in safe.items():
        count, distinct, held = found.get(queue, (0, 0, 0))
        assert count == distinct, f"{queue}: {count - distinct} events twice"
        assert held == rows_upto(upto), f"{queue}: {rows_upto(upto) - held} of the events up to {upto} missing"
    return sum(row[0] for row in found.values())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("removing", "kills", "seconds"), [(False, 2, 60), (True, 4, 300)], ids=["compact", "compact and vacuum"])
def test_readers_never_count_wrong_while_compaction_is_killed(tmp_path: Path, removing: bool, kills: int, seconds: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    lake, log = tmp_path / "lake", tmp_path / "compact.log"
    lake.mkdir()
    kills, until = (20, time.monotonic() + seconds) if FULL else (kills, 0.0)
    killed = reads = retries = 0
    with writers(lake) as logs:
        deadline = time.monotonic() + seconds + 120
        while not all(safe_upto(path) for path in logs.values()):
            assert time.monotonic() < deadline, "the writers did not begin"
            time.sleep(0.05)
        process = None
        while killed < kills or time.monotonic() < until or not read_manifest(LocalStore(lake)).number:
            assert time.monotonic() < deadline, f"{killed} kills, {reads} reads"
            if process is None:
                fault = chance.choice((*POINTS, *(REMOVING if removing else ()), ""))
                process = start(log, "compact", str(lake), "10" if removing else "-1", fault, str(chance.randint(1, 3)))
                dies_at = time.monotonic() + chance.uniform(0.5, 3 if not FULL else 2 * seconds / kills)
            safe = {queue: safe_upto(path) for queue, path in logs.items()}
            try:
                check([str(lake / path) for path in live_files(str(lake))], safe)
                if not removing:
                    check(f"{lake}/**/*.parquet", safe)
                reads += 1
            except duckdb.IOException:
                # Told, not miscounted: what it was about to open was replaced ten seconds ago, on a machine that is this slow.
                assert removing
                retries += 1
            if time.monotonic() > dies_at:
                process.send_signal(signal.SIGKILL)
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, log.read_text()[-500:]
                killed, process = killed + 1, None
        if process is not None:
            process.kill()
            process.wait()
    assert reads >= kills, f"{retries} reads of {reads + retries} came too late"
    safe = {queue: safe_upto(path) for queue, path in logs.items()}
    local = LocalStore(lake)
    assert verify(local).findings == []
    compact(local, Options(files_min=2))
    vacuum(local, 0, wall=lambda: time.time() + ORPHAN_S + 10)
    vacuum(local, 0, wall=lambda: time.time() + 2 * ORPHAN_S + 20)
    rows = check(f"{lake}/**/*.parquet", safe)
    assert rows == check([str(lake / path) for path in live_files(str(lake))], safe)
    assert verify(local).findings == []
    assert not list(lake.glob("**/*.merged"))
    print(f"{killed} kills, {reads} reads, {retries} too late, {rows} rows")
