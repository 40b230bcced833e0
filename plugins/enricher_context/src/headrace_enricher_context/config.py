"""The plugin's options."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Meta

from headrace import Config
from headrace.config import Secret
from headrace_enricher_context.cells import TypeName

_SELECT: Final = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:select|with|values|table)\b", re.IGNORECASE | re.DOTALL)


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One added field: where it comes from, and its type."""

    source: Annotated[str, Meta(description="Column of the table or query. Empty: the same name as the added field.")] = ""
    type: Annotated[
        TypeName, Meta(description="Type of the added field: string, float64, int64, bool or timestamp (UTC, microseconds).")
    ] = "string"


def default_columns() -> dict[str, Column]:
    """What most sites know of a device."""
    text, number = Column(), Column(type="float64")
    return {"class": text, "type": text, "site": text, "latitude": number, "longitude": number}


def default_database() -> Secret:
    """The database of the examples."""
    return Secret(f"sqlite:///{os.environ.get('HEADRACE_DATA') or './data'}/context.db")


class ContextConfig(Config, frozen=True, kw_only=True):
    """Where the context comes from, what is added to each event, and when it is read again."""

    database: Annotated[
        Secret, Meta(description="SQLAlchemy URL of the site's database. Default: sqlite:///${HEADRACE_DATA:-./data}/context.db")
    ] = msgspec.field(default_factory=default_database)
    table: Annotated[str, Meta(description="Table or view with one row per device, `schema.table` allowed. Not with `query`.")] = "devices"
    query: Annotated[str, Meta(description="A SELECT to use in place of `table`; of rows with the same key its last one counts.")] = ""
    key: Annotated[str, Meta(min_length=1, description="Column with the device's id.")] = "device"
    columns: Annotated[
        dict[str, Column], Meta(min_length=1, description="Fields added to each event's context: name -> source column and type.")
    ] = msgspec.field(default_factory=default_columns)
    refresh_interval_s: Annotated[
        float, Meta(ge=0.05, le=86_400, description="Time between two readings of the database, in the background.")
    ] = 60.0
    updated_column: Annotated[
        str,
        Meta(description="Column that grows with every change of a row (a time, or a number): readings then take only what changed."),
    ] = ""
    updated_overlap_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="With `updated_column`, if it is a time: how much later than that a change may be committed.",
        ),
    ] = 60.0
    full_refresh_interval_s: Annotated[
        float,
        Meta(ge=1, le=604_800, description="With `updated_column`: time between two readings of all rows, for what was deleted."),
    ] = 3_600.0
    unknown_refresh_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="An unknown device brings the next reading forward, to this long after the last. 0: never."),
    ] = 10.0
    retry_s_max: Annotated[float, Meta(ge=0.05, le=3_600, description="Longest wait between tries while the database fails.")] = 30.0
    connect_timeout_s: Annotated[int, Meta(ge=1, le=300, description="Longest wait for a connection.")] = 5
    query_timeout_s: Annotated[float, Meta(ge=0.1, le=3_600, description="Longest time that one reading may take.")] = 60.0
    on_start: Annotated[
        Literal["nulls", "wait"],
        Meta(description="Database unavailable at start and no context kept from before: pass events with nulls, or wait."),
    ] = "nulls"
    devices_max: Annotated[
        int, Meta(ge=1, le=50_000_000, description="Most rows that are read; more is an error, and the last context stays.")
    ] = 5_000_000

    def __post_init__(self) -> None:
        if self.query and self.table != "devices":
            raise ValueError("expected `table` or `query`, got both; leave one out")
        if self.updated_column and self.updated_column == self.key:
            raise ValueError(f"expected `updated_column` to tell when a row changed, got the key {self.key!r}")
        if self.query and not _SELECT.match(self.query):
            raise ValueError(f"expected `query` to be a SELECT, got {self.query[:40]!r}")
        if not self.query and not self.table:
            raise ValueError("expected `table` or `query`, got neither")
        try:
            sa.make_url(self.database.reveal())
        except (sa.exc.ArgumentError, ValueError):
            # Without the text that came: it may hold a password.
            raise ValueError("expected `database` to be a URL such as sqlite:///data/context.db, got text that is not one") from None
