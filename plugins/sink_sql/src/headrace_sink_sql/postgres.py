"""PostgreSQL: rows by COPY, straight into the table; through a temporary one where they have to be merged."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
import pyarrow as pa
import sqlalchemy as sa
from psycopg import sql
from pyarrow import csv

from headrace_sink_sql.config import SqlConfig
from headrace_sink_sql.database import Database
from headrace_sink_sql.layout import HYPERTABLE_KEY, KEY, split_name

STAGE: Final = "headrace_stage"


class Postgres(Database):
    """One table of a PostgreSQL database, by psycopg 3."""

    takes_nul = False

    def __init__(self, config: SqlConfig) -> None:
        super().__init__(config)
        self.url = self.url.set(drivername="postgresql+psycopg")
        schema, name = split_name(config.table)
        self._table = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        self._working: psycopg.Connection[Any] | None = None

    def connect_args(self) -> Mapping[str, Any]:
        unanswered_s = self.config.unanswered_s
        wanted: dict[str, Any] = {
            "connect_timeout": self.config.connect_timeout_s,
            "application_name": "headrace sink_sql",
            "keepalives_idle": max(1, unanswered_s // 2),
            "keepalives_interval": max(1, unanswered_s // 6),
            "keepalives_count": 3,
            "tcp_user_timeout": unanswered_s * 1000,
            # somebody else's lock on the table is waited for, but not for ever in one call
            "options": f"-c lock_timeout={unanswered_s * 500}",
        }
        return {name: value for name, value in wanted.items() if name not in self.url.query}

    def has_hypertables(self, connection: sa.Connection) -> bool:
        return bool(connection.execute(sa.text("select 1 from pg_extension where extname = 'timescaledb'")).scalar())

    def key_for(self, connection: sa.Connection) -> Sequence[str]:
        asked = "select relkind = 'p' from pg_class where oid = :table ::regclass"
        if self.has_hypertables(connection):
            asked += " union all select true from timescaledb_information.hypertables"
            asked += " where format('%I.%I', hypertable_schema, hypertable_name)::regclass = :table ::regclass"
        in_parts = any(connection.execute(sa.text(asked), {"table": self._table.as_string()}).scalars())
        return HYPERTABLE_KEY if in_parts else KEY

    def cancel(self) -> None:
        working = self._working
        if working is None or working.closed:
            return
        # not by asking the server, which may be what hangs: whoever waits on the socket wakes with an error
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(working.fileno())) as one:
            one.shutdown(socket.SHUT_RDWR)

    def write(self, pieces: Iterable[pa.RecordBatch], merge: bool, odd_lines: bool) -> int:
        connection = self._begun()
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        self._working = driver
        columns = sql.SQL(", ").join(map(sql.Identifier, self.layout.names))
        if not merge:
            self._copy(driver, self._table, columns, pieces, odd_lines)
            return 0
        connection.execute(sa.text("select 1"))  # SQLAlchemy's transaction begins with its own first statement
        stage = sql.Identifier(STAGE)
        cursor = driver.cursor()
        cursor.execute(
            sql.SQL("create temporary table if not exists {} on commit delete rows as select {} from {} limit 0").format(
                stage, columns, self._table
            )
        )
        cursor.execute(sql.SQL("truncate {}").format(stage))
        rows = self._copy(driver, stage, columns, pieces, odd_lines)
        cursor.execute(
            sql.SQL("insert into {table} ({columns}) select {columns} from {stage} on conflict ({key}) do nothing").format(
                table=self._table, columns=columns, stage=stage, key=sql.SQL(", ").join(map(sql.Identifier, self.layout.key))
            )
        )
        return int(rows - cursor.rowcount)

    def _copy(
        self,
        driver: psycopg.Connection[Any],
        table: sql.Composable,
        columns: sql.Composable,
        pieces: Iterable[pa.RecordBatch],
        odd_lines: bool,
    ) -> int:
        """How many rows. The server works on one piece while the next is made."""
        into = sql.SQL("copy {} ({}) from stdin" if odd_lines else "copy {} ({}) from stdin with (format csv)").format(table, columns)
        rows = 0
        with driver.cursor().copy(into) as copy:
            for piece in pieces:
                rows += piece.num_rows
                if odd_lines:
                    for row in zip(*(column.to_pylist() for column in piece.columns), strict=True):
                        copy.write_row(row)
                else:
                    text = io.BytesIO()
                    csv.write_csv(piece, text, csv.WriteOptions(include_header=False))
                    copy.write(text.getbuffer())
        return rows

    def _done(self) -> None:
        self._working = None

    def rollback(self) -> None:
        self._working = None
        super().rollback()
