"""What the queue no longer has, from the lake: which events, and how far they were sent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa

from headrace_sink_akumuli.lake import Lake, Span, Wanted, windows
from headrace_sink_akumuli.state import Checkpoint

#: Events of one window of time, held in memory: about 100 bytes each.
WINDOW_ROWS: Final = 1_000_000


class Filling:
    """The events of some queue ids behind a checkpoint, up to where the lake holds them now."""

    def __init__(self, lake: Lake, checkpoint: Checkpoint, queue_ids: Iterable[str]) -> None:
        self._lake = lake
        self.queue_ids = list(dict.fromkeys(queue_ids))
        found = {queue_id: lake.end(queue_id) or 0 for queue_id in self.queue_ids}
        ends = {queue_id: end for queue_id, end in found.items() if end > checkpoint.marks.get(queue_id, 0)}
        spans, self.ends = lake.spans(ends, checkpoint.marks, checkpoint.seen) if ends else ([], {})
        wanted = Wanted(dict(checkpoint.seen), self.ends, checkpoint.since_us)
        planned = windows(spans, WINDOW_ROWS)
        self._total = sum(rows for _, _, rows in planned) or 1
        self._windows_done = 0
        #: how far it is; None once everything was given
        self.percent: float | None = 0.0
        self.events = 0
        self._batches = self._read(spans, planned, wanted)

    def batches(self, until: float) -> Iterator[pa.RecordBatch]:
        """The next event batches, until that monotonic time."""
        for batch in self._batches:
            self.events += batch.num_rows
            yield batch
            if time.monotonic() >= until:
                return
        self.percent = None

    def finish(self, checkpoint: Checkpoint) -> None:
        """Note in the checkpoint what is done, once everything was sent."""
        if self.percent is None:
            for queue_id, end in self.ends.items():
                checkpoint.mark(queue_id, end)

    def _read(self, spans: list[Span], planned: list[tuple[int, int, int]], wanted: Wanted) -> Iterator[pa.RecordBatch]:
        for first_us, last_us, rows in planned:
            yield from self._lake.batches(spans, first_us, last_us, wanted)
            self._windows_done += rows
            self.percent = 100 * self._windows_done / self._total
