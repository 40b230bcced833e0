"""What every kind of `auth` is to the server: who is it, and does that still hold?"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from headrace_ingest_ws.auth.credential import bearer_token, subprotocols_offered
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.auth.rereading import Rereading


class Guard:
    """Tells who sends. A subclass implements `identify` and `stands`, and `refresh` where it reads anything.

    Whoever changes what `stands` answers raises `generation`, so that open connections are looked at again.
    """

    #: After a look that somebody unknown asked for, the least time to the next one.
    pause_s = 0.25

    def __init__(self) -> None:
        self.generation = 0
        self._oldest = 0  # who was identified before, was so by other rules

    def identify(self, request: web.Request, device: str) -> Identity:
        """Who may write as `device`. Raises NotAuthorized (Unknown where `refresh` may change that) or NotReady. Called for
        every request: no I/O."""
        raise NotImplementedError

    def stands(self, identity: Identity) -> bool:
        """Whether a credential from an earlier generation still holds."""
        raise NotImplementedError

    async def refresh(self) -> None:
        """Read again what changed. Does not raise: see `problem`."""

    def files(self) -> list[Rereading[Any]]:
        """What it reads from files of this machine."""
        return []

    @property
    def problem(self) -> str:
        """Why what this guard knows may be out of date; empty when it is not."""
        return ""

    def why_ended(self, identity: Identity, now: float) -> str | None:
        """Why whoever this is has to go, or None. `now` is Unix time."""
        if identity.expired(now):
            return "credentials expired"
        if identity.generation != self.generation:
            if identity.generation < self._oldest or not self.stands(identity):
                return "credentials revoked"
            identity.generation = self.generation
        return None

    def changed(self) -> None:
        """Other credentials hold from now on."""
        self.generation += 1

    def follow(self, before: Guard, same_rules: bool) -> None:
        """Take the place of another guard: whom that one let in is judged again by this one, or has to come again."""
        self.generation += before.generation + 1
        if not same_rules:
            self._oldest = self.generation


class Open(Guard):
    """`auth = "none"`: everybody is who they say."""

    def identify(self, request: web.Request, device: str) -> Identity:
        return Identity(device, generation=self.generation)

    def stands(self, identity: Identity) -> bool:
        return True


class Bearers(Guard):
    """Base of the kinds that take a bearer token."""

    def identify(self, request: web.Request, device: str) -> Identity:
        headers = request.headers
        token = bearer_token(headers.getall("Authorization", []), subprotocols_offered(headers.getall("Sec-WebSocket-Protocol", [])))
        identity = self.identify_token(token)
        identity.refuse_unless(device)
        identity.generation = self.generation
        return identity

    def identify_token(self, token: str) -> Identity:
        """Whose token this is. Raises NotAuthorized, Unknown or NotReady."""
        raise NotImplementedError
