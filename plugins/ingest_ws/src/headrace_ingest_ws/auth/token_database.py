"""The site's database as the place of tokens' hashes. SQLAlchemy is imported here and nowhere else in the plugin.

Reading 100,000 rows costs some tenths of a second, so the server first asks for their number and the sum of their times of
change, which any insert, delete, and update that sets `changed` moves; and reads all of them once in `READ_ALL_S` in any case.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from headrace_ingest_ws.auth.rereading import Unreadable
from headrace_ingest_ws.auth.token_file import token_set
from headrace_ingest_ws.auth.tokens import Record, TokenSet

TABLE: Final = "headrace_tokens"
READ_ALL_S: Final = 60.0
#: Rows fetched at a time: below the 700 new objects at which Python's garbage collector sets in, which stops all threads.
ROWS_PER_CHUNK: Final = 500
#: An answer that takes longer counts as none.
QUERY_S: Final = 30

_tokens = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("name", sa.String(128), nullable=False, index=True),
    sa.Column("devices", sa.Text, nullable=False, default=""),
    sa.Column("created", sa.String(32), nullable=False, default=""),
    sa.Column("changed", sa.BigInteger, nullable=False),  # Unix time in milliseconds: a sum of five million fits into 63 bits
)
_COLUMNS: Final = [_tokens.c[name] for name in Record._fields]


class TokenDatabase:
    """Reads and changes the table. Everything here is blocking; no connection is held in between that could go stale."""

    def __init__(self, url: str, connect_timeout_s: int) -> None:
        """Raises ValueError for text that is no URL, without that text: it may hold a password."""
        try:
            self._url = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise ValueError("expected the URL of a database such as sqlite:///tokens.db, got text that is not one") from None
        self._connect_timeout_s = connect_timeout_s
        self._read_at = float("-inf")

    @property
    def name(self) -> str:
        """The URL without its password."""
        hidden = {name: "***" for name in self._url.query if "password" in name.lower()}
        return self._url.update_query_dict(hidden).render_as_string(hide_password=True)

    def driver_problem(self) -> str | None:
        """Why this database cannot be used here at all, or None."""
        try:
            dialect = self._url.get_dialect()
            dialect.import_dbapi()
        except (sa.exc.NoSuchModuleError, ImportError) as error:
            return f"no driver for {self._url.drivername!r} ({error}); install it, for PostgreSQL: pip install 'psycopg[binary]'"
        return f"{self._url.drivername!r} is an async driver; name another, such as postgresql+psycopg" if dialect.is_async else None

    # --- for the server

    def stamp(self) -> object:
        """What changes when the table does. Raises Unreadable."""
        if time.monotonic() - self._read_at > READ_ALL_S:
            return None
        with self._connection() as connection:
            count, total = connection.execute(sa.select(sa.func.count(), sa.func.sum(_tokens.c.changed))).one()
            return count, int(total or 0)

    def read(self) -> TokenSet:
        """Raises Unreadable when the database does not answer, or any row is wrong."""
        at = time.monotonic()
        with self._connection() as connection:
            found = token_set(self.name, self._rows(connection))
        self._read_at = at
        return found

    def records(self) -> list[Record]:
        """All tokens, in the order in which they were made."""
        with self._connection() as connection:
            return list(self._rows(connection, sa.select(*_COLUMNS).order_by(_tokens.c.created, _tokens.c.id)))

    def _rows(self, connection: sa.Connection, query: sa.Select[Any] | None = None) -> Iterator[Record]:
        options = {"stream_results": True, "yield_per": ROWS_PER_CHUNK}
        with connection.execution_options(**options).execute(sa.select(*_COLUMNS) if query is None else query) as result:
            for rows in result.partitions(ROWS_PER_CHUNK):
                for row in rows:
                    yield Record(*(str(value) if value is not None else "" for value in row))

    # --- for the command

    def add(self, records: Iterable[Record]) -> None:
        """Add tokens, and the table where it is missing."""
        now = int(time.time() * 1000)
        rows = [{**record._asdict(), "changed": now} for record in records]
        with self._connection(make=True) as connection:
            _tokens.metadata.create_all(connection)
            connection.execute(sa.insert(_tokens), rows)
            connection.commit()

    def revoke(self, doomed: set[str]) -> int:
        """Take out the tokens with these ids; how many there were."""
        with self._connection() as connection:
            count = 0
            for chunk in _chunks(sorted(doomed)):
                count += connection.execute(sa.delete(_tokens).where(_tokens.c.id.in_(chunk))).rowcount
            connection.commit()
            return count

    # --- both

    @contextmanager
    def _connection(self, make: bool = False) -> Iterator[sa.Connection]:
        if problem := self.driver_problem():
            raise Unreadable(f"{self.name}: {problem}")
        try:
            if not make:
                self._refuse_missing_file()
            with sa.create_engine(self._url, poolclass=NullPool, connect_args=self._connect_args()).connect() as connection:
                if connection.dialect.name == "postgresql":  # in the transaction that begins here; a pooler may take no more
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {QUERY_S * 1000}")
                yield connection
        except (sa.exc.SQLAlchemyError, OSError, TypeError) as error:
            raise Unreadable(f"{self.name}: {self._plain(error)}") from error

    def _refuse_missing_file(self) -> None:
        # SQLite would make an empty database here, which then looks as if every token were revoked
        path = self._url.database or ""
        if self._url.get_backend_name() != "sqlite" or path in ("", ":memory:") or path.startswith("file:"):
            return
        if not Path(path).exists():
            raise Unreadable(f"{self.name}: no such file; make it with: headrace devices token add DEVICE --database '{self.name}'")

    def _connect_args(self) -> dict[str, Any]:
        """So that a database that does not answer costs seconds and not the operating system's two hours."""
        wanted: dict[str, Any] = {}
        match self._url.drivername:
            case "postgresql" | "postgresql+psycopg" | "postgresql+psycopg2":
                wanted = {
                    "connect_timeout": self._connect_timeout_s,
                    "application_name": "headrace tokens",
                    "keepalives_idle": self._connect_timeout_s,
                    "keepalives_interval": self._connect_timeout_s,
                    "keepalives_count": 3,
                    "tcp_user_timeout": QUERY_S * 1000,
                }
            case "mysql+pymysql" | "mysql+mysqldb" | "mariadb+pymysql" | "mariadb+mysqldb":
                wanted = {"connect_timeout": self._connect_timeout_s, "read_timeout": QUERY_S}
            case name if name.partition("+")[0] == "sqlite":
                wanted = {"timeout": self._connect_timeout_s}
        return {name: value for name, value in wanted.items() if name not in self._url.query}

    def _plain(self, error: Exception) -> str:
        """The driver's own words on one line, without SQL, parameters or password."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        text = re.sub(r"\s*\n\s*", "; ", str(cause).strip()) or type(cause).__name__
        password = self._url.password
        text = text.replace(str(password), "***") if password else text
        missing = TABLE in text and ("no such table" in text or "does not exist" in text)
        return f"{text}; make it with: headrace devices token add DEVICE --database URL" if missing else text


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), ROWS_PER_CHUNK):
        yield ids[start : start + ROWS_PER_CHUNK]
