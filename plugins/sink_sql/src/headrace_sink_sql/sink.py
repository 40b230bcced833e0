"""The output `sink_sql`: rows go to the database as they come; a flush commits them, with the position that they reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import pyarrow as pa
import sqlalchemy as sa

from headrace import Component, Context, PermanentError, RangeKey, StoreCalls, TransientError, hookimpl
from headrace_sink_sql import fitting, verdict
from headrace_sink_sql.config import SqlConfig
from headrace_sink_sql.database import Database
from headrace_sink_sql.mysql import Mysql
from headrace_sink_sql.postgres import Postgres
from headrace_sink_sql.rendering import has_odd_lines, render

T = TypeVar("T")
#: Rows that are rendered at a time: small, so that the server has work while the next are made.
PIECE_ROWS: Final = 2048
#: What a database raises: by SQLAlchemy, by psycopg itself (COPY), by the sockets, and OverflowError of drivers.
DATABASE_ERRORS: Final = (sa.exc.SQLAlchemyError, psycopg.Error, OSError, OverflowError)
#: By SQLAlchemy's name of the backend; the others are a Database.
DATABASES: Final[dict[str, type[Database]]] = {"postgresql": Postgres, "mysql": Mysql, "mariadb": Mysql}


class SinkSql(Component):
    """Stores events in a table, effectively once. README.md has the guarantees."""

    class Config(SqlConfig, frozen=True):
        """The options of sink_sql."""

    many_workers = True
    idempotence = "event"
    fault_points = ("sink_sql.after_write", "sink_sql.before_commit", "sink_sql.after_commit")

    def __init__(self, config: SqlConfig, context: Context) -> None:
        super().__init__(config, context)
        self._database: Database | None = None
        self._ends: dict[str, int | None] = {}
        self._merge = False
        self._calls = StoreCalls(context, DATABASE_ERRORS, self._failure)
        postgres = sa.make_url(config.database.reveal()).get_backend_name() == "postgresql"
        self._timeout_s = config.unanswered_s if postgres else None
        self._duplicates = context.metrics.counter("sql_duplicate_events_total", "Events left out because the table held them already.")

    async def open(self) -> None:
        """Connect; create the table, or see that it fits. TransientError says what is wrong with it, and the DDL that mends it."""
        await self._call("open", self._open)
        self._calls.healed()

    async def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.cancel()  # another thread may wait there
            await self._calls.quietly(database.close)

    def check(self) -> list[str]:
        """A URL without a driver, a SQLite file in no folder."""
        url = sa.make_url(self.config.database.reveal())
        try:
            dialect = (
                url.get_dialect() if url.get_backend_name() != "postgresql" else url.set(drivername="postgresql+psycopg").get_dialect()
            )
            dialect.import_dbapi()
        except (sa.exc.NoSuchModuleError, ImportError) as error:
            return [f"database: no driver for {url.drivername!r} ({error}); install it"]
        if dialect.is_async:
            return [f"database: {url.drivername!r} is an async driver; name another"]
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).absolute().parent.is_dir():
            return [f"database: no folder {Path(url.database).absolute().parent}; create it"]
        return []

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return await self._call("read the position", self._resume, queue_id)

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        await self._call("write", self._write, batch, key)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        await self._call("flush", self._flush, key)
        self._calls.healed()

    @hookimpl
    async def sink_reset(self) -> None:
        await self._calls.quietly(self._forget)

    # --- in the thread -------------------------------------------------------------------------------------------------

    async def _call(self, step: str, work: Callable[..., T], *args: Any) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._calls.make(step, work, *args)
        except TimeoutError:
            if self._database is not None:
                self._database.cancel()  # the thread ends, with an error that nobody reads
            raise self._calls.failed(f"cannot {step} at {self._name()}: no answer for {self._timeout_s} s") from None

    def _failure(self, step: str, error: Exception) -> str:
        return f"cannot {step} at {self._name()}: {verdict.plain(error)}"

    def _name(self) -> str:
        return self._database.name if self._database else "the database"

    def _open(self) -> None:
        backend = sa.make_url(self.config.database.reveal()).get_backend_name()
        self._database = DATABASES.get(backend, Database)(self.config)
        self._database.open()

    def _opened(self) -> Database:
        if self._database is None:
            raise TransientError("the database is not open")
        return self._database

    def _resume(self, queue_id: str) -> int | None:
        if len(self._ends) > 1000:
            self._ends.clear()
        self._ends[queue_id] = self._opened().position(queue_id)
        return self._ends[queue_id]

    def _end(self, queue_id: str) -> int | None:
        return self._ends[queue_id] if queue_id in self._ends else self._resume(queue_id)

    def _write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        database = self._opened()
        end = self._end(key.queue_id)
        held = 0
        if end is not None and end >= key.first:
            held = _rows_upto(key, end, batch.num_rows)
            self._duplicates.inc(held)
            batch = batch.slice(held)
        if not batch.num_rows:
            return
        odd_lines = has_odd_lines(batch, database.layout.targets)
        try:
            self._duplicates.inc(database.write(self._pieces(batch, key, held), self._merge, odd_lines))
        except DATABASE_ERRORS as error:
            self._answer(error, key, held)
        self.context.fault("sink_sql.after_write")

    def _pieces(self, batch: pa.RecordBatch, key: RangeKey, held: int) -> Iterator[pa.RecordBatch]:
        """The batch in parts as the table wants it. PermanentError names all rows that it never takes, once the first is met."""
        database = self._opened()
        targets = database.layout.targets
        unfit: dict[int, str] = {}
        for first in range(0, batch.num_rows, PIECE_ROWS):
            piece = render(batch.slice(first, PIECE_ROWS), targets)
            found = fitting.unfit(piece, targets, database.takes_nul, database.takes_odd_numbers)
            unfit |= {held + first + row: reason for row, reason in found.items()}
            if not unfit:
                yield piece
        if unfit:
            raise PermanentError(next(iter(unfit.values())), {str(key): [*unfit]})

    def _answer(self, error: BaseException, key: RangeKey, held: int) -> None:
        """What the database said to rows, as what it means to the host."""
        name = self._name()
        if not self._merge and verdict.is_doubled_key(error, self._opened().layout.key_names):
            self._merge = True
            raise TransientError(f"{name}: events of {key} are in the table already; they are merged") from None
        if verdict.is_permanent(error):
            line = verdict.line_of(error)
            raise PermanentError(verdict.plain(error), {str(key): [held + line - 1]} if line else None) from None
        raise error

    def _flush(self, key: RangeKey) -> None:
        database = self._opened()
        end = self._end(key.queue_id)
        if end is not None and end >= key.last:
            return
        self.context.fault("sink_sql.before_commit")
        self._ends.pop(key.queue_id, None)  # unknown until the end of this call: a commit may be in doubt
        # the order: rows and position in one transaction; only the return of this call lets the queue forget the range
        try:
            database.commit(key.queue_id, end, key.last)
        except DATABASE_ERRORS as error:
            self._answer(error, key, 0)
        self.context.fault("sink_sql.after_commit")
        self._ends[key.queue_id] = key.last
        self._merge = False

    def _forget(self) -> None:
        self._ends.clear()
        if self._database is not None:
            self._database.rollback()


def _rows_upto(key: RangeKey, position: int, rows: int) -> int:
    """How many of the rows of `key` lie at or below that position."""
    if position >= key.last:
        return rows
    gone = sum(min(hole.last, position) - hole.first + 1 for hole in key.missing if hole.first <= position)
    return position - key.first + 1 - gone - sum(1 for dead in key.dead if dead <= position)
