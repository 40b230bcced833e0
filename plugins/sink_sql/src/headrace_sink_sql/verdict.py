"""What an error of the database means: try again, or these rows never. No I/O."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from headrace_sink_sql.layout import HYPERTABLE_KEY, KEY

#: Classes of SQLSTATE in which the rows are at fault: data, integrity, program limits (a row too large), a view's check, a trigger
#: that raises (MySQL: 45). All others (connection, resources, operator, rights, schema, ...) are for somebody to mend, and no row's fault.
_ROWS_AT_FAULT: Final = ("22", "23", "44", "45", "54", "P0")
#: Numbers of MySQL and MariaDB whose SQLSTATE does not say so, or is not told by the driver: a broken check (two numbers), a trigger that
#: raises, a row too large, what is no JSON.
_NUMBERS_AT_FAULT: Final = (3819, 4025, 1644, 1118, 3140)
#: Values in texts of MySQL and MariaDB.
_VALUE: Final = re.compile(r"((?:entry|value:?|argument) )'.*'(?= for)")
_KEY: Final = re.compile(r"for key '(?:[^']*\.)?([^']+)'$")
#: In whatever language the server speaks: Key (origin, "position")=(q, 1) already exists.
_KEY_COLUMNS: Final = re.compile(r"\((.+?)\)=\(")
_LINE: Final = re.compile(r"^COPY .*?, line (\d+)", re.MULTILINE)


def sqlstate(error: BaseException) -> str:
    """Five characters, or nothing where the driver gives none."""
    return str(getattr(_original(error), "sqlstate", None) or "")


def is_permanent(error: BaseException) -> bool:
    """Whether the rows are at fault."""
    state = sqlstate(error)
    if state and isinstance(_original(error), psycopg.Error):
        return state[:2] in _ROWS_AT_FAULT
    if isinstance(error, sa.exc.DBAPIError):
        if error.connection_invalidated:
            return False
        told = state[:2] in _ROWS_AT_FAULT or number_of(error) in _NUMBERS_AT_FAULT
        return told or isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
    if isinstance(error, psycopg.DataError):
        return True  # found by the driver itself
    # values that the driver cannot send, as an integer beyond 64 bits
    return isinstance(error, OverflowError | sa.exc.StatementError)


def number_of(error: BaseException) -> int | None:
    """The server's own number of an error, where the driver gives (number, text), as those of MySQL do."""
    found: tuple[Any, ...] = getattr(_original(error), "args", ())
    return found[0] if len(found) == 2 and isinstance(found[0], int) and isinstance(found[1], str) else None


def is_doubled_key(error: BaseException, key_names: frozenset[str]) -> bool:
    """Whether a row is there already, by the key that names events (where the database tells; else any broken constraint)."""
    if (state := sqlstate(error)) and isinstance(_original(error), psycopg.Error):
        if state != "23505" or _diagnosis(error, "constraint_name") in key_names:
            return state == "23505"
        # partitions of a table, and chunks of a hypertable, have the key under a name of their own: its columns tell
        columns = _KEY_COLUMNS.search(_diagnosis(error, "message_detail"))
        return columns is not None and {name.strip('"') for name in columns[1].split(", ")} in ({*KEY}, {*HYPERTABLE_KEY})
    if not isinstance(error, sa.exc.IntegrityError):
        return False
    told = _KEY.search(str(_original(error).args[-1])) if number_of(error) is not None else None
    # a primary key has no name of its own there
    return told is None or told[1] in key_names or (told[1] == "PRIMARY" and "" in key_names)


def line_of(error: BaseException) -> int | None:
    """The line of a COPY at which it failed, from 1."""
    match = _LINE.search(_diagnosis(error, "context"))
    return int(match[1]) if match else None


def plain(error: BaseException) -> str:
    """One line; never the statement or its parameters, which hold what devices sent."""
    original = _original(error)
    text = _diagnosis(error, "message_primary") or str(original)
    state = sqlstate(error)
    if (number := number_of(error)) is not None and not isinstance(original, OSError):
        text, state = _VALUE.sub(r"\1'...'", original.args[1]), state or str(number)
    first = " ".join(text.split())
    return (first[:500] or type(original).__name__) + (f" [{state}]" if state else "")


def _original(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error


def _diagnosis(error: BaseException, name: str) -> str:
    diagnosis: Any = getattr(_original(error), "diag", None)
    return str(getattr(diagnosis, name, None) or "")
