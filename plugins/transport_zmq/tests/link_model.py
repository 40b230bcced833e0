"""A whole link in one thread, with everything that can go wrong: the real sender and receiver between a model of the source's
queue with its engine, a network that loses, cuts and skips, and a model of the far queue.

The oracle: the far queue holds every position of every queue id once, in order, as a row or as the gap that the source declared.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from headrace import Missing
from headrace.testing import raw_batch
from headrace_transport_zmq import wire
from headrace_transport_zmq.receiver import Answer, Receiver, Staged, Taken
from headrace_transport_zmq.receiver import Options as ReceiverOptions
from headrace_transport_zmq.sender import (
    Broken,
    Dead,
    Done,
    Emit,
    Flight,
    Refused,
    Rewound,
    Sender,
    Unwelcome,
    Welcomed,
)
from headrace_transport_zmq.sender import Options as SenderOptions

EMPTY = raw_batch(0)
WELCOME = wire.Welcome(level="process", window_bytes=1 << 20, window_events=1000, frame_bytes=1 << 20)
LANE = "uplink.1"


def queue_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@dataclass
class Span:
    id: str
    first: int
    last: int


class FarQueue:
    """What is durable over there. `rows` is the log: (queue id, first, last, holes)."""

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.rows: dict[str, list[int]] = {}
        self.missing: dict[str, set[int]] = {}
        self.firsts: dict[str, int] = {}

    def append(self, origin: str, first: int, last: int, holes: tuple[Missing, ...], positions: list[int]) -> int:
        """As queue_append does: what is held is dropped. Returns how many rows were."""
        mark = self.marks.get(origin)
        if mark is None:
            assert first == self.firsts[origin], f"{origin} begins at {first}, not at {self.firsts[origin]}"
        else:
            assert first <= mark + 1, f"an undeclared gap: {origin} holds {mark}, {first}-{last} came"
        new = [position for position in positions if mark is None or position > mark]
        self.rows.setdefault(origin, []).extend(new)
        gone = {position for hole in holes for position in range(hole.first, hole.last + 1) if mark is None or position > mark}
        self.missing.setdefault(origin, set()).update(gone)
        self.marks[origin] = max(last, mark or 0)
        return len(positions) - len(new)


@dataclass
class Counts:
    """What happened: a history in which nothing does proves nothing."""

    events: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, count: int = 1) -> None:
        self.events[what] = self.events.get(what, 0) + count


class Link:
    """One history. `faults` is how much goes wrong; 0 lets it settle."""

    def __init__(self, seed: int, counts: Counts) -> None:
        self.rng, self.counts = random.Random(seed), counts
        self.now, self.faults = 100.0, 0.1
        self.far = FarQueue()
        self.spans: list[Span] = []
        self.holes: set[int] = set()
        self.head = self.cursor = 0
        self._nonces = self._ids = self._connections = 0
        self.committing: list[Staged] = []
        self.to_far: deque[tuple[bytes, Any]] = deque()
        self.to_edge: deque[Any] = deque()
        self.routing = b""
        self.old_hellos: list[Any] = []
        self.open_edge()
        self.open_far()
        self.connect()

    # --- the source --------------------------------------------------------------------------------------------------

    def open_edge(self) -> None:
        """A life of the source's process: a new queue id, and an engine that knows its cursor, perhaps an older one."""
        self._ids += 1
        self.current = queue_id(self._ids)
        options = SenderOptions(self.rng.randint(1, 60), self.rng.randint(200, 4000), 1.0, 5.0)
        self.sender = Sender(options, self.hello, 1, self.nonce)
        self.connected = False
        self.window = self.rng.randint(1, 8)
        self.engine_begin()

    def hello(self, asked: str) -> wire.Hello:
        return wire.Hello(queue_id=asked, output="uplink", level="process", proof="0" * 64)

    def nonce(self) -> bytes:
        self._nonces += 1
        return self._nonces.to_bytes(16, "little")

    def engine_begin(self) -> None:
        """As the engine does after a start and after each error: ask for every queue id, oldest first."""
        self.flights: deque[tuple[Flight, list[bool]]] = deque()
        self.position: int | None = None
        self.asking: deque[Span] = deque(self.spans)
        self.resume_at = self.spans[0].first - 1 if self.spans else self.head
        self.sender.abandon()
        self.engine_ask()

    def engine_ask(self) -> None:
        while self.asking and self.asking[0].last <= self.resume_at:
            self.asking.popleft()
        if self.asking:
            self.sender.ask(self.asking[0].id, self.now)
        else:
            self.position = max(self.resume_at, 0)

    def engine_told(self, asked: str, mark: int | None) -> None:
        if not self.asking or self.asking[0].id != asked:
            return
        span = self.asking.popleft()
        if mark is None and span.last > self.cursor:
            self.resume_at, self.asking = max(self.resume_at, self.cursor), deque()
        else:
            self.resume_at = span.last if mark is None else max(self.resume_at, min(mark, span.last))
            if mark is not None and mark < span.last:
                self.asking.clear()
        self.engine_ask()

    def append(self) -> None:
        count = self.rng.randint(1, 8)
        if not self.spans or self.spans[-1].id != self.current:
            self.spans.append(Span(self.current, self.head + 1, self.head))
            self.far.firsts[self.origin(self.current)] = self.head + 1
        self.head += count
        self.spans[-1].last = self.head
        for position in range(self.head - count + 1, self.head + 1):
            if self.rng.random() < 0.03:
                self.holes.add(position)

    def engine_send(self) -> None:
        if self.position is None or self.position >= self.head or len(self.flights) >= self.window:
            return
        first = self.position + 1
        span = next(span for span in self.spans if span.first <= first <= span.last)
        if self.flights and self.flights[-1][0].queue_id != span.id:
            return
        last = min(span.last, first + self.rng.randint(0, 9))
        positions = [position for position in range(first, last + 1) if position not in self.holes]
        missing = tuple(Missing(position, position, "corrupt") for position in range(first, last + 1) if position in self.holes)
        payload = b"".join(position.to_bytes(8, "little") for position in positions)
        flight = Flight(span.id, first, last, len(positions), missing, b"", payload, 0)
        self.position = last
        self.flights.append((flight, [False]))
        self.sender.send(flight, self.now)

    def engine_done(self, flight: Flight) -> None:
        for own, done in self.flights:
            if own is flight:
                done[0] = True
        while self.flights and self.flights[0][1][0]:
            self.cursor = self.flights.popleft()[0].last
        if self.spans and len(self.spans) > 1 and self.spans[0].last <= self.cursor and self.rng.random() < 0.5:
            self.spans.pop(0)  # given back

    def crash_edge(self) -> None:
        self.counts.add("edge crashes")
        self.cursor = max(0, self.cursor - self.rng.choice((0, 0, 3)))  # persisted lazily
        if self.spans:
            self.cursor = max(self.cursor, self.spans[0].first - 1)
        self.open_edge()
        self.reconnect()
        self.connect()

    # --- the network -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """The socket is new, and with it everything on the way is gone."""
        self.to_far.clear()
        self.to_edge.clear()
        self._connections += 1
        self.routing = self._connections.to_bytes(5, "little")
        self.sender.connected(self.now)

    def replay(self) -> None:
        """Somebody says an old hello once more, on a connection of their own. A far side that began anew takes it."""
        if self.old_hellos:
            self.to_far.append((b"other", self.rng.choice(self.old_hellos)))

    def reconnect(self) -> None:
        """What a DEALER does by itself: the frames in the kernel are gone, those behind them go to whoever answers now."""
        self._connections += 1
        self.routing = self._connections.to_bytes(5, "little")
        for _ in range(self.rng.randint(0, len(self.to_far))):
            self.to_far.popleft()
            self.counts.add("frames skipped")
        self.to_far = deque((routing if routing == b"other" else self.routing, message) for routing, message in self.to_far)
        for _ in range(self.rng.randint(0, len(self.to_edge))):
            self.to_edge.popleft()
        self.counts.add("reconnects")

    # --- the far side ------------------------------------------------------------------------------------------------

    def open_far(self) -> None:
        options = ReceiverOptions(self.rng.choice((300, 3000)), 100, 5.0)
        self.receiver = Receiver(options, self.take, lambda reason: self.counts.add(f"discarded {reason}"))

    def take(self, frame: wire.Frame) -> Taken:
        positions = [int.from_bytes(frame.parts[2][at : at + 8], "little") for at in range(0, len(frame.parts[2]), 8)]
        self.positions = getattr(self, "positions", {})
        taken = Taken(EMPTY, wire.unpack_missing(frame))
        self.positions[id(taken)] = (taken, positions)
        return taken

    def origin(self, asked: str) -> str:
        return f"{asked}/{LANE}"

    def far_receives(self) -> None:
        routing, message = self.to_far.popleft()
        if self.faults and self.rng.random() < self.faults / 20:
            self.counts.add("frames damaged")
            return
        frame = wire.decode(message)
        self.receiver.drained()
        if frame.type == wire.HELLO:
            hello = wire.unpack_text(frame, wire.Hello)
            if (again := self.receiver.again(routing, frame, WELCOME)) is not None:
                self.answer([again])
                return
            if self.receiver.replayed(frame):
                self.counts.add("hellos replayed")
                self.answer([self.receiver.refuse(routing, frame, "replayed", "")])
                return
            self.old_hellos.append(message)
            origin = self.origin(hello.queue_id)
            self.receiver.supersede(origin)
            if not self.faults or self.rng.random() < 0.4:
                self.commit(origin)  # position waits until nothing of it is in flight; or the queue is full, and it is not
            mark = self.far.marks.get(origin)
            self.answer([self.receiver.welcome(routing, frame, origin, mark, WELCOME, self.now)])
            self.counts.add("hellos")
        else:
            self.answer(self.receiver.received(routing, frame, self.now))

    def begin_commit(self) -> None:
        if not self.committing:
            self.committing = self.receiver.next(self.rng.choice((1, 500, 5000)))

    def commit(self, only: str | None = None) -> None:
        if not self.committing or (only is not None and all(staged.peer.origin != only for staged in self.committing)):
            return
        group, self.committing = self.committing, []
        if self.faults and self.rng.random() < self.faults / 5:
            self.counts.add("commits failed")
            self.answer(self.receiver.failed(group))
            return
        self.store(group)
        self.answer(self.receiver.committed(group))

    def store(self, group: list[Staged]) -> None:
        for staged in group:
            _, positions = self.positions[id(staged.taken)]
            dropped = self.far.append(staged.peer.origin, staged.first, staged.last, staged.taken.missing, positions)
            self.counts.add("duplicates", dropped)
            self.counts.add("batches")

    def crash_far(self) -> None:
        self.counts.add("far crashes")
        if self.rng.random() < 0.5:
            self.store(self.committing)  # durable, and nobody heard
        self.committing = []
        self.open_far()
        self.to_edge.clear()
        self.reconnect()

    def answer(self, answers: list[Answer]) -> None:
        for routing, message in answers:
            if routing != self.routing or (self.faults and self.rng.random() < self.faults / 5):
                self.counts.add("answers lost")
                continue
            self.to_edge.append(message)

    # --- running -----------------------------------------------------------------------------------------------------

    def effects(self) -> None:
        for effect in self.sender.effects():
            match effect:
                case Emit(message):
                    self.to_far.append((self.routing, message))
                case Done(flight):
                    self.engine_done(flight)
                case Welcomed(asked, mark, _):
                    self.engine_told(asked, mark)
                case Rewound():
                    self.counts.add("rewinds")
                case Broken() | Refused() | Unwelcome():
                    raise AssertionError(f"the far side lost nothing and refused nothing: {effect}")
                case Dead():
                    self.counts.add("found dead")
                    self.connect()

    def step(self) -> None:
        """One thing happens."""
        rng = self.rng
        draw = rng.random()
        if self.faults and draw < self.faults / 10:
            rng.choice((self.crash_edge, self.crash_far, self.reconnect))()
        elif self.faults and draw < self.faults / 7:
            self.replay()
        elif draw < 0.2 and self.faults:
            self.append()
        elif draw < 0.4:
            self.engine_send()
        elif draw < 0.6 and self.to_far:
            self.far_receives()
        elif draw < 0.75 and self.to_edge:
            self.sender.received(wire.decode(self.to_edge.popleft()), self.now)
        elif draw < 0.85:
            self.begin_commit()
        elif draw < 0.95:
            self.commit()
        else:
            self.now += rng.random()
            self.sender.tick(self.now)
            self.receiver.tick(self.now)
        self.effects()

    def settle(self, steps: int) -> None:
        """Nothing goes wrong any more: everything has to arrive."""
        self.faults = 0.0
        # it has to settle by what is said, not by giving up on a silent connection
        self.sender._options = self.sender._options._replace(dead_after_s=1e9)
        for _ in range(steps):
            self.step()
            if self.cursor >= self.head and not self.flights:
                return
        raise AssertionError(f"not settled: cursor {self.cursor} of {self.head}, {self.sender.state}, flights {len(self.flights)}")

    def check(self) -> None:
        """Nothing lost, nothing doubled, order kept."""
        origins = sorted(self.far.rows)
        everything = [position for origin in origins for position in self.far.rows[origin]]
        missing = set().union(*self.far.missing.values()) if self.far.missing else set()
        assert everything == [position for position in range(1, self.head + 1) if position not in self.holes]
        assert missing == self.holes
