"""A whole view from a lake: every event, in order of time, into an empty database. Restartable, in bounded memory.

What it does stands in files of the output's folder, in this order: `rebuild.json` (while it is there the output does not open), the table
of series, and after each window of time `rebuilt`, a checkpoint. At the end that becomes `newest`, from where the output goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from headrace import HeadraceError
from headrace_sink_akumuli.feed import Counts
from headrace_sink_akumuli.filling import WINDOW_ROWS
from headrace_sink_akumuli.guard import METRIC, START_METRIC
from headrace_sink_akumuli.lake import Lake, Span, Wanted, windows
from headrace_sink_akumuli.link import REBUILD, Link
from headrace_sink_akumuli.state import Checkpoint, load, save
from headrace_sink_akumuli.wire import Questions

REBUILT: Final = "rebuilt"
_BEGIN: Final = -(2**62)


class RebuildError(HeadraceError):
    """It cannot be rebuilt as things are; the text says what to do."""


class Progress(msgspec.Struct):
    """`rebuild.json`: the lake, by queue id up to where it is taken, and the time (us) up to which the server has it."""

    lake: str
    ends: dict[str, int]
    until_us: int = _BEGIN

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


class Rebuild:
    """One run. tell: is given a line now and then. window_rows: events in memory at a time, about 100 bytes each."""

    def __init__(
        self, link: Link, questions: Questions, folder: Path, lake: Lake, tell: Callable[[str], None], window_rows: int = WINDOW_ROWS
    ):
        self._link, self._questions, self._folder, self._lake = link, questions, folder, lake
        self._tell, self._window_rows = tell, window_rows
        self.counts = Counts()
        self.events = 0

    def run(self, prefix: str) -> None:
        """Begin, or go on where an earlier run was. Raises RebuildError, and OSError."""
        progress = self._begin(prefix)
        spans, progress.ends = self._lake.spans(progress.ends, {}, {})
        total = sum(span.rows for span in spans)
        contexts = self._contexts(spans, total)
        self._link.open(rebuild=True)
        try:
            self._link.ready()
            self._go_on(progress)
            self._link.feed.contexts = contexts
            self._feed(spans, total, progress)
            self._end(progress)
        finally:
            self._link.close()

    def _begin(self, prefix: str) -> Progress:
        file = self._folder / REBUILD
        if file.exists():
            progress = msgspec.json.decode(file.read_bytes(), type=Progress)
            if progress.lake != self._lake.root:
                raise RebuildError(f"a rebuild from {progress.lake} is unfinished: finish it, or remove {file} and the database")
            return progress
        present = [name for name in self._questions.metrics() if name.startswith(prefix) and name not in (METRIC, START_METRIC)]
        if present:
            raise RebuildError(
                f"expected an empty database, found {len(present)} metrics, {present[0]} first; stop akumulid and remove its files"
            )
        ends = {queue_id: end for queue_id in self._lake.queue_ids() if (end := self._lake.end(queue_id))}
        if not ends:
            raise RebuildError(f"the lake at {self._lake.root} has no events")
        progress = Progress(self._lake.root, ends)
        progress.save(file)
        for name in ("series.ndjson", "newest", "base", REBUILT):
            (self._folder / name).unlink(missing_ok=True)
        return progress

    def _contexts(self, spans: list[Span], total: int) -> dict[str, dict[str, str]]:
        """The tags as they are today, by device."""
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            self._tell(f"devices: {100 * done / max(total, 1):.0f} % of {total:,} events")

        return self._lake.newest_tags(spans, tell)

    def _go_on(self, progress: Progress) -> None:
        """Where the earlier run was, unless the server has lost something since: then from the beginning, without what it has."""
        before = load(self._folder / REBUILT)
        feed = self._link.feed
        if before is not None:
            before.grow(len(feed.timeline.held))
            if (feed.timeline.held >= before.last).all():
                feed.timeline.last = before.last
                feed.checkpoint.seen = before.seen
                return
        progress.until_us = _BEGIN

    def _feed(self, spans: list[Span], total: int, progress: Progress) -> None:
        wanted = Wanted({}, progress.ends, 0)
        for first_us, last_us, _ in windows(spans, self._window_rows):
            if last_us <= progress.until_us:
                continue
            for batch in self._lake.batches(spans, first_us, last_us, wanted):
                self.counts.add(self._link.send(batch))
                self.events += batch.num_rows
                self._tell(f"{100 * self.events / max(total, 1):.0f} % of {total:,} events, {self.counts.points:,} points")
            self._link.barrier()
            save(self._link.feed.snapshot(), self._folder / REBUILT)
            progress.until_us = last_us
            progress.save(self._folder / REBUILD)

    def _end(self, progress: Progress) -> None:
        done = self._link.feed.snapshot()
        for queue_id, end in progress.ends.items():
            done.mark(queue_id, end)
        # until the server has been stopped cleanly a crash may cost anything: then all of the lake goes through again
        save(Checkpoint(marks=dict.fromkeys(progress.ends, 0), start=done.start), self._folder / "base")
        save(done, self._folder / "newest")
        (self._folder / REBUILD).unlink()
        (self._folder / REBUILT).unlink(missing_ok=True)
