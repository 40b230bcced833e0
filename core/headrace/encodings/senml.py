"""SenML (RFC 8428) in JSON and in CBOR: a pack of records becomes events, one for each thing and time.

The records are resolved here: base fields applied, names joined, relative times added to the time of arrival. What is read
later is JSON: `events` gives an object per event.

- The records of one time are one event. A record whose readings are in it already begins another event of that time.
- A reading is named by the record's whole name, without the device's own name and a `:` or `/` behind it. A name that begins
  with a device URN (RFC 9039) gives the reading its rest, and the URN becomes the reading `urn` unless it speaks of the device
  itself. What is left without a name is called `value`.
- Beside a value stand its unit (`NAME.unit`), sum (`NAME.sum`) and update time (`NAME.update_s`), where the record has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.encodings.cbor import Reader, item_of
from headrace.encodings.json_text import problem
from headrace.encodings.message import SMALL_BYTES, Budget, Readings, Sent, Unreadable, binary_text, require_count

VERSION: Final = 10

#: Times below are relative to the time of arrival.
ABSOLUTE_S: Final = 2**28

#: Names of ours in an event: a record of this name is called `NAME.value`.
RESERVED: Final = frozenset(("ts", "urn"))

_NUMBER: Final = frozenset((int, float))
_TYPES: Final[Mapping[str, frozenset[type]]] = {
    **dict.fromkeys(("bt", "bv", "bs", "bver", "v", "s", "t", "ut"), _NUMBER),
    **dict.fromkeys(("bn", "bu", "n", "u", "vs", "vd"), frozenset((str,))),
    "vb": frozenset((bool,)),
}
_TYPE_NAMES: Final = {int: "a number", str: "a string", bool: "a boolean"}
_BASE: Final = frozenset(("bn", "bt", "bu", "bv", "bs"))
_REGULAR: Final = frozenset(("n", "u", "v", "vs", "vb", "vd", "s", "t", "ut"))
_VALUES: Final = frozenset(("v", "vs", "vb", "vd"))

#: RFC 8428, table 4: the labels of CBOR.
_CBOR_LABELS: Final[Mapping[int | str, str]] = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:./_-]*")
_URN: Final = re.compile(r"(urn:dev:[a-z0-9.-]+:([A-Za-z0-9.-]+))(?:[:/_](.*))?")
_BASE64: Final = re.compile(r"[A-Za-z0-9_-]*")

_records = msgspec.json.Decoder(list[Any], float_hook=float)
_encode = msgspec.json.Encoder().encode

Record = dict[str, Any]


def events(message: bytes, sent: Sent) -> list[bytes]:
    """A JSON object for each event of a pack in JSON, or Unreadable."""
    try:
        message.decode()
        records = _records.decode(message)
    except msgspec.ValidationError as error:
        raise Unreadable(f"expected a SenML pack, a JSON array of records: {error}") from None
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(problem(error)) from None
    require_count(len(records), sent)
    return [_encode(event) for event in resolve(records, sent)]


def events_cbor(message: bytes, sent: Sent) -> list[bytes]:
    """A JSON object for each event of a pack in CBOR, or Unreadable."""
    records = _small(message, sent) if len(message) <= SMALL_BYTES else _large(message, sent)
    return [_encode(event) for event in resolve(records, sent)]


def _small(message: bytes, sent: Sent) -> list[Record]:
    records = item_of(message, Budget(), any_key=True)
    if not isinstance(records, list):
        raise Unreadable("expected a SenML pack, an array of records")
    require_count(len(records), sent)
    named = []
    for index, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise Unreadable("expected a map")
            named.append(_record(record))
        except Unreadable as error:
            raise Unreadable(f"record {index} of the pack: {error}", index, len(records)) from None
    return named


def _large(message: bytes, sent: Sent) -> list[Record]:
    """Taken apart label by label: no dict is filled with integers that a device has chosen."""
    reader = Reader(message)
    records: list[Record] = []
    for index in reader.elements(sent):
        try:
            records.append(_record({reader.label(): reader.item() for _ in reader.pairs()}))
        except Unreadable as error:
            raise Unreadable(f"record {index} of the pack: {error}", index, reader.count or index + 1) from None
    return records


def _record(by_label: dict[Any, Any]) -> Record:
    """A record as JSON has it."""
    record: Record = {}
    for label, value in by_label.items():
        if type(label) is not int and type(label) is not str:
            raise Unreadable("expected a label of SenML: an integer or text")
        record[_CBOR_LABELS.get(label, str(label))] = value
    if isinstance(data := record.get("vd"), bytes):
        record["vd"] = binary_text(data)
    elif "vd" in record:
        raise Unreadable("vd: expected a byte string")
    return record


def resolve(records: Sequence[Any], sent: Sent) -> list[Readings]:
    """The events of a pack's records; Unreadable names the record and the rule that it breaks."""
    pack = _Pack(sent)
    for index, record in enumerate(records):
        try:
            pack.add(record)
        except Unreadable as error:
            raise Unreadable(f"record {index} of the pack: {error}", index, len(records)) from None
    if not pack.events:
        raise Unreadable("expected at least one measurement, got base fields alone", events=len(records))
    return pack.events


class _Pack:
    """The base fields as they stand, and the events so far."""

    def __init__(self, sent: Sent) -> None:
        self.events: list[Readings] = []
        self._sent = sent
        self._base: Record = {}
        self._version: int | None = None
        self._names: dict[str, tuple[str, str]] = {}  # by whole name: packs repeat them
        self._latest: dict[tuple[str, float | None], Readings] = {}

    def add(self, record: Any) -> None:
        if not isinstance(record, dict):
            raise Unreadable("expected an object")
        _check_types(record)
        if self._version is None or "bver" in record:
            self._check_version(record)
        for label in _BASE & record.keys():
            self._base[label] = record[label]
        if _REGULAR.isdisjoint(record):
            return  # base fields for the records that follow
        whole = self._base.get("bn", "") + record.get("n", "")
        urn, name = self._names.get(whole) or self._named(whole)
        self._put(urn, self._time(record), self._readings(record, name))

    def _check_version(self, record: Record) -> None:
        version = record.get("bver", VERSION if self._version is None else self._version)
        if version != int(version) or not 1 <= version <= VERSION:
            raise Unreadable(f"bver: expected a version from 1 to {VERSION}, got {version}")
        if self._version not in (None, version):
            raise Unreadable(f"bver: expected one version in the whole pack, got {self._version} and {version}")
        self._version = version

    def _named(self, whole: str) -> tuple[str, str]:
        """The URN of the thing ("" when it is the device, or has none), and the name of the reading."""
        if not whole:
            raise Unreadable("n: expected a name, here or as bn")
        if not _NAME.fullmatch(whole):
            raise Unreadable(f"n: expected a name of A-Z a-z 0-9 - : . / _ that begins with a letter or digit, got {whole[:80]!r}")
        device = self._sent.device
        urn, rest = "", whole
        if whole.startswith(device) and whole[len(device) : len(device) + 1] in ("", ":", "/"):
            rest = whole[len(device) + 1 :]
        elif match := _URN.fullmatch(whole):
            urn, rest = "" if match[2] == device else match[1], match[3] or ""
        named = self._names[whole] = urn, f"{rest}.value" if rest in RESERVED else rest or "value"
        return named

    def _time(self, record: Record) -> float | None:
        time: float = self._base.get("bt", 0) + record.get("t", 0)
        if not time:
            return None
        return time if time >= ABSOLUTE_S else round(self._sent.received_s + time, 6)

    def _readings(self, record: Record, name: str) -> Readings:
        values = _VALUES & record.keys()
        if len(values) > 1:
            raise Unreadable(f"expected one value, got {' and '.join(label for label in record if label in values)}")
        base_value, base_sum = self._base.get("bv"), self._base.get("bs")
        readings: Readings = {}
        if values and "v" not in values:
            readings[name] = record[next(iter(values))]
        elif values or base_value is not None:
            readings[name] = _finite("v", (base_value or 0) + record.get("v", 0))
        if "s" in record or base_sum is not None:
            readings[f"{name}.sum"] = _finite("s", (base_sum or 0) + record.get("s", 0))
        if not readings:
            raise Unreadable("expected a value (v, vs, vb or vd) or a sum (s)")
        if unit := record.get("u", self._base.get("bu")):
            readings[f"{name}.unit"] = unit
        if "ut" in record:
            readings[f"{name}.update_s"] = record["ut"]
        return readings

    def _put(self, urn: str, time: float | None, readings: Readings) -> None:
        event = self._latest.get((urn, time))
        if event is None or not event.keys().isdisjoint(readings):
            event = {} if time is None else {"ts": time}
            if urn:
                event["urn"] = urn
            self.events.append(event)
            self._latest[urn, time] = event
        event.update(readings)


def _check_types(record: Record) -> None:
    for label, value in record.items():
        expected = _TYPES.get(label)
        if expected is None:
            # RFC 8428 section 4.4: what is not known is ignored, unless it says that it must be understood
            if label.endswith("_"):
                raise Unreadable(f"{label[:80]}: a label that ends with _ has to be understood, and this one is not")
        elif type(value) not in expected:
            raise Unreadable(f"{label}: expected {next(name for kind, name in _TYPE_NAMES.items() if kind in expected)}")
        elif expected is _NUMBER and not -_FAR < value < _FAR:
            _finite(label, value)
    if "vd" in record and (not _BASE64.fullmatch(record["vd"]) or len(record["vd"]) % 4 == 1):
        raise Unreadable("vd: expected base64 with the alphabet of URLs and without padding")


#: Numbers between this and its negative need no second look.
_FAR: Final = 1e300


def _finite(label: str, number: float) -> float:
    try:
        finite = math.isfinite(number)
    except OverflowError:  # an integer beyond float64
        finite = False
    if not finite:
        raise Unreadable(f"{label}: expected a number that fits a float64")
    return number
