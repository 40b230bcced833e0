"""Drives a queue in a process that will be killed: overlapping appends, a reader that releases, all noted down."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

from headrace.component import Component
from headrace.errors import QueueFull
from headrace.position import NO_ORIGINS, Origin, origin_batch
from headrace.testing.batches import raw_batch
from headrace.testing.context import living
from headrace.testing.journal import Journal

READER: Final = "lake"
ORIGIN: Final = "5f0c7e4a-0000-4000-8000-00000000000a"
ROWS_MAX: Final = 30
OVERLAP_MAX: Final = 6
ROOM_WAIT_S: Final = 0.01
#: Between appends once the goal is reached, and only what is late is waited for.
PAUSE_S: Final = 0.02
LARGE_BYTES: Final = 64 * 1024


class QueueDriver:
    """One life of a queue in the crash tests.

    Notes: `sent F L` before the append of events numbered F..L; `acked F L` then `at P P` once it returned (P: position of
    F); `release C` before the cursor is moved to C, `released C` after. Events of even batches come from a queue origin.
    """

    def __init__(self, component: Component, journal: Journal, seed: int) -> None:
        self._component, self._journal, self._random = component, journal, random.Random(seed)
        self._number = max((note.last for note in journal.notes() if note.kind == "sent"), default=0)

    async def run(self, goal: int, seconds_min: float = 0.0) -> None:
        """Append until event `goal`, and for so long at least, releasing behind."""
        end = time.monotonic() + seconds_min
        async with living(self._component, "queue") as hook:
            reader = await hook.queue_reader_open(reader=READER, start="oldest")
            self._journal.note("cursor", reader.cursor)
            releasing = asyncio.create_task(self._release(hook, reader.cursor))
            try:
                while self._number < goal or time.monotonic() < end:
                    overlap = self._random.randint(1, OVERLAP_MAX)
                    await asyncio.gather(*(self._append(hook) for _ in range(overlap)))
                    if self._number >= goal:
                        await asyncio.sleep(PAUSE_S)
            finally:
                releasing.cancel()
                ended = (await asyncio.gather(releasing, return_exceptions=True))[0]
            if isinstance(ended, Exception):
                raise ended

    async def _append(self, hook: Any) -> None:
        first = self._number + 1
        self._number = last = self._number + self._random.randint(1, ROWS_MAX)
        # some batches are large, so that the queue goes round
        payload_bytes = LARGE_BYTES // (last - first + 1) if self._random.random() < 0.25 else 0
        batch, origins = raw_batch(last - first + 1, first, payload_bytes=payload_bytes), NO_ORIGINS
        if self._random.random() < 0.5:
            origins = origin_batch([Origin(ORIGIN, first, last)])
        self._journal.note("sent", first, last)
        while True:
            try:
                position, end = await hook.queue_append(batch=batch, origins=origins)
                break
            except QueueFull:
                # a later batch may pass this one now, and would raise the origin's mark above it
                origins = NO_ORIGINS
                await asyncio.sleep(ROOM_WAIT_S)
        assert end - position == last - first, f"expected positions for {last - first + 1} new events, got {position}-{end}"
        self._journal.note("acked", first, last)
        self._journal.note("at", position, first)
        if origins.num_rows:
            self._journal.note("mark", last)

    async def _release(self, hook: Any, cursor: int) -> None:
        """Read on, and release with a lag, so that there is always something to find after the crash."""
        while True:
            read = await hook.queue_read(reader=READER, after=cursor, rows_max=64, bytes_max=1 << 20)
            cursor = read.last
            caught_up = hook.queue_info().head <= cursor  # nothing more may come before there is room
            if cursor > 200 and (caught_up or self._random.random() < 0.3):
                self._journal.note("release", cursor - 200)
                await hook.queue_release(reader=READER, upto=cursor - 200)
                self._journal.note("released", cursor - 200)
            await asyncio.sleep(0)
