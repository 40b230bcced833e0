"""What readers of JSON to columns have in common. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pyarrow as pa

from headrace.event_time import Claims
from headrace.reading_columns import Gathered

__all__ = ["Members", "Reader", "Typed", "leaves"]

#: An object that is expected: by name the kind of a member, or its own members.
Members = dict[str, "str | Members"]


class Typed(NamedTuple):
    """What was read: the values by name, the times that the events claim, and which payloads do not decode."""

    gathered: Gathered
    claims: Claims
    bad: list[int]


class Reader(Protocol):
    """Reads batches of events that are expected to have these members, none of them a time."""

    #: A batch with more names goes the general way.
    names_max: int
    #: Batches that go the general way after one in which too many events were not as expected.
    rest_batches: int

    def __init__(self, expected: Members) -> None: ...

    def read(self, payloads: pa.BinaryArray) -> Typed | None:
        """All payloads; None where they are to be read the general way: too many are odd, or one has several readings below `ts`."""


def leaves(members: Members, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The readings, by their dotted names, and their kinds."""
    for name, kind in members.items():
        if isinstance(kind, dict):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind
