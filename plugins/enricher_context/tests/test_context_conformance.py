"""The kit's contract of enrichers, over a SQLite file."""

from __future__ import annotations

from pathlib import Path

from context_driver import devices, row, sqlite_url

from headrace import Component, Context
from headrace.config import Secret
from headrace.testing import DEVICES, EnricherContract
from headrace_enricher_context import EnricherContext


def database(context: Context) -> Path:
    return context.data_dir.parent / "context.db"


class TestEnricherContext(EnricherContract):
    def make(self, context: Context) -> Component:
        if not database(context).exists():
            devices(database(context), [row(name, site=f"site of {name}") for name in DEVICES])
        return EnricherContext(EnricherContext.Config(database=Secret(sqlite_url(database(context)))), context)

    def break_store(self, context: Context) -> None:
        database(context).rename(database(context).with_suffix(".gone"))

    def heal_store(self, context: Context) -> None:
        database(context).with_suffix(".gone").rename(database(context))
