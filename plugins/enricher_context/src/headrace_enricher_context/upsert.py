"""Writes device rows into a table of any SQLAlchemy database: new ones inserted, changed ones updated, equal ones left."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from headrace_enricher_context.csv_rows import Kind

#: Rows per statement. SQLite before 3.32 takes 999 parameters a statement.
ROWS_PER_CHUNK: Final = 500

#: Some databases cannot index text without a bound.
_KEY_TEXT: Final = sa.Text().with_variant(sa.String(255), "mysql", "mariadb", "mssql", "oracle")
_TYPES: Final[dict[Kind, sa.types.TypeEngine[Any]]] = {"int": sa.BigInteger(), "float": sa.Double(), "text": sa.Text()}

Converter = Callable[[str], Any]


class Counts(NamedTuple):
    """What became of the rows."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(self, other, strict=True)))


class Refused(Exception):
    """The database refused a row: its index in what was written, and the driver's error."""

    def __init__(self, index: int, error: sa.exc.SQLAlchemyError) -> None:
        self.index, self.error = index, error
        super().__init__(f"row {index}: {error}")


_REFUSALS: Final = (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.StatementError)


def engine_for(url: sa.URL) -> sa.Engine:
    """An engine whose transactions are whole in SQLite too: its Python driver would commit a CREATE TABLE at once."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url)
    engine = sa.create_engine(url, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _no_implicit_commit(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def create_table(connection: sa.Connection, schema: str | None, name: str, key: str, columns: Mapping[str, Kind]) -> sa.Table:
    """A new table with the key as its primary key."""
    made = [
        sa.Column(column, _KEY_TEXT if column == key else _TYPES[kind], primary_key=column == key, nullable=column != key)
        for column, kind in columns.items()
    ]
    table = sa.Table(name, sa.MetaData(), *made, schema=schema)
    table.create(connection)
    return table


class Upsert:
    """Brings rows into `table`, in chunks; the caller holds the transaction."""

    def __init__(self, connection: sa.Connection, table: sa.Table, key: str, columns: Sequence[str]) -> None:
        self._connection = connection
        self._key = table.c[key]
        self._names = list(columns)
        self._select = sa.select(*(table.c[name] for name in self._names))
        self._insert = sa.insert(table)
        values: dict[str, Any] = {name: sa.bindparam(f"new_{place}") for place, name in enumerate(self._names) if name != key}
        self._update = sa.update(table).where(self._key == sa.bindparam("old_key")).values(values) if values else None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Counts:
        """Write rows (column -> value) whose keys differ from each other.

        Raises `Refused`, naming the row by its index, where the database takes one of them amiss.
        """
        try:
            with self._connection.begin_nested():
                return self._write(rows)
        except _REFUSALS as error:
            # Undone up to here: one by one, the row that it was refuses alone.
            for index, row in enumerate(rows):
                try:
                    with self._connection.begin_nested():
                        self._write([row])
                except _REFUSALS as alone:
                    raise Refused(index, alone) from alone
            raise Refused(0, error) from error

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> Counts:
        keys = [row[self._key.name] for row in rows]
        there = {old[self._key.name]: old for old in self._connection.execute(self._select.where(self._key.in_(keys))).mappings()}
        new = [dict(row) for row in rows if row[self._key.name] not in there]
        changed = [row for row in rows if (old := there.get(row[self._key.name])) is not None and not self._equal(row, old)]
        if new:
            self._connection.execute(self._insert, new)
        if changed and self._update is not None:
            self._connection.execute(self._update, [self._parameters(row) for row in changed])
        return Counts(len(new), len(changed), len(rows) - len(new) - len(changed))

    def _equal(self, row: Mapping[str, Any], old: Mapping[Any, Any]) -> bool:
        return all(_comparable(row[name]) == _comparable(old[name]) for name in self._names)

    def _parameters(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = {f"new_{place}": row[name] for place, name in enumerate(self._names) if name != self._key.name}
        return {"old_key": row[self._key.name], **values}


def _comparable(value: Any) -> Any:
    return float(value) if isinstance(value, decimal.Decimal) else value


def converter(column: sa.Column[Any], dialect: str) -> tuple[str, Converter]:
    """What a cell of this column must be, in words, and the function that makes it so (ValueError where it cannot)."""
    match column.type:
        case sa.Boolean():
            return "true or false", _boolean
        case sa.Integer() as kind:
            bits = _bits(kind, dialect)
            return f"an integer of {bits} bits", lambda cell: _integer(cell, bits)
        case sa.Float():
            return "a number", lambda cell: float(_decimal(cell))
        case sa.Numeric():
            return "a number", _decimal
        case sa.DateTime(timezone=zoned):
            return "a time such as 2026-11-23T10:00:00", lambda cell: _time(cell, zoned)
        case sa.Date():
            return "a date such as 2026-11-23", lambda cell: datetime.date.fromisoformat(cell.strip())
        case sa.Uuid():
            return "a UUID", lambda cell: uuid.UUID(cell.strip())
        case sa.JSON():
            return "JSON", json.loads
        case sa.String(length=int() as length):
            return f"text of at most {length} characters", lambda cell: _text(cell, length)
    return "text", str


def _bits(kind: sa.Integer, dialect: str) -> int:
    if dialect == "sqlite" or isinstance(kind, sa.BigInteger):
        return 64
    return 16 if isinstance(kind, sa.SmallInteger) else 32


def _integer(cell: str, bits: int) -> int:
    if "_" in cell:  # Python would take 1_000
        raise ValueError("not a number")
    number = int(cell)
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise ValueError("too large")
    return number


def _decimal(cell: str) -> decimal.Decimal:
    try:
        number = decimal.Decimal(cell.strip())
    except decimal.InvalidOperation:
        raise ValueError("not a number") from None
    if "_" in cell or not number.is_finite():
        raise ValueError("not a finite number")
    return number


def _time(cell: str, zoned: bool) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(cell.strip())
    if zoned:
        return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return time.astimezone(datetime.UTC).replace(tzinfo=None) if time.tzinfo else time


def _text(cell: str, length: int) -> str:
    if len(cell) > length:
        raise ValueError("too long")
    return cell


_TRUTH: Final = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}


def _boolean(cell: str) -> bool:
    truth = _TRUTH.get(cell.strip().lower())
    if truth is None:
        raise ValueError("neither true nor false")
    return truth
