"""PostgreSQL: rows by COPY, straight into the table; through a temporary one where they have to be merged."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from psycopg import sql
from pyarrow import csv

from headrace_sink_sql.config import SqlConfig
from headrace_sink_sql.database import Database
from headrace_sink_sql.layout import split_name

STAGE: Final = "headrace_stage"
#: In CSV a server before version 18 takes a line that is `\\.` for the end of the data, in quotes too.
_END_OF_DATA: Final = r"(^|[\r\n])\\\."


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

    def cancel(self) -> None:
        working = self._working
        if working is None or working.closed:
            return
        # not by asking the server, which may be what hangs: whoever waits on the socket wakes with an error
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(working.fileno())) as one:
            one.shutdown(socket.SHUT_RDWR)

    def write(self, rendered: pa.RecordBatch, merge: bool) -> int:
        connection = self._begun()
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        self._working = driver
        columns = sql.SQL(", ").join(map(sql.Identifier, self.layout.names))
        if not merge:
            self._copy(driver, self._table, columns, rendered)
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
        self._copy(driver, stage, columns, rendered)
        cursor.execute(
            sql.SQL("insert into {table} ({columns}) select {columns} from {stage} on conflict ({key}) do nothing").format(
                table=self._table, columns=columns, stage=stage, key=sql.SQL(", ").join(map(sql.Identifier, self.layout.key))
            )
        )
        return int(rendered.num_rows - cursor.rowcount)

    def _copy(self, driver: psycopg.Connection[Any], table: sql.Composable, columns: sql.Composable, rendered: pa.RecordBatch) -> None:
        into = sql.SQL("copy {} ({}) from stdin").format(table, columns)
        if any(pa.types.is_string(column.type) and _ends_data(column) for column in rendered.columns):
            with driver.cursor().copy(into) as copy:
                for row in zip(*(column.to_pylist() for column in rendered.columns), strict=True):
                    copy.write_row(row)
            return
        text = io.BytesIO()
        csv.write_csv(rendered, text, csv.WriteOptions(include_header=False))
        with driver.cursor().copy(into + sql.SQL(" with (format csv)")) as copy:
            copy.write(text.getbuffer())

    def _done(self) -> None:
        self._working = None

    def rollback(self) -> None:
        self._working = None
        super().rollback()


def _ends_data(column: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, _END_OF_DATA)).as_py())
