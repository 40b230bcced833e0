"""Ten thousand devices that come, send all sorts of things and go: the server that takes them does not grow.

A few hundred for some seconds in the normal run; ten thousand for ten minutes by `make soak`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.site import SiteProcess

FULL = "HEADRACE_FULL" in os.environ
SECONDS, CONNECTIONS, LIFE_S = (float(os.environ.get("HEADRACE_SOAK_S", "600")), 10_000, 40.0) if FULL else (10.0, 200, 2.0)
LOOKS = 12
#: Nothing is warm before the allocators have seen the load for a while.
WARM_LOOKS = 4
GROWTH_BYTES_MAX = 24 << 20
GROWTH_FILES_MAX = CONNECTIONS // 20 + 20
SITE = """
[host]
data_dir = "${HEADRACE_DATA}/host"
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
connections_max = 12000
idle_timeout_s = 60
device_events_per_s_max = 1000
[tiers.edge.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
size_bytes_max = 268435456
segment_bytes = 8388608
[tiers.edge.outputs.discard]
use = "sink_discard"
"""


def anonymous_bytes(pid: int) -> int:
    """Memory of the process's own; the mapped files of the queue come and go."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_server_with_devices_that_come_and_go_does_not_grow(tmp_path: Path, capsys: Any) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < CONNECTIONS + 2000:
        pytest.skip(f"{CONNECTIONS} connections need more than the {hard} open files that a process may have here")
    file, seed = tmp_path / "edge.toml", int.from_bytes(os.urandom(4), "big")
    file.write_text(SITE)
    print("seed", seed)
    with SiteProcess(file, tmp_path) as site:
        site.start()
        assert site.process is not None
        pid, port = site.process.pid, (site.url("devices") or "").rpartition(":")[2]
        churn = [sys.executable, str(Path(__file__).with_name("churn.py")), port]
        words = [*churn, str(CONNECTIONS), str(SECONDS), str(LIFE_S), str(seed)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        looks: list[tuple[int, int, int]] = []
        with subprocess.Popen(words, stdout=subprocess.PIPE) as devices:
            for _ in range(LOOKS - 1):
                time.sleep(SECONDS / LOOKS)
                looks.append((anonymous_bytes(pid), open_files(pid), int(site.metric("ingest_connections"))))
            summary = json.loads(devices.communicate(timeout=120)[0])
        site._wait_for(lambda: site.metric("ingest_connections") == 0, "to be left by all", 60)
        refused = site.metric("ingest_refused_requests_total", status="503")
        received, acked = site.metric("ingest_received_events_total"), site.metric("ingest_acked_events_total")
        rejected, files = site.metric("ingest_rejected_events_total"), open_files(pid)
        site.stop()
    with capsys.disabled():
        seen = ", ".join(f"{memory / 2**20:.0f} MiB {count} files {connections} connections" for memory, count, connections in looks)
        print(f"\n  {SECONDS:.0f} s: {summary}; received {received:.0f}, rejected {rejected:.0f}; {seen}; {files} files at the end")
    warm, late = looks[WARM_LOOKS - 1], looks[-1]
    assert summary["wrong"] == {}
    assert refused == 0
    assert summary["lives"] > CONNECTIONS
    assert received == acked + rejected >= summary["acked"]
    assert late[0] - warm[0] < GROWTH_BYTES_MAX
    # beside those of the connections, of which there are fewer after each stop of this process
    assert (late[1] - late[2]) - (warm[1] - warm[2]) < GROWTH_FILES_MAX
    assert files < 100
