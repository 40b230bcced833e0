"""What bench_tiers.py measures, one function each. Everything shares the machine's cores, the generator too."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from generator import LoadError
from machine import Used, process_cpu_s
from peers.contenders import Nats, NotInstalled, end, start_redis
from site_run import check_lake
from tiers_run import Tiers

PEERS: Final = Path(__file__).parent / "peers"
DEVICES, WINDOW = 200, 64
Figures = dict[str, float]
#: What the brokers get, of about the size and content of what wsload sends to headrace.
NOW_MS: Final = int(time.time() * 1000)
PAYLOAD: Final = f'{{"ts":{NOW_MS},"seq":12345,"temp":21.53,"hum":48.2,"bat":3.71,"rssi":-67,"fw":"1.4.2","site":"berlin-07","cls":"th"}}'


class Watch:
    """Knows how many cores strangers kept busy since it was made: noise."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._from = Used.now(os.getpid())

    def others(self, servers_s: float) -> float:
        """`servers_s`: processor seconds that the servers of the benchmark have used meanwhile."""
        now = Used.now(os.getpid())
        mine = now.generator_s - self._from.generator_s + servers_s
        return max(0.0, now.machine_s - self._from.machine_s - mine) / (now.at_s - self._from.at_s)


@dataclass
class Load:
    """A generator under way: its result is read by `ended`."""

    process: subprocess.Popen[str]
    log: Path
    began_at: float = field(default_factory=time.monotonic)

    def ended(self) -> dict[str, Any]:
        """Wait for its end. LoadError when an ack is missing."""
        output, errors = self.process.communicate(timeout=600)
        if self.process.returncode != 0:
            raise LoadError(f"wsload ended with code {self.process.returncode}: {errors[-2000:]}{output[-2000:]}")
        result: dict[str, Any] = json.loads(output)
        if result["unacked"]:
            raise LoadError(f"{result['unacked']} messages without an ack")
        return result


def load(program: Path, port: int, folder: Path, *words: Any, connections: int = DEVICES, first: int = 0) -> Load:
    """Start the generator with devices from `first` on. At a rate it may be a millisecond late: it has no core to itself to be exact on."""
    log = folder / f"acked-{port}-{first}-{time.monotonic_ns()}.csv"
    command = [program, "--port", port, "--path", "/v1/devices/dev-%CONN%/events", "--conns", connections, "--conn0", first]
    command += ["--acklog", log, "--drain", 60, "--spin", 0, *words]
    return Load(subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), log)


def acked(log: Path) -> dict[str, int]:
    """Events acked by device."""
    rows = [line.split(",") for line in log.read_text().splitlines()[1:]]
    return {f"dev-{row[0]}": int(row[3]) - int(row[1]) + 1 for row in rows if int(row[3]) >= int(row[1])}


# --- into Parquet ------------------------------------------------------------------------------------------------------


def parquet(program: Path, folder: Path, seconds: float) -> Figures:
    """Events per second from the first message until the last event is in a committed file; CPU per event of each tier."""
    with Tiers(folder, DEVICES) as tiers:
        before, watch = tiers.cpu_s(), Watch()
        running = load(program, tiers.port(), folder, "--window", WINDOW, "--seconds", seconds, "--warmup", 0)
        result = running.ended()
        took_s = tiers.drained() - watch.begun
        used = tiers.cpu_s()
        noise = watch.others(sum(used.values()) - sum(before.values()))
        tiers.stop()
        count = acked(running.log)
        events = sum(count.values())
        _check(tiers.data / "lake", count)
    return {
        "events": events, "per_s": events / took_s, "acked_per_s": result["acked_per_s"], "others_cores": noise,
        "cpu_us": sum(used[tier] - before[tier] for tier in used) / events * 1e6, **_us(before, used, events),
    }  # fmt: skip


def _us(before: dict[str, float], used: dict[str, float], events: int) -> Figures:
    return {f"{tier}_us": (used[tier] - before[tier]) / events * 1e6 for tier in used}


def _check(lake: Path, count: dict[str, int]) -> None:
    from generator import Load as Seen

    check_lake(lake, Seen(sum(count.values()), 0, 0, 0, 0, 0, 0, 0, count))


def _count(lake: Path, expected: int) -> None:
    rows = sum(pq.read_metadata(file).num_rows for file in lake.glob("*=*/**/*.parquet"))
    if rows != expected:
        raise LoadError(f"{rows:,} rows in the lake, {expected:,} acked")


def redis(program: Path, folder: Path, seconds: float) -> Figures:
    """XADD by redis-benchmark beside a consumer that writes Parquet: events by the time until all are in files."""
    if shutil.which("redis-benchmark") is None or importlib.util.find_spec("redis") is None:
        raise NotInstalled("redis-benchmark (Debian: apt-get install redis-tools) and the Python package redis")
    server, port = start_redis(folder, None, "everysec", folder / "redis.log")

    def add(count: int, stream: str) -> None:
        words = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-c", str(DEVICES), "-P", str(WINDOW), "-n", str(count), "-q"]
        command = [*words, "-r", str(DEVICES), "XADD", stream, "*", "device", "dev-__rand_int__", "payload", PAYLOAD]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def produce() -> int:
        add(int(100_000 * seconds), "events")  # keeps a consumer busy for longer than that
        import redis

        return int(redis.Redis(port=port).xlen("events"))  # redis-benchmark sends a few more than it is told to

    try:
        return _consumed("redis", port, folder, server.pid, produce)
    finally:
        end(server)


def nats(program: Path, folder: Path, seconds: float, consumer: str) -> Figures:
    """Publishing over WebSocket by the same generator, each message acked by the stream, beside a consumer that writes Parquet."""
    if consumer == "nats-py" and importlib.util.find_spec("nats") is None:
        raise NotInstalled("the Python package nats-py")
    server = Nats(folder, None)
    server.start()
    plain = int((folder / "nats.conf").read_text().splitlines()[0].rpartition(":")[2].strip('"'))
    words = [*server.load[:-4], "--payload-template", f"PUB s.%CONN% _I.%CONN% {len(PAYLOAD)}\r\n{PAYLOAD}\r\n", "--payload-size", "0"]

    def produce() -> int:
        log = folder / "published.csv"
        command = [
            program,
            *words,
            "--conns",
            DEVICES,
            "--window",
            WINDOW,
            "--seconds",
            seconds,
            "--warmup",
            0,
            "--drain",
            60,
            "--acklog",
            log,
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0 or json.loads(done.stdout)["unacked"]:
            raise LoadError(f"wsload for NATS: {done.stdout}{done.stderr}")
        return sum(acked(log).values())

    try:
        return _consumed(consumer, plain, folder, server.pids[0], produce)
    finally:
        server.stop()


def _consumed(kind: str, port: int, folder: Path, server: int, produce: Callable[[], int]) -> Figures:
    lake = folder / "lake"
    lake.mkdir()
    command = [sys.executable, str(PEERS / "stream_to_parquet.py"), kind, str(port), str(lake)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout is not None
        if consumer.stdout.readline().strip() != "READY":
            raise LoadError(f"the consumer for {kind} did not start")
        before, watch, begun = process_cpu_s(server), Watch(), time.time()
        events = produce()
        (lake / "writing").write_text(str(events))
        (lake / "writing").rename(lake / "expected")
        ended, consumer_s = map(float, consumer.stdout.readline().split())
    server_s = process_cpu_s(server) - before
    found = sum(pq.read_metadata(file).num_rows for file in lake.glob("*.parquet"))
    if found != events:
        raise LoadError(f"{kind}: {found:,} rows in Parquet, expected {events:,}")
    return {
        "events": events, "per_s": events / (ended - begun), "others_cores": watch.others(server_s),
        "cpu_us": (server_s + consumer_s) / events * 1e6,
    }  # fmt: skip


# --- latency to the live feed ------------------------------------------------------------------------------------------


def live(program: Path, folder: Path, seconds: float, rate: int) -> Figures:
    """Milliseconds from sending at the device until a client of the live tier has the event."""
    template = '{"at":%TS%,"seq":%SEQ%,"temp":21.53,"hum":48.2,"bat":3.71,"rssi":-67,"fw":"1.4.2","site":"berlin-07"}'
    with Tiers(folder, DEVICES, live=True, overrides=LIVE_OVERRIDES) as tiers:
        assert tiers.live is not None
        page = tiers.live.wait_for_url("page").rpartition(":")[2]
        words = ["--rate", rate, "--payload-template", template]
        load(program, tiers.port(), folder, *words, "--seconds", 2, "--warmup", 0).ended()  # everything has been used once
        before, watch = tiers.cpu_s(), Watch()
        command = [sys.executable, str(PEERS / "live_client.py"), page, str(seconds + 2)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            client.stdout.readline()
            running = load(program, tiers.port(), folder, *words, "--seconds", seconds, "--warmup", 0)
            result = running.ended()
            seen = json.loads(client.stdout.readline())
            client.wait()
        used, took_s = tiers.cpu_s(), time.monotonic() - watch.begun
        # while they live: the processor time of ended children counts as the generator's
        noise = watch.others(sum(used.values()) - sum(before.values()))
        sent = sum(acked(running.log).values())
        if seen["events"] + seen["gaps"] < 0.99 * sent:
            raise LoadError(f"live: {seen['events']:,} events and {seen['gaps']:,} in gaps of {sent:,}")
    return {
        **seen, "sent": sent, "others_cores": noise, "ack_p99_ms": result["ack_us"]["p99"] / 1e3,
        **{f"{tier}_percent": (used[tier] - before[tier]) / took_s * 100 for tier in used},
    }  # fmt: skip


#: The edge gathers, and nobody behind it waits for more: fewer batches in every tier, and less delay than with a little wait in each.
LIVE_OVERRIDES: Final = (
    *(f"tiers.{tier}.engine.read_wait_ms_max={wait}" for tier, wait in (("edge", 15), ("middle", 0), ("live", 0))),
    "tiers.middle.outputs.lake.flush_interval_s=10.0",
)


# --- an outage ---------------------------------------------------------------------------------------------------------


def drain(program: Path, folder: Path, backlog: int, rate: int = 2_000) -> Figures:
    """The middle is away until the edge holds `backlog` events; how fast they drain, and what live devices notice of it."""
    with Tiers(folder, 2 * DEVICES) as tiers:
        tiers.middle.kill()
        events = 0
        while events < backlog:
            fill = load(program, tiers.port(), folder, "--window", 4 * WINDOW, "--seconds", 5, "--warmup", 0)
            fill.ended()
            events += sum(acked(fill.log).values())

        def devices(seconds: float) -> Load:
            words = ["--rate", rate, "--seconds", seconds, "--warmup", 1, *_never_held_up()]
            return load(program, tiers.port(), folder, *words, first=DEVICES)

        before = devices(8.0)
        quiet = before.ended()
        lag = tiers.edges[0].metric("queue_reader_lag_events", reader="uplink")
        begun = time.monotonic()
        tiers.middle.start()
        started_s = time.monotonic() - begun
        cpu, watch = tiers.cpu_s(), Watch()
        during = devices(8.0)
        busy = during.ended()
        noise = watch.others(sum(tiers.cpu_s().values()) - sum(cpu.values()))
        still = tiers.edges[0].metric("queue_reader_lag_events", reader="uplink")
        edge_empty = None
        while tiers.edges[0].metric("queue_reader_lag_events", reader="uplink") > 0:
            time.sleep(0.1)
        edge_empty = time.monotonic()
        ended = tiers.drained()
        tiers.stop()
        _count(tiers.data / "lake", events + sum(sum(acked(one.log).values()) for one in (before, during)))
    return {
        "backlog": lag, "others_cores": noise, "started_s": started_s, "left_after_live": still,
        "link_per_s": lag / (edge_empty - begun - started_s), "parquet_per_s": lag / (ended - begun - started_s),
        "quiet_p50_ms": quiet["ack_us"]["p50"] / 1e3, "quiet_p99_ms": quiet["ack_us"]["p99"] / 1e3,
        "busy_p50_ms": busy["ack_us"]["p50"] / 1e3, "busy_p99_ms": busy["ack_us"]["p99"] / 1e3,
    }  # fmt: skip


def _never_held_up() -> list[str]:
    """The generator is devices elsewhere: what it waits for a core itself would count as theirs. Where it may have that."""
    allowed = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_RTPRIO)[0] > 0
    return ["--realtime"] if allowed else []


# --- many edges --------------------------------------------------------------------------------------------------------


def edges(program: Path, folder: Path, seconds: float, count: int, rate: int = 20_000) -> Figures:
    """CPU per event in the middle, and in all edges together, at the same rate over so many edges."""
    each = DEVICES // count or 1
    small = ("tiers.edge.queue.size_bytes_max=134217728", "tiers.edge.queue.segment_bytes=8388608")
    with Tiers(folder, DEVICES, edges=count, overrides=small) as tiers:

        def all_of_them(length: float) -> int:
            words = ["--rate", rate / count, "--seconds", length, "--warmup", 0]
            running = [load(program, tiers.port(edge), folder, *words, connections=each, first=edge * each) for edge in range(count)]
            for one in running:
                one.ended()
            return sum(sum(acked(one.log).values()) for one in running)

        warm = all_of_them(2.0)
        tiers.drained()
        before = tiers.cpu_s()
        events = all_of_them(seconds)
        tiers.drained()
        used = tiers.cpu_s()
        commits = tiers.middle.metric("link_commits_total")
        tiers.stop()
        _count(tiers.data / "lake", warm + events)
    return {"events": events, "commits": commits, **_us(before, used, events)}


def medians(samples: Sequence[dict[str, float]]) -> Figures:
    """By figure."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
