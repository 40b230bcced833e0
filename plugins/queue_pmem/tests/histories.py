"""Random histories of a ring with an oracle that knows what was promised. Used by the power-loss tests and their mutants.

One sender feeds the queue as a link would: it numbers its events, sends from the queue's mark on, and sends again what was
not acknowledged, with a new body each time. So at any time the events in the queue must be 1, 2, 3, ... without a hole or a
double, each with the body that was acknowledged, and position n holds number n.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from shadow import PowerLoss, ShadowMedium

from headrace import RAW_SCHEMA, Origin, QueueFull, origin_batch
from headrace.position import ORIGIN_MISSING
from headrace_queue_pmem import reading, upkeep
from headrace_queue_pmem.frame import encode
from headrace_queue_pmem.marks import Marks, marks_of
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.state import Options

SEGMENT = 32 << 10
OPTIONS = Options(SEGMENT, 6 * SEGMENT)
SENDER = "upstream/0"
IDLE = "idle/0"  # an origin that speaks up rarely: its mark must outlive its frames


class Violated(AssertionError):
    """A promise was broken."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise Violated(what)


@dataclass
class History:
    """One queue's life over several crashes."""

    seed: int
    unit: str = "lines"
    fixed: bool = True  # frames of two sizes: stale ones line up with new ones
    bodies: dict[int, bytes] = field(default_factory=dict)  # number -> body, of everything that is promised
    names: dict[tuple[str, int], bytes] = field(default_factory=dict)  # (queue id, position) -> body, once it was visible
    released: int = 0
    attempts: int = 0
    crashes: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.medium = ShadowMedium(self.seed, self.unit)
        self.idle_sent = self.idle_acked = 0
        self.flight: dict[int, set[bytes]] = {}  # number -> bodies that were sent and not acknowledged

    def run(self, crashes: int) -> None:
        """Live until so many power losses have been survived."""
        for _ in range(crashes):
            self.medium.crash_in = self.random.randrange(self.random.choice((10, 30, 60)))
            try:
                self._live()
            except PowerLoss:
                self.crashes += 1
                if self.random.random() < 0.3:
                    self.medium.kill()
                else:
                    self.medium.crash()
            self.medium.fail_next = 0
        self.medium.crash_in = None
        self._recovered(self._open())

    def _live(self) -> None:
        ring = self._open()
        self._recovered(ring)
        for _ in range(400):
            choice = self.random.random()
            if choice < 0.6:
                self._append(ring)
            elif choice < 0.75:
                self._read(ring)
            elif choice < 0.85:
                self._release(ring)
            elif choice < 0.95:
                with contextlib.suppress(OSError):  # the next pass tries again
                    upkeep.upkeep(ring)
            elif choice < 0.97:
                with contextlib.suppress(OSError):
                    upkeep.close(ring)
                self.medium.fail_next = 0
                ring = self._open()
                self._recovered(ring)
            elif choice < 0.98:
                self.medium.fail_next = self.random.choice((1, 1, 1, 3))

    def _open(self) -> Ring:
        ring, _report = recover("sim", "shadow", self.medium, OPTIONS, Marks(8, 8, 8))
        return ring

    def _recovered(self, ring: Ring) -> None:
        """After an open: all that was promised is here, and nothing that was never sent."""
        if "lake" not in ring.head.readers:
            check(not self.released, "the reader is lost")
            ring.open_reader("lake", "oldest")
        cursor = ring.head.readers["lake"].cursor
        check(cursor <= self.released, f"cursor {cursor} is newer than what was released, {self.released}")
        mark = ring.marks.position(SENDER) or 0
        promised = max(self.bodies, default=0)
        check(mark >= promised, f"mark {mark} is older than the last acknowledged event {promised}")
        check(ring.upto == mark, f"mark {mark} and last position {ring.upto} differ")
        idle = ring.marks.position(IDLE) or 0
        check(self.idle_acked <= idle <= self.idle_sent, f"idle mark {idle}, acknowledged {self.idle_acked}, sent {self.idle_sent}")
        self.idle_acked = idle
        # What was in flight may have survived. From now on it is visible, and promised as well.
        seen = self._all(ring, cursor)
        for number, body in seen.items():
            if number in self.bodies:
                check(body == self.bodies[number], f"event {number} changed")
            else:
                check(body in self.flight.get(number, ()), f"event {number} was never sent like this: {body!r}")
                self.bodies[number] = body
        for number in range(cursor + 1, mark + 1):
            check(number in seen, f"event {number} of {mark} is gone")
        self.flight = {}

    def _all(self, ring: Ring, after: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while (part := reading.read(ring, "lake", after, 50, 1 << 16)) is not None:
            check(not part.missing, f"a gap was declared: {part.missing}")
            check(part.first == after + 1, "a read did not begin where it was told")
            assert part.batch is not None
            for position, payload in enumerate(part.batch["payload"].to_pylist(), part.first):
                number = int(payload.split(b"|")[0])
                check(number == position, f"position {position} holds event {number}")
                known = self.names.setdefault((part.queue_id, position), payload)
                check(known == payload, f"{part.queue_id}/{position} names two events")
                found[number] = payload
            after = part.last
        return found

    def _append(self, ring: Ring) -> None:
        entries = []
        for _ in range(self.random.choice((1, 1, 2, 4))):
            count = self.random.choice((2, 2, 4)) if self.fixed else self.random.randrange(1, 6)
            first = (ring.marks.staged(SENDER) or 0) + 1
            bodies = {number: self._body(number) for number in range(first, first + count)}
            origins = [Origin(SENDER, first, first + count - 1)]
            if self.random.random() < 0.03:
                self.idle_sent += 1
                origins.append(Origin(IDLE, self.idle_sent, self.idle_sent, count, ORIGIN_MISSING))
            entry = encode(_batch(list(bodies.values())), origin_batch(origins), 1)
            entry.marks = marks_of(origin_batch(origins))
            try:
                ring.reserve(entry)
            except QueueFull:
                break
            for number, body in bodies.items():
                self.flight.setdefault(number, set()).add(body)
            entries.append((entry, bodies))
        if not entries:
            return
        try:
            ring.commit([entry for entry, _ in entries])
        except Exception:
            ring.give_up([entry for entry, _ in entries])
            return
        self.idle_acked = max([self.idle_acked, *(mark.last for entry, _ in entries for mark in entry.marks if mark.id == IDLE)])
        for entry, bodies in entries:
            check(list(bodies) == list(range(entry.first, entry.last + 1)), "positions do not follow the order of the calls")
            self.bodies.update(bodies)

    def _body(self, number: int) -> bytes:
        self.attempts += 1
        size = 30 if self.fixed else self.random.randrange(10, 400)
        return b"%07d|%07d|" % (number, self.attempts) + self.random.randbytes(size).hex().encode()

    def _read(self, ring: Ring) -> None:
        part = reading.read(ring, "lake", self.random.randint(self.released, max(ring.upto, self.released)), 10, 1 << 16)
        if part is not None and part.batch is not None:
            for position, payload in enumerate(part.batch["payload"].to_pylist(), part.first):
                check(payload == self.bodies.get(position), f"position {position} was read as {payload!r}")

    def _release(self, ring: Ring) -> None:
        upto = self.random.randint(self.released, max(self.bodies, default=0))
        if upto > self.released:
            # The oracle knows first: the cursor may be durable before the call returns.
            self.released = upto
            ring.release("lake", upto)


def _batch(bodies: list[bytes]) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "device": ["d"] * len(bodies),
        "received": [0] * len(bodies),
        "encoding": [1] * len(bodies),
        "payload": bodies,
    }
    return pa.RecordBatch.from_pydict(columns, schema=RAW_SCHEMA)


def stale_frames(seed: int) -> None:
    """A commit of several frames is cut short so that its first is torn and later ones are whole; after it other events take
    their positions, up to where a whole one begins, and the power goes again. What was whole must not come back."""
    chance = random.Random(seed)
    medium = ShadowMedium(seed, "lines")
    options = Options(SEGMENT, 6 * SEGMENT)

    def append(ring: Ring, *batches: list[bytes]) -> list[Any]:
        entries = [encode(_batch(bodies), origin_batch(()), 1) for bodies in batches]
        for entry in entries:
            ring.reserve(entry)
        ring.commit(entries)
        return entries

    def body(number: int, life: int) -> bytes:
        return b"%d of life %d %s" % (number, life, b"x" * 300)

    def contents(ring: Ring) -> list[bytes]:
        bodies: list[bytes] = []
        while (part := reading.read(ring, "lake", len(bodies), 1000, 1 << 20)) is not None:
            check(not part.missing and part.batch is not None, f"a gap was declared: {part.missing}")
            assert part.batch is not None
            bodies += part.batch["payload"].to_pylist()
        return bodies

    ring = recover("sim", "shadow", medium, options, Marks(8, 8, 8))[0]
    append(ring, [body(1, 1)])
    rows = chance.randrange(1, 4)
    frames = chance.randrange(3, 6)
    stale = append(ring, *([body(2 + frame * rows + row, 1) for row in range(rows)] for frame in range(frames)))
    file = next(file for name, file in medium.files.items() if name.startswith("segment"))
    torn = ring.segments[0].end - sum(entry.size for entry in stale)
    file.memory[torn : torn + 64] = file.durable[torn : torn + 64] = 0
    # The commit was never acknowledged, so the head does not know its end either.
    second = recover("sim", "shadow", medium, options, Marks(8, 8, 8))[0]
    check(second.upto == 1, f"a torn commit left {second.upto} events")
    # The frame that names the new id takes 128 bytes: the new frame is padded so that it ends where a stale one begins, with
    # the position that the stale one has.
    count = rows * chance.randrange(1, frames)
    room = stale[0].size * (count // rows) - 128
    wanted = [body(1, 1), *(body(2 + row, 2)[:20] for row in range(count))]
    while encode(_batch(wanted[1:]), origin_batch(()), 1).size < room:
        wanted[-1] += b"." * 32
    append(second, wanted[1:])
    third = recover("sim", "shadow", medium, options, Marks(8, 8, 8))[0]
    check(contents(third) == wanted, f"{third.upto} events after the second life, expected {len(wanted)}")


def process_level(seed: int, crashes: int = 5) -> int:
    """Level `process` promises nothing about power loss, but even then: no wrong event, no identity used twice, and no mark
    above an event that neither the queue nor the reader has and that no gap declares. Returns how often the power went."""
    chance = random.Random(seed)
    medium = ShadowMedium(seed, chance.choice(("lines", "pages")), level="process")
    names: dict[tuple[str, int], bytes] = {}
    stored: set[int] = set()  # what the reader has
    where: dict[int, int] = {}  # number -> the position at which it was acknowledged
    declared: set[int] = set()
    lost = attempts = 0
    for _ in range(crashes):
        medium.crash_in = chance.randrange(5, 60)
        try:
            ring = recover("sim", "shadow", medium, OPTIONS, Marks(8, 8, 8))[0]
            ring.open_reader("lake", "oldest")
            position, present = ring.tail - 1, set()
            while (part := reading.read(ring, "lake", position, 50, 1 << 16)) is not None:
                check(part.first == position + 1, "a read did not begin where it was told")
                gone = sum(hole.last - hole.first + 1 for hole in part.missing)
                bodies = part.batch["payload"].to_pylist() if part.batch is not None else []
                check(len(bodies) + gone == part.last - part.first + 1, "a position is neither a row nor missing")
                holes = {at for hole in part.missing for at in range(hole.first, hole.last + 1)}
                declared |= holes
                for at, body in zip([at for at in range(part.first, part.last + 1) if at not in holes], bodies, strict=True):
                    check(names.setdefault((part.queue_id, at), body) == body, f"{part.queue_id}/{at} names two events")
                    present.add(int(body.split(b"|")[0]))
                position = part.last
            mark = ring.marks.position(SENDER) or 0
            orphans = {number for number in set(range(1, mark + 1)) - present - stored if where.get(number) not in declared}
            check(not orphans, f"mark {mark} stands above events that nobody has: {sorted(orphans)[:5]}")
            for _ in range(200):
                first = (ring.marks.staged(SENDER) or 0) + 1
                attempts += 1
                bodies = [b"%07d|%07d|" % (number, attempts) + b"x" * 200 for number in range(first, first + 3)]
                entry = encode(_batch(bodies), origin_batch([Origin(SENDER, first, first + 2)]), 1)
                entry.marks = marks_of(origin_batch([Origin(SENDER, first, first + 2)]))
                with contextlib.suppress(QueueFull):
                    ring.reserve(entry)
                    ring.commit([entry])
                    where |= {number: entry.first + place for place, number in enumerate(range(first, first + 3))}
                if chance.random() < 0.3 and (part := reading.read(ring, "lake", ring.head.readers["lake"].cursor, 50, 1 << 16)):
                    stored |= {int(body.split(b"|")[0]) for body in (part.batch["payload"].to_pylist() if part.batch else [])}
                    ring.release("lake", part.last)
                if chance.random() < 0.2:
                    upkeep.upkeep(ring)
        except PowerLoss:
            medium.crash()
            lost += 1
    return lost
