"""The events of a trial: what a device sends follows from its name and a number, so that the store can be checked row by row."""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec

DEVICE_PREFIX: Final = "torture-"
#: One message in so many is no event: it has to be refused, and nothing else.
BAD_EVERY: Final = 53
#: The readings that `readings` gives, in the order of `lake`'s columns.
READINGS: Final = ("id", "number", "text", "value", "flag")

_encode = msgspec.json.Encoder().encode


def is_bad(number: int) -> bool:
    """Whether the device sends no event under this number."""
    return number % BAD_EVERY == 0


def readings(device: str, number: int) -> dict[str, Any]:
    """What is to be in the store."""
    check = zlib.crc32(f"{device}/{number}".encode())
    return {
        "id": f"{device}/{number}",
        "number": float(number),
        "text": f'"é\\{check:08x}\u2028',
        "value": check / 1024,
        "flag": check % 2 == 1,
    }


def payload(device: str, number: int) -> str:
    """The message's text."""
    text = _encode(readings(device, number)).decode()
    return text[:-1] if is_bad(number) else text


def named(issued: str) -> tuple[str, int] | None:
    """Device and number of an id; None when it is none of ours."""
    device, slash, number = issued.rpartition("/")
    return (device, int(number)) if slash and number.isdecimal() and device.startswith(DEVICE_PREFIX) else None
