"""CBOR (RFC 8949), read by cbor2: a map is one event, an array of maps several.

What JSON has no type for: byte strings become text (`binary_text`), a simple value its number, undefined is the same as null,
NaN and infinities stay numbers. Of tags, bignums (2, 3) and fractions (4, 5) become numbers; references to other parts of the
message (25, 29) are refused; any other tag is left out, and what it marks counts. Keys are text.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import cbor2

from headrace.encodings.message import (
    DEPTH_MAX,
    OTHER_VALUES_MAX,
    SMALL_BYTES,
    Budget,
    Readings,
    Sent,
    Unreadable,
    all_good,
    plain_readings,
    require_count,
)

#: An integer of so many bytes has 4,300 digits, what Python writes without being told to try harder.
BIGNUM_BYTES_MAX: Final = 1785

_MAP, _ARRAY, _BREAK, _INDEFINITE = 5, 4, 0xFF, 31
_MAJORS: Final = ("a number", "a number", "a byte string", "text", "an array", "a map", "a tag", "a simple value")
_FIRST_ARRAY, _FIRST_MAP = b"\x80", b"\xa0"
_SELF_DESCRIBED: Final = b"\xd9\xd9\xf7"


def check(payload: bytes) -> str | None:
    """Why this payload cannot be taken as one event, or None when it decodes."""
    try:
        whole(payload)
    except Unreadable as error:
        return error.reason
    return None


def events(message: bytes, sent: Sent) -> list[bytes]:
    """The payload of each event of a message, or Unreadable."""
    return all_good(_each(message, sent))


def each(message: bytes, sent: Sent) -> list[bytes | Unreadable]:
    """Each event of a message, or why it is refused; Unreadable when that is so for all of it: where an element is not even
    CBOR, nobody knows where the next begins."""
    return list(_each(message, sent))


def _each(message: bytes, sent: Sent) -> Iterator[bytes | Unreadable]:
    if message[:1] < _FIRST_ARRAY or (message[:1] >= _FIRST_MAP and not message.startswith(_SELF_DESCRIBED)):
        whole(message)
        yield message
        return
    reader = Reader(message)
    if reader.major != _ARRAY:
        whole(message)
        yield message
        return
    for index in reader.elements(sent):
        start = reader.at
        try:
            item = reader.item()
        except Unreadable as error:
            raise _in_array(error, index, reader) from None
        try:
            _readings(item, reader.budget)
        except Unreadable as error:
            yield _in_array(error, index, reader)
        else:
            yield message[start : reader.at]


def _in_array(error: Unreadable, index: int, reader: Reader) -> Unreadable:
    return Unreadable(f"event {index} of the array: {error}", index, reader.count or index + 1)


def decode(payloads: Iterable[bytes]) -> tuple[list[Readings], list[int]]:
    """The map of each payload and the indexes of those that do not decode (an empty one stands for them)."""
    rows: list[Readings] = []
    bad: list[int] = []
    for index, payload in enumerate(payloads):
        try:
            budget = Budget()
            rows.append(_readings(_guarded(cbor2.loads, payload, **_options(payload, budget)), budget))
        except Unreadable:
            rows.append({})
            bad.append(index)
    return rows, bad


class Reader:
    """Takes a message apart where its bytes matter: the outermost array, and the maps of SenML with their integer labels."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._file = io.BytesIO(message)
        self.budget = Budget()
        # read_size: what it reads ahead is read again for the next item
        self._decoder = cbor2.CBORDecoder(self._file, read_size=256, **_options(message, self.budget))
        if message.startswith(_SELF_DESCRIBED):
            self._file.seek(len(_SELF_DESCRIBED))
        #: elements of the outermost array; 0 as long as nobody knows
        self.count = 0

    @property
    def at(self) -> int:
        """The offset of the next item."""
        return self._file.tell()

    @property
    def major(self) -> int:
        """The major type of the next item."""
        return self._first() >> 5

    def item(self) -> Any:
        """The next item, whole."""
        return _guarded(self._decoder.decode)

    def elements(self, sent: Sent) -> Iterator[int]:
        """The indexes of the outermost array's elements, each to be read before the next; Unreadable when the array is not
        the whole message, has no element, or too many."""
        count = self._open(_ARRAY)
        if count is not None:
            require_count(count, sent)
            self.count = count
        index = -1
        for index in self._until(count):
            if index == sent.events_max:
                require_count(index + 1, sent)
            yield index
        require_count(index + 1, sent)
        if self.at != len(self._message):
            raise Unreadable(f"invalid CBOR: bytes behind the end at byte {self.at}")

    def pairs(self) -> Iterator[int]:
        """Open the next item, a map, and count through its pairs, each to be read before the next."""
        return self._until(self._open(_MAP))

    def _until(self, count: int | None) -> Iterator[int]:
        index = 0
        while count is None or index < count:
            if count is None and self._first() == _BREAK:
                self._file.read(1)
                return
            yield index
            index += 1

    def label(self) -> int | str:
        """The next item, a label of SenML: a small integer, or text."""
        first = self._first()
        if first >> 5 <= 1 and first & 31 < 24:
            self._file.read(1)
            return first & 31 if first < 0x20 else -1 - (first & 31)
        label = self.item()
        if not isinstance(label, str):
            raise Unreadable("expected a label of SenML: an integer or text")
        return label

    def _first(self) -> int:
        at = self.at
        if at >= len(self._message):
            raise Unreadable("invalid CBOR: the message ends too early")
        return self._message[at]

    def _open(self, major: int) -> int | None:
        """The number of elements of the array or map that begins here; None when it is of indefinite length."""
        first = self._first()
        if first >> 5 != major:
            raise Unreadable(f"expected {_MAJORS[major]}, got {_MAJORS[first >> 5]}")
        self._file.read(1)
        if (count := first & 31) == _INDEFINITE:
            return None
        if count > 27:
            raise Unreadable(f"invalid CBOR: no length at byte {self.at - 1}")
        if count >= 24:
            count = int.from_bytes(self._file.read(1 << count - 24), "big")
        if count > len(self._message) - self.at:
            raise Unreadable("invalid CBOR: the message ends too early")
        return count


def whole(payload: bytes) -> Readings:
    """The map that is the whole payload."""
    budget = Budget()
    return _readings(item_of(payload, budget), budget)


def item_of(payload: bytes, budget: Budget, any_key: bool = False) -> Any:
    """The item that is the whole payload. any_key: a small one may have keys of any type."""
    file = io.BytesIO(payload)
    options = _options(payload, budget)
    if any_key and len(payload) <= SMALL_BYTES:
        options = options | {"strict_hashable_types": False}
    item = _guarded(cbor2.load, file, **options)
    if file.tell() != len(payload):
        raise Unreadable(f"invalid CBOR: bytes behind the end at byte {file.tell()}")
    return item


def _guarded(read: Callable[..., Any], *source: Any, **options: Any) -> Any:
    """What the library reads, or Unreadable: whatever it raises, the bytes are at fault."""
    try:
        return read(*source, **options)
    except cbor2.CBORDecodeEOF:
        raise Unreadable("invalid CBOR: the message ends too early") from None
    except BaseException as error:
        # it is written in Rust, whose panics come as no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
        raise Unreadable(f"invalid CBOR: {why}") from None


# --- from its types to ours ------------------------------------------------------------------------------------------


def _readings(value: Any, budget: Budget) -> Readings:
    if type(value) is not dict:
        raise Unreadable(f"expected a map, got {_kind_of(value)}")
    return plain_readings(value, _other, budget)


def _other(value: Any) -> Any:
    if type(value) is cbor2.CBORSimpleValue:
        return value.value
    if value is cbor2.undefined:
        return None
    raise Unreadable(f"expected a value that a reading can have, got {type(value).__name__}")


def _kind_of(value: Any) -> str:
    names = {list: "an array", dict: "a map", str: "text", bytes: "a byte string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "another value")


# --- tags ------------------------------------------------------------------------------------------------------------


class _Tags(Mapping[int, Callable[[Any, bool], Any]]):
    """What becomes of each tag there is. Without an answer for every one, the library would make its own of some: cyclic
    objects, compiled patterns, parsed mails."""

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _READ.get(tag, _content)

    def __iter__(self) -> Iterator[int]:
        return iter(_READ)

    def __len__(self) -> int:
        return len(_READ)


class _CountedTags(_Tags):
    """Each costs two calls of Python."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        self._budget.spend(1)
        return super().__getitem__(tag)


def _content(value: Any, _: bool) -> Any:
    return value


def _bignum(value: Any, _: bool) -> int:
    if not isinstance(value, bytes) or len(value) > BIGNUM_BYTES_MAX:
        raise ValueError(f"expected a bignum of at most {BIGNUM_BYTES_MAX} bytes")
    return int.from_bytes(value, "big")


def _negative_bignum(value: Any, immutable: bool) -> int:
    return -1 - _bignum(value, immutable)


def _parts(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(part) is int for part in value):
        raise ValueError("expected a fraction of two integers")
    return value[0], value[1]


def _decimal_fraction(value: Any, _: bool) -> float:
    exponent, mantissa = _parts(value)
    return float(f"{mantissa}e{exponent}")


def _bigfloat(value: Any, _: bool) -> float:
    exponent, mantissa = _parts(value)
    try:
        return math.ldexp(mantissa, exponent)
    except OverflowError:
        return math.copysign(math.inf, mantissa) if exponent > 0 else 0.0


def _reference(value: Any, _: bool) -> Any:
    raise ValueError("references to other parts of the message are not read")


_READ: Final[Mapping[int, Callable[[Any, bool], Any]]] = {
    2: _bignum,
    3: _negative_bignum,
    4: _decimal_fraction,
    5: _bigfloat,
    25: _reference,
    29: _reference,
}

# max_depth: a tag counts as a level. strict_hashable_types: a map of integers of one hash would take minutes.
_OPTIONS: Final[dict[str, Any]] = {"semantic_decoders": _Tags(), "max_depth": 2 * DEPTH_MAX, "strict_hashable_types": True}


def _options(payload: bytes, budget: Budget) -> dict[str, Any]:
    """For the library. What cannot hold too many tags, of two bytes at least, is read without counting them."""
    if len(payload) <= 2 * OTHER_VALUES_MAX:
        return _OPTIONS
    return _OPTIONS | {"semantic_decoders": _CountedTags(budget)}
