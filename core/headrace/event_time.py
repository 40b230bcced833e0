"""When an event happened: what a device claims, if it can be believed, else the time of arrival. No I/O."""

from __future__ import annotations

import datetime
import itertools
import re
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.encodings import Readings
from headrace.schema import TIMESTAMP
from headrace.typed_columns import packed

__all__ = [
    "CLOCK_FLOOR_US",
    "NO_TIME",
    "TIME",
    "Claims",
    "ListedClaims",
    "Microseconds",
    "Times",
    "judge",
    "parse_time",
    "read_claims",
    "read_floats",
    "read_integers",
    "take_times",
]

#: The reading that claims a time.
TIME: Final = "ts"

#: Wall clocks before this (the release of this version) are wrong: then `ts` decides, without a window (DELIVERY 24).
CLOCK_FLOOR_US: Final = 1_793_491_200_000_000  # 2026-11-01

#: Stands for no time in arrays of microseconds.
NO_TIME: Final = -(2**63)

#: A number below the bound counts in the unit: 1e11 s is the year 5138, 1e11 ms is 1973.
_EPOCH_UNITS: Final = ((1e11, 1_000_000, 1), (1e14, 1_000, 1), (1e17, 1, 1), (1e20, 1, 1_000))
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)

Microseconds = npt.NDArray[np.int64]


class Times(NamedTuple):
    """The events' times (TIMESTAMP), how many claimed a time outside the window, and how many one that cannot be read."""

    time: pa.Array
    outside: int
    unreadable: int


class Claims(Protocol):
    """The times that events claim, and `microseconds`: what they were read as, NO_TIME where that cannot be."""

    @property
    def microseconds(self) -> Microseconds: ...

    def given_by(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Those of these rows that claim a time."""

    def value(self, row: int) -> Any:
        """What the event claims, as it stands there."""


class ListedClaims(NamedTuple):
    """Claims as they stand there (None: no claim), and read (`read_claims`)."""

    values: list[Any]
    microseconds: Microseconds

    def given_by(self, rows: npt.NDArray[np.int64]) -> list[int]:
        return [row for row in rows.tolist() if self.values[row] is not None]

    def value(self, row: int) -> Any:
        return self.values[row]


def take_times(rows: list[Readings], received: pa.Array, past_max_s: int, future_max_s: int) -> Times:
    """Take `ts` out of the rows where it is believed; elsewhere `received` is the time and `ts` stays a reading."""
    # taken from all rows at once, and given back to the few that are not believed
    claims: list[Any] = list(map(dict.pop, rows, itertools.repeat(TIME), itertools.repeat(None)))
    times, kept = judge(ListedClaims(claims, read_claims(claims)), received, past_max_s, future_max_s)
    for index in kept:
        rows[index][TIME] = claims[index]
    return times


def judge(claims: Claims, received: pa.Array, past_max_s: int, future_max_s: int) -> tuple[Times, list[int]]:
    """The times of events that claim these, and which claims stay readings."""
    # seen as numbers and times, not cast: 30 us each
    arrived, claimed = received.view(pa.int64()).to_numpy(), claims.microseconds
    readable = claimed != NO_TIME
    early, late = arrived - past_max_s * 1_000_000, arrived + future_max_s * 1_000_000
    believed = readable & ((arrived < CLOCK_FLOOR_US) | ((claimed >= early) & (claimed <= late)))
    kept = claims.given_by(np.flatnonzero(~believed))
    outside = int(readable.sum()) - int(believed.sum())
    time = pa.array(np.where(believed, claimed, arrived), pa.int64()).view(TIMESTAMP)
    return Times(time, outside, len(kept) - outside), kept


def read_claims(claims: list[Any]) -> Microseconds:
    """`parse_time` of all claims, NO_TIME where it finds none; numbers all at once."""
    there = set(map(type, claims))
    if there == {float}:
        return read_floats(packed(claims))
    if there == {int}:
        return _of_integers(claims)
    claimed = np.full(len(claims), NO_TIME, np.int64)
    kinds = list(map(type, claims))
    for kind, of_kind in ((float, lambda some: read_floats(np.array(some))), (int, _of_integers), (str, _one_by_one)):
        if kind in there:
            indexes = [index for index, one in enumerate(kinds) if one is kind]
            claimed[indexes] = of_kind([claims[index] for index in indexes])
    return claimed


def read_floats(claims: npt.NDArray[np.float64]) -> Microseconds:
    """`parse_time` of floats, NO_TIME where it finds none."""
    size = np.abs(claims)
    claimed = np.full(len(claims), NO_TIME, np.int64)
    least = -1.0
    for bound, times, over in _EPOCH_UNITS:
        among = (size < bound) & (size >= least)  # NaN is in none
        if among.all():
            whole: Microseconds = np.rint(claims * times / over).astype(np.int64)
            return whole
        if among.any():
            claimed[among] = np.rint(claims[among] * times / over).astype(np.int64)
        least = bound
    return claimed


def _of_integers(claims: list[int]) -> Microseconds:
    try:
        return read_integers(np.array(claims, np.int64))
    except OverflowError:
        return _one_by_one(claims)


def read_integers(claims: npt.NDArray[np.int64]) -> Microseconds:
    """`parse_time` of whole numbers."""
    claimed = np.empty(len(claims), np.int64)
    least = 0
    for bound, times, over in _EPOCH_UNITS:
        most = int(bound)  # beyond what these numbers can be in the end
        among = (claims < most) & (claims > -most) & ~((claims < least) & (claims > -least))
        if among.all():
            return claims * times // over
        claimed[among] = claims[among] * times // over
        least = most
    return claimed


def _one_by_one(claims: list[Any]) -> Microseconds:
    return np.array([NO_TIME if us is None else us for us in map(parse_time, claims)], np.int64)


def parse_time(claim: object) -> int | None:
    """A claimed time (`ts`) in microseconds since the epoch, or None when it cannot be read."""
    kind = type(claim)
    if kind is int or kind is float:
        return _epoch_us(claim)  # type: ignore[arg-type]
    return _rfc3339_us(claim) if isinstance(claim, str) else None


def _epoch_us(number: float) -> int | None:
    size = abs(number)
    for bound, times, over in _EPOCH_UNITS:
        if size < bound:
            # an integer stays one: a float has no microseconds left at 1e15
            return number * times // over if isinstance(number, int) else round(number * times / over)
    return None


def _rfc3339_us(text: str) -> int | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        try:  # what is finer than microseconds is cut, not refused
            moment = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        except ValueError:
            return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // _MICROSECOND
