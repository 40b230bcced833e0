"""The processes of test_lake_compact_crash: `write LAKE QUEUE_ID` or `compact LAKE OLDER_S [FAULT NTH]`, until killed.

`write` writes one queue id on and on and prints `safe POSITION`. `compact` merges, and where OLDER_S is not negative removes
what was replaced so long ago, on and on; it kills itself at the NTH time that FAULT is reached.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import lake_driver

from headrace_sink_lake import LocalStore
from headrace_sink_lake.compact import Options, compact
from headrace_sink_lake.vacuum import vacuum


def write(lake: str, queue_id: str) -> None:
    sink = lake_driver.make_lake(lake, data=Path(f"{lake}-data-{queue_id}"), partition_by=["class"])
    # Three rolls a second: a lake of so few events and so many files is not what is looked at.
    asyncio.run(lake_driver.drive(sink, queue_id, 1 << 40, 200, 1, 0.3))


def tend(lake: str, older_s: str, fault: str = "", nth: str = "0") -> None:
    left = int(nth)

    def reached(name: str) -> None:
        nonlocal left
        left -= name == fault
        if name == fault and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store = LocalStore(Path(lake))
    while True:
        done = compact(store, Options(files_min=2), fault=reached)
        if float(older_s) >= 0:
            vacuum(store, float(older_s), fault=reached)
        print("compacted", done.files_before, flush=True)
        time.sleep(0.05)  # the machine is also the writers' and the reader's


def main() -> None:
    {"write": write, "compact": tend}[sys.argv[1]](*sys.argv[2:])
