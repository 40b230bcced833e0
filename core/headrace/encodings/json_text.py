"""JSON (RFC 8259): an object is one event, an array of objects several."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from headrace.encodings.message import (
    DEPTH_MAX,
    USUAL_LEVELS,
    Readings,
    Sent,
    Unreadable,
    all_good,
    nested,
    require_count,
    too_deep,
)

SPACE: Final = b" \t\r\n"

#: What Python reads of an integer without being told to try harder; a longer one stays text.
INTEGER_DIGITS_MAX: Final = 4300

_syntax = msgspec.json.Decoder(msgspec.Raw)
_elements = msgspec.json.Decoder(list[msgspec.Raw])
# costs what `Any` does (575 and 580 ns for 8 readings)
_object = msgspec.json.Decoder(dict[str, nested(USUAL_LEVELS - 1)])  # type: ignore[misc]


@functools.cache
def _deep_object() -> msgspec.json.Decoder[Readings]:
    """For the same levels as `check`."""
    return msgspec.json.Decoder(dict[str, nested(DEPTH_MAX - 1)])  # type: ignore[misc]


def check(payload: bytes) -> str | None:
    """Why this payload cannot be taken as one event, or None when it decodes. About 0.4 us for 120 bytes."""
    try:
        payload.decode()
        _syntax.decode(payload)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        return problem(error)
    if payload.lstrip(SPACE)[:1] != b"{":
        return f"expected a JSON object, got {_kind_of(payload)}"
    if payload.count(b"{") + payload.count(b"[") > DEPTH_MAX and _depth(payload) > DEPTH_MAX:
        return too_deep().reason
    return None


def events(message: bytes, sent: Sent) -> list[bytes]:
    """The payload of each event of a message, or Unreadable."""
    if message[:1] != b"[" and message.lstrip(SPACE)[:1] != b"[":
        if (reason := check(message)) is not None:
            raise Unreadable(reason)
        return [message]
    return all_good(_each(message, sent))


def each(message: bytes, sent: Sent) -> list[bytes | Unreadable]:
    """Each event of a message, or why it is refused; Unreadable when that is so for all of it."""
    return list(_each(message, sent) if message.lstrip(SPACE)[:1] == b"[" else events(message, sent))


def _each(array: bytes, sent: Sent) -> Iterator[bytes | Unreadable]:
    elements = split(array)
    require_count(len(elements), sent)
    for index, element in enumerate(elements):
        reason = check(element)
        yield element if reason is None else Unreadable(f"event {index} of the array: {reason}", index, len(elements))


def split(payload: bytes) -> list[bytes]:
    """One payload per event: an object as it is, an array's elements one by one; each still has to pass `check`.

    Unreadable (a ValueError) with the reason when the payload is neither.
    """
    if payload.lstrip(SPACE)[:1] != b"[":
        return [payload]
    try:
        payload.decode()
        return [bytes(element) for element in _elements.decode(payload)]
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(problem(error)) from None


def decode(payloads: Iterable[bytes]) -> tuple[list[Readings], list[int]]:
    """The object of each payload and the indexes of those that do not decode (an empty object stands for them)."""
    rows: list[Readings] = []
    bad: list[int] = []
    for index, payload in enumerate(payloads):
        try:
            rows.append(_decoded(payload))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if check(payload) is None:
                rows.append(_any_number(payload))
            else:
                rows.append({})
                bad.append(index)
    return rows, bad


def _decoded(payload: bytes) -> Readings:
    try:
        readings: Readings = _object.decode(payload)
    except msgspec.ValidationError:
        if payload.count(b"{") + payload.count(b"[") <= USUAL_LEVELS:
            raise
        return _deep_object().decode(payload)
    return readings


def problem(error: Exception) -> str:
    """Why bytes are no JSON, from what the library raised."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return "nested too deeply" if isinstance(error, RecursionError) else f"invalid JSON: {error}"


def _any_number(payload: bytes) -> Readings:
    """The numbers that the fast decoder refuses: 1e999 is infinite, and an integer of very many digits stays text."""

    def integer(digits: str) -> int | str:
        return int(digits) if len(digits.lstrip("-")) <= INTEGER_DIGITS_MAX else digits

    readings: Readings = json.loads(payload, parse_int=integer)
    return readings


def _kind_of(payload: bytes) -> str:
    first = payload.lstrip(SPACE)[:1]
    names = {b"[": "an array", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}
    return names.get(first, "a number")


def _depth(payload: bytes) -> int:
    """Levels of nesting; strings are cut out first so that braces in them do not count."""
    depth = deepest = 0
    for byte in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", payload, flags=re.DOTALL):
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest
