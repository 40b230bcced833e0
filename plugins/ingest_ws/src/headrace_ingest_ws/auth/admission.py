"""Puts TLS and the guard together: made from the config, read at the start, watched, and read again on demand."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from typing import Any, Final, Protocol

from aiohttp import web

from headrace import ConfigError, Context, TransientError
from headrace_ingest_ws.auth.certificates import CertificateFiles, Certificates
from headrace_ingest_ws.auth.guard import Guard, Open
from headrace_ingest_ws.auth.identity import Identity, NotReady
from headrace_ingest_ws.auth.rereading import LOOK_S, Rereading
from headrace_ingest_ws.config import IngestWsConfig

#: How often connections are asked whether their credentials still hold.
ASK_S: Final = 1.0

#: How many requests may wait for a look at once, and for how long. A quarter of `handshakes_max` at most, or unknown tokens
#: would keep honest devices out.
WAITING_MAX: Final = 256
WAIT_S: Final = 5.0


class Door(Protocol):
    """What the server does at our word."""

    def accept_with(self, tls: ssl.SSLContext | None) -> None:
        """New connections shake hands with this context; those that are there stay."""

    async def end_unauthorized(self, guard: Guard, now: float) -> None:
        """Close every connection whose credentials do not hold any more."""


class Admission:
    """Who may come in, by one config. `open`, then `watch` while the server serves; `refresh` at any time."""

    def __init__(self, config: IngestWsConfig, context: Context) -> None:
        """Raises ConfigError where this kind of auth can never work here."""
        self._context, self._config = context, config
        self._certificates: Rereading[Certificates] | None = None
        if config.tls is not None:
            mtls = config.mtls if config.auth == "mtls" else None
            self._certificates = Rereading(CertificateFiles(config.tls, mtls), "certificates", context, self._new_certificates)
        self.guard = _guard(config, context, self._certificates)
        self._door: Door | None = None
        self._looking = asyncio.Lock()
        self._told = ""
        self._waiting_max = min(WAITING_MAX, config.handshakes_max // 4 + 1)
        self._waiting = 0  # requests that wait for the next look
        self._wanted = asyncio.Event()
        self._next: asyncio.Future[None] | None = None  # done after the next look; None while nobody waits for it

    @classmethod
    def check(cls, config: IngestWsConfig, context: Context) -> list[str]:
        """What `headrace check` should report: libraries that are missing, files that cannot be read. Asks no database."""
        try:
            admission = cls(config, context)
        except ConfigError as error:
            return [f"{error.path}: expected {error.expected}, got {error.came}"]
        return [problem for reading in admission._files() if (problem := reading.trial())]

    @property
    def tls(self) -> ssl.SSLContext | None:
        """For new connections."""
        return self._certificates.value.context if self._certificates is not None and self._certificates.value is not None else None

    @property
    def problem(self) -> str:
        """Why what we know may be out of date; empty when it is not."""
        certificates = self._certificates.problem if self._certificates is not None else ""
        return "; ".join(filter(None, (certificates, self.guard.problem)))

    def identify(self, request: web.Request, device: str) -> Identity:
        """Who may write as `device`. Raises NotAuthorized, NotReady, or Unknown: worth another try after `look_again`."""
        return self.guard.identify(request, device)

    async def look_again(self) -> None:
        """Wait for a look that begins after this call: a token may be used in the moment in which it was added.

        All who wait share one look, and after it comes a pause, so whoever tries invalid tokens causes a few looks a second at
        most. Raises NotReady where nobody can look now, for then nobody can say that the credentials do not hold.
        """
        if self._door is None or self._waiting >= self._waiting_max:
            raise NotReady("too many unknown credentials at a time")
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._wanted.set()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(self._next)
        except TimeoutError:
            raise NotReady("the credentials take long to read") from None
        finally:
            self._waiting -= 1
        if self.guard.problem:
            raise NotReady("unknown, and credentials cannot be read now")

    def _files(self) -> list[Rereading[Any]]:
        return [*([self._certificates] if self._certificates is not None else []), *self.guard.files()]

    async def open(self) -> None:
        """Read everything. Without its certificate a server cannot start; without tokens or keys it says 503."""
        await self.refresh()
        if self._certificates is not None and self._certificates.value is None:
            raise TransientError(self._certificates.problem)

    async def refresh(self) -> None:
        """Read again what changed, and let it count. Does not raise: see `problem`."""
        async with self._looking:
            served, self._next = self._next, None  # who comes from now on needs another look
            self._wanted.clear()
            try:
                await self._read()
            finally:
                if served is not None:
                    served.set_result(None)
        self._tell()

    async def _read(self) -> None:
        if self._certificates is not None:
            await self._certificates.refresh()
        await self.guard.refresh()  # last: a database may take its time

    async def change(self, config: IngestWsConfig) -> None:
        """Take the credentials of another config with the same `auth`. Raises ConfigError, and then all is as before."""
        fresh = Admission(config, self._context)
        await fresh._read()
        if fresh.problem:
            raise ConfigError("config", config.auth, "credentials that can be read", fresh.problem)
        async with self._looking:
            fresh.guard.follow(self.guard, _rules(config) == _rules(self._config))
            self._config, self._certificates, self.guard = config, fresh._certificates, fresh.guard
            if self._certificates is not None:
                self._certificates.changed = self._new_certificates
            if self._door is not None:
                self._door.accept_with(self.tls)
        self._tell()

    async def watch(self, door: Door) -> None:
        """Look for changes, and send away whose credentials ended, until cancelled."""
        self._door = door
        door.accept_with(self.tls)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look())
                tasks.create_task(self._look_when_wanted())
                await self._ask(door)
        finally:
            self._door = None

    async def _look(self) -> None:
        while True:
            await self._context.clock.sleep(LOOK_S)
            await self.refresh()

    async def _look_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            await self.refresh()
            await self._context.clock.sleep(self.guard.pause_s)

    async def _ask(self, door: Door) -> None:
        clock = self._context.clock
        while True:
            await clock.sleep(ASK_S)
            await door.end_unauthorized(self.guard, clock.wall())

    def _new_certificates(self) -> None:
        if self._door is not None:
            self._door.accept_with(self.tls)
        self.guard.changed()
        assert self._certificates is not None
        assert self._certificates.value is not None
        expires = self._certificates.value.expires
        if expires is not None:
            metrics = self._context.metrics
            metrics.gauge("ingest_certificate_expiry_timestamp_seconds", "when the server's certificate expires").set(expires)
        self._context.log.info("certificates read", expires=expires and rfc3339(expires))

    def _tell(self) -> None:
        if self.problem != self._told:
            self._told = self.problem
            self._context.status("degraded" if self._told else "ok", self._told)


def rfc3339(seconds: float) -> str:
    """Unix time for people."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _rules(config: IngestWsConfig) -> object:
    return [table.rules for table in (config.jwt, config.mtls) if table is not None]


def _guard(config: IngestWsConfig, context: Context, certificates: Rereading[Certificates] | None) -> Guard:
    """The guard of the config's `auth`. Raises ConfigError where a library that it needs cannot be imported."""
    try:
        if config.auth == "tokens":
            from headrace_ingest_ws.auth.token_guard import TokenGuard

            assert config.tokens is not None
            return TokenGuard(config.tokens, context)
        if config.auth == "jwt":
            from headrace_ingest_ws.auth.jwt_guard import JwtGuard

            assert config.jwt is not None
            return JwtGuard(config.jwt, context)
        if config.auth == "mtls":
            from headrace_ingest_ws.auth.mtls_guard import MtlsGuard

            assert config.mtls is not None
            assert certificates is not None
            return MtlsGuard(config.mtls, certificates, context.clock)
    except ImportError as error:
        raise ConfigError(
            "config", "auth", f'the libraries that auth = "{config.auth}" needs', f"none that can be imported ({error})",
            "pip install 'PyJWT[crypto]'",
        ) from error  # fmt: skip
    return Open()
