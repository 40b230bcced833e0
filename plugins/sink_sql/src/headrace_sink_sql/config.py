"""The plugin's options."""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Meta

from headrace import Config
from headrace.config import Secret

#: Columns that every table has.
REQUIRED: Final = ("device", "time", "received", "origin", "position")
#: Columns with all readings, or all of the context, as one JSON document.
DOCUMENTS: Final = ("readings", "context")


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column of its own for a reading or a field of the context."""

    source: Annotated[
        str, Meta(pattern=r"^(readings|context)\..+", description="`readings.<name>` or `context.<name>`; dotted names are one name.")
    ]
    type: Annotated[
        Literal["number", "integer", "text", "boolean"],
        Meta(description="Type of the column where the table is created here; a table that is there keeps its own."),
    ] = "number"


def default_database() -> Secret:
    """A file beside the site's other data."""
    return Secret(f"sqlite:///{os.environ.get('HEADRACE_DATA') or './data'}/events.db")


class SqlConfig(Config, frozen=True, kw_only=True):
    """Which table, and what of an event goes into which column."""

    database: Annotated[
        Secret, Meta(description="SQLAlchemy URL of the database. Default: sqlite:///${HEADRACE_DATA:-./data}/events.db")
    ] = msgspec.field(default_factory=default_database)
    table: Annotated[str, Meta(min_length=1, max_length=120, description="The table, `schema.table` allowed.")] = "events"
    create: Annotated[bool, Meta(description="Create the table where it is missing; false: wait until somebody has.")] = True
    documents: Annotated[
        tuple[Literal["readings", "context"], ...],
        Meta(max_length=2, description="Which of `readings` and `context` are kept whole, as JSON in a column of that name."),
    ] = DOCUMENTS
    columns: Annotated[
        dict[str, Column], Meta(max_length=500, description="Columns of their own: name -> reading or context field, and type.")
    ] = msgspec.field(default_factory=dict)
    positions_table: Annotated[
        str, Meta(min_length=1, max_length=120, description="The small table that says up to where the events are there.")
    ] = "headrace_positions"
    hypertable: Annotated[bool, Meta(description="Create the table as a TimescaleDB hypertable where the database has that extension.")] = (
        True
    )
    connect_timeout_s: Annotated[int, Meta(ge=1, le=300, description="Longest wait for a connection.")] = 10
    unanswered_s: Annotated[
        int,
        Meta(ge=2, le=3600, description="PostgreSQL and MySQL: a call not answered for so long counts as failed, its connection as lost."),
    ] = 60

    def __post_init__(self) -> None:
        try:
            sa.make_url(self.database.reveal())
        except (sa.exc.ArgumentError, ValueError):
            # Without the text that came: it may hold a password.
            raise ValueError("expected `database` to be a URL such as postgresql://site@host/db, got text that is not one") from None
        if taken := sorted(self.columns.keys() & {*REQUIRED, *DOCUMENTS}):
            raise ValueError(f"expected names of `columns` other than {', '.join((*REQUIRED, *DOCUMENTS))}, got {', '.join(taken)}")
