"""One device of a trial: which of its events are acked, and which to send again. No I/O.

In a session messages are numbered over all connections: what the server says of number n is about the n-th message. Events have
numbers of their own, since a retry is a new message.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from headrace.torture.events import is_bad

WINDOW_MAX: Final = 64


class Device:
    """What it sent and heard. Events are numbered from 1 to `issued`; each waits, is on the wire, was acked or was refused."""

    def __init__(self, name: str, session: str) -> None:
        self.name, self.session = name, session
        self.issued = 0
        #: the highest message number that was acked in the session
        self.acks = 0
        self.refused: set[int] = set()
        #: events that the server asked for once more: they come behind what was sent after them
        self.reordered: set[int] = set()
        #: breaches of the device protocol: none of this may happen
        self.wrongs: list[str] = []
        self.resent = self.resumed = self.hellos = 0
        self._window = WINDOW_MAX
        self._waiting: deque[int] = deque()
        self._wire: deque[int] = deque()  # messages acks + 1, acks + 2, ...
        self._retried: set[int] = set()
        self._sent: set[int] = set()  # of those that are not settled

    @property
    def unsettled(self) -> int:
        """Events that were issued, and neither acked nor refused."""
        return len(self._waiting) + len(self._wire)

    @property
    def acked_count(self) -> int:
        """How many events were acked."""
        return self.issued - self.unsettled - len(self.refused)

    def acked(self) -> set[int]:
        """The numbers of the events that were acked."""
        return set(range(1, self.issued + 1)) - self.refused - set(self._waiting) - set(self._wire)

    @property
    def waits(self) -> bool:
        """Whether the server owes an ack."""
        return bool(self._wire)

    def issue(self) -> None:
        """A new event."""
        self.issued += 1
        self._waiting.append(self.issued)

    def next(self) -> int | None:
        """The event to send now: it counts as sent. None: nothing waits, or the window is full."""
        if not self._waiting or len(self._wire) >= self._window:
            return None
        number = self._waiting.popleft()
        self._wire.append(number)
        if number in self._sent:
            self.resent += 1
        self._sent.add(number)
        return number

    def greeted(self, hello: dict[str, Any]) -> None:
        """A connection begins with what the server settled while nobody heard of it; what is left is to be sent again."""
        self.hellos += 1
        self._window = max(1, min(WINDOW_MAX, int(hello.get("window", WINDOW_MAX))))
        resume = hello.get("resume")
        if resume is None or not self.acks <= resume <= self.acks + len(self._wire):
            self.wrongs.append(f"{self.name}: resume {resume}, expected {self.acks} to {self.acks + len(self._wire)}")
            self.session += "-"
            self.acks = 0
        else:
            for refused in hello.get("refused", ()):
                self.received(refused)
            self.resumed += resume - self.acks
            self.received({"ack": resume})
        self._waiting.extendleft(reversed(self._wire))
        self._wire.clear()
        self._retried.clear()

    def received(self, frame: dict[str, Any]) -> None:
        """An ack or a reject."""
        if "reject" in frame:
            self._rejected(frame)
        upto = frame.get("ack", self.acks)
        if not self.acks <= upto <= self.acks + len(self._wire):
            self.wrongs.append(f"{self.name}: ack {upto}, expected {self.acks} to {self.acks + len(self._wire)}")
            return
        retried = []
        for _ in range(upto - self.acks):
            number = self._wire.popleft()
            if number in self._retried:
                retried.append(number)
                continue
            self._sent.discard(number)
            if is_bad(number) and number not in self.refused:
                self.wrongs.append(f"{self.name}: message {number} is no event, and was acked")
                self.refused.add(number)
        self._retried.difference_update(retried)
        self._waiting.extendleft(reversed(retried))
        self.acks = upto

    def _rejected(self, frame: dict[str, Any]) -> None:
        at = frame["reject"] - self.acks - 1
        if not 0 <= at < len(self._wire):
            self.wrongs.append(f"{self.name}: reject {frame['reject']}, expected {self.acks + 1} to {self.acks + len(self._wire)}")
        elif frame.get("retry_ms") is not None:
            self._retried.add(self._wire[at])
            self.reordered.add(self._wire[at])
        else:
            number = self._wire[at]
            if not is_bad(number):
                self.wrongs.append(f"{self.name}: event {number} was refused: {frame}")
            self.refused.add(number)
