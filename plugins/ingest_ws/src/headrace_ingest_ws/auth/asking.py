"""When open connections have to be asked again whether their credentials still hold. No I/O.

Nearly always nothing can have changed since they were asked, and to ask ten thousand of them for nothing takes as long as hundreds of
messages, each second.
"""

from __future__ import annotations

from math import inf

from headrace_ingest_ws.auth.guard import Guard
from headrace_ingest_ws.auth.identity import Identity


class Asking:
    """Knows by which generation of a guard all connections were judged, and when the first credentials expire."""

    def __init__(self) -> None:
        self._generation = -1  # none
        self._expires = inf

    def came(self, identity: Identity) -> None:
        """A connection of this identity is there now, or was asked."""
        if identity.expires is not None:
            self._expires = min(self._expires, identity.expires)
        if identity.generation < self._generation:  # it was let in by what held before, and waited for something since
            self._generation = -1

    def due(self, guard: Guard, now: float) -> bool:
        """Whether all have to be asked. `now` is Unix time."""
        return guard.generation != self._generation or now >= self._expires

    def begins(self, guard: Guard) -> None:
        """All are asked now; `came` is told of each that stays."""
        self._generation, self._expires = guard.generation, inf
