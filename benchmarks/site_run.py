"""One run of one scenario against a fresh site: started, loaded, drained, stopped, and its lake compared with the acks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from generator import Load, LoadError, Scenario, run_simulate, run_wsload, write_devices
from machine import Used, process_cpu_s, process_rss_mb

from headrace.testing.site import SiteProcess

SITE = Path(__file__).parent.parent / "examples" / "single.toml"
FREE_PORTS = (
    "admin.listen=127.0.0.1:0",
    "tiers.site.sources.devices.listen=127.0.0.1:0",
    "tiers.site.outputs.live.listen=127.0.0.1:0",
)
POLL_S = 0.1
DRAIN_S_MAX = 300.0


@dataclass(frozen=True)
class Options:
    """What is the same for every run. `program` is the compiled generator, if there is one; `extra`: further overrides of the site."""

    program: Path | None
    warmup_s: float
    seconds: float
    server_cores: frozenset[int]
    generator_core: int
    level: str
    flush_interval_s: float
    folder: Path | None
    extra: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        """What differs from the example's file."""
        return [
            *FREE_PORTS,
            f"tiers.site.queue.level={self.level}",
            f"tiers.site.outputs.lake.flush_interval_s={self.flush_interval_s}",
            *self.extra,
        ]


@dataclass(frozen=True)
class Figures:
    """The figures of a run. `noise` is the number of cores that strangers kept busy under load; `lags`: how many events the lake had
    yet to make safe, by the second since the load began."""

    acked: int
    acked_per_s: float
    p50_ms: float
    p99_ms: float
    unsent: int
    late_max_ms: float
    parquet_per_s: float
    backlog: int
    drain_s: float
    cpu_percent: float
    cpu_us_per_event: float
    rss_mb: float
    rss_peak_mb: float
    noise: float
    counter: int
    lags: tuple[tuple[float, float], ...] = ()


def run(scenario: Scenario, options: Options) -> Figures:
    """Measure once, in a folder of its own that is removed. LoadError when an acked event is not in the lake, or is there twice."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder) as name:
        folder = Path(name)
        _import_devices(folder, scenario, options)
        with SiteProcess(SITE, folder, options.overrides()) as site:
            _start(site, options.server_cores)
            load, figures = _measure(site, scenario, options, folder)
            site.stop(timeout_s=120)
        check_lake(folder / "data" / "lake", load)
    return figures


def _import_devices(folder: Path, scenario: Scenario, options: Options) -> None:
    devices, data = folder / "devices.csv", folder / "data"
    data.mkdir()
    if options.program is None:
        _headrace("devices", "fleet", "--count", str(scenario.connections), "--csv", str(devices))
    else:
        write_devices(devices, scenario.connections)
    _headrace("context", "import", str(devices), "--database", f"sqlite:///{data}/context.db")


def _headrace(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "headrace", *words], check=True, stdout=subprocess.DEVNULL)


def _start(site: SiteProcess, cores: frozenset[int]) -> None:
    """Started on its cores, not moved there: threads take the affinity that their process has when they begin."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        site.start()
    finally:
        os.sched_setaffinity(0, before)


def _measure(site: SiteProcess, scenario: Scenario, options: Options, folder: Path) -> tuple[Load, Figures]:
    assert site.process is not None
    pid = site.process.pid
    port = int((site.url("devices") or "").rpartition(":")[2])
    before = Used.now(pid)
    lags = _Lags(site)
    lags.start()
    if options.program is None:
        load = run_simulate(port, scenario, options.seconds, options.generator_core)
    else:
        load = run_wsload(options.program, port, scenario, options.warmup_s, options.seconds, options.generator_core, folder)
    loaded = Used.now(pid)
    lags.stop()
    backlog = int(site.metric("queue_reader_lag_events", reader="lake"))
    drained = _drained(site)
    rss_mb, rss_peak_mb = process_rss_mb(pid)
    return load, Figures(
        acked=load.acked,
        acked_per_s=load.acked_per_s,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        unsent=load.unsent,
        late_max_ms=load.late_max_ms,
        parquet_per_s=load.acked / (drained - load.begun),
        backlog=backlog,
        drain_s=drained - load.ended,
        cpu_percent=100 * (loaded.server_s - before.server_s) / (loaded.at_s - before.at_s),
        cpu_us_per_event=1e6 * (process_cpu_s(pid) - before.server_s) / load.acked,
        rss_mb=rss_mb,
        rss_peak_mb=rss_peak_mb,
        noise=loaded.others_cores_since(before),
        counter=int(site.metric("sink_written_events_total", component="lake")),
        lags=tuple(lags.seen),
    )


class _Lags(threading.Thread):
    """Looks once a second how many events the lake has yet to make safe."""

    def __init__(self, site: SiteProcess) -> None:
        super().__init__(daemon=True)
        self._site, self._over = site, threading.Event()
        self.seen: list[tuple[float, float]] = []

    def run(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(1.0):
            lag = self._site.metric("queue_reader_lag_events", reader="lake")
            self.seen.append((time.monotonic() - begun, lag))

    def stop(self) -> None:
        """The load is over."""
        self._over.set()
        self.join()


def _drained(site: SiteProcess) -> float:
    """The moment when the lake had released everything: it is in Parquet files, synced and committed."""
    deadline = time.monotonic() + DRAIN_S_MAX
    while site.metric("queue_reader_lag_events", reader="lake") > 0:
        if time.monotonic() > deadline or site.died() is not None:
            raise LoadError(f"the lake did not have everything after {DRAIN_S_MAX:.0f} s\n{site.log_end()}")
        time.sleep(POLL_S)
    return time.monotonic()


def check_lake(lake: Path, load: Load) -> None:
    """No loss and no doubles: the lake holds each acked message one time, of each device, by its own number."""
    table = f"read_parquet('{lake}/class=*/date=*/*.parquet', union_by_name = true, hive_partitioning = false)"
    ((rows, positions),) = _query(f"select count(*), count(distinct position) from {table}")
    if (rows, positions) != (load.acked, load.acked):
        raise LoadError(f"expected the {load.acked:,} acked events in the lake, got {rows:,} rows with {positions:,} positions")
    if load.acked_by_device is None:
        return
    sql = f"select device, count(*), count(distinct readings.seq), min(readings.seq), max(readings.seq) from {table} group by 1"
    found = {device: numbers for device, *numbers in _query(sql)}
    expected = {device: [count, count, 1, count] for device, count in load.acked_by_device.items() if count}
    if found != expected:
        wrong = sorted(device for device in expected | found if expected.get(device) != found.get(device))
        first = wrong[0]
        raise LoadError(
            f"{len(wrong)} devices differ; {first}: expected {expected.get(first)}, got {found.get(first)} (count, seqs, min, max)"
        )


def _query(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()
