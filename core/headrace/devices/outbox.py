"""What one device has yet to get acknowledged: the protocol's bookkeeping, without I/O.

`{"ack":n}` covers all messages up to n; `{"reject":n,...}` comes before the ack that covers n. What is not acked when a
connection ends goes back to the front, in its old order. Messages count from 1 on each connection; in a session they go on
counting where the hello says, and what it says to be settled is not sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headrace.devices.totals import Totals
from headrace.errors import HeadraceError

#: Unacked messages on a connection, unless the server's hello asks for fewer.
WINDOW_DEFAULT: Final = 256
#: Retries that a server may ask for are capped, so that a wrong number cannot park a device for days.
RETRY_S_MAX: Final = 60.0


class ProtocolError(HeadraceError):
    """The server said something that the device protocol does not allow."""


class Message:
    """One message: its bytes, what the caller calls it (for reports), and when it was first sent (None: not yet)."""

    __slots__ = ("first_sent_at", "payload", "tag")

    def __init__(self, payload: bytes, tag: object = None) -> None:
        self.payload = payload
        self.tag = tag
        self.first_sent_at: float | None = None


class ServerFrame(msgspec.Struct, frozen=True):
    """A frame from the server: one of hello, ack, reject; unknown members are for later versions."""

    ack: int | None = None
    reject: int | None = None
    code: str = "unspecified"
    reason: str = ""
    retry_ms: int | None = None
    hello: dict[str, Any] | None = None


class Resume(msgspec.Struct, frozen=True):
    """The part of a hello that speaks of the session."""

    resume: int | None
    refused: list[ServerFrame] = []


_decode_frame = msgspec.json.Decoder(ServerFrame).decode


class Outbox:
    """Messages of one device in order: first those on the wire, then those that wait.

    At most `capacity` messages in all and `window` on the wire. Time is passed in, as monotonic seconds.
    """

    def __init__(
        self,
        totals: Totals,
        capacity: int = 4 * WINDOW_DEFAULT,
        window: int = WINDOW_DEFAULT,
        on_reject: Callable[[Message, str, str], None] | None = None,
    ) -> None:
        self.totals, self.capacity, self.window = totals, capacity, min(window, capacity)
        self.hello: dict[str, Any] = {}
        self.paused_until = 0.0
        self._window_now = self.window
        self._on_reject = on_reject
        self._waiting: deque[Message] = deque()
        self._wire: deque[Message] = deque()  # number _acked + 1, + 2, ...
        self._acked = 0
        self._refused: set[int] = set()  # numbers that are refused for good; the ack that covers them is to come
        self._retried: set[int] = set()  # numbers that go back to the front once their ack arrives
        self._greeted = True  # False while a session waits for the hello: nothing may be sent before
        self.in_session = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._wire) - len(self._refused)

    @property
    def on_wire(self) -> int:
        """Messages sent on this connection that no ack covers yet."""
        return len(self._wire)

    @property
    def acked(self) -> int:
        """The highest number acked in the session."""
        return self._acked if self.in_session else 0

    @property
    def full(self) -> bool:
        return len(self) >= self.capacity

    def add(self, payload: bytes, tag: object = None) -> bool:
        """Take one message; False (and nothing taken) when the outbox is full."""
        if self.full:
            return False
        self._waiting.append(Message(payload, tag))
        self.totals.taken += 1
        return True

    def connected(self) -> None:
        """A new connection stands: numbers start over, and what was on the wire comes first again."""
        kept = [message for number, message in enumerate(self._wire, self._acked + 1) if number not in self._refused]
        self._waiting.extendleft(reversed(kept))
        self._wire.clear()
        self._refused.clear()
        self._retried.clear()
        self._acked, self.paused_until = 0, 0.0
        self._window_now, self.hello = self.window, {}
        self._greeted, self.in_session = True, False

    def connected_in_session(self) -> None:
        """A new connection stands that named a session: its hello decides about what was on the wire, and comes first."""
        self._greeted = False

    def next_payload(self, now: float) -> bytes | None:
        """The bytes to send now, or None: nothing waits, the window is full, or the server asked for a pause."""
        if not (self._greeted and self._waiting) or len(self._wire) >= self._window_now or now < self.paused_until:
            return None
        message = self._waiting.popleft()
        if message.first_sent_at is None:
            message.first_sent_at = now
            self.totals.sent += 1
        else:
            self.totals.resent += 1
        self._wire.append(message)
        return message.payload

    def pause_s(self, now: float) -> float | None:
        """How long to wait before `next_payload` is worth a try without news from the server; None: only news helps."""
        if self._waiting and now < self.paused_until and len(self._wire) < self._window_now:
            return self.paused_until - now
        return None

    def receive(self, text: str | bytes, now: float) -> None:
        """Take in one frame of the server. Raises ProtocolError when it makes no sense."""
        try:
            frame = _decode_frame(text)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"expected a JSON object with hello, ack or reject, got {text[:200]!r} ({error})") from None
        if frame.ack is not None:
            self._take_ack(frame.ack, now)
        elif frame.reject is not None:
            self._take_reject(frame.reject, frame, now)
        elif frame.hello is not None:
            self._take_hello(frame.hello, now)

    def _take_hello(self, hello: dict[str, Any], now: float) -> None:
        if not self._greeted:
            if "resume" in hello:
                self._resume(hello, now)
            else:
                self.connected()  # a server that knows no sessions
        self.hello = hello
        window = hello.get("window")
        if isinstance(window, int) and window >= 1:
            self._window_now = min(self.window, window)

    def _resume(self, hello: dict[str, Any], now: float) -> None:
        try:
            said = msgspec.convert(hello, Resume)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"expected a hello that says where the session goes on ({error})") from None
        if not self.in_session:
            self.connected()
        self._greeted, self._window_now, self.paused_until = True, self.window, 0.0
        self._retried.clear()
        if said.resume is not None:
            self._settle(said.resume, said.refused, now)
        self.in_session = True
        # what is left keeps its numbers: also a message whose reject came without the ack that covers it
        self._waiting.extendleft(reversed(self._wire))
        self._wire.clear()

    def _settle(self, number: int, refused: list[ServerFrame], now: float) -> None:
        if not self._wire:  # nothing of ours: wherever the server stands
            self._acked = max(self._acked, number)
            return
        self.totals.resumed += max(0, number - self._acked)
        for frame in refused:
            self._take_reject(frame.reject or 0, frame, now)
        self._take_ack(number, now)

    def _take_ack(self, number: int, now: float) -> None:
        if not self._acked <= number <= self._acked + len(self._wire):
            raise ProtocolError(f"expected an ack from {self._acked} to {self._acked + len(self._wire)}, got {number}")
        retried: list[Message] = []
        for current in range(self._acked + 1, number + 1):
            message = self._wire.popleft()
            if current in self._refused:
                self._refused.discard(current)
            elif current in self._retried:
                self._retried.discard(current)
                retried.append(message)
            else:
                self.totals.count_ack(now - (now if message.first_sent_at is None else message.first_sent_at))
        self._acked = number
        self._waiting.extendleft(reversed(retried))

    def _take_reject(self, number: int, frame: ServerFrame, now: float) -> None:
        if not self._acked < number <= self._acked + len(self._wire):
            raise ProtocolError(f"expected a reject from {self._acked + 1} to {self._acked + len(self._wire)}, got {number}")
        if frame.retry_ms is not None:
            self._retried.add(number)
            self.paused_until = max(self.paused_until, now + min(max(frame.retry_ms, 0) / 1000, RETRY_S_MAX))
        elif number not in self._refused:
            self._refused.add(number)
            self.totals.count_reject(frame.code)
            if self._on_reject is not None:
                self._on_reject(self._wire[number - self._acked - 1], frame.code, frame.reason)
