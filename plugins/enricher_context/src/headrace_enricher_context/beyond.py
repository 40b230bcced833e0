"""PostgreSQL knows times that Python does not: infinity, years before 1 and after 9999, the hour 24. They come as text. No I/O.

psycopg would end the whole reading at the first of them; as text each costs no more than its own cell.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.abc import Buffer, Loader
from psycopg.adapt import Loader as PythonLoader
from psycopg.pq import Format

from headrace_enricher_context.cells import BeyondPython

#: PostgreSQL's types of which Python holds a part only.
_TYPES: Final = ("timestamptz", "timestamp", "date", "time", "timetz", "interval")


def keep_as_text(connection: psycopg.Connection[Any]) -> None:
    """From now on this connection gives values that Python cannot hold as `BeyondPython`."""
    for name in _TYPES:
        oid = connection.adapters.types[name].oid
        known = connection.adapters.get_loader(oid, Format.TEXT)
        assert known is not None, name
        connection.adapters.register_loader(oid, _forgiving(known))


def _forgiving(known: type[Loader]) -> type[PythonLoader]:
    class Forgiving(PythonLoader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._known = known(oid, context)

        def load(self, data: Buffer) -> Any:
            try:
                return self._known.load(data)
            except psycopg.DataError:
                return BeyondPython(bytes(data).decode())

    return Forgiving
