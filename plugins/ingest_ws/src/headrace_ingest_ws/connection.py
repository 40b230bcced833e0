"""One device's WebSocket connection: what it sends goes to the intake, what its session owes goes back.

The server calls `serve`, `tick`, `refuse_from_now_on` and `finish`; the intake calls `settled` and `go_on`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from headrace.encodings import Encoding, Sent
from headrace.log import Log
from headrace_ingest_ws.auth.gateway import devices_of
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.config import IngestWsConfig
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.handshake import chosen_subprotocol, switch_protocols
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.message import JSON, events_of, objects_of
from headrace_ingest_ws.parser import FrameBuffer
from headrace_ingest_ws.polling import PolledTransport, Poller
from headrace_ingest_ws.protocol import (
    CLOSE_AWAY,
    CLOSE_NOT_TEXT,
    CLOSE_POLICY,
    CLOSE_RESTART,
    CLOSE_TOO_BIG,
    CLOSE_TRY_LATER,
    PAYLOAD_INVALID,
    PING_FRAME,
    RATE,
    SUBPROTOCOL,
    TOO_LARGE,
    Refusal,
    ack_frame,
    text_frame,
)
from headrace_ingest_ws.rates import Rate
from headrace_ingest_ws.session import Session
from headrace_ingest_ws.websocket import ANY_NUMBER, WebSocket

if TYPE_CHECKING:  # these are not there without the C parser
    from headrace_ingest_ws.gathering import Gatherer, SessionPeer

#: Taken from one connection at once, before its next messages and everybody else's: 0.05 ms of work, 1 ms where all are refused.
SLICE: Final = 64

#: Pings and pongs between two looks at a connection that need no explanation.
CONTROLS_MAX: Final = 32

#: By whether the encoding is binary.
_OTHER_KIND: Final = {
    False: Refusal(PAYLOAD_INVALID, "expected a text message, got a binary one"),
    True: Refusal(PAYLOAD_INVALID, "expected a binary message, got a text"),
}


class Connection(WebSocket):
    """Takes messages into the intake and writes what the session owes; a `Peer` of the intake."""

    __slots__ = (
        "_config", "_controls", "_counted", "_counters", "_device", "_encoding", "_end_at_once", "_gathered", "_intake", "_log", "_on_end",
        "_pinged", "_refused", "_session", "_silent_since", "_slow", "_stalled_since", "_unfinished_since", "ends_at", "identity", "rate",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        config: IngestWsConfig,
        intake: Intake,
        counters: Counters,
        log: Log,
        now: float,
        buffer: FrameBuffer,
        encoding: Encoding = JSON,
    ) -> None:
        super().__init__(buffer, config.message_bytes_max, config.close_timeout_s)
        self.identity, self._encoding = identity, encoding
        self._device, self._config, self._intake, self._counters, self._log = identity.name, config, intake, counters, log
        self._session = Session(config.window_messages)
        self._on_end: Callable[[Connection], None] | None = None
        self._end_at_once: tuple[int, str] | None = None  # asked to finish before it was served
        self._gathered: Any = None  # the ws_connection (gather.h), where messages may be taken in C
        self._silent_since = self._stalled_since = self._unfinished_since = now
        self._counted = 0  # messages when the connection was last looked after
        self._pinged = False
        self._controls = 0  # pings and pongs since then
        self._refused = 0  # messages that were refused, and pings beyond CONTROLS_MAX, since then
        self._slow = False  # that, or the same before then: it goes by the slow lane
        self.rate: Rate | None = None
        """What its device may still send; None: anything."""
        self.ends_at = inf
        """When it is old enough to be closed; set before `serve`."""

    def serve(
        self, request: web.Request, hello: Callable[[], bytes], on_end: Callable[[Connection], None], poller: Poller | None = None
    ) -> bool:
        """Switch to WebSocket and live until `on_end` is called; False when the client has left before, and it never will."""
        subprotocol = chosen_subprotocol(request, SUBPROTOCOL)
        switched = switch_protocols(request, self, subprotocol, poller)
        if switched is None:
            return False
        transport, already_read = switched
        if poller is not None and poller.gatherer is not None and isinstance(transport, PolledTransport) and not transport.is_closing():
            self._gather(poller.gatherer, transport)
        self._on_end = on_end
        self._counters.opened.inc()
        self.start(transport, text_frame(hello()) if subprotocol else b"", already_read)
        if self._end_at_once is not None:
            self._close_for(*self._end_at_once)
        return True

    def _gather(self, gatherer: Gatherer, transport: PolledTransport) -> None:
        """Let C take what it may of this connection's messages."""
        start = self._session.count
        self._gathered = gatherer.connection(self._device, self._session.name, self._parser, self._session.window, start)
        self._session.share(self._gathered)
        transport.gathered = self._gathered
        gatherer.place(transport.descriptor, self._gathered, self.session_peer)
        if self.rate is not None:
            self._gathered.rate = self.rate.levels
        self._gathered.gathers = self._plain_json

    @property
    def _plain_json(self) -> bool:
        """True where C knows what a message has to be."""
        return self.identity.gateway is None and self._encoding is JSON

    @property
    def gathered(self) -> bool:
        """True where C takes what it may of the messages, and knows whether the connection needs to be looked after."""
        return self._gathered is not None

    @property
    def session_peer(self) -> SessionPeer | None:
        """This connection, when its messages belong to a device session."""
        return None

    # --- messages ----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        intake = self._intake
        if self._refusing or intake.stopped:
            return ANY_NUMBER
        room = min(self._session.room, intake.rows_left, SLICE)
        return max(0, min(room, intake.lane.left)) if self._slow else room

    def waits(self) -> None:
        intake = self._intake
        if intake.full:
            intake.call_when_room(self)
        elif self._slow and intake.lane.left <= 0:
            intake.lane.wait(self)
        # else `settled` opens the window

    def took_run(self, run: bytes, count: int) -> None:
        if self._refusing or self._intake.stopped:
            return
        if self.rate is not None and not self.rate.take(count, len(run) - count + 1, self._intake.now()):
            for message in run.split(b"\n"):
                self.took(message, True)
            return
        events = objects_of(run, count) if self.identity.gateway is None and self._encoding is JSON else None
        if events is None:
            for message in run.split(b"\n"):
                self._take(message, True)
            return
        self._counters.took(count, len(run) - count + 1)
        self._add(self._session.take(count), JSON.stored, events)

    def took(self, message: bytes, is_text: bool) -> None:
        if self._refusing or self._intake.stopped:
            return
        if self.rate is None:
            self._take(message, is_text)
        elif wait_ms := self.rate.wait_ms(self._intake.now()):
            self._refuse(Refusal(RATE, self.rate.reason(), retry_ms=wait_ms), len(message))
        else:
            self.rate.charge(self._take(message, is_text), len(message))

    def _take(self, message: bytes, is_text: bool) -> int:
        """Take or refuse a message that its rate lets pass; how many events it holds."""
        encoding = self._encoding
        if is_text is encoding.binary:
            self._refuse(_OTHER_KIND[encoding.binary], len(message))
            return 1
        events = events_of(message, encoding, Sent(self._device, self._intake.wall(), self._config.events_per_message_max))
        devices = None
        if self.identity.gateway is not None and not isinstance(events, Refusal):
            devices = devices_of(events, self.identity, encoding.stored)
        if isinstance(events, Refusal):
            self._refuse(events, len(message))
            return events.events
        if isinstance(devices, Refusal):
            self._refuse(devices, len(message))
            return devices.events
        self._counters.took(len(events), len(message))
        self._add(self._session.take(), encoding.stored, events, devices)
        return len(events)

    def heard_control(self) -> None:
        self._controls += 1
        self._look_again()
        if self._controls > CONTROLS_MAX:
            self._misbehaves()

    def broke(self, code: int) -> None:
        if self._intake.stopped:
            return
        if code == CLOSE_TOO_BIG:
            self._refuse(Refusal(TOO_LARGE, f"expected a message of at most {self._config.message_bytes_max} bytes"), 0)
        elif code == CLOSE_NOT_TEXT:
            self._refuse(Refusal(PAYLOAD_INVALID, "not UTF-8"), 0)
        elif code == CLOSE_TRY_LATER:  # it is not refused for good: what is not acked is sent again
            self._counters.connection_refused("unfinished")
            self._log.warning("connection ended: unfinished messages take all of unfinished_bytes_max", device=self._device)

    def _refuse(self, refusal: Refusal, size: int) -> None:
        self._counters.took(refusal.events, size)
        self._counters.rejected(refusal.code, refusal.events)
        if not self._refused:  # one line a second is enough, and costs more than the refusal
            self._log.warning("message refused", device=self._device, code=refusal.code, reason=refusal.reason)
        self._misbehaves()
        # a refusal waits its turn in the intake: its ack must not overtake that of an earlier message
        self._add(self._session.refuse(refusal), JSON.stored, ())

    def _misbehaves(self) -> None:
        """It goes by the slow lane; and when that is no exception, all of it, so that C does not take from the same read."""
        self._slow = True
        self._refused += 1
        if self._refused > SLICE and self._gathered is not None:
            self._gathered.gathers = False
        self._look_again()
        self._intake.lane.spend()

    def _look_again(self) -> None:
        """What was counted here is for the next `tick`."""
        if self._gathered is not None:
            self._gathered.look_at = 0.0

    def _add(self, number: int, encoding: int, events: Sequence[bytes], devices: Sequence[str] | None = None) -> None:
        if self._gathered is not None:
            self._gathered.later = self._intake.batch_number
        self._intake.add(self, number, self._device, encoding, events, devices)

    def refuses(self) -> None:
        super().refuses()
        if self._gathered is not None:
            self._gathered.gathers, self._gathered.special = False, True

    # --- acks --------------------------------------------------------------------------------------------------------

    def settled(self, last: int) -> None:
        self._session.settle(last)
        self.reads_again()
        self._become_plain()

    def _become_plain(self) -> None:
        """Leave the acks to C from now on, where it may write them."""
        if self._gathered is not None and self._gathered.special:
            self._gathered.special = not self._plain

    @property
    def _plain(self) -> bool:
        """True while the next ack may be written without a look at this connection."""
        if self._paused or self._unread or self._refusing or self._lost or self._goodbye is not None or self._session.rejects_due:
            return False
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def ack_begun(self, sent: int) -> None:
        """C wrote so many bytes of the ack that is due."""
        if sent and (last := self._session.ack_only()) and self._transport is not None:
            self._transport.write(ack_frame(last)[sent:])
        else:
            self.settled(0)

    def reads_again(self) -> None:
        """Write rejects and one ack, in one write, if the client reads at all."""
        session = self._session
        if self._unread or self._said_goodbye or self._lost or not session.ack_due:
            return
        assert self._transport is not None
        if last := session.ack_only():
            self._transport.write(ack_frame(last))
        else:
            self._transport.write(b"".join(map(text_frame, session.due())))
        if self._paused:
            self.go_on()
        if self._goodbye is not None:
            self.maybe_say_goodbye()

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> tuple[int, str] | None:
        """Look after the connection about once a second; the close code and why, when it has to be closed."""
        if self._lost or self._transport is None:
            return None
        if self._gathered is not None and self._calm(now):
            return None
        self.reads_again()
        self._become_plain()
        self._slow, self._refused, self._controls = bool(self._refused), 0, 0
        if self._gathered is not None and not self._slow and not self._refusing:
            self._gathered.gathers = self._plain_json
        if not (self._session.ack_due or self._unread):
            self._stalled_since = now
        elif now - self._stalled_since > self._config.write_timeout_s:
            self._counters.connection_refused("unread")
            self._log.warning("connection cut off, acks are not read", device=self._device)
            self._transport.abort()
            return None
        if now >= self.ends_at:
            return CLOSE_RESTART, "this connection is old enough, connect again"
        is_read = not self._paused and not self._intake.full and self._session.open
        if self._heard or not is_read:
            # a client that is not read cannot be heard
            self._heard, self._pinged, self._silent_since = False, False, now
        if self._session.count != self._counted or not is_read or self._parser is None or not self._parser.unfinished:
            self._counted, self._unfinished_since = self._session.count, now
        elif now - self._unfinished_since > self._config.message_timeout_s:
            self._counters.connection_refused("message_timeout")
            return CLOSE_POLICY, f"no whole message in {now - self._unfinished_since:.0f} s"
        silent_s = now - self._silent_since
        if silent_s > self._config.idle_timeout_s:
            return CLOSE_AWAY, f"silent for {silent_s:.0f} s"
        if silent_s > self._config.idle_timeout_s / 2 and not self._pinged:
            self._pinged = True
            self._write(PING_FRAME)
        if self._gathered is not None and not (self._slow or self._pinged):
            self._gathered.look_at = min(self.ends_at, self._silent_since + self._config.idle_timeout_s / 2)
        return None

    def _calm(self, now: float) -> bool:
        """True where C sees that there is nothing to look after; else what it knows is taken over.

        Of ten thousand connections nearly all are calm, and to look after one of them costs as much as five messages.
        """
        gathered, gatherer = self._gathered, self._intake.gatherer
        assert gatherer is not None
        if gatherer.calm(gathered, now):
            return True
        gathered.look_at = 0.0
        self._stalled_since = max(self._stalled_since, gathered.calm_at)
        self._unfinished_since = max(self._unfinished_since, gathered.calm_at)
        if gathered.heard_at > self._silent_since:
            self._pinged, self._silent_since = False, gathered.heard_at
        return False

    # --- the end -----------------------------------------------------------------------------------------------------

    def refuse_from_now_on(self) -> None:
        """Take no more messages; those taken are still acknowledged."""
        self.refuses()
        self.go_on()

    async def finish(self, code: int, reason: str) -> None:
        """Close with this code, after the acks that are still to come; returns when the connection is closed."""
        self.end(code, reason)
        if self._transport is not None:
            await self.closed()

    def end(self, code: int, reason: str) -> None:
        """Take no more messages, and close with this code after the acks that are still to come."""
        self.refuse_from_now_on()
        if self._transport is None:
            self._end_at_once = (code, reason)
        else:
            self._close_for(code, reason)

    @property
    def ending(self) -> bool:
        """True once a close has begun."""
        return self._goodbye is not None or self._lost

    def _close_for(self, code: int, reason: str) -> None:
        self.close(code, reason.encode()[:123])

    @property
    def quiet(self) -> bool:
        return self._session.quiet or self._intake.stopped

    def out_of_time(self) -> None:
        if not self.quiet:
            unacked = self._session.count - self._session.acked
            self._log.warning("connection closed before its acks", device=self._device, unacked=unacked)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._gathered is not None:
            self._gathered.special = True

    def ended(self, code: int) -> None:
        self._counters.closed(code)
        self._log.debug("connection ended", device=self._device, code=code, messages=self._session.count)
        if self._on_end is not None:
            self._on_end(self)
