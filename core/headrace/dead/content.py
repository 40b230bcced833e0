"""A letter's bytes, made readable. No I/O."""

from __future__ import annotations

import datetime
import json
from typing import Any, Final

import pyarrow as pa

from headrace.dead.store import Row
from headrace.encodings import STORED, decode
from headrace.schema import ENCODING_JSON

NAMES: Final = {0: "event (Arrow IPC)", 1: "json", 2: "msgpack", 3: "cbor"}
HEX_WIDTH: Final = 16


def encoding_name(encoding: int) -> str:
    """What people call it; a site's own by its number."""
    return NAMES.get(encoding, f"encoding {encoding}")


def time_text(microseconds: int) -> str:
    """RFC 3339, UTC, with milliseconds; of a year that has no such form, the number."""
    try:
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} us"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decodes(row: Row) -> bool | None:
    """Whether it decodes now; None where only a plugin of the site could tell."""
    if row.encoding == 0:
        return event_of(row.payload) is not None
    if row.encoding not in STORED:
        return None
    return not decode([row.payload], row.encoding)[1]


def event_of(payload: bytes) -> dict[str, Any] | None:
    """The one event of a letter that has no payload of a device any more."""
    try:
        with pa.ipc.open_stream(payload) as stream:
            batch = stream.read_next_batch()
        batch.validate()  # nothing may be read through a broken offset
        return {name: _value(column[0]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (pa.ArrowException, OSError, IndexError, StopIteration):
        return None


def _value(scalar: pa.Scalar) -> Any:
    """What a scalar holds, also where Python has no such value: it is for just these that outputs refuse events."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        # Children of the same name are told apart: an event with two of them is refused for that.
        found: dict[str, Any] = {}
        for number, child in enumerate(scalar.type):
            name = child.name if child.name not in found else f"{child.name} ({number + 1})"
            found[name] = _value(scalar[number])
        return found
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.StringScalar):
        return scalar.as_buffer().to_pybytes().decode(errors="backslashreplace")
    if isinstance(scalar, pa.ListScalar):
        return [_value(one) for one in scalar.values]
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):  # a time beyond the calendar, or finer than a microsecond
        return f"{getattr(scalar, 'value', '?')} ({scalar.type})"


def readable(row: Row) -> str:
    """The payload for people: pretty JSON where it is an object, else its text, else hex."""
    if row.encoding == 0:
        event = event_of(row.payload)
        return hexdump(row.payload) if event is None else harmless(json.dumps(event, indent=2, default=str, ensure_ascii=False))
    if row.encoding == ENCODING_JSON:
        try:
            return harmless(json.dumps(json.loads(row.payload), indent=2, ensure_ascii=False))
        except (ValueError, RecursionError):
            pass
    elif row.encoding in STORED:
        rows, bad = decode([row.payload], row.encoding)
        if not bad:
            return harmless(json.dumps(rows[0], indent=2, default=str, ensure_ascii=False))
    try:
        text = row.payload.decode()
    except UnicodeDecodeError:
        return hexdump(row.payload)
    return text if text.isprintable() else hexdump(row.payload)


def harmless(text: str) -> str:
    """Nothing that came from outside may steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def hexdump(data: bytes) -> str:
    """Offset, bytes, and what of them is printable ASCII."""
    lines = []
    for offset in range(0, len(data), HEX_WIDTH):
        part = data[offset : offset + HEX_WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{offset:08x}  {part.hex(' '):<{3 * HEX_WIDTH}} {text}")
    return "\n".join(lines)


def as_json(tier: str, row: Row, payload: bool = False) -> dict[str, Any]:
    """One letter for programs; `payload` in base64 where it is asked for."""
    facts = {
        "tier": tier,
        **{name: value for name, value in row._asdict().items() if name not in ("payload", "refused_us", "received_us")},
        "output": row.output or None,
        "origin": row.origin or row.queue_id,
        "origin_position": row.origin_position or row.position,
        "refused": time_text(row.refused_us),
        "received": time_text(row.received_us),
        "payload_bytes": len(row.payload),
    }
    if payload:
        import base64

        facts["payload"] = base64.b64encode(row.payload).decode()
    return facts
