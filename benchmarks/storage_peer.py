"""The other path of bench_storage.py: aiohttp_redis.py -> Redis stream -> redis_parquet.py -> Parquet, on all cores."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from generator import LoadError, write_devices
from peers.contenders import HERE, NotInstalled, end, free_port, wait_for_port

DRAIN_S_MAX = 300.0


@dataclass(frozen=True)
class PeerFigures:
    """acked/s; events/s until everything was in Parquet; rows there, as many as were acked."""

    acked_per_s: float
    parquet_per_s: float
    rows: int


def measure_peer(program: Path, devices: int, window: int, seconds: float, folder: Path | None) -> PeerFigures:
    """Start all of it, load it, drain it. NotInstalled; LoadError when an acked event is not in its files."""
    redis_server = shutil.which("redis-server")
    if redis_server is None or importlib.util.find_spec("redis") is None:
        raise NotInstalled("redis-server (Debian: apt-get install redis-server) and the Python package redis (pip install redis)")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=folder) as name:
        where = Path(name)
        write_devices(where / "devices.csv", devices)
        port, redis_port = free_port(), free_port()
        words = [
            "--port",
            str(redis_port),
            "--bind",
            "127.0.0.1",
            "--dir",
            name,
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--save",
            "",
        ]
        python = sys.executable
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.append(_started([redis_server, *words], where))
            wait_for_port(redis_port, processes[0], where / "log")
            consumer = _started(
                [python, str(HERE / "redis_parquet.py"), str(redis_port), str(where / "devices.csv"), str(where / "lake")], where
            )
            processes.append(consumer)
            processes.append(_started([python, str(HERE / "aiohttp_redis.py"), str(port), str(redis_port)], where))
            wait_for_port(port, processes[2], where / "log")
            begun = time.monotonic() + 0.3  # wsload waits for so long behind the last handshake
            result = _load(program, port, devices, window, seconds, where)
            consumer.terminate()
            consumer.wait(DRAIN_S_MAX)
            drained = time.monotonic()
        finally:
            for process in reversed(processes):
                end(process)
        rows = sum(pq.read_metadata(file).num_rows for file in (where / "lake").glob("class=*/*.parquet"))
        acked = int(result["acked"])
        if rows != acked:
            raise LoadError(f"the other path: expected {acked:,} acked events in Parquet, got {rows:,}")
    return PeerFigures(float(result["acked_per_s"]), acked / (drained - begun), rows)


def _started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log)


def _load(program: Path, port: int, devices: int, window: int, seconds: float, folder: Path) -> dict[str, float]:
    acked = folder / "acked.csv"
    words = ["--port", str(port), "--path", "/v1/devices/dev-%CONN%/events", "--conns", str(devices), "--window", str(window)]
    words += ["--warmup", "2", "--seconds", str(seconds), "--drain", "60"]
    done = subprocess.run([program, *words, "--acklog", acked], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"the other path: wsload ended with code {done.returncode}: {done.stderr}{done.stdout}")
    result: dict[str, float] = json.loads(done.stdout)
    lines = acked.read_text().splitlines()[1:]
    result["acked"] = sum(int(line.rpartition(",")[2]) for line in lines)
    if result["unacked"]:
        raise LoadError(f"the other path: {result['unacked']} messages were not acked")
    return result
