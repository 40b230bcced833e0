"""What an error of the database means: try again, or these rows never. No I/O."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
import sqlalchemy as sa

#: Classes of SQLSTATE in which the rows are at fault: data, integrity, program limits (a row too large), a view's check, a trigger
#: that raises. All others (connection, resources, operator, rights, schema, ...) are for somebody to mend, and no row's fault.
_ROWS_AT_FAULT: Final = ("22", "23", "44", "54", "P0")
_LINE: Final = re.compile(r"^COPY .*?, line (\d+)", re.MULTILINE)


def sqlstate(error: BaseException) -> str:
    """Five characters, or nothing where the driver gives none."""
    return str(getattr(_original(error), "sqlstate", None) or "")


def is_permanent(error: BaseException) -> bool:
    """Whether the rows are at fault."""
    if state := sqlstate(error):
        return state[:2] in _ROWS_AT_FAULT
    if isinstance(error, sa.exc.DBAPIError):
        if error.connection_invalidated:
            return False
        return isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
    if isinstance(error, psycopg.DataError):
        return True  # found by the driver itself
    # values that the driver cannot send, as an integer beyond 64 bits
    return isinstance(error, OverflowError | sa.exc.StatementError)


def is_doubled_key(error: BaseException, key_names: frozenset[str]) -> bool:
    """Whether a row is there already, by the key that names events (where the database tells; else any broken constraint)."""
    if state := sqlstate(error):
        return state == "23505" and _diagnosis(error, "constraint_name") in key_names
    return isinstance(error, sa.exc.IntegrityError)


def line_of(error: BaseException) -> int | None:
    """The line of a COPY at which it failed, from 1."""
    match = _LINE.search(_diagnosis(error, "context"))
    return int(match[1]) if match else None


def plain(error: BaseException) -> str:
    """One line; never the statement or its parameters, which hold what devices sent."""
    original = _original(error)
    text = _diagnosis(error, "message_primary") or str(original)
    state = sqlstate(error)
    first = " ".join(text.split())
    return (first[:500] or type(original).__name__) + (f" [{state}]" if state else "")


def _original(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error


def _diagnosis(error: BaseException, name: str) -> str:
    diagnosis: Any = getattr(_original(error), "diag", None)
    return str(getattr(diagnosis, name, None) or "")
