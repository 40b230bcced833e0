"""How many sockets may be open, in all and per address, counted from accept on, and how fast an address may open new ones. No I/O."""

from __future__ import annotations

import ipaddress
from typing import Final

#: An IPv6 customer has a /64 at least, so single addresses of it mean nothing.
_V6_PREFIX_BYTES: Final = 8

#: An address may open so many seconds' worth of sockets at once after a pause: the devices of a house come back together.
ARRIVALS_BURST_S: Final = 10.0

#: Addresses of which the arrivals are remembered; beyond it the one that came longest ago is forgotten, and may come at once again.
ADDRESSES_MAX: Final = 65_536


def address_key(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 address lies in."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(address.packed[:_V6_PREFIX_BYTES].ljust(16, bytes(1)))}/64"


class Place:
    """The place of one socket; given back when the socket is gone."""

    __slots__ = ("_address", "_places", "_waiting")

    def __init__(self, places: Places, address: str) -> None:
        self._places: Places | None = places
        self._address, self._waiting = address, True

    def upgraded(self) -> None:
        """The socket is a WebSocket connection from here on, which has a bound of its own."""
        if self._places is not None and self._waiting:
            self._waiting = False
            self._places.waiting -= 1

    def give_back(self) -> None:
        """The socket is gone. Repeatable."""
        places, self._places = self._places, None
        if places is not None:
            places._leave(self._address, self._waiting)


class Places:
    """Places for sockets. `waiting` counts those that are no WebSocket connection, at most `waiting_max` of them."""

    def __init__(self, waiting_max: int, per_address_max: int) -> None:
        self.waiting, self.sockets = 0, 0
        self._waiting_max, self._per_address_max = waiting_max, per_address_max
        self._by_address: dict[str, int] = {}  # as long as there are sockets

    @property
    def full(self) -> bool:
        """True when one of the waiting has to leave before another may come."""
        return self.waiting >= self._waiting_max

    def take(self, host: str) -> Place | None:
        """A place for a socket from this IP address; None when the address has all that one may have."""
        address = address_key(host)
        taken = self._by_address.get(address, 0)
        if self._per_address_max and taken >= self._per_address_max:
            return None
        self._by_address[address] = taken + 1
        self.waiting += 1
        self.sockets += 1
        return Place(self, address)

    def _leave(self, address: str, waiting: bool) -> None:
        self.sockets -= 1
        self.waiting -= waiting
        if (left := self._by_address[address] - 1) > 0:
            self._by_address[address] = left
        else:
            del self._by_address[address]


class Arrivals:
    """How fast each address may open new sockets: `per_s`, and ARRIVALS_BURST_S of that at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._burst = per_s, max(1.0, per_s * ARRIVALS_BURST_S)
        self._levels: dict[str, tuple[float, float]] = {}  # level and time of the last arrival, that of longest ago first

    def wait_s(self, host: str, now: float) -> float:
        """0: this address may come, and has done so. Else for so long it may not."""
        address = address_key(host)
        level, at = self._levels.pop(address, (self._burst, now))
        level = min(self._burst, level + self._per_s * (now - at))
        self._levels[address] = (level - 1 if level >= 1 else level, now)
        self._forget(now)
        return 0.0 if level >= 1 else (1 - level) / self._per_s

    def _forget(self, now: float) -> None:
        """Drop at most two addresses, one more than came, that are as good as new."""
        full_s = self._burst / self._per_s
        for _ in range(2):
            address, (_, at) = next(iter(self._levels.items()))
            if now - at < full_s and len(self._levels) <= ADDRESSES_MAX:
                return
            del self._levels[address]
            if not self._levels:
                return
