"""The readers of a ring: opened and dropped by name, with a plan and a cursor that only moves on."""

from __future__ import annotations

from headrace import Plan, QueueError, ReaderInfo
from headrace_queue_pmem.frame import read_header
from headrace_queue_pmem.head import Reader
from headrace_queue_pmem.state import Place, RingState, Track


class Cursors(RingState):
    """A ring's state, and what readers do to it."""

    def open_reader(self, name: str, start: str) -> ReaderInfo:
        """Open a reader, creating it where it is new; durable on return."""
        with self.head_lock:
            self._check_open()
            with self.lock:
                known = name in self.head.readers
                cursor = 0 if known else self._start(name, start)
            if not known:
                self.head.add_reader(name, cursor, cursor)
        with self.lock:
            return self._reader_info(self.head.readers[name])

    def drop_reader(self, name: str) -> None:
        """Forget a reader; nothing is held for it from now on."""
        with self.head_lock:
            self._check_open()
            if name in self.head.readers:
                self.head.drop_reader(name)
        with self.lock:
            self.tracks.pop(name, None)

    def plan(self, name: str, plan: Plan | None) -> None:
        """Keep a reader's plan; durable on return."""
        with self.head_lock:
            self._check_open()
            reader = self._reader(name)
            if reader.plan != plan:
                self.head.store_plan(reader, plan)

    def release(self, name: str, upto: int) -> bool:
        """Move a cursor; True when a whole segment may be given back now. `upkeep` makes it durable."""
        with self.lock:
            reader = self._reader(name)
            if upto <= reader.cursor:
                return False
            if upto > self.upto:
                raise QueueError(f"reader {name!r} releases position {upto}, but only {self.upto} are committed in queue {self.name!r}")
            reader.cursor = upto
            track = self._track(name)
            track.cursor_place = next((self._timed(place) for place in track.places if place.last == upto), None)
            return len(self.segments) > (0 if self.starved else 1) and self.slowest() >= self.segments[0].last

    def remember(self, name: str, place: Place) -> None:
        """Where a reader stands after a read, so that its next one need not look for it."""
        with self.lock:
            self._track(name).places.append(place)

    def _check_open(self) -> None:
        if self.closed:
            raise QueueError(f"queue {self.name!r} is closed")

    def _reader(self, name: str) -> Reader:
        try:
            return self.head.readers[name]
        except KeyError:
            have = ", ".join(sorted(self.head.readers)) or "none"
            raise QueueError(f"queue {self.name!r} has no reader {name!r}; open it first; readers: {have}") from None

    def _start(self, name: str, start: str) -> int:
        if start == "oldest":
            return self.oldest
        if start == "head":
            return self.upto
        kind, _, other = start.partition(":")
        if kind != "after" or not other:
            raise QueueError(f"reader {name!r}: expected start oldest, head or after:READER, got {start!r}")
        return self._reader(other).cursor

    def _timed(self, place: Place) -> Place:
        """A place with the time of the frame there, so that the age of the oldest event is exact."""
        segment = place.segment
        area = segment.writer or segment.area
        if not place.time_us and area is not None and place.offset < segment.end and segment.is_warm(place.offset):
            header = read_header(area.view, place.offset, segment.header.nonce)
            place.time_us = header.time_us if header else 0
        return place

    def _track(self, name: str) -> Track:
        track = self.tracks.get(name)
        if track is None:
            track = self.tracks[name] = Track()
        return track
