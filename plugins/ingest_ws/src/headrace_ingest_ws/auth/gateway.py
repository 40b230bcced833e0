"""For which device each event of a gateway is. Only gateways pay for looking into their events. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace import ENCODING_JSON
from headrace.encodings import decode
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.protocol import NOT_AUTHORIZED, PAYLOAD_INVALID, Refusal, device_problem


class _Named(msgspec.Struct):
    device: str | msgspec.UnsetType = msgspec.UNSET


_named = msgspec.json.Decoder(_Named).decode


def devices_of(events: Sequence[bytes], identity: Identity, encoding: int = ENCODING_JSON) -> list[str] | Refusal:
    """The device of each event of one message: its member `device`, or the gateway itself where there is none.

    Refused whole for one event that the credentials do not allow.
    """
    devices = []
    for index, event in enumerate(events):
        device = device_of(event, index, identity, encoding)
        if isinstance(device, Refusal):
            return device._replace(events=len(events))
        devices.append(device)
    return devices


def device_of(event: bytes, index: int, identity: Identity, encoding: int = ENCODING_JSON) -> str | Refusal:
    """The device of one event. index: its own in what was sent, for the refusal."""
    try:
        device = _named(event).device if encoding == ENCODING_JSON else _device_in(event, encoding)
    except msgspec.DecodeError:
        return _refused(PAYLOAD_INVALID, index, "expected `device` to be a string")
    if device is msgspec.UNSET or device == identity.name:
        return identity.name
    if problem := device_problem(device):
        return _refused(PAYLOAD_INVALID, index, f"`device`: {problem}")
    if identity.gateway is None or not identity.gateway.allow(device):
        return _refused(NOT_AUTHORIZED, index, f"this gateway may not write for {device!r}")
    return device


def _device_in(event: bytes, encoding: int) -> str | msgspec.UnsetType:
    """Raises ValidationError, as the decoder for JSON does."""
    (readings,), _ = decode([event], encoding)
    device: str | msgspec.UnsetType = readings.get("device", msgspec.UNSET)
    if device is not msgspec.UNSET and not isinstance(device, str):
        raise msgspec.ValidationError("expected a string")
    return device


def _refused(code: str, index: int, reason: str) -> Refusal:
    return Refusal(code, f"event {index}: {reason}", index)
