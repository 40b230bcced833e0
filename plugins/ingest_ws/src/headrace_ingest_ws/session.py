"""What one connection owes its client: message numbers, rejects, acks, the window. No I/O.

Messages count from 1, or go on where a device session stopped. Each is taken or refused at once, and settled later:
`settle(n)` says that every message up to n is durable or was refused. `due()` gives the texts to write then: rejects first,
the ack that covers them last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from headrace import Origin
from headrace.position import ORIGIN_SESSION
from headrace_ingest_ws.protocol import Refusal, ack, reject
from headrace_ingest_ws.refusals import NOTE_BYTES_PER_REFUSAL, Refusals, RefusedMessage

#: What one session's row among the origins of a commit costs there besides its name and its note.
_ORIGIN_BYTES: Final = 64


class Counts(Protocol):
    """The numbers of a connection's messages; gather.c has and moves them where it takes messages itself."""

    count: int
    """The last message that was taken or refused."""
    settled: int
    """All up to here are durable or were refused."""
    acked: int
    """The ack of all up to here is handed out."""
    committed: int
    """Of a device session: all up to here stand in an origin of a batch that was handed over."""
    noted: int
    """Of a device session: not 0 when its next origin has a note."""


class PythonCounts:
    """Counts that nobody else moves."""

    __slots__ = ("acked", "committed", "count", "noted", "settled")

    def __init__(self, start: int) -> None:
        self.count = self.settled = self.acked = self.committed = start
        self.noted = 0


class Session:
    """The bookkeeping of one connection; at most `window` messages are without an ack."""

    __slots__ = ("_counts", "_rejects", "name", "window")

    def __init__(self, window: int, start: int = 0, name: str = "") -> None:
        self.name = name
        """Of a device session."""
        self.window = window
        self._counts: Counts = PythonCounts(start)
        # bounded by the window: a reject lives until the ack that covers it is handed out
        self._rejects: deque[tuple[int, bytes]] | None = None  # an empty deque takes 600 bytes

    def share(self, counts: Counts) -> None:
        """Go on with these counts, which begin where the present ones are."""
        counts.noted = self._counts.noted
        self._counts = counts

    @property
    def count(self) -> int:
        """The last message that was taken or refused."""
        return self._counts.count

    @property
    def acked(self) -> int:
        """All up to here are acknowledged."""
        return self._counts.acked

    @property
    def room(self) -> int:
        """So many further messages may be taken before an ack is handed out."""
        return self.window - self.count + self.acked

    @property
    def open(self) -> bool:
        """True while another message may be read."""
        return self.count - self.acked < self.window

    @property
    def quiet(self) -> bool:
        """True when every message so far has its ack handed out."""
        return self.acked == self.count

    @property
    def settled(self) -> bool:
        """True when every message so far is durable or was refused, whether or not the client could be told."""
        return self._counts.settled == self.count

    @property
    def ack_due(self) -> bool:
        """True when `due` has something to write."""
        return self._counts.settled > self.acked

    def take(self, messages: int = 1) -> int:
        """Count messages that are taken; the number of the last."""
        self._counts.count += messages
        return self.count

    def refuse(self, refusal: Refusal) -> int:
        """Count a message that is not taken; its number. The client hears of it with the ack that covers it."""
        self._counts.count += 1
        if self._rejects is None:
            self._rejects = deque()
        self._rejects.append((self.count, reject(self.count, refusal)))
        return self.count

    @property
    def rejects_due(self) -> bool:
        """True while a reject waits for the ack that covers it."""
        return bool(self._rejects)

    def settle(self, last: int) -> None:
        """All messages up to `last` are durable or were refused. Repeatable; never moves back."""
        assert last <= self.count, f"settled message {last} of {self.count}"
        if last > self._counts.settled:
            self._counts.settled = last

    def ack_only(self) -> int:
        """The ack to write when it is due and no reject comes before it, and then it counts as written; 0: see `due`."""
        if self._rejects or self._counts.settled <= self.acked:
            return 0
        self._counts.acked = self._counts.settled
        return self.acked

    def due(self) -> list[bytes]:
        """The texts to write now, in order; they count as written from here on. Empty when no ack is due."""
        if self._counts.settled <= self.acked:
            return []
        texts = []
        while self._rejects and self._rejects[0][0] <= self._counts.settled:
            texts.append(self._rejects.popleft()[1])
        self._counts.acked = self._counts.settled
        texts.append(ack(self.acked))
        return texts


class DeviceSession(Session):
    """The bookkeeping of a connection that goes on with a device session behind message `start`.

    What a commit holds of it is one origin: the numbers since the last commit, and the refusals of which the client may not
    know yet. It knows of those that lie a window back, for it leaves at most a window of messages without an ack.
    """

    __slots__ = ("_refusals", "_row")

    def __init__(self, window: int, name: str, start: int = 0, refused: Iterable[RefusedMessage] = ()) -> None:
        super().__init__(window, start, name)
        self._refusals: Refusals | None = None  # few sessions ever need it
        for message in refused:
            self._keep(message)
        self._row: int | None = None

    @property
    def in_batch(self) -> bool:
        """True once `join` was called for the batch that gathers now."""
        return self._row is not None

    @property
    def origin_bytes(self) -> int:
        """About what its origin takes in a commit."""
        return _ORIGIN_BYTES + len(self.name) + NOTE_BYTES_PER_REFUSAL * (len(self._refusals) if self._refusals else 0)

    def join(self, row: int) -> None:
        """The next messages go into the batch that gathers now, from this row on."""
        self._row = row

    def refuse(self, refusal: Refusal) -> int:
        number = super().refuse(refusal)
        self._keep(RefusedMessage(number, refusal.code, refusal.retry_ms is not None))
        return number

    def _keep(self, message: RefusedMessage) -> None:
        if self._refusals is None:
            self._refusals = Refusals()
        self._refusals.add(message)
        self._counts.noted = 1

    def origin(self) -> Origin | None:
        """What the batch that is handed over now holds of this session, None for nothing; `join` comes again before the next."""
        row, self._row = self._row, None
        first, last = self._counts.committed + 1, self.count
        if row is None or last < first:
            return None
        self._counts.committed, note = last, None
        if self._refusals is not None:
            self._refusals.forget(last - self.window)
            note = self._refusals.note()
            self._counts.noted = int(note is not None)
        return Origin(self.name, first, last, row, ORIGIN_SESSION, note)
