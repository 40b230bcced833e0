"""A whole site under steady load: nothing grows once it is warm, and everything acked is stored.

Ten seconds in the normal run; ten minutes by `make soak`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from headrace.testing.site import SiteProcess

SECONDS = 600 if "HEADRACE_FULL" in os.environ else 10
WARM_S = SECONDS * 0.4
DEVICES, RATE = 100, 1000
#: What the allocators of Python and Arrow keep for themselves varies by this much between two looks at a warm process.
RSS_SLACK_BYTES = 64 << 20
FILES_SLACK = 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_warm_site_does_not_grow_and_stores_what_it_acked(site: SiteProcess, lake: Any, capsys: Any) -> None:
    site.overrides += ["tiers.site.outputs.lake.flush_interval_s=2", "tiers.site.queue.segment_bytes=8388608"]
    site.start()
    assert site.process is not None
    pid = site.process.pid
    url = (site.url("devices") or "").replace("http", "ws")
    fleet = ["devices", "simulate", "--url", url, "--count", DEVICES, "--rate", RATE, "--seconds", SECONDS, "--json"]
    devices = subprocess.Popen([sys.executable, "-m", "headrace", *map(str, fleet)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    time.sleep(WARM_S)
    warm = resident_bytes(pid), open_files(pid)
    time.sleep(SECONDS - WARM_S - 0.5)
    late = resident_bytes(pid), open_files(pid)
    summary = json.loads(devices.communicate(timeout=60)[0])
    ended = site.stop()
    ((rows, distinct),) = lake.query("select count(*), count(distinct (origin, position)) from {lake}")
    with capsys.disabled():
        print(f"\n  {SECONDS} s: {ended}; RSS {warm[0] >> 20} -> {late[0] >> 20} MiB, files {warm[1]} -> {late[1]}")
    assert rows == distinct == summary["acked"] > SECONDS * RATE / 4
    assert late[0] - warm[0] < RSS_SLACK_BYTES
    assert late[1] - warm[1] < FILES_SLACK
