"""The connections of a listening socket, as far as libzmq tells of them: who has said nothing yet, whom to cut. No I/O.

libzmq accepts whoever comes, and has no bound of its own. A connection counts as *silent* until its peer has said something
that belongs here; silent ones are cut, the oldest first, when there are too many of them.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

#: A newcomer has this long before it may be cut for want of places; a handshake takes milliseconds.
GRACE_S: Final = 1.0
#: Messages that are none of ours before whoever said nothing else is cut.
NONSENSE_MAX: Final = 16
#: Subscriptions that one connection may have; libzmq keeps each for as long as it lives.
SUBSCRIPTIONS_MAX: Final = 8192


class Connections:
    """By file descriptor. Methods that give a list want these descriptors to be shut down; `closed` follows."""

    def __init__(self, silent_max: int, connections_max: int, mute: bool = False) -> None:
        """silent_max: of those that said nothing for GRACE_S; connections_max: of all together. mute: nobody can be heard (RADIO), so
        that silence is no sign; who does not shake hands is cut by libzmq, and all together are bounded."""
        self._silent_max, self._connections_max, self._mute = silent_max, connections_max, mute
        # each fd is in one of these; dicts keep the order in which they came
        self._silent: dict[int, float] = {}
        self._speaking: dict[int, bytes] = {}
        self._doomed: dict[int, str] = {}
        self._nonsense: dict[int, int] = {}
        self._subscriptions: dict[int, int] = {}
        self._failure = ""

    def __len__(self) -> int:
        return len(self._silent) + len(self._speaking)

    def accepted(self, fd: int, now: float) -> list[int]:
        """Somebody came."""
        if self._mute:
            self._speaking[fd] = b""
        else:
            self._silent[fd] = now
        return self.crowding(now)

    def failing(self, reason: str) -> None:
        """A handshake failed; whose it was comes with `closed`, the next thing that libzmq tells."""
        self._failure = reason

    def spoke(self, fd: int, key: bytes) -> None:
        """The peer behind it belongs here, by this key (empty where there are none)."""
        if self._silent.pop(fd, None) is not None or fd in self._speaking:
            self._speaking[fd] = key

    def nonsense(self, fd: int) -> list[int]:
        """It sent what is no message of ours."""
        if fd not in self._silent:
            return []  # a link with a damaged frame begins a new session
        self._nonsense[fd] = self._nonsense.get(fd, 0) + 1
        return [self._cut(fd, "nonsense")] if self._nonsense[fd] >= NONSENSE_MAX else []

    def subscribed(self, fd: int, change: int) -> list[int]:
        """It has a subscription more (1) or less (-1)."""
        if fd not in self._speaking:
            return []
        self._subscriptions[fd] = count = self._subscriptions.get(fd, 0) + change
        return [self._cut(fd, "subscriptions")] if count > SUBSCRIPTIONS_MAX else []

    def closed(self, fd: int) -> str:
        """It is gone. Why it was not let in, or was cut; empty for a peer that went by itself."""
        failure, self._failure = self._failure, ""
        self._nonsense.pop(fd, None)
        self._subscriptions.pop(fd, None)
        if (reason := self._doomed.pop(fd, "")) or self._speaking.pop(fd, None) is not None:
            return reason or (failure if self._mute else "")
        return failure or "silent" if self._silent.pop(fd, None) is not None else failure

    def crowding(self, now: float) -> list[int]:
        """Those to be cut because there are too many."""
        doomed = []
        while len(self._silent) > self._silent_max and now - next(iter(self._silent.values())) >= GRACE_S:
            doomed.append(self._cut(next(iter(self._silent)), "crowded"))
        while len(self) > self._connections_max:
            doomed.append(self._cut(next(iter(self._silent or self._speaking)), "crowded"))
        return doomed

    def revoked(self, allowed: Container[bytes]) -> list[int]:
        """Those to be cut after keys were taken from the list: theirs, and those who have not shown theirs by a message yet."""
        doomed = [*self._silent, *(fd for fd, key in self._speaking.items() if key not in allowed)]
        return [self._cut(fd, "revoked") for fd in doomed]

    def _cut(self, fd: int, reason: str) -> int:
        self._silent.pop(fd, None)
        self._speaking.pop(fd, None)
        self._doomed[fd] = reason
        return fd
