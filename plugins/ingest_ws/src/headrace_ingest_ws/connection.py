"""One WebSocket connection on aiohttp's own message loop.

This is the only module that knows how frames are read. A faster loop replaces it and keeps what others call: the server
`serve`, `tick`, `refuse_from_now_on` and `finish`, the intake `settled`.

Acks are written as whole frames straight to the transport, so that one commit can acknowledge many connections without a
task for each. aiohttp writes its close frame the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import WSMsgType, web

from headrace import ENCODING_JSON
from headrace.log import Log
from headrace_ingest_ws.config import IngestWsConfig
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.message import events_of
from headrace_ingest_ws.protocol import (
    CLOSE_LOST,
    CLOSE_NO_CODE,
    CLOSE_NORMAL,
    CLOSE_NOT_TEXT,
    CLOSE_PROTOCOL,
    CLOSE_TOO_BIG,
    PAYLOAD_INVALID,
    PING_FRAME,
    SUBPROTOCOL,
    TOO_LARGE,
    Refusal,
    close_frame,
    pong_frame,
    text_frame,
)
from headrace_ingest_ws.session import Session

#: A client that leaves so much unread gets no further acks until it reads; they are cumulative, so nothing piles up.
UNREAD_BYTES_MAX: Final = 65_536

#: Closes that aiohttp starts on its own, when a client breaks RFC 6455 or sends too much.
_PROTOCOL_ERRORS: Final = frozenset({CLOSE_PROTOCOL, CLOSE_NOT_TEXT, CLOSE_TOO_BIG})
POLL_S: Final = 0.05

#: Messages of one connection before another connection gets a turn: about 0.2 ms of work.
MESSAGES_PER_TURN: Final = 64


class Connection:
    """Reads messages into the intake and writes what the session owes; a `Peer` of the intake."""

    def __init__(self, device: str, config: IngestWsConfig, intake: Intake, counters: Counters, log: Log, now: float) -> None:
        self._device, self._config, self._intake, self._counters, self._log = device, config, intake, counters, log
        self._session = Session(config.window_messages)
        self._socket = _Socket(self._before_close, lambda: self._transport, config)
        self._transport: asyncio.Transport | None = None
        self._refusing = False  # draining or closing: what still arrives is neither counted nor acknowledged
        self._said_goodbye = False  # no frame may follow a close frame
        self._close_code = CLOSE_LOST
        # Set whenever the session moved or the connection ends; who waits looks again.
        self._moved = asyncio.Event()
        self._finishing, self._ended = False, asyncio.Event()
        self._end_at_once: tuple[int, str] | None = None  # asked to finish while the upgrade was under way
        self._reading = False
        self._heard = True
        self._silent_since = self._stalled_since = now
        self._pinged = False

    async def serve(self, request: web.Request, hello: Callable[[], bytes]) -> web.StreamResponse:
        """The whole life of the connection, from the upgrade on; returns its response when it has ended."""
        await self._socket.prepare(request)
        transport = request.transport
        if transport is None:
            return self._socket
        self._transport = transport
        self._counters.opened.inc()
        try:
            if self._socket.ws_protocol == SUBPROTOCOL:
                self._write(text_frame(hello()))
            if self._end_at_once is not None:
                await self.finish(*self._end_at_once)
                return self._socket
            await self._read()
            if self._finishing:
                await self._ended.wait()  # aiohttp hangs up when this handler returns
        finally:
            self._refusing = True
            self._counters.closed(self._close_code)
            self._log.debug("connection ended", device=self._device, code=self._close_code, messages=self._session.count)
        return self._socket

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        intake, session, receive = self._intake, self._session, self._socket.receive
        turn = 0
        while True:
            if not session.open:
                await self._window_open()
            self._reading = True
            message = await receive()
            self._reading, self._heard = False, True
            kind = message.type
            if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
                if intake.full:
                    await intake.room()  # one message is held, and no further one read
                if not (self._refusing or intake.stopped) and not self._take(kind is WSMsgType.TEXT, message.data):
                    await self.finish(CLOSE_NOT_TEXT, "not UTF-8")
                    return
                turn += 1
                if turn % MESSAGES_PER_TURN == 0:
                    await asyncio.sleep(0)
            elif kind is WSMsgType.PING:
                self._write(pong_frame(message.data))
            elif kind is WSMsgType.CLOSE:
                self._close_code = message.data or CLOSE_NO_CODE
                await self._socket.close(code=message.data or CLOSE_NORMAL)
                return
            elif kind is not WSMsgType.PONG:
                return

    async def _window_open(self) -> None:
        """Wait for the ack that opens the window; `_flush` writes it."""
        while not (self._session.open or self._gone):
            self._moved.clear()
            await self._moved.wait()

    def _take(self, is_text: bool, payload: bytes) -> bool:
        """Count one message and hand it to the intake; False when it breaks the WebSocket protocol itself."""
        session, counters = self._session, self._counters
        counters.received_bytes.inc(len(payload))
        events: list[bytes] | Refusal
        if is_text:
            events = events_of(payload, self._config.events_per_message_max)
        else:
            events = Refusal(PAYLOAD_INVALID, "expected a text message with JSON, got a binary one")
        if not isinstance(events, Refusal):
            counters.received.inc(len(events))
            self._intake.add(self, session.take(), self._device, ENCODING_JSON, events)
            return True
        self._refuse(events)
        return not is_text or _is_utf8(payload)

    def _refuse(self, refusal: Refusal) -> None:
        self._counters.received.inc(refusal.events)
        self._counters.rejected(refusal.code, refusal.events)
        self._log.warning("message refused", device=self._device, code=refusal.code, reason=refusal.reason)
        # a refusal waits its turn in the intake: its ack must not overtake that of an earlier message
        self._intake.add(self, self._session.refuse(refusal), self._device, ENCODING_JSON, ())

    # --- writing -----------------------------------------------------------------------------------------------------

    def settled(self, last: int) -> None:
        self._session.settle(last)
        self._flush()

    def _flush(self) -> None:
        """Write rejects and one ack, if the client reads at all."""
        if self._session.ack_due and self._writable:
            self._write(b"".join(map(text_frame, self._session.due())))
        self._moved.set()

    def _write(self, frames: bytes) -> None:
        """Write whole frames, or nothing when the client does not read or the connection ends."""
        if self._writable:
            assert self._transport is not None
            self._transport.write(frames)

    @property
    def _writable(self) -> bool:
        if self._gone or self._said_goodbye:
            return False
        assert self._transport is not None
        return self._transport.get_write_buffer_size() <= UNREAD_BYTES_MAX

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> str | None:
        """Look after the connection about once a second; why it has to be closed, or None."""
        self._flush()
        if self._gone:
            return None
        if not self._session.ack_due:
            self._stalled_since = now
        elif now - self._stalled_since > self._config.write_timeout_s:
            self._log.warning("connection cut off, acks are not read", device=self._device)
            assert self._transport is not None
            self._transport.abort()
            self._moved.set()
            return None
        if self._heard or not self._reading:
            # a client that is not read cannot be heard
            self._heard, self._pinged, self._silent_since = False, False, now
        silent_s = now - self._silent_since
        if silent_s > self._config.idle_timeout_s:
            return f"silent for {silent_s:.0f} s"
        if silent_s > self._config.idle_timeout_s / 2 and not self._pinged:
            self._pinged = True
            self._write(PING_FRAME)
        return None

    # --- the end -----------------------------------------------------------------------------------------------------

    def refuse_from_now_on(self) -> None:
        """Take no more messages; those taken are still acknowledged."""
        self._refusing = True
        self._moved.set()

    async def finish(self, code: int, reason: str) -> None:
        """Close with this code, after the acks that are still to come; returns when the connection is closed."""
        if self._finishing:
            await self._ended.wait()
            return
        self.refuse_from_now_on()
        if self._transport is None:
            self._end_at_once = (code, reason)
            return
        self._finishing = True
        try:
            await self._socket.close(code=code, message=reason.encode()[:123])
        finally:
            self._ended.set()
            self._moved.set()

    async def _before_close(self, code: int) -> None:
        """Every way to a close comes by here: first the acks, then the goodbye."""
        self._refusing = True
        if code == CLOSE_TOO_BIG and not self._finishing:
            limit = self._config.message_bytes_max
            self._refuse(Refusal(TOO_LARGE, f"expected a message of at most {limit} bytes"))
        if self._close_code == CLOSE_LOST and not self._gone:
            self._close_code = code
        try:
            async with asyncio.timeout(self._config.close_timeout_s):
                while not (self._session.quiet or self._gone or self._intake.stopped):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            self._log.warning("connection closed before its acks", device=self._device, unacked=self._session.count - self._session.acked)
        self._said_goodbye = True

    @property
    def _gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()


class _Socket(web.WebSocketResponse):
    """aiohttp's WebSocket, which says goodbye only after `before_close`; it closes by itself on protocol errors."""

    def __init__(
        self, before_close: Callable[[int], Awaitable[None]], transport: Callable[[], asyncio.Transport | None], config: IngestWsConfig
    ) -> None:
        super().__init__(
            timeout=config.close_timeout_s,
            autoclose=False,
            autoping=False,
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=config.message_bytes_max + 1,  # aiohttp refuses a message of exactly this size
            decode_text=False,
        )
        self._before_close, self._transport, self._close_timeout_s = before_close, transport, config.close_timeout_s

    async def close(self, *, code: int = CLOSE_NORMAL, message: bytes = b"", drain: bool = True) -> bool:
        if self.closed:
            return False
        await self._before_close(code)
        if code in _PROTOCOL_ERRORS:
            await self._linger(code, message)
        closed = await super().close(code=code, message=message, drain=False)
        await self._let_go()
        return closed

    async def _linger(self, code: int, message: bytes) -> None:
        """After a protocol error aiohttp would hang up at once. With bytes unread the kernel then resets the connection, and
        the client might see neither its last acks nor the code: say goodbye, and read on (to no effect) until it hangs up."""
        transport = self._transport()
        if transport is None or transport.is_closing():
            return
        transport.write(close_frame(code, message))
        if transport.can_write_eof():
            transport.write_eof()
        await self._wait_until(transport.is_closing)

    async def _let_go(self) -> None:
        """A transport with bytes that the client does not read would live on after its close: give it some time, then cut."""
        transport = self._transport()
        if transport is not None and not await self._wait_until(lambda: not transport.get_write_buffer_size()):
            transport.abort()

    async def _wait_until(self, condition: Callable[[], bool]) -> bool:
        """Poll, for at most close_timeout_s: transports tell nobody but aiohttp when they end."""
        for _ in range(round(self._close_timeout_s / POLL_S)):
            if condition():
                return True
            await asyncio.sleep(POLL_S)
        return condition()


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
