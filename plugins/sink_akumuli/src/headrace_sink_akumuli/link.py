"""The output's side of one server: what is remembered in files, the connection, and how both agree again after it broke.

Blocking; called by one thread at a time (`interrupt` excepted).
"""

from __future__ import annotations

import fcntl
import time
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import Context, TransientError
from headrace_sink_akumuli.config import AkumuliConfig
from headrace_sink_akumuli.feed import Counts, Feed, Naming, adopt, held_by
from headrace_sink_akumuli.filling import Filling
from headrace_sink_akumuli.guard import METRIC, OLD_NS_MAX, START_METRIC, Guard
from headrace_sink_akumuli.lake import Lake
from headrace_sink_akumuli.measures import Measures
from headrace_sink_akumuli.names import metric_name
from headrace_sink_akumuli.recovery import recover
from headrace_sink_akumuli.series import SeriesTable
from headrace_sink_akumuli.state import Checkpoint, load, save
from headrace_sink_akumuli.wire import Questions, ServerGone, ServerRefused, Session

#: How long one call may go on reading the lake: a task that is in one call for `engine.stall_s` counts as stuck.
FILL_S: Final = 30.0

#: The file that is there while a rebuild is unfinished.
REBUILD: Final = "rebuild.json"


class Link:
    """`open`, then `ready` before everything else. After an error `drop` it: the next `ready` asks the server what it holds."""

    def __init__(self, config: AkumuliConfig, context: Context, measures: Measures) -> None:
        self._config, self._context, self._measures = config, context, measures
        self._folder = context.data_dir
        self.table = SeriesTable(self._folder / "series.ndjson", config.series_max)
        self._naming = Naming(config.metric_prefix, config.tags)
        self._questions = Questions(config.query, config.timeout_s)
        self._guard = Guard(f"{context.tier}.{context.id}")
        self._newest: Checkpoint | None = None
        self._base: Checkpoint | None = None
        self._session: Session | None = None
        self._lock_file: Any = None
        self._feed: Feed | None = None
        self._why = "connect"
        #: the host wants to go on behind points that have to be sent again
        self.rewound = False
        #: what the queue cannot give is to be looked for in the lake before the host goes on
        self.behind = False
        #: points were sent that no flush covers yet
        self.dirty = False
        self._filling: Filling | None = None
        self._filled: set[str] = set()
        #: by queue id the position up to which events were counted
        self.counted: dict[str, int] = {}

    # --- files -------------------------------------------------------------------------------------------------------

    def open(self, rebuild: bool = False) -> None:
        """Read the files. OSError where they are damaged or the disk does not do; TransientError while somebody else has them.

        rebuild: for a rebuild, which has its own memory of how far it is.
        """
        self._lock_file = (self._folder / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TransientError(f"{self._folder} is in use: headrace akumuli rebuild is running, or another site") from None
        if (self._folder / REBUILD).exists() and not rebuild:
            raise TransientError("a rebuild is unfinished: run headrace akumuli rebuild again")
        self.table.open()
        if rebuild:
            return
        self._newest, self._base = load(self._folder / "newest"), load(self._folder / "base")
        known = max((len(each.last) for each in (self._newest, self._base) if each is not None), default=0)
        if known > len(self.table):
            raise OSError(f"{self._folder}: expected {known} series, found {len(self.table)}; run headrace akumuli rebuild")
        if self._newest is not None:
            self.counted = dict(self._newest.marks)
            self._measures.gaps(self._newest.gaps)

    def close(self) -> None:
        """Safe twice, and without open."""
        self.interrupt()
        self._feed = self._session = None
        self._guard.close()
        self.table.close()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def interrupt(self) -> None:
        """End what waits for the server, from any thread."""
        session = self._session
        if session is not None:
            session.close()

    # --- the connection ----------------------------------------------------------------------------------------------

    @property
    def feed(self) -> Feed:
        """What is sent now, and up to where; after `ready`."""
        assert self._feed is not None, "the link is not ready"
        return self._feed

    def ready(self) -> None:
        """Connected, and agreed with the server on what it holds. Raises ServerGone, ServerRefused or TransientError."""
        if self._feed is None:
            self._resync()

    def alive(self) -> None:
        """Before the host asks where to go on: notice a connection that broke while nothing was sent."""
        if self._session is not None:
            try:
                self._session.look()
            except OSError:
                self.drop("gone")

    def drop(self, why: str) -> None:
        """Forget what is unflushed, and the connection."""
        self.interrupt()
        self._session = self._filling = None
        self._filled.clear()
        if self._feed is not None:
            self._feed, self._why = None, why

    def send(self, batch: pa.RecordBatch) -> Counts:
        """Send a batch's points."""
        session = self._live()
        self.dirty = True
        buffers, counts = self.feed.take(batch)
        try:
            session.look()
            for buffer in buffers:
                session.send(buffer)
        except ServerGone:
            self.drop("gone")
            raise
        return counts

    def barrier(self) -> None:
        """Return when the server has applied all that was sent.

        The next connection is made while this one stands: no restart of the server in between can go unnoticed.
        """
        session = self._live()
        try:
            following = Session(self._config.connect, self._config.timeout_s)
            try:
                session.look()
                session.finish()
            except BaseException:
                following.close()
                raise
        except ServerGone:
            self.drop("gone")
            raise
        self._session = following

    def keep(self) -> None:
        """Remember durably what was sent, after `barrier`."""
        self._newest = self.feed.snapshot()
        save(self._newest, self._folder / "newest")
        self.dirty = False
        self.counted.update(self._newest.marks)

    def begin(self, queue_id: str, first: int, batch: pa.RecordBatch) -> None:
        """Before the first position of all: remember durably where this output's events begin."""
        assert self._base is not None
        if self._base.marks:
            return
        since_us = pc.min(batch.column("received")).value if batch.num_rows else 0
        for checkpoint in (self._base, self.feed.checkpoint):
            checkpoint.mark(queue_id, first - 1)
            checkpoint.since_us = since_us
        save(self._base, self._folder / "base")

    # --- the lake ----------------------------------------------------------------------------------------------------

    def fill(self, queue_id: str) -> str:
        """Send what the lake has behind our marks, of that queue id and all before it, as the queue may not have it any more.

        Works for FILL_S at most, and says how far it is; empty: done. Call it again then, with nothing else in between.
        """
        if self._filling is None:
            if self._config.lake is None or queue_id in self._filled:
                return ""
            self._filling = Filling(Lake(self._config.lake, self._config.tags), self.feed.checkpoint, self._unfinished(queue_id))
        try:
            counts = Counts()
            for batch in self._filling.batches(time.monotonic() + FILL_S):
                counts.add(self.send(batch))
            self._filling.finish(self.feed.checkpoint)
            self.barrier()
            self._measures.filled(counts)
            if self._filling.percent is not None:
                self.dirty = False
                return f"{self._filling.percent:.0f} % of what Akumuli lacks is sent again from the lake"
            self.keep()
        except BaseException:
            self.drop("gone")
            raise
        self._filled.update(self._filling.queue_ids)
        self._context.log.info("filled from the lake", events=self._filling.events, positions=self._filling.ends)
        self._filling = None
        return ""

    def want(self, queue_id: str) -> None:
        """The queue could not give positions: look in the lake when the host asks next where to go on."""
        self.behind = True
        self._filled.discard(queue_id)

    def _unfinished(self, queue_id: str) -> list[str]:
        """The queue ids of which something may be missing: the last one that we are in, those that came after it, and this one."""
        known = list(self._newest.marks) if self._newest else []
        marks = self.feed.checkpoint.marks
        last = next(reversed(marks), None)
        return [*known[known.index(last) if last in known else 0 :], queue_id]

    def _live(self) -> Session:
        if self._session is None:
            raise ServerGone("the connection was closed")
        return self._session

    # --- agreeing ----------------------------------------------------------------------------------------------------

    def _resync(self) -> None:
        """Connect, ask what it holds, make sure that it refuses late points.

        The connection comes first, and is looked at last: when it stands then, the answers are of the process at its other end.
        """
        self._session = session = Session(self._config.connect, self._config.timeout_s)
        try:
            timestamps, start, spoilt = self._asked()
            started = self._base is not None and start > self._base.start
            self._guard.check(self._config.connect, self._config.timeout_s, timestamps, spoilt, started)
            session.look()
            guarded = max((ns for name, ns in timestamps.items() if name.startswith(METRIC)), default=0)
            session.send(self._guard.burst(max(int(self._context.clock.wall() * 1e9), guarded + 1), spoilt, self._context.random))
            self._agree(timestamps, start)
        except BaseException:
            session.close()
            self._session = None
            raise

    def _agree(self, timestamps: dict[str, int], start: int) -> None:
        adopted = adopt(self.table, self._naming, (name for name in timestamps if not name.startswith((METRIC, START_METRIC))))
        held = held_by(self.table, timestamps)
        recovery = recover(self._newest, self._base, held, start)
        if recovery.base is not self._base:
            if recovery.base.marks:
                save(recovery.base, self._folder / "base")
            self._base = recovery.base
        self.rewound = bool(recovery.lost or recovery.emptied)
        self.behind = self.behind or self.rewound
        self.dirty = False
        self._feed = Feed(self.table, self._naming, recovery.point, held)
        self._measures.resynced(self._why, recovery.lost)
        log = self._context.log.error if recovery.emptied else self._context.log.warning if recovery.lost else self._context.log.info
        log(
            "agreed with Akumuli on what it holds", why=self._why, series=len(held), lost_series=recovery.lost,
            emptied=recovery.emptied, adopted=adopted, positions=dict(list(recovery.point.marks.items())[-3:]),
        )  # fmt: skip

    def _asked(self) -> tuple[dict[str, int], int, list[str]]:
        """The last timestamps of what may be ours, when the server was started last, and the guard series that are spoilt."""
        self._questions.version()
        present = self._questions.metrics()
        ours = {self._config.metric_prefix + metric_name(reading) for reading in self.table.readings} | {METRIC, START_METRIC}
        try:
            found = self._questions.last_timestamps([metric for metric in present if metric in ours or not self.table.readings])
            spoilt = self._questions.series_with(METRIC, OLD_NS_MAX) if METRIC in present else []
        except ServerRefused as refused:
            # it says so of a metric that it has, too: of one with a series in name only
            mending = "; start it by deploy/akumuli/start.sh, with sqlite3 on its PATH" if refused.reply.startswith("-not found") else ""
            raise ServerGone(f"Akumuli at {self._config.query} does not say what it holds: {refused.reply}{mending}") from refused
        start = max((ns for name, ns in found.items() if name.startswith(f"{START_METRIC} ")), default=0)
        return found, start, [name for name in spoilt if name in found]
