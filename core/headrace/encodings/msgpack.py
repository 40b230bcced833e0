"""MessagePack, read by msgspec: a map is one event, an array of maps several.

What JSON has no type for: binary data, and the data of an extension, become text (`binary_text`); a timestamp becomes RFC 3339
text; NaN and infinities stay numbers. Keys are strings.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from headrace.encodings.message import (
    DEPTH_MAX,
    PLAIN_TYPES,
    SCALAR,
    SMALL_BYTES,
    USUAL_LEVELS,
    Budget,
    Readings,
    Sent,
    Unreadable,
    all_good,
    binary_text,
    nested,
    plain_readings,
    require_count,
    too_deep,
)

_plain = msgspec.msgpack.Decoder(dict[str, nested(USUAL_LEVELS - 1)])  # type: ignore[misc]
_members = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_scalars = msgspec.msgpack.Decoder(list[SCALAR])
_elements = msgspec.msgpack.Decoder(list[msgspec.Raw])
_anything = msgspec.msgpack.Decoder(Any)

_REFUSED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def check(payload: bytes) -> str | None:
    """Why this payload cannot be taken as one event, or None when it decodes."""
    try:
        _readings(payload, Budget())
    except Unreadable as error:
        return error.reason
    return None


def events(message: bytes, sent: Sent) -> list[bytes]:
    """The payload of each event of a message, or Unreadable."""
    if not _is_array(message):
        _readings(message, Budget())
        return [message]
    return all_good(_each(message, sent))


def each(message: bytes, sent: Sent) -> list[bytes | Unreadable]:
    """Each event of a message, or why it is refused; Unreadable when that is so for all of it."""
    return list(_each(message, sent) if _is_array(message) else events(message, sent))


def _each(array: bytes, sent: Sent) -> Iterator[bytes | Unreadable]:
    budget, elements = Budget(), _raw_elements(array)
    require_count(len(elements), sent)
    for index, element in enumerate(elements):
        try:
            _readings(element, budget)
        except Unreadable as error:
            yield Unreadable(f"event {index} of the array: {error}", index, len(elements))
        else:
            yield element


def decode(payloads: Iterable[bytes]) -> tuple[list[Readings], list[int]]:
    """The map of each payload and the indexes of those that do not decode (an empty one stands for them)."""
    rows: list[Readings] = []
    bad: list[int] = []
    for index, payload in enumerate(payloads):
        try:
            rows.append(_readings(payload, None))
        except Unreadable:
            rows.append({})
            bad.append(index)
    return rows, bad


def _readings(payload: bytes, budget: Budget | None) -> Readings:
    """budget: of the message that it is part of; None for one of its own."""
    try:
        plain: Readings = _plain.decode(payload)
    except msgspec.ValidationError:
        return _deep_or_other(payload, budget)
    except _REFUSED as error:
        raise _unreadable(error) from None
    return plain


@functools.cache
def _deep() -> msgspec.msgpack.Decoder[Readings]:
    return msgspec.msgpack.Decoder(dict[str, nested(DEPTH_MAX - 1)])  # type: ignore[misc]


def _deep_or_other(payload: bytes, budget: Budget | None) -> Readings:
    # as many bytes begin an array or a map, or look like it
    if len(payload) - len(payload.translate(None, _NESTING)) > USUAL_LEVELS:
        try:
            return _deep().decode(payload)
        except _REFUSED:
            pass  # what it is, the others say
    return _with_other_types(payload, budget or Budget())


def _with_other_types(payload: bytes, budget: Budget) -> Readings:
    if not _is_map(payload):
        raise Unreadable(f"expected a map, got {_kind_of(payload)}")
    return plain_readings(_decoded(payload), _other, budget) if len(payload) <= SMALL_BYTES else _map(payload, budget, 1)


def _other(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, msgspec.msgpack.Ext):
        return binary_text(bytes(value.data))
    raise Unreadable(f"expected a value that a reading can have, got {type(value).__name__}")


def _decoded(payload: bytes) -> Any:
    try:
        return _anything.decode(payload)
    except _REFUSED as error:
        raise _unreadable(error) from None


# A large payload is taken apart map by map: no dict is filled before its keys are known to be text.


def _map(payload: bytes, budget: Budget, depth: int) -> Readings:
    if depth > DEPTH_MAX:
        raise too_deep()
    try:
        members = _members.decode(payload)
    except msgspec.ValidationError:
        raise Unreadable("expected text as keys") from None
    except _REFUSED as error:
        raise _unreadable(error) from None
    budget.spend(len(members))
    return {name: _value(bytes(member), budget, depth) for name, member in members.items()}


def _value(payload: bytes, budget: Budget, depth: int) -> Any:
    if _is_map(payload):
        return _map(payload, budget, depth + 1)
    if _is_array(payload):
        if depth >= DEPTH_MAX:
            raise too_deep()
        try:
            return _scalars.decode(payload)
        except _REFUSED:  # something else is in it, or it is broken: one by one
            elements = _raw_elements(payload, budget)
        return [_value(element, budget, depth + 1) for element in elements]
    value = _decoded(payload)
    if type(value) in PLAIN_TYPES:
        return value
    return binary_text(value) if type(value) is bytes else _other(value)


def _raw_elements(payload: bytes, budget: Budget | None = None) -> list[bytes]:
    try:
        elements = _elements.decode(payload)
    except _REFUSED as error:
        raise _unreadable(error) from None
    if budget is not None:
        budget.spend(len(elements))
    return [bytes(element) for element in elements]


def _unreadable(error: Exception) -> Unreadable:
    if isinstance(error, UnicodeDecodeError):
        return Unreadable("a string is not UTF-8")
    return Unreadable("nested too deeply" if isinstance(error, RecursionError) else f"invalid MessagePack: {error}")


# The first byte tells the type: fixed ranges, and a code for each wider form.


_NESTING: Final = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))


def _is_map(payload: bytes) -> bool:
    return payload[:1] in (b"\xde", b"\xdf") or b"\x80" <= payload[:1] < b"\x90"


def _is_array(payload: bytes) -> bool:
    return payload[:1] in (b"\xdc", b"\xdd") or b"\x90" <= payload[:1] < b"\xa0"


def _kind_of(payload: bytes) -> str:
    if not payload:
        return "nothing"
    first = payload[0]
    if _is_array(payload):
        return "an array"
    if 0xA0 <= first < 0xC0 or 0xD9 <= first <= 0xDB:
        return "a string"
    names = {0xC0: "nil", 0xC2: "false", 0xC3: "true", 0xC4: "binary data", 0xC5: "binary data", 0xC6: "binary data"}
    return names.get(first, "an extension" if 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8 else "a number")
