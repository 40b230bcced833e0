"""What an event costs in the queue, beside SQLite, LMDB, RocksDB and plain files, in one run: `python benchmarks/bench_queue.py`.

Every store takes the same Arrow payloads (one batch = one record). Levels: `power` means one device flush per append,
`process` none. Read and release follow the append, in reads of 4,096 rows. Medians over the rounds; the order of the stores
changes from round to round, so that a noisy neighbour hits all of them.

What is promised as a ratio is measured with all of its sides open at once, in short turns in changing order: what the machine
and its disk do meanwhile hits each side alike. LMDB and RocksDB take part where they are installed:
`pip install lmdb rocksdict`; nothing else of headrace needs them.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import gc
import itertools
import json
import os
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import machine
import pyarrow as pa
import uvloop

from headrace import NO_ORIGINS, RAW_SCHEMA
from headrace.component import Context, SystemClock
from headrace.host import SWITCH_INTERVAL_S
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

    def consume(self, rows_max: int = sys.maxsize) -> int:
        async def work() -> int:
            info = self.queue.queue_info()
            after = info.readers[0].cursor
            start = after
            while after < min(info.head, start + rows_max):
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


#: What is compared in turns: name of the promise, the two stores, rows per append, the most that the ratio may be.
POOL, FOUR, PLAIN, SQLITE = "queue_pmem power (pool)", "queue_pmem power, 4 in flight", "plain file, fdatasync", "SQLite WAL FULL"
VERSUS: list[tuple[str, str, str, int, float]] = [
    ("power, batch 64, 4 in flight, against a plain file with fdatasync", FOUR, PLAIN, 64, 1.3),
    ("power, batch 64, 4 in flight, against SQLite FULL", FOUR, SQLITE, 64, 1 / 1.3),
    ("power, batch 64, one at a time, against a plain file with fdatasync", POOL, PLAIN, 64, 1.3),
    ("power, batch 64, one at a time, against SQLite FULL", POOL, SQLITE, 64, 1 / 1.3),
    ("process, batch 512, against a plain file without sync", "queue_pmem process (pool)", "plain file, no sync", 512, 2.0),
]


def in_turns(where: Path, turns: int) -> dict[tuple[str, int], float]:
    """Median ns per event of an append of all stores of VERSUS, taken in turns of 40 appends."""
    medians: dict[tuple[str, int], float] = {}
    chance = random.Random(1)
    for rows in sorted({rows for _, _, _, rows, _ in VERSUS}):
        names = sorted({name for _, one, other, size, _ in VERSUS if size == rows for name in (one, other)})
        data = batch(rows)
        samples: dict[str, list[float]] = {name: [] for name in names}
        with tempfile.TemporaryDirectory(dir=where) as folder:
            stores = {}
            for number, name in enumerate(names):
                (Path(folder) / str(number)).mkdir()
                stores[name] = STORES[name][1](Path(folder) / str(number))
                stores[name].append(data, 40)
            for _ in range(turns):
                chance.shuffle(names)
                for name in names:
                    started = time.perf_counter_ns()
                    stores[name].append(data, 40)
                    samples[name].append((time.perf_counter_ns() - started) / (40 * rows))
            for store in stores.values():
                store.close()
        medians |= {(name, rows): statistics.median(found) for name, found in samples.items()}
    return medians


def depth(where: Path, low: int, high: int, turns: int = 60) -> dict[str, float]:
    """What a deep queue costs: append and read beside a shallow one, in turns; the time to reopen after a kill; the memory."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        facts = in_process(lambda: deep_and_shallow(Path(folder), low, high, turns))
        facts |= {f"deep_{key}": value for key, value in in_process(lambda: reopen(Path(folder) / "deep")).items()}
        facts |= {f"shallow_{key}": value for key, value in in_process(lambda: reopen(Path(folder) / "shallow")).items()}
    return facts


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


def deep_and_shallow(folder: Path, low: int, high: int, turns: int) -> dict[str, float]:
    """Two queues, so many events in each; then in turns 8 appends of 512 events and a read and release of as many.

    So both stay as deep as they are, and make, seal and give back segments at the same pace.
    """
    stores = {}
    data = batch(512)
    for name, count in (("shallow", low), ("deep", high)):
        (folder / name).mkdir()
        stores[name] = Queue(folder / name, "process", size_max=8192 * MIB)
        stores[name].append(data, count // 512)
    os.sync()  # what the kernel still has to write of the filling is not what an append costs
    time.sleep(1)  # the upkeep seals and lets go
    facts = {"gib": stores["deep"].queue.queue_info().size_bytes / (1 << 30), "rss_mib": rss_mib()}
    appends: dict[str, list[float]] = {name: [] for name in stores}
    reads: dict[str, list[float]] = {name: [] for name in stores}
    for turn in range(turns):
        for name in ("shallow", "deep") if turn % 2 else ("deep", "shallow"):
            started = time.perf_counter_ns()
            stores[name].append(data, 8)
            appends[name].append((time.perf_counter_ns() - started) / 4096)
            started = time.perf_counter_ns()
            stores[name].consume(4096)
            reads[name].append((time.perf_counter_ns() - started) / 4096)
    for name in stores:
        facts |= {f"{name}_append_ns": statistics.median(appends[name]), f"{name}_read_ns": statistics.median(reads[name])}
    return facts


def reopen(folder: Path) -> dict[str, float]:
    """Open a queue whose process was killed, and read a hundred thousand events of it."""
    os.sync()
    started = time.perf_counter_ns()
    store = Queue(folder, "process", size_max=8192 * MIB)
    reopen_s = (time.perf_counter_ns() - started) / 1e9
    store.consume(100_000)
    return {"reopen_s": reopen_s, "reopen_rss_mib": rss_mib()}


def rss_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


class Stall:
    """How long the loop did not turn in some seconds: the longest time, how often it was more than a millisecond, and why then.

    `worked`: the loop's own thread used most of that time, which the code on the loop has to answer for. `preempted`: the kernel
    ran something else on its core, as it does with an idle loop too. `waited`: it waited, here for the interpreter, which another
    thread held (for longer than its work takes when that thread is preempted meanwhile).
    """

    def __init__(self) -> None:
        self.longest_ms, self.p999_ms, self.worked_ms = 0.0, 0.0, 0.0
        self.over_1_ms = self.worked = self.preempted = self.waited = 0

    async def watch(self, seconds: float) -> None:
        # Counted by microseconds, the last count is of all longer ones: a list of millions of times stalls the loop when it grows.
        counts = [0] * 2001
        used, cpu = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time()
        last = time.perf_counter()
        until = last + seconds
        while last < until:
            await asyncio.sleep(0)
            now = time.perf_counter()
            gap_ms = (now - last) * 1e3
            self.longest_ms = max(self.longest_ms, gap_ms)
            counts[min(int(gap_ms * 1e3), 2000)] += 1
            cpu_now = time.thread_time()
            self.worked_ms = max(self.worked_ms, (cpu_now - cpu) * 1e3)
            if now - last > 0.001:
                then, used = used, resource.getrusage(resource.RUSAGE_THREAD)
                self._blame(now - last, cpu_now - cpu, used.ru_nivcsw - then.ru_nivcsw)
            used, cpu = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time()
            last = time.perf_counter()
        seen = list(itertools.accumulate(counts))
        self.p999_ms = bisect.bisect_right(seen, int(seen[-1] * 0.999)) / 1e3
        self.over_1_ms = self.worked + self.preempted + self.waited

    def _blame(self, gap_s: float, cpu_s: float, preemptions: int) -> None:
        if cpu_s > gap_s / 2:
            self.worked += 1
        elif preemptions:
            self.preempted += 1
        else:
            self.waited += 1


LOOPS: list[str] = ["idle", "beside a thread that appends to a plain file with fdatasync", "4 appends at level power in flight"]


def stall(where: Path, seconds: float = 10.0) -> tuple[Stall, Stall, Stall]:
    """The loop with nothing to do, beside a thread that does no more than append to a plain file, and with four appends in flight.

    What the second shows of the machine and of the interpreter, no queue that syncs in a thread could do without.
    """
    with tempfile.TemporaryDirectory(dir=where) as folder:
        store, plain = Queue(Path(folder), "power"), PlainFile(Path(folder), True)
        idle, beside, busy = Stall(), Stall(), Stall()

        async def work() -> None:
            data = batch(64)
            await idle.watch(seconds)
            enough = threading.Event()

            def write() -> None:
                while not enough.is_set():
                    plain.append(data, 1)

            thread = threading.Thread(target=write)
            thread.start()
            await beside.watch(seconds)
            enough.set()
            await asyncio.to_thread(thread.join)
            ended = asyncio.Event()

            async def appends() -> None:
                while not ended.is_set():
                    await store.queue.queue_append(data, NO_ORIGINS)

            async def watch() -> None:
                await busy.watch(seconds)
                ended.set()

            await asyncio.gather(watch(), *(appends() for _ in range(4)))

        gc.collect()
        gc.freeze()
        store.loop.run_until_complete(work())
        store.close()
        plain.close()
    return idle, beside, busy


class Bar(NamedTuple):
    """A promise: what was measured, and what it may be at most."""

    name: str
    measured: float
    bound: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.bound


def bars(
    turns: dict[tuple[str, int], float], deep: dict[str, float], low: int, high: int, idle: Stall, beside: Stall, busy: Stall
) -> list[Bar]:
    """The promises of this benchmark."""
    result = [Bar(name, turns[one, rows] / turns[other, rows], bound) for name, one, other, rows, bound in VERSUS]
    if deep:
        result += [
            Bar(f"append at {high:,} queued against {low:,}", deep["deep_append_ns"] / deep["shallow_append_ns"], 1.2),
            Bar(f"read and release at {high:,} queued against {low:,}", deep["deep_read_ns"] / deep["shallow_read_ns"], 1.2),
            Bar(f"memory at {high:,} queued against {low:,}", deep["deep_reopen_rss_mib"] / deep["shallow_reopen_rss_mib"], 1.2),
            Bar("recovery, seconds per GiB", deep["deep_reopen_s"] / deep["gib"], 1.0),
        ]
    others = f"idle: {idle.longest_ms:.2f}, beside a plain file's thread: {beside.longest_ms:.2f}"
    stall = Bar(f"longest stall of the loop at level power, ms ({others})", busy.longest_ms, 1.0)
    return [*result, stall, Bar("longest work of the loop's own thread in one turn, at level power, ms", busy.worked_ms, 1.0)]


def report(found: dict[str, dict[int, tuple[float, float]]], turns: dict[tuple[str, int], float], deep: dict[str, float],
           stalls: tuple[Stall, Stall, Stall], verdicts: list[Bar], options: argparse.Namespace, where: Path) -> str:  # fmt: skip
    """The figures as a page."""
    sizes = list(next(iter(found.values()))) if found else []
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    lines = [
        "# The queue",
        "",
        f"`python benchmarks/bench_queue.py --rounds {options.rounds} --turns {options.turns} --depth {options.depth}`, {when}.",
        "",
        "## Promises",
        "",
    ]
    lines += ["| promise | measured | at most | |", "|---|---:|---:|---|"]
    lines += [f"| {bar.name} | {bar.measured:.2f} | {bar.bound:.2f} | {'kept' if bar.kept else 'missed'} |" for bar in verdicts]
    lines += ["", f"## In turns ({options.turns} of 40 appends each, median)", "", "| store | batch | append ns/event |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {rows} | {value:,.0f} |" for (name, rows), value in sorted(turns.items(), key=lambda item: (item[0][1], item[1]))
    ]
    if found:
        lines += ["", f"## Each by itself (ns/event, append / read and release, median of {options.rounds})", ""]
        lines += ["| store | " + " | ".join(f"batch {rows}" for rows in sizes) + " |", "|---|" + "---:|" * len(sizes)]
        lines += [
            f"| {name} | " + " | ".join(f"{by_size[rows][0]:,.0f} / {by_size[rows][1]:,.0f}" for rows in sizes) + " |"
            for name, by_size in found.items()
        ]
    if deep:
        lines += ["", "## Depth", "", *(f"- {key}: {value:.3g}" for key, value in deep.items())]
    lines += ["", "## The loop", ""]
    for name, one in zip(LOOPS, stalls, strict=True):
        lines.append(
            f"- {name}: longest {one.longest_ms:.2f} ms, p99.9 {one.p999_ms:.3f} ms, {one.over_1_ms} times more than 1 ms: "
            f"{one.preempted} preempted by the kernel, {one.waited} waiting for the interpreter, {one.worked} by work of its own thread "
            f"(longest {one.worked_ms:.2f} ms)"
        )
    lines += ["", "## Machine", "", *(f"- {key}: {value}" for key, value in machine.facts(where).items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=None, help="where the stores lie (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with all stores; 0 leaves it out")
    parser.add_argument("--turns", type=int, default=40, help="of the stores whose ratio is promised")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of appends")
    parser.add_argument("--batch", type=int, action="append", help="rows per append (default 1 8 64 512)")
    parser.add_argument("--depth", type=int, default=10_000_000, help="events of the deep queue; 0 leaves that part out")
    parser.add_argument("--out", type=Path, help="write the figures there too")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as in the host
    where = options.directory or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    low, high = 10_000, options.depth
    deep = depth(where, low, high) if high else {}
    turns = in_turns(where, options.turns)
    stalls = stall(where)
    found = compare(where, options.rounds, options.batch or [1, 8, 64, 512], options.scale) if options.rounds else {}
    text = report(found, turns, deep, stalls, bars(turns, deep, low, high, *stalls), options, where)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
