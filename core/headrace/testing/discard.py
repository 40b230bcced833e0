"""A sink that reads and forgets: for benchmarks and for trying a source and a queue alone (`use = "sink_discard"`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pyarrow as pa

from headrace.component import Component, Context
from headrace.hookspecs import hookimpl
from headrace.position import RangeKey


class SinkDiscard(Component):
    """Takes what the queue holds, undecoded, and forgets it at each flush.

    It knows what it forgot as long as it lives; after a restart it reads once more what the queue still holds.
    """

    takes: ClassVar[Literal["events", "raw"]] = "raw"
    many_workers = True

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self._forgotten: dict[str, int] = {}
        self._rows = 0
        self._count = context.metrics.counter("sink_discarded_events_total", "Events that sink_discard read and forgot.")

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        """Count the rows."""
        self._rows += batch.num_rows

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        """Forget them."""
        self._count.inc(self._rows)
        self._rows = 0
        self._forgotten[key.queue_id] = key.last

    @hookimpl
    async def sink_reset(self) -> None:
        """They come again."""
        self._rows = 0

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        """How far this instance has forgotten."""
        return self._forgotten.get(queue_id)
