"""Reads the device rows of the site's database, and says in one line what is wrong when it cannot."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from headrace import ConfigError, TransientError
from headrace.errors import did_you_mean

#: Rows fetched and converted at a time: below the 700 new objects at which Python's garbage collector sets in. Its full
#: collections stopped all threads for 40-60 ms during a reading; with 500 rows the longest pause was 4-20 ms, at the same speed.
ROWS_PER_CHUNK: Final = 500

#: A colon that SQLAlchemy's `text` would take for a parameter. There are none: `:name` in a query means itself.
_PARAMETER: Final = re.compile(r"(?<![:\w\\]):(?=\w)")


class Unavailable(TransientError):
    """The database, or what should be in it, cannot be read now; the text says which, where, and what to do."""


class Database:
    """A site's database, opened anew for every reading: no connection is held in between that could go stale.

    `url` may hold a password; it is masked in every message. Reading is blocking: call it in a thread.
    """

    def __init__(self, url: str, connect_timeout_s: int, query_timeout_s: float) -> None:
        self._url = sa.make_url(url)
        self._connect_timeout_s = connect_timeout_s
        self._query_timeout_s = query_timeout_s

    @property
    def name(self) -> str:
        """The URL with its password hidden."""
        hidden = {name: "***" for name in self._url.query if "password" in name.lower()}
        return self._url.update_query_dict(hidden).render_as_string(hide_password=True)

    def driver_problem(self) -> str:
        """What is wrong with the URL's dialect or driver, or nothing."""
        try:
            dialect = self._url.get_dialect()
            dialect.import_dbapi()
        except (sa.exc.NoSuchModuleError, ImportError) as error:
            return f"no driver for {self._url.drivername!r} ({error}); install it, for PostgreSQL: pip install 'psycopg[binary]'"
        return f"{self._url.drivername!r} is an async driver; name another, such as postgresql+psycopg" if dialect.is_async else ""

    def rows(
        self, source: Source, columns: Sequence[str], stop: threading.Event, since: Since | None = None
    ) -> Iterator[list[Sequence[Any]]]:
        """The named columns' values, in chunks of at most ROWS_PER_CHUNK rows, each a list of columns.

        since: only of the rows that changed since then, the last changed ones last.

        Raises `Unavailable`. Ends early, also with `Unavailable`, once `stop` is set.
        """
        if problem := self.driver_problem():
            raise Unavailable(f"{self.name}: {problem}")
        try:
            self._refuse_missing_file()
            with self._connect() as connection:
                yield from self._read(connection, source, columns, stop, since)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise Unavailable(f"{self.name}: {self.plain(error)}") from error

    def _connect(self) -> sa.Connection:
        try:
            return sa.create_engine(self._url, poolclass=NullPool, connect_args=self._connect_args()).connect()
        except (TypeError, ValueError) as error:  # an option in the URL that the driver does not know
            raise Unavailable(f"{self.name}: {self.plain(error)}") from error

    def _read(
        self, connection: sa.Connection, source: Source, columns: Sequence[str], stop: threading.Event, since: Since | None
    ) -> Iterator[list[Sequence[Any]]]:
        self._guard(connection)
        statement = source.statement(connection, columns, self.name) if since is None else source.changed(columns, since)
        if connection.dialect.name == "sqlite":
            # Text that is not UTF-8 then costs one cell instead of the whole reading.
            driver: Any = connection.connection.driver_connection
            driver.text_factory = bytes
        elif connection.dialect.driver == "psycopg":
            # here only: without this database its driver may be missing
            from headrace_enricher_context.beyond import keep_as_text

            keep_as_text(cast(Any, connection.connection.driver_connection))
        options = {"stream_results": True, "yield_per": ROWS_PER_CHUNK}
        with connection.execution_options(**options).execute(statement) as result:
            places = _places(list(result.keys()), columns, self.name, source)
            for rows in result.partitions(ROWS_PER_CHUNK):
                if stop.is_set():
                    raise Unavailable(f"{self.name}: reading took longer than {self._query_timeout_s:g} s (query_timeout_s) or was stopped")
                by_place = list(zip(*rows, strict=True))
                yield [by_place[place] for place in places]

    def _refuse_missing_file(self) -> None:
        # SQLite would create an empty database here, which then looks as if there were one.
        path = self._url.database or ""
        if self._url.get_backend_name() != "sqlite" or path in ("", ":memory:") or path.startswith("file:"):
            return
        if not Path(path).exists():
            raise Unavailable(f"{self.name}: no such file {path}; create it with: {import_command(self.name)}")

    def _guard(self, connection: sa.Connection) -> None:
        match connection.dialect.name:
            case "postgresql":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(self._query_timeout_s * 1000)}")
            case "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")

    def _connect_args(self) -> dict[str, Any]:
        match self._url.drivername:
            case "postgresql" | "postgresql+psycopg" | "postgresql+psycopg2":
                unanswered_ms = int(self._query_timeout_s * 1000)
                wanted: Mapping[str, Any] = {
                    "connect_timeout": self._connect_timeout_s,
                    "application_name": "headrace context",
                    "keepalives_idle": self._connect_timeout_s,
                    "keepalives_interval": self._connect_timeout_s,
                    "keepalives_count": 3,
                    "tcp_user_timeout": unanswered_ms,
                }
            case "mysql+pymysql" | "mysql+mysqldb" | "mariadb+pymysql" | "mariadb+mysqldb":
                wanted = {"connect_timeout": self._connect_timeout_s, "read_timeout": max(1, int(self._query_timeout_s))}
            case name if name.partition("+")[0] == "sqlite":
                wanted = {"timeout": self._connect_timeout_s}
            case _:
                wanted = {}
        return {name: value for name, value in wanted.items() if name not in self._url.query}

    def plain(self, error: Exception) -> str:
        """The driver's own words on one line, without SQL, parameters or password."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        text = "; ".join(line.strip() for line in str(cause).splitlines() if line.strip()) or type(cause).__name__
        password = self._url.password
        return text.replace(str(password), "***") if password else text


class Since(NamedTuple):
    """Rows whose `column` is at least `mark`, a value that stood in it."""

    column: str
    mark: Any


class Source:
    """What is read: a table (or view), or a SELECT."""

    def __init__(self, table: str, query: str, key: str) -> None:
        self._schema, _, self._table = table.rpartition(".")
        self._query = query.strip().rstrip(";")
        self._key = key

    def __str__(self) -> str:
        return "the query" if self._query else f"table {'.'.join(filter(None, (self._schema, self._table)))!r}"

    def statement(self, connection: sa.Connection, columns: Sequence[str], database: str) -> sa.Executable:
        """The SELECT; raises `Unavailable` where the table or a column is missing."""
        if self._query:
            return sa.text(_PARAMETER.sub(r"\:", self._query))
        inspector = sa.inspect(connection)
        try:
            there = [column["name"] for column in inspector.get_columns(self._table, schema=self._schema or None)]
        except sa.exc.NoSuchTableError:
            there = []
        if not there:
            names = [*inspector.get_table_names(self._schema or None), *inspector.get_view_names(self._schema or None)]
            have = ", ".join(sorted(names)[:20]) or "none"
            near = did_you_mean(self._table, names)
            raise Unavailable(f"{database}: no {self}{near}; tables there: {have}; create it with: {import_command(database)}")
        _places(there, columns, database, self)
        selected: list[sa.ColumnElement[Any]] = [sa.column(name) for name in columns]
        statement = sa.select(*selected).select_from(sa.table(self._table, schema=self._schema or None))
        # Where a device may have several rows, their order must be the same every time, for the last one counts.
        return statement if self._key_is_unique(inspector) else statement.order_by(*selected)

    def changed(self, columns: Sequence[str], since: Since) -> sa.Executable:
        """The SELECT of the rows that changed since then."""
        table: sa.FromClause | sa.TextClause
        if self._query:
            # a line of its own for the bracket: the query may end in a comment
            table = sa.text("(" + _PARAMETER.sub(r"\:", self._query) + "\n) AS headrace_context")
        else:
            table = sa.table(self._table, schema=self._schema or None)
        changed: sa.ColumnElement[Any] = sa.column(since.column)
        selected: list[sa.ColumnElement[Any]] = [sa.column(name) for name in columns]
        return sa.select(*selected).select_from(table).where(changed >= sa.literal(since.mark)).order_by(changed)

    def _key_is_unique(self, inspector: sa.Inspector) -> bool:
        where: dict[str, Any] = {"table_name": self._table, "schema": self._schema or None}
        try:
            unique: list[list[str | None]] = [list(inspector.get_pk_constraint(**where)["constrained_columns"])]
            unique += [list(constraint["column_names"]) for constraint in inspector.get_unique_constraints(**where)]
            unique += [index["column_names"] for index in inspector.get_indexes(**where) if index["unique"]]
        except (NotImplementedError, sa.exc.NoSuchTableError):  # a view, or a dialect that cannot tell
            return False
        return [self._key] in unique


def config_error(place: str, database: Database) -> ConfigError | None:
    """The error for a URL whose driver cannot be used here, or None."""
    if problem := database.driver_problem():
        return ConfigError(place, "database", "the URL of a database whose driver is installed", database.name, problem)
    return None


def import_command(database: str) -> str:
    """What to type to fill the database."""
    return f"headrace context import devices.csv --database '{database}'"


def _places(there: Sequence[str], columns: Sequence[str], database: str, source: Source) -> list[int]:
    missing = [name for name in columns if name not in there]
    if missing:
        nears = "".join(did_you_mean(name, there) for name in missing[:3])
        raise Unavailable(
            f"{database}: {source} has no column {', '.join(map(repr, missing))}{nears}; it has: {', '.join(there)}; "
            "change `key` or `columns`, or the table"
        )
    return [list(there).index(name) for name in columns]
