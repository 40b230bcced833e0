"""MySQL and MariaDB: what a session must be told so that nothing is cut, clipped or shifted, and what is said of tables there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from headrace_sink_sql.database import Database
from headrace_sink_sql.layout import split_name

#: Whatever the server's own settings are: a text too long or a number out of range is an error, not shortened; times are UTC, in
#: TIMESTAMP columns too.
SESSION: Final = (
    "set session sql_mode = concat_ws(',', nullif(@@sql_mode, ''), 'STRICT_ALL_TABLES', 'NO_ENGINE_SUBSTITUTION')",
    "set session time_zone = '+00:00'",
)
#: Drivers that know these arguments by these names.
DRIVERS: Final = ("pymysql", "mysqldb")
_TRANSACTIONS: Final = """
    select t.table_name, t.engine from information_schema.tables t join information_schema.engines e on e.engine = t.engine
    where t.table_schema = coalesce(:schema, database()) and t.table_name = :name and e.transactions <> 'YES'
"""


class Mysql(Database):
    """One table of a MySQL or MariaDB database."""

    takes_odd_numbers = False

    def connect_args(self) -> Mapping[str, Any]:
        if self.url.get_driver_name() not in DRIVERS:
            return {}
        unanswered_s = self.config.unanswered_s
        wanted = {
            "connect_timeout": self.config.connect_timeout_s,
            "read_timeout": unanswered_s,
            "write_timeout": unanswered_s,
            "charset": "utf8mb4",
        }
        return {name: value for name, value in wanted.items() if name not in self.url.query}

    def begin_session(self, driver_connection: Any) -> None:
        # somebody else's lock is waited for, but not for ever in one call
        locks_s = max(1, self.config.unanswered_s // 2)
        locks = (f"set session {name} = {locks_s}" for name in ("innodb_lock_wait_timeout", "lock_wait_timeout"))
        cursor = driver_connection.cursor()
        for statement in (*SESSION, *locks):
            cursor.execute(statement)
        cursor.close()

    def problems(self, connection: sa.Connection) -> list[str]:
        """Tables that cannot take rows and position together, or neither."""
        found = []
        for table in (self.config.table, self.config.positions_table):
            schema, name = split_name(table)
            for _, engine in connection.execute(sa.text(_TRANSACTIONS), {"schema": schema, "name": name}):
                found.append(f"table {table!r} has no transactions, its engine is {engine} (ALTER TABLE {table} ENGINE = InnoDB)")
        return found
