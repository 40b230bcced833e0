"""A connection to the database, and the transaction in which one flush stores its rows. Blocking: called in a thread.

    begin -> write, write, ... -> commit (rows and the new position together)

An error leaves nothing: the caller rolls back and begins anew.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from headrace import TransientError
from headrace_sink_sql.config import SqlConfig
from headrace_sink_sql.layout import HYPERTABLE_KEY, KEY, fitted, positions_of, split_name, table_of, wanted
from headrace_sink_sql.rendering import python_rows

#: Queue ids whose position is kept for one table: a queue takes a new one at every open.
POSITIONS_MAX: Final = 1000


class OtherWriter(TransientError):
    """Somebody else stored this range first; resume from what is there."""


class Database:
    """One table of a database. Raises what SQLAlchemy and the driver raise, and TransientError."""

    #: whether NUL in text is kept, and whether a column of numbers takes NaN and infinities (in SQLite as null)
    takes_nul = True
    takes_odd_numbers = True

    def __init__(self, config: SqlConfig) -> None:
        self.config = config
        self.url = sa.make_url(config.database.reveal())
        self.layout = wanted(config)
        self._positions = positions_of(config.positions_table)
        self._engine: sa.Engine | None = None
        self._connection: sa.Connection | None = None

    @property
    def name(self) -> str:
        """The URL with its password hidden."""
        hidden = {name: "***" for name in self.url.query if "password" in name.lower()}
        return self.url.update_query_dict(hidden).render_as_string(hide_password=True)

    # --- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and create the tables or see that they fit."""
        self._engine = sa.create_engine(self.url, poolclass=NullPool, connect_args=self.connect_args(), hide_parameters=True)
        sa.event.listen(self._engine, "connect", lambda connection, record: self.begin_session(connection))
        with self._engine.begin() as connection:
            self._make_positions(connection)
            self._make_table(connection)
            self._fit(connection)
        with self._engine.begin() as connection:
            self._forget_old(connection)

    def connect_args(self) -> Mapping[str, Any]:
        """What the driver is told beyond the URL."""
        return {}

    def begin_session(self, driver_connection: Any) -> None:
        """What a new connection is told before its first transaction."""

    def problems(self, connection: sa.Connection) -> list[str]:
        """What is wrong with the tables beside their columns and keys."""
        return []

    def _make_positions(self, connection: sa.Connection) -> None:
        schema, name = split_name(self.config.positions_table)
        if not sa.inspect(connection).has_table(name, schema=schema):
            self._positions.create(connection, checkfirst=True)

    def _make_table(self, connection: sa.Connection) -> None:
        schema, name = split_name(self.config.table)
        if sa.inspect(connection).has_table(name, schema=schema):
            return
        hypertable = self.config.hypertable and self.has_hypertables(connection)
        table = table_of(self.layout, self.config.table, HYPERTABLE_KEY if hypertable else KEY)
        quoted = connection.dialect.identifier_preparer.format_table(table)
        making = f"SELECT create_hypertable('{quoted}', 'time')"
        if not self.config.create:
            ddl = " ".join(str(sa.schema.CreateTable(table).compile(connection)).split())
            ddl += f"; {making}" if hypertable else ""
            raise TransientError(f"{self.name}: no table {self.config.table!r}, and create = false; create it with: {ddl}")
        table.create(connection, checkfirst=True)
        if hypertable:
            connection.exec_driver_sql(making)

    def has_hypertables(self, connection: sa.Connection) -> bool:
        """Whether the database has TimescaleDB."""
        return False

    def key_for(self, connection: sa.Connection) -> Sequence[str]:
        """The unique key that the table that is there can have."""
        return KEY

    def _fit(self, connection: sa.Connection) -> None:
        schema, name = split_name(self.config.table)
        inspector = sa.inspect(connection)
        uniques: dict[str, Sequence[Any]] = {
            index["name"] or "": index["column_names"] for index in inspector.get_indexes(name, schema=schema) if index["unique"]
        }
        uniques |= {one["name"] or "": one["column_names"] for one in inspector.get_unique_constraints(name, schema=schema)}
        primary = inspector.get_pk_constraint(name, schema=schema)
        uniques[primary.get("name") or ""] = primary["constrained_columns"]
        columns = inspector.get_columns(name, schema=schema)
        self.layout, problems = fitted(
            wanted(self.config), columns, uniques, self.config.table, connection.dialect, self.key_for(connection)
        )
        problems += self.problems(connection)
        if problems:
            raise TransientError(f"{self.name}: table {self.config.table!r} does not fit: {'; '.join(problems)}")

    def _forget_old(self, connection: sa.Connection) -> None:
        """Bounded: positions of queue ids long gone."""
        rows = self._positions
        of_table = rows.c.target == self.config.table
        newest = sa.select(rows.c.stored).where(of_table).order_by(rows.c.stored.desc()).offset(POSITIONS_MAX).limit(1)
        if (limit := connection.execute(newest).scalar()) is not None:
            connection.execute(rows.delete().where(of_table, rows.c.stored <= limit))

    def close(self) -> None:
        """Safe twice."""
        self.rollback()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def cancel(self) -> None:
        """End what another thread waits for, where the driver can."""

    # --- a flush -------------------------------------------------------------------------------------------------------

    def position(self, queue_id: str) -> int | None:
        """Up to where that queue's range is in the table."""
        rows = self._positions
        assert self._engine is not None, "not open"
        with self._engine.connect() as connection:
            found = connection.execute(
                sa.select(rows.c.position).where(rows.c.target == self.config.table, rows.c.queue_id == queue_id)
            ).scalar()
        return None if found is None else int(found)

    def write(self, pieces: Iterable[pa.RecordBatch], merge: bool, odd_lines: bool) -> int:
        """Store the rows of these pieces in the transaction (begun with the first of them); how many were there already.

        merge: expect that some are. odd_lines: a text has a line that a COPY in CSV would take for its end.
        """
        connection, duplicates = self._begun(), 0
        for piece in pieces:
            rows = python_rows(piece)
            held: set[tuple[str, int]] = self._held(connection, piece) if merge else set()
            fresh = [row for row in rows if (row["origin"], row["position"]) not in held]
            if fresh:
                connection.execute(self._light_table().insert(), fresh)
            duplicates += len(rows) - len(fresh)
        return duplicates

    def _light_table(self) -> sa.TableClause:
        """The columns with types that send values as they are: documents are JSON text already."""
        plain: dict[str, sa.types.TypeEngine[Any]] = {"json": sa.Text(), "any": sa.types.NullType(), "time": sa.DateTime()}
        schema, name = split_name(self.config.table)
        columns: list[sa.ColumnClause[Any]] = [
            sa.column(target.name, plain.get(target.kind, target.type)) for target in self.layout.targets
        ]
        return sa.table(name, *columns, schema=schema)

    def _held(self, connection: sa.Connection, rendered: pa.RecordBatch) -> set[tuple[str, int]]:
        bounds: dict[str, tuple[int, int]] = {}
        for origin, position in zip(rendered.column("origin").to_pylist(), rendered.column("position").to_pylist(), strict=True):
            low, high = bounds.get(origin, (position, position))
            bounds[origin] = min(low, position), max(high, position)
        table = self._light_table()
        held: set[tuple[str, int]] = set()
        for origin, (low, high) in bounds.items():
            asked = sa.select(table.c.position).where(table.c.origin == origin, table.c.position.between(low, high))
            held |= {(origin, int(row[0])) for row in connection.execute(asked)}
        return held

    def commit(self, queue_id: str, end: int | None, last: int) -> None:
        """The rows, and that the range is there up to `last` where it was up to `end`: together, or neither."""
        connection, rows = self._begun(), self._positions
        now = datetime.datetime.now(datetime.UTC)
        stored = now if self.url.get_backend_name() == "postgresql" else now.replace(tzinfo=None)
        if end is None:
            known = connection.execute(
                sa.select(rows.c.position).where(rows.c.target == self.config.table, rows.c.queue_id == queue_id)
            ).scalar()
            if known is not None:
                raise OtherWriter(f"{self.name}: another writer stored {queue_id} up to {known}")
            values = {"target": self.config.table, "queue_id": queue_id, "position": last, "stored": stored}
            try:
                connection.execute(rows.insert(), values)
            except sa.exc.IntegrityError:  # no row of ours is at fault
                raise OtherWriter(f"{self.name}: another writer stored {queue_id} at the same time") from None
        else:
            where = (rows.c.target == self.config.table, rows.c.queue_id == queue_id, rows.c.position == end)
            if connection.execute(rows.update().where(*where).values(position=last, stored=stored)).rowcount != 1:
                raise OtherWriter(f"{self.name}: another writer went on behind {queue_id}/{end}")
        connection.commit()
        self._done()

    def rollback(self) -> None:
        """Forget what is not committed; never raises. The connection is given up: it may be lost."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.rollback()
            with contextlib.suppress(Exception):
                connection.close()

    def _begun(self) -> sa.Connection:
        if self._connection is None:
            assert self._engine is not None, "not open"
            self._connection = self._engine.connect()
        return self._connection

    def _done(self) -> None:
        """A flush is over; the connection stays for the next."""
