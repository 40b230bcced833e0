"""The same events over POST: a body is taken or refused, and answered when it is durable."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace import ENCODING_JSON
from headrace_ingest_ws.auth.gateway import devices_of
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.message import events_of, lines_of
from headrace_ingest_ws.protocol import NOT_AUTHORIZED, TOO_LARGE, Refusal

NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
#: What clients that never heard of a content type send; the body has to be JSON all the same.
JSON_TYPES: Final = frozenset({"application/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"})


class Post:
    """A POST as a peer of the intake: one message, answered when it is settled."""

    def __init__(self) -> None:
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settled(self, last: int) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def fail(self) -> None:
        """The intake stopped: nobody knows whether the message is durable."""
        self._settled.cancel()

    async def durable(self, intake: Intake, device: str, body: Body, wait_s: float) -> bool:
        """Hand the events over; True when they are durable, False when nobody can tell, or not within `wait_s`."""
        intake.add(self, 1, device, ENCODING_JSON, body.events, body.devices)
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.shield(self._settled)
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if not self._settled.cancelled():
                raise  # the request itself was cancelled
            return False
        return True


class Body:
    """What a body holds: the events taken, and what was refused, each by its item's index (a line's, or an array's)."""

    def __init__(self, identity: Identity) -> None:
        self.events: list[bytes] = []
        self.refused: list[Refusal] = []
        self.identity = identity
        #: One for each event, where the sender is a gateway.
        self.devices: list[str] | None = None if identity.gateway is None else []

    def take(self, events: list[bytes]) -> Refusal | None:
        """Take one message's events, or say why they are refused."""
        if self.devices is not None:
            devices = devices_of(events, self.identity)
            if isinstance(devices, Refusal):
                return devices
            self.devices += devices
        self.events += events
        return None

    def answer(self) -> bytes:
        rejected: list[dict[str, Any]] = [refusal.fields() for refusal in self.refused]
        return msgspec.json.encode({"accepted": len(self.events), "rejected": rejected})

    @property
    def too_large(self) -> bool:
        return any(refusal.code == TOO_LARGE for refusal in self.refused)


def read_body(body: bytes, content_type: str, events_max: int, identity: Identity) -> Body:
    """The events of a body. An object or array is one message, and atomic; each line of NDJSON is a message of its own."""
    result = Body(identity)
    if content_type not in NDJSON_TYPES:
        _take(result, events_of(body, events_max), None)
        return result
    lines = lines_of(body, events_max)
    if isinstance(lines, Refusal):
        result.refused.append(lines)
        return result
    for index, line in lines:
        _take(result, events_of(line, events_max - len(result.events)), index)
    return result


def _take(body: Body, events: list[bytes] | Refusal, line: int | None) -> None:
    refusal = events if isinstance(events, Refusal) else body.take(events)
    if refusal is not None:
        body.refused.append(refusal if line is None else refusal._replace(at=line))


def answer_status(body: Body) -> int:
    """200 when anything was taken; else 403, 413 or 400."""
    if body.events:
        return 200
    if any(refusal.code == NOT_AUTHORIZED for refusal in body.refused):
        return 403
    return 413 if body.too_large else 400


def content_type_problem(request: web.Request) -> str | None:
    """Why this body cannot be read, or None."""
    if "Content-Encoding" in request.headers:
        return "expected a body without Content-Encoding"
    kind = request.content_type
    if kind in NDJSON_TYPES or kind in JSON_TYPES:
        return None
    return f"expected application/json or application/x-ndjson, got {kind}"
