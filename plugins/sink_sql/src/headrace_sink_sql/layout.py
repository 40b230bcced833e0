"""The table: its columns, the DDL that makes it, and what is wrong with one that is there. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from headrace.errors import did_you_mean
from headrace_sink_sql.config import REQUIRED, SqlConfig

#: What a column takes. `any`: a type that nothing is known of here; the database says what fits.
Kind = Literal["text", "time", "integer", "number", "boolean", "json", "any"]

#: The unique key by which an event is known, and the one of a table in parts by time (a hypertable), which must have the time in it.
KEY: Final = ("origin", "position")
HYPERTABLE_KEY: Final = ("origin", "position", "time")

_MYSQL_NAME: Final = mysql.VARCHAR(255)
#: Of tables made in MySQL and MariaDB, whatever the server's own settings are: with transactions, every character, and case.
_MYSQL_OPTIONS: Final[dict[str, Any]] = {
    f"{dialect}_{name}": value
    for dialect in ("mysql", "mariadb")
    for name, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_KINDS: Final[Mapping[Kind, sa.types.TypeEngine[Any]]] = {
    "text": sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"),
    "time": sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
    "integer": sa.BigInteger(),
    "number": sa.Double(),
    "boolean": sa.Boolean(),
    "json": sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
}
_REQUIRED: Final[dict[str, tuple[Kind, ...]]] = {
    "device": ("text",),
    "time": ("time",),
    "received": ("time",),
    "origin": ("text", "any"),  # a uuid is fine
    "position": ("integer", "number"),
}


class Target(NamedTuple):
    """One column that is filled: its name, where it comes from (`device`, `readings`, `readings.temperature`), and its type."""

    name: str
    source: str
    kind: Kind
    type: sa.types.TypeEngine[Any]


@dataclass(frozen=True)
class Layout:
    """The columns that are filled, in their order, and the table's unique key."""

    targets: tuple[Target, ...]
    key: tuple[str, ...] = KEY
    #: names of the constraints (or unique indexes) that are that key
    key_names: frozenset[str] = field(default_factory=frozenset)

    @property
    def names(self) -> list[str]:
        return [target.name for target in self.targets]


def wanted(config: SqlConfig) -> Layout:
    """What the options ask for."""
    kinds: list[tuple[str, str, Kind]] = [(name, name, _REQUIRED[name][0]) for name in REQUIRED]
    kinds += [(name, name, "json") for name in config.documents]
    kinds += [(name, column.source, column.type) for name, column in config.columns.items()]
    return Layout(tuple(Target(name, source, kind, _KINDS[kind]) for name, source, kind in kinds))


def split_name(table: str) -> tuple[str | None, str]:
    """Schema, if any, and name."""
    schema, _, name = table.rpartition(".")
    return schema or None, name


def table_of(layout: Layout, table: str, key: Sequence[str]) -> sa.Table:
    """The table to create."""
    schema, name = split_name(table)
    columns: list[Any] = [
        # MySQL takes no column without a length into a key
        sa.Column(target.name, sa.Text().with_variant(_MYSQL_NAME, "mysql", "mariadb") if target.name == "origin" else target.type,
                  nullable=target.name not in REQUIRED, autoincrement=False)
        for target in layout.targets
    ]  # fmt: skip
    return sa.Table(name, sa.MetaData(), *columns, sa.PrimaryKeyConstraint(*key), schema=schema, **_MYSQL_OPTIONS)


def positions_of(table: str) -> sa.Table:
    """Up to where the events of each queue id are in which table."""
    schema, name = split_name(table)
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("target", sa.String(200), primary_key=True),
        sa.Column("queue_id", sa.String(200), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("stored", _KINDS["time"], nullable=False),
        schema=schema,
        **_MYSQL_OPTIONS,
    )


def kind_of(type_: sa.types.TypeEngine[Any]) -> Kind:
    """What a column of this type takes."""
    if isinstance(type_, mysql.TINYINT) and type_.display_width == 1:
        return "boolean"  # what MySQL makes of BOOLEAN
    tests: tuple[tuple[type[Any] | tuple[type[Any], ...], Kind], ...] = (
        (sa.JSON, "json"),
        (sa.Enum, "any"),
        (sa.String, "text"),
        (sa.Boolean, "boolean"),
        (sa.Integer, "integer"),
        (sa.Numeric, "number"),
        (sa.DateTime, "time"),
    )
    return next((kind for types, kind in tests if isinstance(type_, types)), "any")


def fitted(
    layout: Layout,
    columns: Sequence[Mapping[str, Any]],
    uniques: Mapping[str, Sequence[str]],
    table: str,
    dialect: sa.Dialect,
    key: Sequence[str] = KEY,
) -> tuple[Layout, list[str]]:
    """The layout with the types that the table has, and what is wrong with that table, each with the DDL that would mend it.

    columns: as SQLAlchemy's inspector gives them. uniques: name -> columns of every unique key. key: the one to advise where there is none.
    """
    known = {column["name"]: column for column in columns}
    quoted, modify = dialect.identifier_preparer.quote, dialect.name in ("mysql", "mariadb")
    index = quoted(f"{split_name(table)[1]}_event")
    problems: list[str] = []
    targets: list[Target] = []
    for target in layout.targets:
        column = known.get(target.name)
        ddl_type = target.type.compile(dialect)
        if column is None:
            near = did_you_mean(target.name, [name for name in known if name not in layout.names])
            null = " NOT NULL" if target.name in REQUIRED else ""
            problems.append(f"no column {target.name!r}{near} (ALTER TABLE {table} ADD COLUMN {quoted(target.name)} {ddl_type}{null})")
            continue
        kind = kind_of(column["type"])
        accepted = _REQUIRED.get(target.name) or (("json", "text") if target.kind == "json" else ())
        if accepted and kind not in accepted:
            null = "" if column["nullable"] else " NOT NULL"
            change = (
                f"MODIFY COLUMN {quoted(target.name)} {ddl_type}{null}" if modify else f"ALTER COLUMN {quoted(target.name)} TYPE {ddl_type}"
            )
            problems.append(f"column {target.name!r} is {column['type']}, expected {ddl_type} (ALTER TABLE {table} {change})")
        targets.append(Target(target.name, target.source, kind, column["type"]))
    for name, column in known.items():
        filled = (
            column.get("default") is not None or column.get("identity") or column.get("computed") or column.get("autoincrement") is True
        )
        if name not in layout.names and not column["nullable"] and not filled:
            change = f"MODIFY COLUMN {quoted(name)} {column['type']}" if modify else f"ALTER COLUMN {quoted(name)} DROP NOT NULL"
            problems.append(f"column {name!r} wants a value and is given none (ALTER TABLE {table} {change})")
    keys = {name: tuple(names) for name, names in uniques.items() if {*names} in ({*KEY}, {*HYPERTABLE_KEY})}
    if not keys:
        names = ", ".join(key)
        problems.append(f"no unique key on ({names}) (CREATE UNIQUE INDEX {index} ON {table} ({names}))")
    return Layout(tuple(targets), min(keys.values(), key=len, default=KEY), frozenset(keys)), problems
