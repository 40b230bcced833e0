"""The snapshot frame: the newest event of each device that a filter lets pass."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from headrace import Context
from headrace_live_ws.filters import Facets, Filter
from headrace_live_ws.latest import Compacted, Latest
from headrace_live_ws.meters import Meters
from headrace_live_ws.render import RENDER_ROWS, render
from headrace_live_ws.rows import take


class Snapshots:
    """Keeps the newest events, and renders them for whoever asks, one at a time."""

    def __init__(self, latest: Latest, bytes_max: int, context: Context, meters: Meters) -> None:
        self._latest, self._bytes_max, self._context, self._meters = latest, bytes_max, context, meters
        self._rendering = asyncio.Lock()  # the only large work that a client can ask for, so never twice at a time

    async def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch. Once in some thousand events this waits a few milliseconds for a thread; never for a client."""
        if self._latest.add(batch):
            await self._thin()

    async def frame(self, wanted: Filter) -> bytes:
        """The frame; newest events go first where not all fit into the bound, and it says how many were left out."""
        async with self._rendering:
            pieces = (await self._thin()).pieces
            facets = Facets(pieces)
            rows = facets.select(wanted)
            events: list[bytes] = []
            size_bytes = 0
            for piece in reversed(take(pieces, rows)):
                for end in range(piece.num_rows, 0, -RENDER_ROWS):
                    begin = max(end - RENDER_ROWS, 0)
                    for event in reversed(render(piece.slice(begin, end - begin))):
                        size_bytes += len(event) + 1
                        if size_bytes > self._bytes_max:
                            return _frame(events, len(rows) - len(events))
                        events.append(event)
                    await asyncio.sleep(0)
            return _frame(events, 0)

    async def _thin(self) -> Compacted:
        compacted = await self._latest.thin(self._context.call_blocking)
        self._meters.evicted.inc(compacted.evicted)
        return compacted


def _frame(events: list[bytes], left_out: int) -> bytes:
    return b'{"snapshot":[%b]%b}' % (b",".join(events), b',"left_out":%d' % left_out if left_out else b"")
