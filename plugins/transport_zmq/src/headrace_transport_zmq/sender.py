"""One lane, seen by its sender: what goes out when, and what counts as safe. No I/O: bytes and time come in, effects go out.

A *session* begins with a hello for one queue id and ends with the next hello. Its frames are numbered by positions: each names
the one before it (`prev`), and the receiver takes it only if it holds that. Whatever goes wrong on the way, the answer is the
same: a new session, which begins where the receiver says that it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from headrace import LEVELS, Missing
from headrace_transport_zmq import wire
from headrace_transport_zmq.wire import Buffer, Frame

#: A hello without an answer is said again after so many seconds.
HELLO_AGAIN_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Flight:
    """One batch: positions first..last of a queue id, each a row or in `missing`."""

    queue_id: str
    first: int
    last: int
    rows: int
    missing: tuple[Missing, ...]
    origins: Buffer
    payload: Buffer
    flags: int
    #: some of its positions are on other lanes
    spread: bool = False
    size: int = 0
    crc: int | None = None
    parts: tuple[Buffer, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.seal()

    def seal(self) -> None:
        """Make its parts, after `first` or `missing` changed."""
        self.parts = (wire.pack_missing(self.missing), self.origins, self.payload)
        self.size = sum(len(part) for part in self.parts)
        self.crc = wire.body_sum(self.parts)


class Emit(NamedTuple):
    """Put this frame on the wire."""

    message: list[Buffer]


class Done(NamedTuple):
    """The far side has it durable."""

    flight: Flight


class Welcomed(NamedTuple):
    """A session has begun: what the far side holds of the queue id (None: nothing)."""

    queue_id: str
    mark: int | None
    host: str
    level: str = "none"
    noted: bool = False


class Rewound(NamedTuple):
    """A session ended because something was lost on the way; a new one is asked for."""

    reason: str


class Broken(NamedTuple):
    """The far side holds less than it had said: nothing under way can be relied on. All flights are given up."""

    reason: str


class Refused(NamedTuple):
    """The far side will never take this batch. It is given up."""

    flight: Flight
    reason: str


class Unwelcome(NamedTuple):
    """The far side does not talk to us, or we do not send to it."""

    code: str
    reason: str


class Dead(NamedTuple):
    """Nothing was heard for too long: the connection is to be made anew, then `connected`."""

    reason: str


class Alive(NamedTuple):
    """There is a far side, though nothing is to be said to it yet."""


Effect = Emit | Alive | Done | Welcomed | Rewound | Broken | Refused | Unwelcome | Dead
State = Literal["idle", "greeting", "open", "down"]


class Options(NamedTuple):
    """The bounds of a lane; the receiver may grant less of a window."""

    window_events: int
    window_bytes: int
    heartbeat_s: float
    dead_after_s: float
    allow_lower_level: bool = False


class Sender:
    """The sender's half of one lane. Every call may leave effects, which `effects` gives, in their order."""

    def __init__(self, options: Options, hello: Callable[[str], wire.Hello], lane: int, nonce: Callable[[], bytes]) -> None:
        self._options, self._hello, self._lane, self._nonce = options, hello, lane, nonce
        self._out: list[Effect] = []
        self._waiting: deque[Flight] = deque()
        self._flying: deque[Flight] = deque()
        self._asked = False
        self._level = "none"
        self.state: State = "idle"
        self.queue_id = ""
        self.session = wire.NO_SESSION
        #: what the far side is known to hold of the queue id
        self.mark: int | None = None
        self._sent: int | None = None
        self._begun = False
        self._granted_events, self._granted_bytes = options.window_events, options.window_bytes
        self._frame_bytes = 0
        self._heard = self._said = self._greeted = 0.0
        #: somebody waits for what is on its way; and up to where the far side was told so
        self._hurrying = False
        self._hurried: int | None = None
        self._by_flush = False
        self._takes_names = self._takes_spread = False

    def effects(self) -> list[Effect]:
        """What is to be done, once."""
        out, self._out = self._out, []
        return out

    @property
    def flying_events(self) -> int:
        """Rows on their way."""
        return sum(flight.rows for flight in self._flying)

    @property
    def flying_bytes(self) -> int:
        """Bytes on their way."""
        return sum(flight.size for flight in self._flying)

    # --- the host's side ---------------------------------------------------------------------------------------------

    def ask(self, queue_id: str, now: float) -> None:
        """What does the far side hold of this queue id? Answered by `Welcomed`. Whatever is under way is given up."""
        self.abandon()
        if queue_id != self.queue_id:
            self.mark = None
        self.queue_id, self._asked = queue_id, True
        self._greet(now)

    def send(self, flight: Flight, now: float) -> None:
        """A batch more, behind those before it; it goes out as the window has room. Answered by `Done` or `Refused`."""
        self._waiting.append(flight)
        self._pump(now)

    def hurry(self, now: float) -> None:
        """Nothing more comes before something of what is under way is answered: the far side is not to wait for more."""
        self._hurrying = True
        self._say_hurry(now)

    def _say_hurry(self, now: float) -> None:
        if self._hurrying and self._by_flush and self.state == "open" and self._flying and self._hurried != self._sent:
            self._hurried = self._sent
            self._beat(now)

    def abandon(self) -> None:
        """Nobody waits for the batches any more."""
        self._hurrying = False
        self._waiting.clear()
        self._flying.clear()

    def connected(self, now: float) -> None:
        """There is a new connection: whoever is on its other side has to be greeted."""
        self.state = "idle"
        self._heard = now
        if self.queue_id:
            self._greet(now)

    def goodbye(self) -> None:
        """The end of this sender; a courtesy, nothing depends on it."""
        if self.state == "open":
            self._out.append(Emit(wire.encode(Frame(wire.BYE, self.session, lane=self._lane))))
        self.state = "idle"

    # --- what comes in -----------------------------------------------------------------------------------------------

    def received(self, frame: Frame, now: float) -> None:
        """A frame from the far side. MalformedError when its text is not what it should be."""
        if self.state == "idle":
            self._heard = now  # whatever it says: somebody is there
            self._out.append(Alive())
            return
        if frame.session != self.session or self.state not in ("greeting", "open"):
            return  # an answer to what is over
        self._heard = now
        if frame.type == wire.WELCOME and self.state == "greeting":
            self._welcomed(frame, now)
        elif frame.type in (wire.ACK, wire.HEARTBEAT) and self.state == "open":
            self._acked(frame.mark)
            self._pump(now)
        elif frame.type == wire.RESUME and self.state == "open":
            self._out.append(Rewound(f"the far side has {frame.mark}, we sent up to {self._sent}"))
            self._greet(now)
        elif frame.type == wire.REFUSE:
            self._refused(frame, wire.unpack_text(frame, wire.Refusal), now)

    def tick(self, now: float) -> None:
        """Time passed: say hello again, send a heartbeat (with nothing to speak for yet: is anybody there?), or find the far side dead.
        `next_at` says when to call."""
        if self.state == "down":
            return
        if now - self._heard >= self._options.dead_after_s:
            self.state = "down"
            self._out.append(Dead(f"nothing heard for {now - self._heard:.1f} s"))
        elif self.state == "greeting" and now - self._greeted >= HELLO_AGAIN_S:
            self._say_hello(now)
        elif self.state != "greeting" and now - self._said >= self._options.heartbeat_s:
            self._beat(now)

    def _beat(self, now: float) -> None:
        flags, last = (0, 0) if self._sent is None else (wire.MARKED, self._sent)
        if self._hurrying and self._flying:
            flags |= wire.HURRY
        self._say(Frame(wire.HEARTBEAT, self.session, flags, last=last, lane=self._lane), now)

    def next_at(self) -> float | None:
        """When `tick` has something to do; None: not by itself."""
        if self.state == "down":
            return None
        dead_at = self._heard + self._options.dead_after_s
        turn = self._greeted + HELLO_AGAIN_S if self.state == "greeting" else self._said + self._options.heartbeat_s
        return min(dead_at, turn)

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _greet(self, now: float) -> None:
        """A new session: nothing that belongs to an older one counts from here on."""
        if self.state == "down":
            return  # `connected` greets
        self.session, self.state = self._nonce(), "greeting"
        self._sent, self._begun, self._hurried = None, False, None
        self._heard = now
        self._say_hello(now)

    def _say_hello(self, now: float) -> None:
        # the same session again: the far side may have got the first one all the same
        hello = self._hello(self.queue_id)
        self._level, self._greeted = hello.level, now
        self._say(Frame(wire.HELLO, self.session, lane=self._lane, parts=(wire.pack_text(hello),)), now)

    def _welcomed(self, frame: Frame, now: float) -> None:
        welcome = wire.unpack_text(frame, wire.Welcome)
        if LEVELS.index(welcome.level) < LEVELS.index(self._level) and not self._options.allow_lower_level:
            self.state = "down"
            reason = f"the far side keeps events at level {welcome.level}, this queue at {self._level}; see allow_lower_level"
            self._out.append(Unwelcome("level", reason))
            return
        self.state = "open"
        self._granted_events = min(self._options.window_events, welcome.window_events)
        self._granted_bytes = min(self._options.window_bytes, welcome.window_bytes)
        self._frame_bytes, self._by_flush = welcome.frame_bytes, welcome.by_flush
        self._takes_names, self._takes_spread = welcome.names, welcome.spread
        mark, known = frame.mark, self.mark
        if self._asked:
            self._asked, self.mark = False, mark
            self._out.append(Welcomed(self.queue_id, mark, welcome.host, welcome.level, welcome.noted))
        elif known is not None and (mark is None or mark < known):
            # it may not be relied on for what it had acknowledged either: the host asks again, from the beginning
            self._break(f"the far side held up to {known} and holds {mark} now")
            return
        else:
            self._out.append(Welcomed(self.queue_id, mark, welcome.host, welcome.level, welcome.noted))
        self._waiting.extendleft(reversed(self._flying))
        self._flying.clear()
        self._acked(mark)
        self._pump(now)

    def _break(self, reason: str) -> None:
        self.abandon()
        self.mark = None
        self._out.append(Broken(reason))

    def _refused(self, frame: Frame, refusal: wire.Refusal, now: float) -> None:
        if refusal.code == "replayed":
            # the welcome was lost with its connection
            self._out.append(Rewound(refusal.reason))
            self._greet(now)
            return
        if refusal.code != "batch":
            self.state = "down"
            self._out.append(Unwelcome(refusal.code, refusal.reason))
            return
        flight = next((flight for flight in self._flying if flight.last == frame.last), None)
        if flight is not None:
            self.abandon()  # what is behind it cannot be taken either
            self._out.append(Refused(flight, refusal.reason))

    # --- the window --------------------------------------------------------------------------------------------------

    def _acked(self, mark: int | None) -> None:
        """Everything up to `mark` is durable over there."""
        if mark is None or (self.mark is not None and mark < self.mark):
            return
        self.mark = mark
        for flights in (self._flying, self._waiting):
            while flights and flights[0].queue_id == self.queue_id and flights[0].last <= mark:
                self._out.append(Done(flights.popleft()))
                self._hurrying = False  # who has an answer can go on, or says again that it cannot

    def _pump(self, now: float) -> None:
        """Put on the wire what the window has room for; a batch larger than the window goes alone."""
        if self._waiting and not self._flying and self._waiting[0].queue_id != self.queue_id:
            self.queue_id, self.mark = self._waiting[0].queue_id, None
            self._greet(now)
        if self.state != "open":
            return
        events, size = self.flying_events, self.flying_bytes
        while self._waiting and self._waiting[0].queue_id == self.queue_id:
            flight = self._waiting[0]
            if why := self._not_taken(flight):
                self.state = "down"
                self._out.append(Unwelcome("rows", why))
                return
            if flight.size + wire.HEADER.size > self._frame_bytes:
                if not self._flying:  # those before it are answered first
                    self.abandon()
                    self._out.append(Refused(flight, f"{flight.size} bytes, the far side takes {self._frame_bytes} at most"))
                return
            if self._flying and (events + flight.rows > self._granted_events or size + flight.size > self._granted_bytes):
                self._hurrying = True
                break
            self._flying.append(self._waiting.popleft())
            events, size = events + flight.rows, size + flight.size
            self._put(flight, now)
        self._say_hurry(now)

    def _not_taken(self, flight: Flight) -> str:
        """Why the far side cannot take a frame of this kind: it would take it for another one."""
        if flight.spread and not self._takes_spread:
            return "it takes no part of a queue's events: it has no queue of its own, or is an older version; upgrade far tiers first"
        if flight.flags & wire.ROWS and not self._takes_names:
            return "it is an older version, which cannot keep the names of spread events; upgrade far tiers first"
        return ""

    def _put(self, flight: Flight, now: float) -> None:
        start = 0
        if not self._begun:
            self._begun = True
            if self.mark is None:
                start = wire.START
            elif flight.first > self.mark + 1:
                # the host knows what the far side holds, and has nothing between that and this batch any more
                flight.missing = (Missing(self.mark + 1, flight.first - 1, "released"), *flight.missing)
                flight.first = self.mark + 1
                flight.seal()
        fields = (flight.first - 1, flight.first, flight.last, flight.rows, self._lane, flight.parts)
        self._sent = flight.last
        self._emit(wire.encode(Frame(wire.DATA, self.session, flight.flags | start, *fields), flight.crc), now)

    def _say(self, frame: Frame, now: float) -> None:
        self._emit(wire.encode(frame), now)

    def _emit(self, message: list[Buffer], now: float) -> None:
        self._said = now
        self._out.append(Emit(message))
