"""Points a second into Akumuli: through the sink, beside a stream that was rendered before, over the same kind of connection.

    python benchmarks/bench_akumuli.py [--points 1000000] [--runs 3] [--drain]

Against `akumulid`, where one is on the PATH, started by deploy/akumuli/start.sh; otherwise (and with --drain) against a process
that only takes bytes: then the first figure is the network's, and the ratio what rendering costs. The bar for the ratio is 0.5 with
akumulid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "sink_akumuli" / "tests"))

import machine
from akumuli_real import Akumulid

from headrace import RangeKey
from headrace.component import SystemClock
from headrace.testing import event_batch, fake_context, living
from headrace.testing.batches import QUEUE_ID
from headrace_sink_akumuli import AkumuliConfig, SinkAkumuli
from headrace_sink_akumuli.feed import Feed, Naming
from headrace_sink_akumuli.series import SeriesTable
from headrace_sink_akumuli.state import Checkpoint
from headrace_sink_akumuli.wire import Session

ROWS, DEVICES, READINGS = 10_000, 1000, 4
DRAIN = """
import socket, threading
points, questions = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
print(points.getsockname()[1], questions.getsockname()[1], flush=True)
def answer():
    while True:
        client, _ = questions.accept()
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        client.close()
threading.Thread(target=answer, daemon=True).start()
def take(client):
    buffer = bytearray(1 << 20)
    while client.recv_into(buffer):
        pass
    client.close()
while True:
    threading.Thread(target=take, args=(points.accept()[0],), daemon=True).start()
"""


class Drain:
    """Takes bytes, in a process of its own."""

    def __enter__(self) -> Drain:
        self._process = subprocess.Popen([sys.executable, "-c", DRAIN], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.connect, self.query = (f"127.0.0.1:{port}" for port in self._process.stdout.readline().split())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def batches(points: int, begin_s: int) -> list[pa.RecordBatch]:
    """Event batches of a fleet in which every device sends once a second; context as enrichers add it."""
    random = np.random.default_rng(1)
    made = []
    for number in range(points // (ROWS * READINGS)):
        first = number * ROWS
        names = [f"device-{row % DEVICES:06d}" for row in range(ROWS)]
        batch = event_batch(
            ROWS, first + 1, devices=["d"], readings={f"r{index}": np.round(random.normal(20, 5, ROWS), 2) for index in range(READINGS)},
            context={"class": ["thermostat"] * ROWS, "type": ["t-100"] * ROWS, "site": [f"plant-{row % 10}" for row in range(ROWS)]},
        )  # fmt: skip
        times = pa.array([(begin_s + (first + row) // DEVICES) * 1_000_000 for row in range(ROWS)], pa.int64())
        fields = batch.schema
        batch = batch.set_column(0, fields.field("device"), pa.array(names, pa.string()))
        made.append(batch.set_column(1, fields.field("time"), times.cast(fields.field("time").type)))
    return made


def rendered(folder: Path, events: list[pa.RecordBatch], prefix: str) -> list[memoryview]:
    """What the sink would send."""
    table = SeriesTable(folder / "series.ndjson", 1_000_000)
    table.open()
    feed = Feed(table, Naming(prefix, ("class", "type", "site")), Checkpoint(), None)
    return [buffer for batch in events for buffer in feed.take(batch)[0]]


def send_rendered(server: Any, buffers: list[memoryview]) -> float:
    begun = time.perf_counter()
    session = Session(server.connect, 60)
    for buffer in buffers:
        session.send(buffer)
    session.finish()
    return time.perf_counter() - begun


async def send_by_sink(server: Any, folder: Path, events: list[pa.RecordBatch], prefix: str) -> float:
    context = fake_context(folder, clock=SystemClock())
    sink = SinkAkumuli(AkumuliConfig(connect=server.connect, query=server.query, metric_prefix=prefix), context)
    async with living(sink, "output") as hook:
        await hook.sink_resume(queue_id=QUEUE_ID)  # connected, as it is when events come
        begun = time.perf_counter()
        for number, batch in enumerate(events):
            await hook.sink_write(batch=batch, key=RangeKey(QUEUE_ID, number * ROWS + 1, (number + 1) * ROWS))
        await hook.sink_flush(key=RangeKey(QUEUE_ID, 1, len(events) * ROWS))
        return time.perf_counter() - begun


@contextlib.contextmanager
def server_for(folder: Path, drain: bool) -> Iterator[Any]:
    with Drain() if drain else Akumulid(folder) as server:
        yield server


def measure(points: int, runs: int, drain: bool) -> dict[str, float]:
    """Medians of points a second: `rendered`, `sink`, and their ratio."""
    found: dict[str, list[float]] = {"rendered": [], "sink": []}
    with tempfile.TemporaryDirectory() as folder:
        events = batches(points, int(time.time()) - 1_000_000)
        count = len(events) * ROWS * READINGS
        with server_for(Path(folder) / "server", drain) as server:
            for run in range(runs):
                for way in ("rendered", "sink") if run % 2 == 0 else ("sink", "rendered"):
                    own = Path(folder) / f"{way}{run}"
                    own.mkdir()
                    prefix = f"{way}{run}."
                    if way == "rendered":
                        seconds = send_rendered(server, rendered(own, events, prefix))
                    else:
                        seconds = asyncio.run(send_by_sink(server, own, events, prefix))
                    found[way].append(count / seconds)
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    return {**medians, "ratio": medians["sink"] / medians["rendered"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--drain", action="store_true", help="not akumulid, even if there is one")
    options = parser.parse_args()
    drain = options.drain or shutil.which("akumulid") is None
    for name, fact in machine.facts(Path(tempfile.gettempdir())).items():
        print(f"{name:12}{fact}")
    found = measure(options.points, options.runs, drain)
    name = "a drain, which only takes bytes" if drain else "akumulid"
    print(f"{'server':12}{name}; {DEVICES * READINGS:,} series, median of {options.runs}")
    print(f"{'rendered':12}{found['rendered']:>12,.0f} points/s, a stream that was rendered before")
    print(f"{'sink':12}{found['sink']:>12,.0f} points/s, with the checkpoint of a flush")
    print(f"{'ratio':12}{found['ratio']:>12.2f}{'' if drain else '  (bar: 0.5)'}")


if __name__ == "__main__":
    main()
