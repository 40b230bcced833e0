"""How much each device may send: events and bytes per second, over all its connections and POSTs together. No I/O.

A message passes while both of its device's levels are above zero, and then lowers them by what it holds, maybe to below zero.
So a message is never too large to pass, and in the long run nobody gets more than the rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

#: Devices that are remembered while they have no connection. Beyond it one is forgotten early, and may send a burst again.
DEVICES_MAX: Final = 65_536

#: Remembered devices looked at in one call of `sweep`, and for one that has to go: 0.4 ms of work.
LOOKED_AT_MAX: Final = 1024


class Limit(NamedTuple):
    """The rates of one device, inf for none, and for how many seconds' worth of them it may send at once."""

    events_per_s: float
    bytes_per_s: float
    burst_s: float


def limit_of(events_per_s: float, bytes_per_s: float, burst_s: float) -> Limit | None:
    """The limit that two options set, where 0 is none; None when both are."""
    if not events_per_s and not bytes_per_s:
        return None
    return Limit(events_per_s or math.inf, bytes_per_s or math.inf, burst_s)


class Levels(Protocol):
    """What one device may send at the moment `now`; gather.c takes from it too where it takes messages itself."""

    events: float
    bytes: float
    now: float


class PythonLevels:
    """Levels that nobody else takes from."""

    __slots__ = ("bytes", "events", "now")

    def __init__(self, _limit: Limit) -> None:
        self.events = self.bytes = self.now = 0.0


class Rate:
    """What one device may send now."""

    __slots__ = ("_limit", "connections", "levels")

    def __init__(self, limit: Limit, now: float, levels_of: Callable[[Limit], Levels] = PythonLevels) -> None:
        self._limit = limit
        self.levels = levels = levels_of(limit)
        levels.now = now
        levels.events, levels.bytes = limit.events_per_s * limit.burst_s, limit.bytes_per_s * limit.burst_s
        self.connections = 0

    def _refill(self, now: float) -> Levels:
        limit, levels = self._limit, self.levels
        if (passed_s := now - levels.now) > 0:
            levels.now = now
            levels.events = min(limit.events_per_s * limit.burst_s, levels.events + limit.events_per_s * passed_s)
            levels.bytes = min(limit.bytes_per_s * limit.burst_s, levels.bytes + limit.bytes_per_s * passed_s)
        return levels

    def take(self, events: int, size: int, now: float) -> bool:
        """Take so much when all of it fits; else nothing."""
        levels = self._refill(now)
        if levels.events < events or levels.bytes < size:
            return False
        levels.events -= events
        levels.bytes -= size
        return True

    def wait_ms(self, now: float) -> int:
        """0 when a message may pass, else after how many milliseconds one may."""
        levels = self._refill(now)
        events, size = levels.events, levels.bytes
        if events > 0 and size > 0:
            return 0
        for_events_s = -events / self._limit.events_per_s if events <= 0 else 0.0
        for_bytes_s = -size / self._limit.bytes_per_s if size <= 0 else 0.0
        return int(max(for_events_s, for_bytes_s) * 1000) + 1

    def charge(self, events: int, size: int) -> None:
        """A message of so much has passed."""
        self.levels.events -= events
        self.levels.bytes -= size

    def full(self, now: float) -> bool:
        """True when the device may send all that anybody may: nothing about it has to be remembered."""
        levels, limit = self._refill(now), self._limit
        return levels.events >= limit.events_per_s * limit.burst_s and levels.bytes >= limit.bytes_per_s * limit.burst_s

    def reason(self) -> str:
        """For people: which limit stands in the way."""
        limit = self._limit
        if self.levels.events <= 0:
            return f"more than {limit.events_per_s:g} events/s"
        return f"more than {limit.bytes_per_s:g} bytes/s"


class Rates:
    """The rates of all devices, of which the idle ones are forgotten."""

    def __init__(self, limit: Limit, devices_max: int = DEVICES_MAX, levels_of: Callable[[Limit], Levels] = PythonLevels) -> None:
        """levels_of: makes the levels of a device, `Gatherer.levels` where C takes messages."""
        self._limit, self._devices_max, self._levels_of = limit, devices_max, levels_of
        self._rates: dict[str, Rate] = {}  # those looked at longest ago come first

    def __len__(self) -> int:
        return len(self._rates)

    def of(self, device: str, now: float) -> Rate:
        """The rate of a device, for one POST."""
        rate = self._rates.get(device)
        if rate is None:
            if len(self._rates) >= self._devices_max:
                self._forget_one()
            rate = self._rates[device] = Rate(self._limit, now, self._levels_of)
        return rate

    def enter(self, device: str, now: float) -> Rate:
        """The rate of a device for a connection, until `leave`."""
        rate = self.of(device, now)
        rate.connections += 1
        return rate

    def leave(self, rate: Rate) -> None:
        """A connection of this device is gone."""
        rate.connections -= 1

    def sweep(self, now: float) -> None:
        """Forget devices that are idle, looking at some of them; to be called about once a second."""
        rates = self._rates
        for device in list(_first(rates, LOOKED_AT_MAX)):
            rate = rates.pop(device)
            if rate.connections or not rate.full(now):
                rates[device] = rate

    def _forget_one(self) -> None:
        for device in _first(self._rates, LOOKED_AT_MAX):
            if not self._rates[device].connections:
                del self._rates[device]
                return


def _first(rates: dict[str, Rate], count: int) -> list[str]:
    return [device for device, _ in zip(rates, range(count), strict=False)]
