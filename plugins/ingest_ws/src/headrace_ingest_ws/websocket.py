"""The server's side of RFC 6455 on a bare transport: reading, pings, the close handshake, flow control both ways.

A subclass says how many messages it takes now (`room`), gets them (`took_run`, `took`), and says whether its client is owed
anything before the close frame (`quiet`). `echo.py` and `connection.py` are such. No task, future or timer exists for a
connection that is merely open.
"""

from __future__ import annotations

import asyncio
from typing import Final

from headrace_ingest_ws.half_close import HalfClosable, half_closable
from headrace_ingest_ws.parser import BINARY, CLOSE, ERROR, FULL, MORE, PING, PONG, READ_BYTES, TEXT, Found, FrameBuffer, Parser
from headrace_ingest_ws.protocol import CLOSE_LOST, CLOSE_NO_CODE, CLOSE_NOT_TEXT, CLOSE_PROTOCOL, close_frame, pong_frame

#: A client that leaves so much unread gets no frames until it reads: acks are cumulative, so nothing piles up.
UNREAD_BYTES_MAX: Final = 65_536

#: What `room` says when messages are dropped anyway.
ANY_NUMBER: Final = 1 << 30


class WebSocket(asyncio.BufferedProtocol):
    """One connection, from right behind the 101 on."""

    __slots__ = (
        "_buffer", "_client_closed", "_close_code", "_close_timeout_s", "_continuing", "_deaf", "_end_behind", "_ended", "_goodbye",
        "_heard", "_held", "_loop", "_lost", "_parser", "_paused", "_refusing", "_said_goodbye", "_timer", "_tls", "_transport", "_unread",
    )  # fmt: skip

    def __init__(self, buffer: FrameBuffer, message_bytes_max: int, close_timeout_s: float) -> None:
        self._buffer, self._close_timeout_s = buffer, close_timeout_s
        self._parser: Parser | None = buffer.parser(message_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tls: HalfClosable | None = None
        self._held = b""  # read, but not taken yet; reading is paused while there is any
        self._end_behind = False  # the client's end came behind what is held
        self._paused = self._continuing = False
        self._unread = False  # the client does not read what we write
        self._heard = True
        self._refusing = False  # what still arrives is neither counted nor answered
        self._deaf = False  # what still arrives is not even parsed
        self._goodbye: bytes | None = None  # the close frame, to be written once nothing is owed
        self._said_goodbye = self._client_closed = self._lost = False
        self._close_code = CLOSE_LOST
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages are taken now."""
        return ANY_NUMBER

    def waits(self) -> None:
        """There was no room for what was read: nothing more is read until `go_on` is called."""

    def took_run(self, run: bytes, count: int) -> None:
        """`count` text messages, joined by newlines."""

    def took(self, message: bytes, is_text: bool) -> None:
        """One message."""

    def broke(self, code: int) -> None:
        """The client broke the protocol, or sent too much; the close with this code follows."""

    def heard_control(self) -> None:
        """A ping or a pong came."""

    @property
    def quiet(self) -> bool:
        """True when a close frame may be written: the client is owed nothing."""
        return True

    def reads_again(self) -> None:
        """The client has read what was written: there is room for more."""

    def ack_begun(self, sent: int) -> None:
        """So many bytes of what is due were written already; write the rest."""

    def ended(self, code: int) -> None:
        """The connection is gone. code: of the close handshake, 1006 when there was none."""

    def out_of_time(self) -> None:
        """`quiet` took too long; the close frame is written all the same."""

    # --- reading -----------------------------------------------------------------------------------------------------

    def start(self, transport: asyncio.Transport, greeting: bytes, already_read: bytes) -> None:
        """Take over a transport whose reading is paused, with the bytes that were read from it before."""
        self._transport = transport
        self._paused = True
        transport.set_write_buffer_limits(high=UNREAD_BYTES_MAX)
        if (tls := half_closable(transport)) is not None:
            self._tls, tls.transport, self._end_behind = tls, transport, tls.at_end
        if greeting:
            transport.write(greeting)
        self._held = already_read
        self._continue()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        self.received(0, nbytes)

    def received(self, start: int, end: int) -> None:
        """Bytes `start` to `end` of the buffer came from the client."""
        self._heard = True
        if self._held:  # it was read just before reading was paused
            self._held += self._buffer.view[start:end].tobytes()
        else:
            self._parse(start, end)

    def found(self, found: Found, end: int) -> None:
        """As `received`, when the first call of the parser was made already."""
        self._heard = True
        if TEXT <= found[0] <= BINARY and self._parser is not None:
            self._parser.release()
        self._parse(found[1], end, found)

    def _parse(self, start: int, end: int, found: Found | None = None) -> None:
        """Take what the buffer holds, as far as there is room."""
        while not self._deaf:
            assert self._parser is not None
            event, start, run, count, data, code = found or self._parser.parse(start, end, self.room())
            found = None
            if count:
                self.took_run(run, count)
            if event == MORE:
                return
            if event == FULL:
                if self.room() > 0:
                    continue
                self._hold(start, end)
                return
            self._take_event(event, data, code)

    def _take_event(self, event: int, data: bytes, code: int) -> None:
        if event <= TEXT + 1:
            self.took(data, event == TEXT)
        elif event in (PING, PONG):
            self.heard_control()
            if event == PING:
                self._write(pong_frame(data))
        elif event == CLOSE:
            self._client_closes(data)
        elif event == ERROR:
            self._break_off(code)

    def _hold(self, start: int, end: int) -> None:
        self._held = self._buffer.view[start:end].tobytes()
        if not self._paused and self._transport is not None and not self._lost:
            self._paused = True
            self._transport.pause_reading()
        self.waits()

    def go_on(self) -> None:
        """There is room again: take what is held and read on, in a turn of its own."""
        if self._paused and not self._continuing and not self._lost:
            self._continuing = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if self._lost:
            return
        if self._held and self.room() <= 0:
            self.waits()
            return
        held, self._held = self._held, b""
        for start in range(0, len(held), READ_BYTES):
            piece = held[start : start + READ_BYTES]
            self._buffer.view[: len(piece)] = piece
            self._parse(0, len(piece))
            if self._held:
                self._held += held[start + READ_BYTES :]
                return
        if self._end_behind:
            self._end_behind = False
            if not self.client_ended() and self._transport is not None:
                self._transport.close()
            return
        if self._paused and not self._client_closed and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self, frames: bytes) -> None:
        """Write whole frames, or nothing when the client does not read or the close frame is out."""
        if not (self._unread or self._said_goodbye or self._lost):
            assert self._transport is not None
            self._transport.write(frames)

    def pause_writing(self) -> None:
        self._unread = True

    def resume_writing(self) -> None:
        self._unread = False
        self.reads_again()

    # --- the end -----------------------------------------------------------------------------------------------------

    def refuses(self) -> None:
        """Nothing that still arrives is counted or answered from now on."""
        self._refusing = True

    def close(self, code: int, reason: bytes = b"") -> None:
        """Say goodbye with this code once the client is owed nothing. The first code stands."""
        self.refuses()
        if self._goodbye is None and not self._lost:
            self._goodbye = close_frame(code, reason) if code != CLOSE_NO_CODE else b"\x88\x00"
            self._close_code = code
            self._timer = self._loop.call_later(self._close_timeout_s, self._no_longer_wait)
            self.maybe_say_goodbye()
            self.go_on()  # what is held may end in the client's close

    def maybe_say_goodbye(self) -> None:
        """Write the close frame if one is due and nothing comes before it."""
        if self._goodbye is not None and not self._said_goodbye and self.quiet:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        transport = self._transport
        if transport is None or self._lost:
            return
        assert self._goodbye is not None
        if self._goodbye:
            transport.write(self._goodbye)
        self._said_goodbye = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._close_timeout_s, transport.abort)  # should the client neither answer nor read
        if self._client_closed:
            transport.close()
        elif self._deaf and transport.can_write_eof():
            # Hanging up with bytes unread would reset the connection, and the client might see neither its last acks nor the
            # code: read on, to no effect, until it hangs up.
            transport.write_eof()

    def _no_longer_wait(self) -> None:
        self.out_of_time()
        self._say_goodbye()

    def _client_closes(self, data: bytes) -> None:
        self._deaf = True
        code, problem = close_code(data)
        if problem is not None:
            self._break_off(problem)
            return
        self._client_closed = True
        if self._said_goodbye:
            assert self._transport is not None
            self._transport.close()
        elif self._goodbye is None:
            self.close(code)

    def _break_off(self, code: int) -> None:
        self._deaf = True
        if self._parser is not None:
            self._parser.release()  # nothing more is parsed, however long the client takes to hang up
        if not self._refusing:
            self.broke(code)
        self.close(code)

    async def closed(self) -> None:
        """Return when the connection is gone."""
        if not self._lost:
            if self._ended is None:
                self._ended = self._loop.create_future()
            await asyncio.shield(self._ended)

    def eof_received(self) -> bool:
        """As `client_ended`; over TLS the loop calls this only where nothing can be kept half open."""
        return self.client_ended() and self._transport is not None and self._transport.can_write_eof()

    def client_ended(self) -> bool:
        """The client sends no more; True keeps the transport open for what it is still owed."""
        if self._held:
            self._end_behind = True
            return True
        self._client_closed = True
        if self._lost or self._said_goodbye:
            return False
        if self._goodbye is None and not self.quiet:
            # it asked for no close frame, but may wait for its acks
            self.refuses()
            self._goodbye = b""
            self._timer = self._loop.call_later(self._close_timeout_s, self._no_longer_wait)
        return self._goodbye is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._deaf = True
        self._held, self._parser = b"", None
        if self._tls is not None:
            self._tls.transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self.ended(self._close_code if self._said_goodbye or self._client_closed else CLOSE_LOST)


def close_code(data: bytes) -> tuple[int, int | None]:
    """The code in a client's close frame (1005: none), and the code to answer with when the frame is not allowed."""
    if not data:
        return CLOSE_NO_CODE, None
    if len(data) == 1:
        return CLOSE_PROTOCOL, CLOSE_PROTOCOL
    code = int.from_bytes(data[:2], "big")
    # RFC 6455 section 7.4 and the IANA registry: these may stand in a frame, 1004-1006 and 1015 may not
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return code, CLOSE_PROTOCOL
    try:
        data[2:].decode()
    except UnicodeDecodeError:
        return code, CLOSE_NOT_TEXT
    return code, None
