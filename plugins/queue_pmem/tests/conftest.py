"""Fixtures of the queue's tests: a component on each medium and level, in a directory of its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import RAW_SCHEMA, Context
from headrace.component import SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace_queue_pmem import QueuePmem
from headrace_queue_pmem.area import Area, WrittenArea
from headrace_queue_pmem.unseen import TURNS

MIB = 1 << 20


def context(tmp_path: Path, fault: Callable[[str], None] = lambda _name: None) -> Context:
    """A component's context without a host."""
    return Context(
        id="queue",
        tier="site",
        plugin="queue_pmem",
        log=Log("queue"),
        metrics=Metrics(),
        clock=SystemClock(),
        random=random.Random(1),
        data_dir=tmp_path,
        fault=fault,
        status=lambda _status, _reason: None,
    )


def rows(first: int, count: int, size: int = 20) -> pa.RecordBatch:
    """A raw batch whose payloads are the numbers first.. as text, padded to `size` bytes."""
    numbers = range(first, first + count)
    return pa.RecordBatch.from_pydict(
        {
            "device": [f"d{number % 7}" for number in numbers],
            "received": list(numbers),
            "encoding": [1] * count,
            "payload": [str(number).encode().rjust(size, b" ") for number in numbers],
        },
        schema=RAW_SCHEMA,
    )


def numbers(batch: pa.RecordBatch | None) -> list[int]:
    """The numbers of a batch that `rows` made."""
    return [] if batch is None else [int(value) for value in batch["payload"].to_pylist()]


def failing_syncs(patch: pytest.MonkeyPatch, fails: Callable[[], bool]) -> None:
    """Make every sync of an area ask `fails` whether it is to fail, as a disk that says EIO; what was written is in the cache."""
    persist, gather_durably = Area.persist, WrittenArea.gather_durably

    def failing_persist(area: Area, offset: int, length: int) -> None:
        if fails():
            raise OSError(5, "Input/output error")
        persist(area, offset, length)

    def failing_gather(area: WrittenArea, parts: Any) -> None:
        if fails():
            area.gather(parts)
            raise OSError(5, "Input/output error")
        gather_durably(area, parts)

    patch.setattr(Area, "persist", failing_persist)
    patch.setattr(WrittenArea, "gather_durably", failing_gather)


class FailingDevice:
    """Makes the next `failures` syncs of commits fail; those of the upkeep, which come at any time, only while it is `dead`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failures, self.dead = 0, False
        failing_syncs(patch, self._fails)

    def _fails(self) -> bool:
        if self.dead:
            return True
        if not self.failures or threading.current_thread().name.startswith("queue-upkeep"):
            return False
        self.failures -= 1
        return True


@pytest.fixture(params=["pmem-process", "pmem-power", "file-process", "file-power"])
def flavour(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options that tell the four kinds of queue apart."""
    medium, level = request.param.split("-")
    return {"medium": medium, "level": level}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., QueuePmem]:
    """Build a queue component in this test's directory; further keywords are options."""

    def build(fault: Callable[[str], None] = lambda _name: None, **options: Any) -> QueuePmem:
        options.setdefault("path", str(tmp_path / "queue"))
        options.setdefault("segment_bytes", 8 * MIB)
        options.setdefault("size_bytes_max", 32 * MIB)
        return QueuePmem(QueuePmem.Config(**options), context(tmp_path, fault))

    return build


async def failure_seen() -> None:
    """Let the loop turn until a failed append does not make others fail any more."""
    for _ in range(TURNS + 1):
        await asyncio.sleep(0)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine, bounded."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))
