"""An enricher that takes fields from the device's name, for sites whose names say what a device is."""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from headrace import Component, Config, hookimpl

EXAMPLE = "^(?P<kind>[a-z]+)-(?P<number>[0-9]+)$"


class EnricherName(Component):
    """Each named group of the pattern is a field; a name that does not match gets nulls."""

    class Config(Config, frozen=True, kw_only=True):
        pattern: Annotated[str, Meta(description="Regular expression (RE2) with named groups, matched against the device's name.")] = (
            EXAMPLE
        )

    def check(self) -> list[str]:
        try:
            return [] if self._extract(pa.array([], pa.string())).type.num_fields else ["pattern has no named groups"]
        except pa.ArrowInvalid as error:
            return [f"pattern: {error}"]

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return pa.schema(list(self._extract(pa.array([], pa.string())).type))

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(self._extract(batch.column("device")).flatten(), schema=self.enrich_fields())

    def _extract(self, names: pa.StringArray) -> pa.StructArray:
        return pc.extract_regex(names, self.config.pattern)
