"""What one connection owes its client: message numbers, rejects, acks, the window. No I/O.

Messages count from 1. Each is taken or refused at once, and settled later: `settle(n)` says that every message up to n is
durable or was refused. `due()` gives the texts to write then: rejects first, the ack that covers them last.
"""

from __future__ import annotations

from collections import deque

from headrace_ingest_ws.protocol import Refusal, ack, reject


class Session:
    """The bookkeeping of one connection; at most `window` messages are without an ack."""

    __slots__ = ("_rejects", "_settled", "acked", "count", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.count = 0
        self.acked = 0
        self._settled = 0
        # bounded by the window: a reject lives until the ack that covers it is handed out
        self._rejects: deque[tuple[int, bytes]] | None = None  # an empty deque takes 600 bytes

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
    def ack_due(self) -> bool:
        """True when `due` has something to write."""
        return self._settled > self.acked

    def take(self, messages: int = 1) -> int:
        """Count messages that are taken; the number of the last."""
        self.count += messages
        return self.count

    def refuse(self, refusal: Refusal) -> int:
        """Count a message that is not taken; its number. The client hears of it with the ack that covers it."""
        self.count += 1
        if self._rejects is None:
            self._rejects = deque()
        self._rejects.append((self.count, reject(self.count, refusal)))
        return self.count

    def settle(self, last: int) -> None:
        """All messages up to `last` are durable or were refused. Repeatable; never moves back."""
        assert last <= self.count, f"settled message {last} of {self.count}"
        if last > self._settled:
            self._settled = last

    def ack_only(self) -> int:
        """The ack to write when it is due and no reject comes before it, and then it counts as written; 0: see `due`."""
        if self._rejects or self._settled <= self.acked:
            return 0
        self.acked = self._settled
        return self.acked

    def due(self) -> list[bytes]:
        """The texts to write now, in order; they count as written from here on. Empty when no ack is due."""
        if self._settled <= self.acked:
            return []
        texts = []
        while self._rejects and self._rejects[0][0] <= self._settled:
            texts.append(self._rejects.popleft()[1])
        self.acked = self._settled
        texts.append(ack(self.acked))
        return texts
