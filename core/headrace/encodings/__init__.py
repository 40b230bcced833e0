"""What devices may send, and how it becomes events: one module per encoding. No I/O.

A *message* is what a device sends at once, a *payload* is the bytes of one event, as a queue stores them. Sources turn one
into the other with `ENCODINGS[name].events(message, Sent(...))`, which raises nothing but `Unreadable`; what it lets pass
decodes later (`headrace.decoding.decode`), by the number that stands in the batch's `encoding` column (`Encoding.stored`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from headrace.encodings.message import DEPTH_MAX, Readings, Sent, Unreadable
from headrace.schema import ENCODING_CBOR, ENCODING_JSON, ENCODING_MSGPACK

__all__ = ["DEPTH_MAX", "ENCODINGS", "STORED", "Encoding", "Readings", "Sent", "Unreadable", "check", "decode"]


class Encoding(NamedTuple):
    """One way to send events.

    name: as configs and URLs have it. stored: the number of what `events` gives. binary: sent as bytes, not as text.
    """

    name: str
    stored: int
    binary: bool
    module: str
    function: str = "events"
    function_each: str = "each"

    def events(self, message: bytes, sent: Sent) -> list[bytes]:
        """The payload of each event of a message, already checked to decode; or Unreadable, and nothing of it is taken."""
        read: Callable[[bytes, Sent], list[bytes]] = _function(self.module, self.function)
        return read(message, sent)

    def each(self, message: bytes, sent: Sent) -> list[bytes | Unreadable]:
        """As `events`, for sources that refuse elements of an array one by one: for each its payload, or why it is refused.

        Unreadable is raised where there are no elements to speak of; a pack of SenML, whose records depend on each other, is one.
        """
        read: Callable[[bytes, Sent], list[bytes | Unreadable]] = _function(self.module, self.function_each)
        return read(message, sent)


ENCODINGS: Final[Mapping[str, Encoding]] = {
    encoding.name: encoding
    for encoding in (
        Encoding("json", ENCODING_JSON, False, "json_text"),
        Encoding("senml", ENCODING_JSON, False, "senml", function_each="events"),
        Encoding("msgpack", ENCODING_MSGPACK, True, "msgpack"),
        Encoding("cbor", ENCODING_CBOR, True, "cbor"),
        Encoding("senml-cbor", ENCODING_JSON, True, "senml", "events_cbor", "events_cbor"),
    )
}

#: Number -> module of the payloads that the core decodes.
STORED: Final[Mapping[int, str]] = {ENCODING_JSON: "json_text", ENCODING_MSGPACK: "msgpack", ENCODING_CBOR: "cbor"}


def check(payload: bytes, encoding: int = ENCODING_JSON) -> str | None:
    """Why this payload cannot be taken as one event, or None when it decodes. encoding: one that the core decodes."""
    check_one: Callable[[bytes], str | None] = _function(STORED[encoding], "check")
    return check_one(payload)


def decode(payloads: Iterable[bytes], encoding: int = ENCODING_JSON) -> tuple[list[Readings], list[int]]:
    """The readings of each payload, and the indexes of those that do not decode (an empty object stands for them)."""
    decode_all: Callable[[Iterable[bytes]], tuple[list[Readings], list[int]]] = _function(STORED[encoding], "decode")
    return decode_all(payloads)


@functools.cache
def _function(module: str, function: str) -> Callable[..., Any]:
    """Imported with the first message that needs it: most sites need one encoding."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"headrace.encodings.{module}"), function)
    return found
