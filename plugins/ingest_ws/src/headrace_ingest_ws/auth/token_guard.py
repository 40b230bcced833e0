"""`auth = "tokens"`: random tokens, of which a file or a database holds the hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import ConfigError, Context
from headrace_ingest_ws.auth.guard import Bearers
from headrace_ingest_ws.auth.identity import Identity, NotReady
from headrace_ingest_ws.auth.options import TokensOptions
from headrace_ingest_ws.auth.rereading import LOOK_S, Rereading, Unreadable
from headrace_ingest_ws.auth.token_file import TokenFile, replace_file
from headrace_ingest_ws.auth.tokens import TokenSet

if TYPE_CHECKING:  # it needs SQLAlchemy, which a file does not
    from headrace_ingest_ws.auth.token_database import TokenDatabase


class TokenGuard(Bearers):
    """Looks tokens up in memory; the file or database is read beside, never for a request."""

    def __init__(self, options: TokensOptions, context: Context) -> None:
        super().__init__()
        self._context = context
        origin = token_origin(options)
        self._tokens: Rereading[TokenSet] = Rereading(origin, "tokens", context, self._took)
        # A database may be away when we start, and devices must not be: the last set is kept, hashes only.
        self._kept = TokenFile(context.shared_dir / f"tokens-{_mark(origin.name)}.csv") if options.database else None
        self._unsaved = False
        if options.database:
            self.pause_s = LOOK_S

    def identify_token(self, token: str) -> Identity:
        tokens = self._tokens.value
        if tokens is None:
            raise NotReady
        return tokens.identify(token)

    def stands(self, identity: Identity) -> bool:
        tokens = self._tokens.value
        return tokens is None or tokens.holds(identity)

    def files(self) -> list[Rereading[Any]]:
        return [self._tokens] if self._kept is None else []

    @property
    def problem(self) -> str:
        return self._tokens.problem

    async def refresh(self) -> None:
        await self._tokens.refresh()
        if self._kept is None:
            return
        if self._tokens.value is None:
            await self._take_kept(self._kept)
        elif self._unsaved and not self._tokens.problem:
            await self._keep(self._kept)

    def _took(self) -> None:
        self._unsaved = True
        self.changed()
        assert self._tokens.value is not None
        self._context.log.info("tokens read", tokens=len(self._tokens.value))

    async def _take_kept(self, kept: TokenFile) -> None:
        try:
            tokens = await self._context.call_blocking(kept.read)
        except Unreadable:
            return
        self._context.log.warning("tokens of an earlier run are used, the database cannot be read", tokens=len(tokens))
        self._tokens.take(tokens)
        self._unsaved = False

    async def _keep(self, kept: TokenFile) -> None:
        assert self._tokens.value is not None
        self._unsaved = False  # one try a change: what matters is in the database
        try:
            await self._context.call_blocking(replace_file, kept.path, self._tokens.value.records())
        except OSError as error:
            self._context.log.warning("tokens cannot be kept for a start without the database", error=str(error))


def _mark(database: str) -> str:
    """So that what one database said is never taken for what another says."""
    return hashlib.sha256(database.encode()).hexdigest()[:12]


def token_origin(options: TokensOptions) -> TokenFile | TokenDatabase:
    """The file, or the database. Raises ConfigError where it can never be read here."""
    if options.file:
        return TokenFile(Path(options.file))
    try:
        from headrace_ingest_ws.auth.token_database import TokenDatabase
    except ImportError as error:
        came = f"none that can be imported ({error})"
        raise ConfigError("config", "tokens.database", "the library SQLAlchemy", came, "pip install SQLAlchemy") from error
    try:
        database = TokenDatabase(options.database.reveal(), options.connect_timeout_s)
    except ValueError as error:
        raise ConfigError("config", "tokens.database", "the URL of a database", str(error)) from None
    if problem := database.driver_problem():
        raise ConfigError("config", "tokens.database", "a database whose driver is installed", problem)
    return database
