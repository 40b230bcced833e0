"""The texts and numbers of the device protocol. `docs/protocol.md` is the reference. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from headrace.encodings import ENCODINGS, Encoding

SUBPROTOCOL: Final = "headrace.v1.json"

# Close codes (RFC 6455 section 7.4.1 and the IANA registry)
CLOSE_NORMAL: Final = 1000
CLOSE_AWAY: Final = 1001
CLOSE_PROTOCOL: Final = 1002
CLOSE_NO_CODE: Final = 1005
CLOSE_LOST: Final = 1006
CLOSE_NOT_TEXT: Final = 1007
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_BUG: Final = 1011
CLOSE_RESTART: Final = 1012
CLOSE_TRY_LATER: Final = 1013
CLOSE_TAKEN_OVER: Final = 4409

#: Labels of the metric; what a client makes up is counted as "other", so that it cannot open series without bound.
CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4409})

#: Reasons quote the device's own bytes; this bounds what goes back to it and into logs.
REASON_LENGTH_MAX: Final = 200


class Refusal(NamedTuple):
    """Why a message was not taken.

    code: MQTT 5's vocabulary. at: the index (from 0) of the bad event in an array, or of the line in a POST; on the wire it is
    called `index`. events: how many events the message held, 1 where that cannot be told.
    """

    code: str
    reason: str
    at: int | None = None
    retry_ms: int | None = None
    events: int = 1

    def fields(self) -> dict[str, Any]:
        """As it stands in a reject frame and in the answer to a POST."""
        fields: dict[str, Any] = {"code": self.code, "reason": self.reason[:REASON_LENGTH_MAX]}
        if self.at is not None:
            fields["index"] = self.at
        if self.retry_ms is not None:
            fields["retry_ms"] = self.retry_ms
        return fields


class Refused(Exception):
    """Answer this request with an error. reason: the metric's label, where the code alone does not tell."""

    def __init__(self, status: int, refusal: Refusal, headers: Mapping[str, str] | None = None, reason: str | None = None) -> None:
        self.status, self.refusal, self.headers = status, refusal, headers or {}
        self.reason = reason or refusal.code
        super().__init__(refusal.reason)


PAYLOAD_INVALID: Final = "payload_invalid"
TOO_LARGE: Final = "too_large"
BUSY: Final = "busy"
NOT_AUTHORIZED: Final = "not_authorized"
QUOTA: Final = "quota"
RATE: Final = "rate"


def ack(last: int) -> bytes:
    """All messages up to `last` are durable or were refused."""
    return b'{"ack":%d}' % last


def reject(number: int, refusal: Refusal) -> bytes:
    """Message `number` was refused; the ack that covers it comes later."""
    return msgspec.json.encode({"reject": number, **refusal.fields()})


def hello(
    queue: str | None,
    level: str,
    window: int,
    message_bytes_max: int,
    events_max: int,
    idle_timeout_s: float,
    session: Mapping[str, Any] | None = None,
) -> bytes:
    """The first frame to a client that offered the subprotocol; `session` for one that named a session too."""
    facts = {
        "queue": queue,
        "level": level,
        "window": window,
        "message_bytes_max": message_bytes_max,
        "events_per_message_max": events_max,
        "idle_timeout_s": idle_timeout_s,
        **(session or {}),
    }
    return msgspec.json.encode({"hello": facts})


PING_FRAME: Final = b"\x89\x00"


def text_frame(text: bytes) -> bytes:
    """One unfragmented, unmasked text frame, as a server sends it."""
    size = len(text)
    if size < 126:
        return bytes((0x81, size)) + text
    if size < 65_536:
        return bytes((0x81, 126)) + size.to_bytes(2, "big") + text
    return bytes((0x81, 127)) + size.to_bytes(8, "big") + text  # a hello that repeats thousands of refusals


#: The two bytes before a text of so many bytes.
_HEADS: Final = tuple(bytes((0x81, size)) for size in range(126))


def ack_frame(last: int) -> bytes:
    """`text_frame(ack(last))`, for the path that writes one for every connection of a commit."""
    text = b'{"ack":%d}' % last
    return _HEADS[len(text)] + text


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping (at most 125 bytes)."""
    return bytes((0x8A, len(payload))) + payload


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A close frame, as a server sends it."""
    text = reason[:123]
    return bytes((0x88, 2 + len(text))) + code.to_bytes(2, "big") + text


def device_problem(device: str) -> str | None:
    """What is wrong with a device's name, or None. `%` is refused because `%ff` is what a bad escape is left as."""
    if not device or len(device) > 128:
        return f"expected a device name of 1 to 128 characters, got {len(device)}"
    if not device.isprintable() or "/" in device or "%" in device or device in (".", ".."):
        return "expected a device name of printable characters without / and %"
    return None


class SessionClaim(NamedTuple):
    """A session that a client names on its upgrade, and the highest number that it knows to be acked."""

    id: str
    acked: int


#: Far more messages than a device sends, and exact in JSON readers that have only doubles.
ACKED_MAX: Final = 10**15


def encoding_claim(query: Mapping[str, str]) -> Encoding:
    """How the messages of a connection are written, by its query string; ValueError says what was expected."""
    name = query.get("encoding", "json")
    if name not in ENCODINGS:
        raise ValueError(f"expected encoding to be one of {', '.join(ENCODINGS)}, got {name[:40]!r}")
    return ENCODINGS[name]


_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def session_claim(query: Mapping[str, str]) -> SessionClaim | None:
    """The session that a query string names, or None; ValueError says what was expected."""
    session, acked = query.get("session"), query.get("acked", "0")
    if session is None:
        return None
    if not _SESSION_ID.fullmatch(session):
        raise ValueError("expected a session of 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if not (acked.isascii() and acked.isdecimal() and len(acked) <= 16 and int(acked) <= ACKED_MAX):
        raise ValueError(f"expected acked as a whole number from 0 to {ACKED_MAX}")
    return SessionClaim(session, int(acked))
