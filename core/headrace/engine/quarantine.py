"""Setting refused rows aside: from positions to dead letters, with a counter, a log line and a fact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from headrace.component import Clock
from headrace.engine.dead_letters import DeadLetters, Letter
from headrace.engine.passing import told_id
from headrace.errors import TransientError
from headrace.log import Log, describe
from headrace.metrics import Metrics
from headrace.position import NO_ORIGINS, RangeKey, global_ids
from headrace.retry import Backoff
from headrace.schema import kind_of

T = TypeVar("T")

#: Told of each quarantine: component, reason, range, how many.
Told = Callable[[str, str, RangeKey, int], None]
#: Told while the store refuses: a status reason, or None when it takes letters again.
Holding = Callable[[str | None], None]

ENCODING_EVENT = 0


class Refused(NamedTuple):
    """Rows (raw, or events) that are refused for good, at those positions: where, by whom and why. origins: those of the rows."""

    rows: pa.RecordBatch
    positions: Sequence[int]
    queue_id: str
    output: str
    stage: str
    component: str
    reason: str
    origins: pa.RecordBatch = NO_ORIGINS


class SettingAside(Protocol):
    """Where refused rows go, and which of a range are there."""

    async def positions(self, queue_id: str, first: int, last: int, output: str, stage: str = "%") -> set[int]:
        """The positions of the range that this output must leave out (`stage`: only those refused there)."""

    async def add(self, refused: Refused, holding: Holding) -> None:
        """Make these rows dead letters; returns when they are durable, however long that takes."""


class Quarantine:
    """One tier's way to its dead letters; used on the pipeline's loop."""

    def __init__(self, letters: DeadLetters, clock: Clock, backoff: Backoff, metrics: Metrics, log: Log, told: Told) -> None:
        self._letters, self._clock, self._backoff = letters, clock, backoff
        self._metrics, self._log, self._told = metrics, log, told
        self._refusing = metrics.gauge(
            "dead_letters_refusing", "1 while the dead letters take nothing, and what refused events waits.", "max"
        )
        # one thread: SQLite commits wait for the disk, and the loop must not
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dead-letters")

    async def positions(self, queue_id: str, first: int, last: int, output: str, stage: str = "%") -> set[int]:
        """The positions of the range that this output must leave out (`stage`: only those refused there)."""
        if not self._letters.count:
            return set()
        known, shift = told_id(queue_id)
        found = await self.patiently(lambda: self._letters.positions(known, first + shift, last + shift, output, stage))
        return {position - shift for position in found} if shift else found

    async def add(self, refused: Refused, holding: Holding) -> None:
        """As `SettingAside.add`."""
        rows, positions, queue_id, output, stage, component, reason, origins = refused
        queue_id, shift = told_id(queue_id)
        positions = [position + shift for position in positions]
        refused_us = int(self._clock.wall() * 1e6)
        names, numbers = global_ids(queue_id, np.array(positions, np.uint64), origins)
        letters = [
            Letter(
                queue_id,
                position,
                output,
                stage,
                component,
                reason,
                refused_us,
                *_content(rows, index),
                *_elsewhere(queue_id, name, number),
            )
            for index, (position, name, number) in enumerate(zip(positions, names.to_pylist(), numbers.to_pylist(), strict=True))
        ]
        added = await self.patiently(lambda: self._letters.add(letters), holding)
        key = RangeKey(queue_id, min(positions), max(positions))
        self._metrics.counter("dead_letter_events_total", "Events set aside in the dead letters.", component=component, reason=stage).inc(
            added
        )
        self._log.warning("events quarantined", component=component, stage=stage, reason=reason, range=str(key), events=added)
        if added:
            self._told(component, reason, key, added)

    async def patiently(self, call: Callable[[], T], holding: Holding = lambda _: None) -> T:
        """Do this with the dead letters, as long as it takes: without them nothing may be left out."""
        held = False
        while True:
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._pool, call)
            except TransientError as error:
                held = True
                self._refusing.set(1)
                holding(f"dead letters: {describe(error)}")
                self._log.error("dead letters refuse", error=describe(error))
                await self._clock.sleep(self._backoff.next_s())
            else:
                if held:
                    self._refusing.set(0)
                    self._backoff.reset()
                    holding(None)
                return result

    def close(self) -> None:
        """Safe twice."""
        self._pool.shutdown(wait=True)
        self._letters.close()


def _elsewhere(queue_id: str, name: str, number: int) -> tuple[str | None, int | None]:
    """The event's global id, where another queue gave it."""
    return (None, None) if name == queue_id else (name, number)


def _content(rows: pa.RecordBatch, index: int) -> tuple[str, int, int, bytes]:
    """device, received, encoding and payload of one row."""
    device = rows.column("device")[index].as_py()
    received_us = rows.column("received")[index].value
    if kind_of(rows.schema) == "raw":
        return device, received_us, rows.column("encoding")[index].as_py(), rows.column("payload")[index].as_py()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows.slice(index, 1))
    return device, received_us, ENCODING_EVENT, sink.getvalue().to_pybytes()
