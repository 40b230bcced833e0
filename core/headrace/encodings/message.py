"""What the decoders share: what is known of a message beside its bytes, and how a message is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

#: Deeper nesting is refused before the ack: every level is a dot in a column's name.
DEPTH_MAX: Final = 16

#: In a message of this size even keys of one hash cost no more than a millisecond or two.
SMALL_BYTES: Final = 4096

#: So many values in one message that are looked at one by one, because JSON has no type for them or their neighbours: each of
#: them costs half a microsecond or more, before the ack. What JSON could hold is not counted.
OTHER_VALUES_MAX: Final = 8192

#: One event as a decoder gives it: JSON's types (numbers may be NaN or infinite), by name.
Readings = dict[str, Any]


class Sent(NamedTuple):
    """What is known of a message beside its bytes: who sent it, when it arrived (Unix time), and how many events it may hold."""

    device: str
    received_s: float
    events_max: int


class Unreadable(ValueError):
    """A message is refused, all of it; or one element of an array, where they are taken one by one.

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


def all_good(elements: Iterable[bytes | Unreadable]) -> list[bytes]:
    """The elements of an array of which none is refused; else the first that is, raised."""
    payloads: list[bytes] = []
    for element in elements:
        if isinstance(element, Unreadable):
            raise element
        payloads.append(element)
    return payloads


PLAIN_TYPES: Final = frozenset((float, int, bool, str, type(None)))
_TEXT: Final = frozenset((str,))


class Budget:
    """How many values of a message may still be looked at one by one."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = OTHER_VALUES_MAX

    def spend(self, count: int) -> None:
        """So many are looked at; Unreadable when that is too much."""
        self._left -= count
        if self._left < 0:
            raise Unreadable(f"expected at most {OTHER_VALUES_MAX} values beside those of types that JSON does not have")


def plain_readings(value: dict[Any, Any], other: Callable[[Any], Any], budget: Budget, depth: int = 1) -> Readings:
    """A map as a library has read it, with JSON's types alone; Unreadable when that cannot be.

    other: what becomes of a value of any other type than these and binary data.
    """
    if not _TEXT.issuperset(map(type, value)):
        raise Unreadable("expected text as keys")
    if PLAIN_TYPES.issuperset(map(type, value.values())):
        return value
    budget.spend(len(value))
    return {name: _plain(member, other, budget, depth) for name, member in value.items()}


def _plain(value: Any, other: Callable[[Any], Any], budget: Budget, depth: int) -> Any:
    kind = type(value)
    if kind in PLAIN_TYPES:
        return value
    if kind is bytes:
        return binary_text(value)
    if kind is not dict and kind is not list:
        return other(value)
    if depth >= DEPTH_MAX:
        raise too_deep()
    if kind is dict:
        return plain_readings(value, other, budget, depth + 1)
    if PLAIN_TYPES.issuperset(map(type, value)):
        return value
    budget.spend(len(value))
    return [_plain(element, other, budget, depth + 1) for element in value]


def too_deep() -> Unreadable:
    return Unreadable(f"nested deeper than {DEPTH_MAX} levels")


def binary_text(value: bytes) -> str:
    """Binary data as a reading: base64 with the URL's alphabet and without padding, as SenML has it."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


SCALAR: Final[Any] = None | bool | int | float | str


#: Levels of nesting that the decoders made at import know: each level doubles what the library builds (3 ms here, 0.7 s for all 16,
#: in which no other thread runs). One for all levels is made with the first event that needs it.
USUAL_LEVELS: Final = 9


def nested(levels: int) -> Any:
    """JSON's types, nested that deep, for a decoder of msgspec: what is deeper does not decode, whatever source let it in.

    With the type spelled out the library also refuses MessagePack's keys that are no strings as it reads them. Else a message
    could fill a dict with integers of one hash, which takes minutes."""
    kind: Any = SCALAR
    for _ in range(levels):
        kind = SCALAR | list[kind] | dict[str, kind]
    return kind
