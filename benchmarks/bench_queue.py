"""What an event costs in the queue, beside SQLite, LMDB, RocksDB and plain files, in one run: `python benchmarks/bench_queue.py`.

Every store takes the same Arrow payloads (one batch = one record). Levels: `power` means one device flush per append,
`process` none. Read and release follow the append, in reads of 4,096 rows. Medians over the rounds; the order of the stores
changes from round to round, so that a noisy neighbour hits all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import uvloop

from headrace import NO_ORIGINS, RAW_SCHEMA
from headrace.component import Context, SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace_queue_pmem import QueuePmem

PAYLOAD = b'{"temperature":21.5,"humidity":40.2,"pressure":1013.2,"battery":3.71,"seq":123456,"status":"ok","padding":"xxxxxxxxx"}'
MIB = 1 << 20


def batch(rows: int) -> pa.RecordBatch:
    """A raw batch of 120-byte messages."""
    return pa.RecordBatch.from_pydict(
        {
            "device": [f"sensor-{row % 100:04}" for row in range(rows)],
            "received": [0] * rows,
            "encoding": [1] * rows,
            "payload": [PAYLOAD] * rows,
        },
        schema=RAW_SCHEMA,
    )


class Store(Protocol):
    """One store under test, opened in a directory of its own."""

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        """Append the batch so many times, each durable before the next."""

    def consume(self) -> int:
        """Read and release everything; how many rows came."""

    def close(self) -> None: ...


class Queue:
    """queue_pmem through its hooks, as the engine calls them."""

    def __init__(self, directory: Path, level: str, medium: str = "auto", size_max: int = 2048 * MIB, in_flight: int = 1) -> None:
        self.in_flight = in_flight
        options: dict[str, Any] = {"path": str(directory / "queue"), "level": level, "medium": medium}
        config = QueuePmem.Config(size_bytes_max=size_max, **options)
        context = Context(
            id="queue", tier="bench", plugin="queue_pmem", log=Log("bench"), metrics=Metrics(), clock=SystemClock(),
            random=random.Random(1), data_dir=directory, fault=lambda _name: None, status=lambda _status, _reason: None,
        )  # fmt: skip
        self.queue = QueuePmem(config, context)
        self.loop = uvloop.new_event_loop()
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.queue.open()
        await self.queue.queue_reader_open("bench", "oldest")

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        async def work(count: int) -> None:
            for _ in range(count):
                await self.queue.queue_append(rows, NO_ORIGINS)

        async def together() -> None:
            await asyncio.gather(*(work(times // self.in_flight) for _ in range(self.in_flight)))

        self.loop.run_until_complete(work(times) if self.in_flight == 1 else together())

    def consume(self) -> int:
        async def work() -> int:
            info = self.queue.queue_info()
            after = info.readers[0].cursor
            start = after
            while after < info.head:
                part = await self.queue.queue_read("bench", after, 4096, 4 * MIB)
                after = part.last
                await self.queue.queue_release("bench", after)
            return after - start

        return self.loop.run_until_complete(work())

    def close(self) -> None:
        self.loop.run_until_complete(self.queue.close())
        self.loop.close()


class PlainFile:
    """A preallocated file: one pwritev per batch, with fdatasync or without. The floor of what a file can do."""

    def __init__(self, directory: Path, sync: bool) -> None:
        self.file = os.open(directory / "log", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.file, 0, 1024 * MIB)
        for offset in range(0, 64 * MIB, 4096):  # blocks that were written once: no extent is converted in the measurement
            os.pwrite(self.file, bytes(4096), offset)
        os.fsync(self.file)
        self.sync, self.start, self.end, self.sizes = sync, 0, 0, []

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        import zlib

        for _ in range(times):
            data = rows.serialize()
            os.pwritev(self.file, [len(data).to_bytes(8, "little") + zlib.crc32(data).to_bytes(8, "little"), data], self.end)
            if self.sync:
                os.fdatasync(self.file)
            self.sizes.append((self.end + 16, data.size))
            self.end += 16 + data.size

    def consume(self) -> int:
        count = sum(pa.ipc.read_record_batch(pa.py_buffer(os.pread(self.file, size, at)), RAW_SCHEMA).num_rows for at, size in self.sizes)
        self.sizes = []
        return count

    def close(self) -> None:
        os.close(self.file)


class Sqlite:
    """SQLite in WAL mode, one transaction per batch. FULL syncs each, NORMAL only at checkpoints."""

    def __init__(self, directory: Path, synchronous: str) -> None:
        self.db = sqlite3.connect(directory / "queue.db", isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute(f"pragma synchronous = {synchronous}")
        self.db.execute("create table frames (id integer primary key, payload blob)")

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        for _ in range(times):
            self.db.execute("insert into frames (payload) values (?)", (rows.serialize().to_pybytes(),))

    def consume(self) -> int:
        count = 0
        ident = 0
        for ident, payload in self.db.execute("select id, payload from frames order by id").fetchall():  # noqa: B007
            count += pa.ipc.read_record_batch(pa.py_buffer(payload), RAW_SCHEMA).num_rows
        self.db.execute("delete from frames where id <= ?", (ident,))
        return count

    def close(self) -> None:
        self.db.close()


class Lmdb:
    """LMDB, one transaction per batch."""

    def __init__(self, directory: Path, sync: bool) -> None:
        import lmdb

        self.env = lmdb.open(str(directory / "lmdb"), map_size=2048 * MIB, sync=sync, metasync=sync)
        self.next = 0

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        for _ in range(times):
            with self.env.begin(write=True) as txn:
                txn.put(self.next.to_bytes(8, "big"), rows.serialize().to_pybytes(), append=True)
            self.next += 1

    def consume(self) -> int:
        count = 0
        with self.env.begin(write=True) as txn, txn.cursor() as cursor:
            while cursor.first():
                count += pa.ipc.read_record_batch(pa.py_buffer(cursor.value()), RAW_SCHEMA).num_rows
                cursor.delete()
        return count

    def close(self) -> None:
        self.env.close()


class Rocks:
    """RocksDB through rocksdict, one put per batch."""

    def __init__(self, directory: Path, sync: bool) -> None:
        import rocksdict

        self.db = rocksdict.Rdict(str(directory / "rocks"), rocksdict.Options(raw_mode=True))
        options = rocksdict.WriteOptions()
        options.sync = sync
        self.db.set_write_options(options)
        self.first = self.next = 0

    def append(self, rows: pa.RecordBatch, times: int) -> None:
        for _ in range(times):
            self.db[self.next.to_bytes(8, "big")] = rows.serialize().to_pybytes()
            self.next += 1

    def consume(self) -> int:
        count = 0
        for value in self.db.values(from_key=self.first.to_bytes(8, "big")):
            count += pa.ipc.read_record_batch(pa.py_buffer(value), RAW_SCHEMA).num_rows
        self.db.delete_range(self.first.to_bytes(8, "big"), self.next.to_bytes(8, "big"))
        self.first = self.next
        return count

    def close(self) -> None:
        self.db.close()


STORES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "queue_pmem power (pool)": ("power", lambda path: Queue(path, "power")),
    "queue_pmem power, 4 in flight": ("power", lambda path: Queue(path, "power", in_flight=4)),
    "queue_pmem power (file)": ("power", lambda path: Queue(path, "power", "file")),
    "plain file, fdatasync": ("power", lambda path: PlainFile(path, True)),
    "SQLite WAL FULL": ("power", lambda path: Sqlite(path, "full")),
    "LMDB sync": ("power", lambda path: Lmdb(path, True)),
    "RocksDB sync": ("power", lambda path: Rocks(path, True)),
    "queue_pmem process (pool)": ("process", lambda path: Queue(path, "process")),
    "queue_pmem process (file)": ("process", lambda path: Queue(path, "process", "file")),
    "plain file, no sync": ("process", lambda path: PlainFile(path, False)),
    "SQLite WAL NORMAL": ("process", lambda path: Sqlite(path, "normal")),
    "LMDB nosync": ("process", lambda path: Lmdb(path, False)),
    "RocksDB no sync": ("process", lambda path: Rocks(path, False)),
}


def measure(make: Callable[[Path], Any], where: Path, rows: int, appends: int) -> tuple[float, float]:
    """ns per event of append, and of read and release."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        store = make(Path(folder))
        try:
            data = batch(rows)
            store.append(data, min(appends, 20))
            store.consume()
            # In twenty parts, of which the median counts: other work on the machine hits some of them, what the store does
            # now and then (checkpoints, compaction, new segments) is in most.
            parts = []
            for _ in range(20):
                started = time.perf_counter_ns()
                store.append(data, appends // 20 // 4 * 4)
                parts.append((time.perf_counter_ns() - started) / (appends // 20 // 4 * 4 * rows))
            started = time.perf_counter_ns()
            count = store.consume()
            ended = time.perf_counter_ns()
        finally:
            store.close()
    assert count == appends // 20 // 4 * 4 * 20 * rows, (count, appends, rows)
    return statistics.median(parts), (ended - started) / count


def compare(where: Path, rounds: int, sizes: list[int], scale: float) -> dict[str, dict[int, tuple[float, float]]]:
    """Medians of all stores that are installed, per batch size."""
    samples: dict[str, dict[int, list[tuple[float, float]]]] = {name: {rows: [] for rows in sizes} for name in STORES}
    chance = random.Random(1)
    for turn in range(rounds):
        for rows in sizes:
            names = list(STORES)
            chance.shuffle(names)
            for name in names:
                level, make = STORES[name]
                appends = int((400 if level == "power" else 2000 if rows > 8 else 5000) * scale)
                with suppress(ImportError):
                    samples[name][rows].append(measure(make, where, rows, max(appends, 80)))
        print(f"round {turn + 1} of {rounds} done", file=sys.stderr)
    medians = {}
    for name, by_size in samples.items():
        if all(by_size.values()):
            medians[name] = {
                rows: tuple(statistics.median(column) for column in zip(*found, strict=True)) for rows, found in by_size.items()
            }
    return medians  # type: ignore[return-value]


def depth(where: Path, events: list[int], rounds: int = 3) -> dict[int, dict[str, float]]:
    """Cost of append and of read with so many events queued before, the time to reopen after a kill, and the memory."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in events}
    for _ in range(rounds):
        for count in events:
            with tempfile.TemporaryDirectory(dir=where) as folder:
                facts = in_process(lambda folder=Path(folder), count=count: fill(folder, count))
                found[count].append(facts | in_process(lambda folder=Path(folder): reopen(folder)))
    return {count: {key: statistics.median(facts[key] for facts in rows) for key in rows[0]} for count, rows in found.items()}


def in_process(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run `work` in a process that ends as by kill -9, and give back what it found."""
    ear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(tell, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(ear, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    facts: dict[str, float] = json.loads(said)
    return facts


def fill(folder: Path, count: int) -> dict[str, float]:
    store = Queue(folder, "process", size_max=8192 * MIB)
    data = batch(512)
    store.append(data, count // 512)
    os.sync()  # what the kernel still has to write of the filling is not what an append costs
    samples = []
    for _ in range(40):
        started = time.perf_counter_ns()
        store.append(data, 25)
        samples.append((time.perf_counter_ns() - started) / (25 * 512))
    time.sleep(1)  # the upkeep seals and lets go
    return {"append_ns": statistics.median(samples), "gib": store.queue.queue_info().size_bytes / (1 << 30), "fill_rss_mib": rss_mib()}


def reopen(folder: Path) -> dict[str, float]:
    os.sync()
    started = time.perf_counter_ns()
    store = Queue(folder, "process", size_max=8192 * MIB)
    reopen_s = (time.perf_counter_ns() - started) / 1e9

    async def read() -> list[float]:
        samples, after = [], 0
        for _ in range(100):
            started, before = time.perf_counter_ns(), after
            part = await store.queue.queue_read("bench", after, 4096, 4 * MIB)
            after = part.last
            await store.queue.queue_release("bench", after)
            samples.append((time.perf_counter_ns() - started) / (after - before))
        return samples

    read_ns = statistics.median(store.loop.run_until_complete(read()))
    return {"read_ns": read_ns, "reopen_s": reopen_s, "reopen_rss_mib": rss_mib()}


def rss_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def stall(where: Path) -> float:
    """The longest time, in ms, that the loop did not turn while appends at level `power` were under way (p99.9 of 5 s)."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        store = Queue(Path(folder), "power")
        gaps: list[float] = []

        async def work() -> None:
            data = batch(64)
            until = time.perf_counter() + 5

            async def appends() -> None:
                while time.perf_counter() < until:
                    await store.queue.queue_append(data, NO_ORIGINS)

            async def watch() -> None:
                last = time.perf_counter()
                while last < until:
                    await asyncio.sleep(0)
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now

            await asyncio.gather(watch(), *(appends() for _ in range(4)))

        store.loop.run_until_complete(work())
        store.close()
    gaps.sort()
    return gaps[int(len(gaps) * 0.999)] * 1e3


def bars(
    found: dict[str, dict[int, tuple[float, float]]], deep: dict[int, dict[str, float]], stall_ms: float
) -> list[tuple[str, float, float, bool]]:
    """The promises of this benchmark: name, measured ratio, bound, kept."""
    result = []

    def bar(name: str, ratio: float, bound: float) -> None:
        result.append((name, ratio, bound, ratio <= bound))

    if 64 in next(iter(found.values())):
        bar(
            "power, batch 64: append against plain file with fdatasync",
            found["queue_pmem power (pool)"][64][0] / found["plain file, fdatasync"][64][0],
            1.3,
        )
        bar(
            "power, batch 64, 4 in flight: append against plain file with fdatasync",
            found["queue_pmem power, 4 in flight"][64][0] / found["plain file, fdatasync"][64][0],
            1.3,
        )
        bar(
            "power, batch 64: append against SQLite FULL",
            found["queue_pmem power (pool)"][64][0] / found["SQLite WAL FULL"][64][0],
            1 / 1.3,
        )
    if 512 in next(iter(found.values())):
        bar(
            "process, batch 512: append against plain file without sync",
            found["queue_pmem process (pool)"][512][0] / found["plain file, no sync"][512][0],
            2.0,
        )
    if len(deep) > 1:
        low, middle, high = sorted(deep)
        bar(f"append at {high:,} queued against {low:,}", deep[high]["append_ns"] / deep[low]["append_ns"], 1.2)
        bar(f"read at {high:,} queued against {low:,}", deep[high]["read_ns"] / deep[low]["read_ns"], 1.2)
        bar(f"memory at {high:,} queued against {middle:,}", deep[high]["reopen_rss_mib"] / deep[middle]["reopen_rss_mib"], 1.2)
        bar("recovery, seconds per GiB", deep[high]["reopen_s"] / deep[high]["gib"], 1.0)
    if stall_ms:
        bar("loop stall at level power, p99.9 in ms", stall_ms, 1.0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=None, help="where the stores lie (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of appends")
    parser.add_argument("--batch", type=int, action="append", help="rows per append (default 1 8 64 512)")
    parser.add_argument("--depth", type=int, default=10_000_000, help="events of the deep queue; 0 leaves that part out")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    where = options.directory or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, pyarrow {pa.__version__}")
    found = compare(where, options.rounds, options.batch or [1, 8, 64, 512], options.scale)
    sizes = list(next(iter(found.values())))
    print(
        f"\nns per event, median of {options.rounds}: append / read and release\n{'':32}"
        + "".join(f"{f'batch {rows}':>22}" for rows in sizes)
    )
    for name, by_size in found.items():
        print(f"{name:32}" + "".join(f"{by_size[rows][0]:>11,.0f} /{by_size[rows][1]:>8,.0f} " for rows in sizes))
    deep = depth(where, [10_000, options.depth // 10, options.depth]) if options.depth else {}
    for count, facts in deep.items():
        print(f"{count:>12,} queued: " + ", ".join(f"{key} {value:.3g}" for key, value in facts.items()))
    verdicts = bars(found, deep, stall(where))
    print()
    for name, ratio, bound, kept in verdicts:
        print(f"{'kept  ' if kept else 'MISSED'} {name}: {ratio:.2f} (at most {bound:.2f})")
    if options.json:
        options.json.write_text(json.dumps({"append_read_ns": found, "depth": deep, "bars": verdicts}, indent=1))


if __name__ == "__main__":
    main()
