"""Opening a queue for a component: its lock, what its medium can give, recovery."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import NamedTuple

from headrace import ConfigError, Context
from headrace_queue_pmem import libc
from headrace_queue_pmem.config import QueueConfig
from headrace_queue_pmem.lock import Lock
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import FileMedium, Medium
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.probe import VOLATILE, Probe, probe
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.state import Options

PROBE_SYNCS = 20


class Opened(NamedTuple):
    """An open queue, and what was found on the way."""

    ring: Ring
    lock: Lock
    probe: Probe
    report: Report
    seconds: float


def open_queue(config: QueueConfig, context: Context) -> Opened:
    """Take the lock, probe the medium, recover. QueueLocked, QueueFormatError, ConfigError; OSError of the medium."""
    directory = Path(config.path)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = Lock(directory)
    try:
        found = probe(directory, PROBE_SYNCS if config.level == "power" else 0)
        if config.level == "power" and found.filesystem in VOLATILE:
            raise ConfigError(
                "",
                f"{context.tier}.queue.level",
                f"a level that {config.path} can give",
                f"power on {found.filesystem}, which does not survive power loss",
                'use level = "process", or a path on a disk',
            )
        options = Options(config.segment_bytes // libc.PAGE * libc.PAGE, config.size_bytes_max, config.view_bytes_max)
        marks = Marks(config.sessions_max, config.sessions_per_device_max, config.queue_origins_max)
        medium = _medium(config, context, directory, found)
        started = time.perf_counter()
        ring, report = recover(context.tier, config.path, medium, options, marks, context.fault)
    except BaseException as error:
        # Whoever keeps the error keeps what was open when it came: pools, which libpmemobj opens once at a time.
        traceback.clear_frames(error.__traceback__)
        lock.close()
        raise
    return Opened(ring, lock, found, report, time.perf_counter() - started)


def _medium(config: QueueConfig, context: Context, directory: Path, found: Probe) -> Medium:
    if config.medium != "file":
        try:
            return PmemMedium(directory, config.level, found.filesystem, found.dax)
        except OSError as error:
            if config.medium == "pmem":
                raise ConfigError(
                    "",
                    f"{context.tier}.queue.medium",
                    "libpmemobj for medium = pmem",
                    str(error),
                    "install libpmemobj1, or use auto",
                ) from error
            context.log.warning("libpmemobj is missing: the queue uses preallocated files", path=str(directory), error=str(error))
    return FileMedium(directory, config.level, found.filesystem, found.dax)
