"""What outputs ask for: "what comes behind position N", read once for all that ask for the same.

Outputs in step share one read and what is made of it; an output that lags behind the few batches kept here reads for itself.
`Pipeline` decodes and enriches what is read, `RawReading` hands it on as the queue holds it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace import decoding
from headrace.config import Engine
from headrace.engine.reads import alike, cut_read, joined
from headrace.hookspecs import QueueRead
from headrace.position import NO_ORIGINS, RangeKey, drop_rows, origin_batch, row_names, row_positions, rows_origin, slice_origins
from headrace.scattered import Scattered, pack_rows
from headrace.schema import RAW_SCHEMA

#: Batches kept for outputs that are a little behind.
KEPT_BATCHES_MAX: Final = 32
#: A read of fewer events than this waits for company.
SMALL_READ_ROWS: Final = 2048


class Events(NamedTuple):
    """One processed range: `positions` (uint64) are those of the rows of `batch`, the others are in `key`.

    origins (ORIGIN_SCHEMA): of a raw read, where the rows came from. Events carry that in their columns.
    """

    key: RangeKey
    batch: pa.RecordBatch
    positions: np.ndarray[Any, Any]
    origins: pa.RecordBatch = NO_ORIGINS

    def part(self, first: int, last: int) -> Events:
        """The part between two positions, inclusive."""
        if first <= self.key.first and last >= self.key.last:
            return self
        low, high = np.searchsorted(self.positions, np.array([first, last + 1], np.uint64))
        origins = slice_origins(self.origins, low, high - low) if self.origins.num_rows else NO_ORIGINS
        return Events(self.key.part(first, last), self.batch.slice(low, high - low), self.positions[low:high], origins)

    def only(self, rows: np.ndarray[Any, Any]) -> Events:
        """The same range with some of its rows (a mask): the others are another output's."""
        positions, origins = self.positions[rows], NO_ORIGINS
        if self.origins.num_rows:
            names = row_names(self.key.queue_id, self.positions, self.origins).part(rows)
            origins = origin_batch([rows_origin(self.key.queue_id, self.key.first, self.key.last, 0, Scattered(positions, names))])
        return Events(self.key._replace(share=pack_rows(Scattered(positions))), self.batch.filter(pa.array(rows)), positions, origins)

    def without(self, dead: set[int]) -> Events:
        """The same range with these positions left out."""
        drop = np.flatnonzero(np.isin(self.positions, np.array(sorted(dead), np.uint64))).tolist() if dead else []
        if not drop:
            return self
        left_out = tuple(int(position) for position in self.positions[drop])
        key = self.key._replace(dead=tuple(sorted({*self.key.dead, *left_out})))
        origins = drop_rows(self.origins, drop, self.batch.num_rows) if self.origins.num_rows else NO_ORIGINS
        return Events(key, decoding.keep_rows(self.batch, drop), np.delete(self.positions, drop), origins)


class Reading:
    """The reads of one tier's outputs; lives on the pipeline's loop."""

    #: whether what was made of a read is kept for outputs that are a little behind
    keeps = True

    def __init__(self, queue_hook: Any, engine: Engine) -> None:
        self._queue, self._engine = queue_hook, engine
        #: in front of a live feed without a queue nobody waits
        self._wait_s = engine.read_wait_ms_max / 1000 if getattr(queue_hook, "patient", True) else 0.0
        #: when the last read had its events, before they were decoded (loop time)
        self._read_at = -math.inf
        self._kept: deque[tuple[Events, int]] = deque()
        self._under_way: dict[tuple[int, int], asyncio.Task[Events]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def events(self, read: QueueRead) -> Events:
        """What outputs get for one read."""
        raise NotImplementedError

    def empty(self) -> pa.RecordBatch:
        """A batch without rows, of the kind that outputs get."""
        raise NotImplementedError

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Reads run in this group from now on: an error of queue or engine ends the group, and with it the process."""
        self._tasks = tasks

    async def after(self, reader: str, after: int, rows_max: int | None = None) -> Events:
        """The events that follow position `after`, at least one position; waits while there are none."""
        rows = rows_max or self._engine.read_rows_max
        for events, _ in self._kept:
            if events.key.first <= after + 1 <= events.key.last:
                return events.part(after + 1, after + rows)
        task = self._under_way.get((after, rows))
        if task is None:
            assert self._tasks is not None
            task = self._tasks.create_task(self._process(reader, after, rows))
            self._under_way[after, rows] = task
            task.add_done_callback(lambda _: self._under_way.pop((after, rows), None))
        # one waiter's cancellation must not take the read from the others
        return await asyncio.shield(task)

    async def exactly(self, reader: str, first: int, last: int, bytes_max: int) -> QueueRead:
        """The positions first..last as one read, or fewer of them when they pass `bytes_max`; never spans two queue ids."""
        reads: list[QueueRead] = []
        size = 0
        while (after := reads[-1].last if reads else first - 1) < last and (not reads or size < bytes_max):
            read = await self._queue.queue_read(reader=reader, after=after, rows_max=last - after, bytes_max=max(1, bytes_max - size))
            if not alike(reads, read):
                break
            reads.append(cut_read(read, read.first, last))
            size += read.batch.nbytes if read.batch is not None else 0
        return joined(reads)

    async def raw(self, reader: str, first: int, last: int) -> QueueRead:
        """One read as the queue holds it, undecoded, starting at `first`."""
        read: QueueRead = await self._queue.queue_read(
            reader=reader, after=first - 1, rows_max=last - first + 1, bytes_max=self._engine.read_bytes_max
        )
        return cut_read(read, first, last)

    def stop(self) -> None:
        """Give up the reads that wait for events: nobody is left to take them."""
        for task in self._under_way.values():
            task.cancel()

    async def _process(self, reader: str, after: int, rows_max: int) -> Events:
        if rows_max == self._engine.read_rows_max:
            await self._company(after)
        read = await self._queue.queue_read(reader=reader, after=after, rows_max=rows_max, bytes_max=self._engine.read_bytes_max)
        # what is made of it takes time in which others come: they need not wait for that and for company
        self._read_at = asyncio.get_running_loop().time()
        # before anything is decoded: a range under suspicion must not bring its neighbours along
        events = await self.events(read if rows_max == self._engine.read_rows_max else cut_read(read, after + 1, after + rows_max))
        if self.keeps and rows_max == self._engine.read_rows_max:
            self._keep(events)
        return events

    async def _company(self, after: int) -> None:
        """At the head, wait a little for more events: a batch of one costs a hundred times as much per event as one of 1,000.

        It counts from the last read: what comes after a pause goes on at once.
        """
        if not self._wait_s or self._queue.queue_info().head - after >= SMALL_READ_ROWS:
            return
        wait_s = self._read_at + self._wait_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _keep(self, events: Events) -> None:
        # measured once per batch: nbytes walks every buffer
        self._kept.append((events, events.batch.nbytes))
        while len(self._kept) > KEPT_BATCHES_MAX or (
            len(self._kept) > 1 and sum(size for _, size in self._kept) > 4 * self._engine.read_bytes_max
        ):
            self._kept.popleft()


class RawReading(Reading):
    """For outputs that take raw batches: nothing is decoded, and nothing is copied out of the queue."""

    keeps = False

    async def events(self, read: QueueRead) -> Events:
        key = RangeKey(read.queue_id, read.first, read.last, read.missing)
        positions = row_positions(read.first, read.last, read.missing)
        return Events(key, self.empty() if read.batch is None else read.batch, positions, read.origins)

    def empty(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=RAW_SCHEMA)
