"""The frame parser: what it finds, and which of the two that behave alike runs here.

A `FrameBuffer` is the one read buffer of a server, shared by all its connections (one event loop reads one of them at a
time). Each connection has a parser of its own on it, which holds at most one unfinished message.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from headrace_ingest_ws.gathering import Gatherer

#: One read takes at most so much; what a window does not let in at once is held per connection, so this bounds it.
READ_BYTES: Final = 65_536

#: Reads of one turn lie one behind the other in the buffer, as long as there is room for a whole one.
BUFFER_BYTES: Final = 4 * READ_BYTES

#: What one connection may be read in a turn, however many others are ready; gather.c has the same number.
READ_MIN_BYTES: Final = 8192

#: So many connections are read in one turn of the loop: about 1 ms of work.
READS_PER_TURN: Final = 256

#: What a `FrameBuffer` holds of unfinished messages as long as it has no bound.
UNBOUNDED_BYTES: Final = 1 << 62

#: In place of a size, in a `Find`: the connection takes bytes again.
WRITABLE: Final = -(1 << 63)

# What a call of `parse` may end with; wsframes.c has the same numbers.
MORE: Final = 0  # all bytes are used up
FULL: Final = 1  # `messages_max` reached, bytes are left
TEXT: Final = 2  # a text message that is not in the run
BINARY: Final = 3
PING: Final = 4
PONG: Final = 5
CLOSE: Final = 6
ERROR: Final = 7  # the client broke RFC 6455 or sent too much

#: A text with more braces and brackets is never in a run: it may be nested too deeply.
RUN_BRACES_MAX: Final = 16

#: Event, bytes consumed, the run, its count of messages, the event's payload, and the close code of an error.
Found = tuple[int, int, bytes, int, bytes, int]


class Find(NamedTuple):
    """What was read from a connection: bytes `start` to `start + size` of the buffer.

    size 0: its end, WRITABLE: see there, any other negative one: an errno. found: what a first call of `parse` on it gave.
    """

    descriptor: int
    start: int
    size: int
    found: Found | None = None


class Parser(Protocol):
    """The frames of one client."""

    @property
    def unfinished(self) -> bool:
        """True while a frame or a message has begun, and its end has not come."""

    def parse(self, start: int, end: int, messages_max: int) -> Found:
        """Take frames from bytes `start` to `end` of the buffer, up to the first thing that is not part of a run.

        The run: whole text messages that begin with `{`, hold no newline and at most RUN_BRACES_MAX braces and brackets,
        joined by newlines. It comes before the event. All texts are valid UTF-8. Not to be called again after ERROR.
        """

    def release(self) -> None:
        """Let go of what is held: the message of a `Find` was copied, or nothing is to be parsed any more."""


class FrameBuffer(Protocol):
    """The read buffer, and parsers on it."""

    view: memoryview

    @property
    def unfinished_bytes(self) -> int:
        """Bytes that all its parsers hold of unfinished messages; in C what is allocated for them, up to twice that."""

    def bound(self, unfinished_bytes_max: int) -> None:
        """They are at most so many from now on, not less than there are: for a parser that needs more it is the error 1013."""

    def read(self, epoll: select.epoll) -> list[Find]:
        """Read from the connections that are ready, at most READS_PER_TURN of them, without waiting."""

    def parser(self, message_bytes_max: int) -> Parser:
        """A parser for a new connection; a longer message is the error 1009."""


ParserKind = Literal["c", "python"]


def frame_buffer(kind: ParserKind | None = None) -> tuple[FrameBuffer, ParserKind, str]:
    """A new read buffer, which parser it has, and why it is not the C parser ("" when it is, or was not asked for).

    kind: None takes C where it is there. ImportError when C is asked for and not there.
    """
    if kind != "python":
        try:
            from headrace_ingest_ws.parser_c import CFrameBuffer

            return CFrameBuffer(), "c", ""
        except ImportError as error:
            if kind == "c":
                raise
            reason = str(error)
    else:
        reason = ""
    from headrace_ingest_ws.parser_python import PythonFrameBuffer

    return PythonFrameBuffer(), "python", reason


def gatherer_on(buffer: FrameBuffer) -> Gatherer | None:
    """What gathers in C the messages that are read into this buffer; None where the parser is in Python."""
    try:
        from headrace_ingest_ws.gathering import Gatherer
        from headrace_ingest_ws.parser_c import CFrameBuffer
    except ImportError:
        return None
    return Gatherer(buffer) if isinstance(buffer, CFrameBuffer) else None
