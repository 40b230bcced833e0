"""The output `sink_akumuli`: points of every reading, in a view that the queue and the lake can always fill again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from aiohttp import web

from headrace import Component, Context, PermanentError, Placed, RangeKey, StoreCalls, TransientError, hookimpl
from headrace_sink_akumuli.config import AkumuliConfig
from headrace_sink_akumuli.feed import Counts
from headrace_sink_akumuli.link import Link
from headrace_sink_akumuli.measures import Measures
from headrace_sink_akumuli.placing import warnings
from headrace_sink_akumuli.routes import Routes
from headrace_sink_akumuli.state import Gap
from headrace_sink_akumuli.wire import Questions, ServerRefused
from headrace_sink_lake import LakeConfig

#: Times that the server may refuse the same range, for another reason than a late point, before the host looks for the event at fault.
REFUSALS_MAX: Final = 3
#: Why the queue could not give positions that a lake may have.
REBUILT: Final = ("window", "released", "skipped")
#: Times that positions which the queue no longer has are looked for in the lake, and how long is waited for it each time.
LAKE_TRIES_MAX: Final = 10
LAKE_RETRY_S: Final = 2.0
#: Somebody else writes our series: going round quickly would only be a race with him.
RACE_RETRY_S: Final = 30.0


class SinkAkumuli(Component):
    """Writes numbers to Akumuli, a series for each reading of each device. README.md has the promises and the limits."""

    class Config(AkumuliConfig, frozen=True):
        """The options of sink_akumuli."""

    fault_points = ("sink_akumuli.after_send", "sink_akumuli.after_barrier")
    #: a kill of the server takes what came last: it must not be told as safe from power loss
    flush_level = "process"

    def __init__(self, config: AkumuliConfig, context: Context) -> None:
        super().__init__(config, context)
        self._calls = StoreCalls(context, (OSError,), lambda step, error: f"cannot {step}: {error}")
        self._link: Link | None = None
        self._measures = Measures(context.metrics)
        self._pending = Counts()
        self._refused_at: tuple[str, int] = ("", 0)
        self._refusals = 0
        self._lake_tries = 0

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what was remembered. The server is asked when it is first needed: it may be down now."""
        await self._calls.make("open", self._open)

    async def close(self) -> None:
        if self._link is not None:
            self._link.interrupt()
            await self._calls.quietly(self._close)

    def check_tier(self, placed: Sequence[Placed]) -> list[str]:
        """Whether the tier has the lake that fills this view again, and whether the queue waits for it without a bound."""
        own = next((entry.hold for entry in placed if entry.id == self.context.id), "none")
        alone = not any(entry.hold == "always" for entry in placed if not isinstance(entry.config, AkumuliConfig))
        folder = self.context.shared_dir.parent
        lakes = {
            entry.id: entry.config.path or str(folder / entry.id / "lake")
            for entry in placed
            if isinstance(entry.config, LakeConfig) and entry.hold == "always"
        }
        return warnings(own, self.config.lake, lakes, alone)

    def _open(self) -> None:
        link = Link(self.config, self.context, self._measures)
        try:
            link.open()
        except BaseException:
            link.close()
            raise
        self._link = link

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # --- hooks -------------------------------------------------------------------------------------------------------

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return await self._calls.make("ask what it holds", self._resume, queue_id)

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        await self._calls.make("write", self._write, batch, key)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        await self._calls.make("flush", self._flush, key)
        self._calls.healed()

    @hookimpl
    async def sink_reset(self) -> None:
        await self._calls.quietly(self._reset)

    @hookimpl
    def register_routes(self, app: web.Application) -> None:
        if self.config.routes:
            Routes(Questions(self.config.query, self.config.timeout_s), self.config.metric_prefix).add(app)

    # --- in the thread -----------------------------------------------------------------------------------------------

    @property
    def _ours(self) -> Link:
        assert self._link is not None, "sink_akumuli is not open"
        return self._link

    def _resume(self, queue_id: str) -> int | None:
        link = self._ours
        link.alive()
        link.ready()
        if link.behind and (progress := link.fill(queue_id)):
            raise TransientError(progress, 0.0)
        link.rewound = False
        return link.feed.checkpoint.marks.get(queue_id)

    def _write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        link = self._ours
        link.ready()
        if link.rewound:
            # the host wants to go on behind what has to be sent again: let it ask where to (one that never asks goes on)
            link.rewound = False
            raise TransientError("Akumuli lost points, they are sent again", 0.0)
        batch, key, fresh = self._behind_mark(batch, key)
        if key.last < key.first:
            return
        self._wait_for_lake(key)
        link.begin(key.queue_id, key.first, batch)
        link.behind = False
        try:
            counts = link.send(batch)
        except ServerRefused as refused:
            raise self._after_refusal(refused, key) from refused
        self._note_gaps(key)
        link.feed.checkpoint.mark(key.queue_id, key.last)
        self.context.fault("sink_akumuli.after_send")
        if not fresh:
            # counted when they came first
            counts.refused = {}
        self._pending.add(counts)

    def _wait_for_lake(self, key: RangeKey) -> None:
        """Before positions are passed over that the lake may have: ask there first, and wait a little for it."""
        gaps = self._gaps(key)
        if not gaps or self.config.lake is None or self._ours.feed.checkpoint.marks.get(key.queue_id) is None:
            self._lake_tries = 0
            return
        if self._lake_tries < LAKE_TRIES_MAX:
            self._lake_tries += 1
            self._ours.want(key.queue_id)
            raise TransientError(f"positions {gaps[0].first} to {gaps[-1].last} are looked for in the lake", LAKE_RETRY_S)
        self._lake_tries = 0

    def _behind_mark(self, batch: pa.RecordBatch, key: RangeKey) -> tuple[pa.RecordBatch, RangeKey, bool]:
        """The part of a range that was not taken yet, and whether it comes for the first time."""
        link = self._ours
        mark = link.feed.checkpoint.marks.get(key.queue_id)
        if mark is not None and key.first <= mark:
            held = min(mark, key.last) - key.first + 1
            held -= sum(max(0, min(hole.last, mark) - hole.first + 1) for hole in key.missing)
            held -= sum(position <= mark for position in key.dead)
            missing = tuple(hole._replace(first=max(hole.first, mark + 1)) for hole in key.missing if hole.last > mark)
            batch = batch.slice(max(held, 0))
            key = RangeKey(key.queue_id, mark + 1, key.last, missing, tuple(position for position in key.dead if position > mark))
        return batch, key, key.last > link.counted.get(key.queue_id, 0)

    def _gaps(self, key: RangeKey) -> list[Gap]:
        """What the queue could not give."""
        mark = self._ours.feed.checkpoint.marks.get(key.queue_id, key.first - 1)
        skipped = [Gap(key.queue_id, mark + 1, key.first - 1, "skipped")] if key.first > mark + 1 else []
        return skipped + [Gap(key.queue_id, hole.first, hole.last, hole.reason) for hole in key.missing if hole.reason in REBUILT]

    def _note_gaps(self, key: RangeKey) -> None:
        link = self._ours
        for gap in self._gaps(key):
            link.feed.checkpoint.add_gap(gap)
            self.context.log.error("points missing in Akumuli: rebuild this range from the lake", **_fields(gap))

    def _flush(self, key: RangeKey) -> None:
        link = self._ours
        link.ready()
        if link.feed.checkpoint.marks.get(key.queue_id, 0) < key.last:
            # written to a connection that was lost meanwhile
            raise TransientError(f"Akumuli does not hold {key} any more", 0.0)
        try:
            link.barrier()
        except ServerRefused as refused:
            raise self._after_refusal(refused, key) from refused
        self.context.fault("sink_akumuli.after_barrier")
        link.keep()
        self._refusals = 0
        self._measures.flushed(self._pending, len(link.table), link.feed.checkpoint.gaps)
        self._pending = Counts()

    def _reset(self) -> None:
        if self._link is not None and self._link.dirty:
            self._link.drop("reset")
        self._pending = Counts()

    def _after_refusal(self, refused: ServerRefused, key: RangeKey) -> Exception:
        """The server ends the connection with its first error; everything behind it was dropped."""
        self._ours.drop("late" if refused.late else "refused")
        place = key.queue_id, key.first
        self._refusals = self._refusals + 1 if place == self._refused_at else 1
        self._refused_at = place
        if self._refusals < REFUSALS_MAX:
            return TransientError(f"{refused}; going on from what it holds", 0.0)
        if refused.late:
            return TransientError(f"{refused} again and again: another writer sends points of the same series", RACE_RETRY_S)
        self._refusals = 0
        return PermanentError(f"Akumuli takes no such point: {refused.reply}")


def _fields(gap: Gap) -> dict[str, Any]:
    return {"queue_id": gap.queue_id, "first": gap.first, "last": gap.last, "reason": gap.reason}
