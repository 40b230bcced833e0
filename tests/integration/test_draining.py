"""`headrace drain`, and what a stopping process says of what stays: an orphaned queue goes into the next tier, once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.draining import Progress
from headrace.register import QueueRegister
from headrace.testing.site import SiteProcess

SITE = """
[host]
drain_deadline_s = 1
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "{data}/edge-queue"
size_bytes_max = 67_108_864
[tiers.edge.outputs.uplink]
use = "transport_zmq"
connect = "{link}"
peer = "middle"
reconnect_ms_max = 200
[tiers.middle.sources.links]
use = "transport_zmq"
listen = "{link}"
[tiers.middle.outputs.lake]
use = "sink_lake"
path = "{data}/lake"
flush_interval_s = 0.2
"""


class Pods:
    """An edge and the tier behind it, which come and go."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            link = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.file, self.data = folder / "site.toml", folder / "data"
        self.file.write_text(SITE.format(data=self.data, link=link))
        self.environ = {**os.environ, "HEADRACE_DATA": str(self.data)}
        self.edge, self.middle = (self._pod(folder, tier) for tier in ("edge", "middle"))
        self.posted: list[str] = []
        self.drains: list[subprocess.Popen[str]] = []

    def _pod(self, folder: Path, tier: str) -> SiteProcess:
        (folder / tier).mkdir()
        return SiteProcess(self.file, folder / tier, [], {"HEADRACE_DATA": str(self.data)}, [tier])

    def post(self, count: int) -> None:
        ids = [f"{len(self.posted) + number}" for number in range(count)]
        self.edge.post("devices", "boiler", ids)
        self.posted += ids

    def drain(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "headrace", "drain", str(self.file), "--tier", "edge", *arguments]
        self.drains.append(subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return self.drains[-1]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    with made.edge, made.middle:
        yield made
    for drain in made.drains:
        drain.kill()
        drain.communicate()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_orphaned_queue_is_emptied_into_the_next_tier_and_its_pod_waits_for_that(pods: Pods, lake: Any) -> None:
    pods.edge.start()
    pods.post(60)
    pods.edge.kill()

    if "HEADRACE_FULL" in os.environ:
        late = pods.drain("--minutes", "0.02")
        out, _ = late.communicate(timeout=60)
        assert late.returncode == 1, "nobody is there to take it"
        assert "60 of 60 events left" in out.splitlines()[-1]

    draining = pods.drain()
    assert draining.stdout is not None
    assert "60 events" in draining.stdout.readline()
    second = pods.drain()
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"is held by process {draining.pid}" in told
    pods.edge.start(ready=False)  # the pod is back half-way
    until(lambda: any("held by process" in line.get("error", "") for line in pods.edge.lines()))
    pods.middle.start()
    out, err = draining.communicate(timeout=60)
    assert draining.returncode == 0, err
    assert out.splitlines()[-1].startswith("drain: 60 events handed over")
    until(pods.edge.is_ready)

    pods.middle.kill()
    pods.post(3)
    pods.edge.stop()
    (left,) = [line for line in pods.edge.lines() if line["message"] == "drain deadline passed; the queue keeps the rest"]
    assert (left["tier"], left["queued"], left["left"]) == ("edge", {"uplink": 3}, {"uplink": 3})
    assert [entry.tier for entry in QueueRegister(pods.data).entries()] == ["edge"]

    pods.middle.start()
    moved = pods.data / "elsewhere" / "edge-queue"
    moved.parent.mkdir()
    (pods.data / "edge-queue").rename(moved)
    rest = pods.drain("--queue", str(moved))
    out, err = rest.communicate(timeout=60)
    assert rest.returncode == 0, err
    assert QueueRegister(pods.data).entries() == [], "the path that it had is struck as well"
    pods.middle.stop()
    assert lake.ids() == dict.fromkeys(pods.posted, 1)


def test_there_has_to_be_a_queue(pods: Pods) -> None:
    drain = pods.drain()
    _, told = drain.communicate(timeout=60)
    assert (drain.returncode, "there is no queue at" in told) == (1, True)
    assert not (pods.data / "edge-queue").exists()


def test_progress_has_a_rate_and_an_end() -> None:
    assert str(Progress(50_000, 20_000, 10.0)) == "20,000 of 50,000 events left, 3,000 a second, about 7 s to go"
    assert str(Progress(50_000, 50_000, 2.0)) == "50,000 of 50,000 events left, 0 a second"
    assert str(Progress(50_000, 0, 10.0)) == "50,000 events handed over, 5,000 a second; the queue is empty"
