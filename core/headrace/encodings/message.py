"""What the decoders share: what is known of a message beside its bytes, and how a message is refused."""

from __future__ import annotations

import base64
from typing import Any, Final, NamedTuple

#: Deeper nesting is refused before the ack: every level is a dot in a column's name.
DEPTH_MAX: Final = 16

#: One event as a decoder gives it: JSON's types (numbers may be NaN or infinite), by name.
Readings = dict[str, Any]


class Sent(NamedTuple):
    """What is known of a message beside its bytes: who sent it, when it arrived (Unix time), and how many events it may hold."""

    device: str
    received_s: float
    events_max: int


class Unreadable(ValueError):
    """A message is refused, all of it.

    index: of the element at fault in a message of several. events: how many the message held, 1 where that cannot be told.
    too_many: it holds more than `events_max`.
    """

    def __init__(self, reason: str, index: int | None = None, events: int = 1, too_many: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.index, self.events, self.too_many = reason, index, events, too_many


def require_count(count: int, sent: Sent) -> None:
    """Unreadable when a message of several events has none, or too many."""
    if not count:
        raise Unreadable("expected at least one event, got an empty array")
    if count > sent.events_max:
        raise Unreadable(f"expected at most {sent.events_max} events in a message, got {count}", events=count, too_many=True)


def too_deep() -> Unreadable:
    return Unreadable(f"nested deeper than {DEPTH_MAX} levels")


def binary_text(value: bytes) -> str:
    """Binary data as a reading: base64 with the URL's alphabet and without padding, as SenML has it."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
