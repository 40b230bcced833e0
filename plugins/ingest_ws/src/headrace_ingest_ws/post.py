"""The same events over POST: a body is taken or refused, and answered when it is durable. `posting.py` does the I/O."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

import msgspec

from headrace.encodings import ENCODINGS, Encoding, Sent
from headrace_ingest_ws.auth.gateway import device_of, devices_of
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.message import JSON, each_of, events_of, lines_of
from headrace_ingest_ws.protocol import NOT_AUTHORIZED, TOO_LARGE, Refusal

NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})

#: Content type -> how one message is written.
ENCODING_TYPES: Final[dict[str, Encoding]] = {
    "application/json": JSON,
    # what clients that never heard of a content type send; the body has to be JSON all the same
    "text/plain": JSON,
    "application/x-www-form-urlencoded": JSON,
    "application/octet-stream": JSON,
    "application/senml+json": ENCODINGS["senml"],
    "application/senml+cbor": ENCODINGS["senml-cbor"],
    "application/msgpack": ENCODINGS["msgpack"],
    "application/vnd.msgpack": ENCODINGS["msgpack"],
    "application/x-msgpack": ENCODINGS["msgpack"],
    "application/cbor": ENCODINGS["cbor"],
}

#: What 415 says would be taken.
ACCEPTED_TYPES: Final = (
    "application/json, application/x-ndjson, application/senml+json, application/senml+cbor, application/msgpack, application/cbor"
)


class Body:
    """What a body holds: the events taken, and what was refused, each by its item's index (a line's, or an array's)."""

    def __init__(self, identity: Identity, encoding: Encoding) -> None:
        self.events: list[bytes] = []
        self.refused: list[Refusal] = []
        self.identity, self.encoding = identity, encoding
        #: One for each event, where the sender is a gateway.
        self.devices: list[str] | None = None if identity.gateway is None else []

    def take_message(self, events: list[bytes] | Refusal, line: int) -> None:
        """Take the events of one line, or refuse them all."""
        if not isinstance(events, Refusal) and self.devices is not None:
            devices = devices_of(events, self.identity, self.encoding.stored)
            if not isinstance(devices, Refusal):
                self.devices += devices
            else:
                events = devices
        if isinstance(events, Refusal):
            self.refused.append(events._replace(at=line))
        else:
            self.events += events

    def take_each(self, events: list[bytes | Refusal]) -> None:
        """Take or refuse each of these by itself."""
        for index, event in enumerate(events):
            if not isinstance(event, Refusal) and self.devices is not None:
                device = device_of(event, index, self.identity, self.encoding.stored)
                if not isinstance(device, Refusal):
                    self.devices.append(device)
                else:
                    event = device
            if isinstance(event, Refusal):
                self.refused.append(event)
            else:
                self.events.append(event)

    def answer(self) -> bytes:
        rejected: list[dict[str, Any]] = [refusal.fields() for refusal in self.refused]
        return msgspec.json.encode({"accepted": len(self.events), "rejected": rejected})

    @property
    def status(self) -> int:
        """200 when anything was taken; else 403, 413 or 400."""
        if self.events:
            return 200
        codes = {refusal.code for refusal in self.refused}
        return 403 if NOT_AUTHORIZED in codes else 413 if TOO_LARGE in codes else 400


def read_body(body: bytes, content_type: str, identity: Identity, received_s: float, events_max: int) -> Body:
    """The events of a body. Each line of NDJSON is a message, which is atomic; else each event is taken or refused by itself, but
    for a SenML pack."""
    if content_type not in NDJSON_TYPES:
        result = Body(identity, ENCODING_TYPES[content_type])
        each = each_of(body, result.encoding, Sent(identity.name, received_s, events_max))
        if isinstance(each, Refusal):
            result.refused.append(each)
        else:
            result.take_each(each)
        return result
    result = Body(identity, JSON)
    lines = lines_of(body, events_max)
    if isinstance(lines, Refusal):
        result.refused.append(lines)
        return result
    sent = Sent(identity.name, received_s, events_max)
    came = 0
    for index, line in lines:
        events = events_of(line, JSON, sent)
        came += events.events if isinstance(events, Refusal) else len(events)
        if came > events_max:
            return _too_many(identity, came, events_max)
        result.take_message(events, index)
    return result


def _too_many(identity: Identity, came: int, events_max: int) -> Body:
    refused = Body(identity, JSON)
    refused.refused.append(Refusal(TOO_LARGE, f"expected at most {events_max} events in a request, got {came} or more", events=came))
    return refused


def type_problem(content_type: str) -> str | None:
    """Why a body of this type cannot be read, or None."""
    if content_type in NDJSON_TYPES or content_type in ENCODING_TYPES:
        return None
    return f"expected one of {ACCEPTED_TYPES}, got {content_type[:80]}"


# --- Idempotency-Key -------------------------------------------------------------------------------------------------


class Remembered(NamedTuple):
    """What the queue keeps of a POST with a key: when it was stored (Unix time), how many events, and of which body."""

    stored_s: float
    accepted: int
    fingerprint: bytes


def idempotency_key(header: str) -> str:
    """The key in a header's value, with or without quotes; ValueError says what was expected."""
    value = header.strip()
    key = value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ValueError("expected an Idempotency-Key of 1 to 255 printable ASCII characters")
    return key


def key_origin(device: str, key: str) -> str:
    """The origin that stands for a key in the queue: hashed, for a key may hold anything. No session's name has two slashes,
    so keys never push out the sessions of their device."""
    return f"{device}/post/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def fingerprint(body: bytes, content_type: str) -> bytes:
    """What tells the same request from another one under the same key."""
    return hashlib.sha256(content_type.encode() + b"\n" + body).digest()[:16]


def pack(remembered: Remembered) -> bytes:
    return msgspec.msgpack.encode(remembered)


def unpack(note: bytes | None) -> Remembered | None:
    """What a mark's note holds, or None when it is none of ours."""
    try:
        return _remembered.decode(note or b"")
    except msgspec.DecodeError:
        return None


_remembered = msgspec.msgpack.Decoder(Remembered)
