"""Which events a client wants: filters, where they come from, and how they select rows. No I/O.

A filter restricts up to four fields; an event passes when every restricted field has one of the wanted values. Selection
works on the distinct values of a column, so its cost per event does not grow with the number of filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FIELDS: Final = ("device", "class", "type", "site")
VALUES_MAX: Final = 256
VALUE_CHARS_MAX: Final = 256

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class FilterError(ValueError):
    """A filter that a client sent cannot be used; the text is the answer to the client."""


class Filter(msgspec.Struct, frozen=True):
    """Wanted values per field; an empty tuple restricts nothing. In `device` a `*` stands for any characters."""

    device: tuple[str, ...] = ()
    class_: tuple[str, ...] = msgspec.field(default=(), name="class")
    type: tuple[str, ...] = ()
    site: tuple[str, ...] = ()

    def restrictions(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        """The restricted fields with their wanted values."""
        values = (self.device, self.class_, self.type, self.site)
        return [(field, wanted) for field, wanted in zip(FIELDS, values, strict=True) if wanted]


def filter_of_query(query: Mapping[str, Sequence[str]]) -> Filter:
    """The filter of a request's query parameters; each may be repeated or hold several values with commas between."""
    return _filter_of({field: [part for text in texts for part in text.split(",")] for field, texts in query.items()})


def filter_of_json(document: object) -> Filter:
    """The filter of a client's message: `{field: value or [values]}`."""
    if not isinstance(document, dict):
        raise FilterError(f"expected filter to be an object with {', '.join(FIELDS)}, got {_shown(document)}")
    return _filter_of({field: [value] if isinstance(value, str) else value for field, value in document.items()})


def _filter_of(fields: Mapping[str, object]) -> Filter:
    wanted: dict[str, tuple[str, ...]] = {}
    for field, values in fields.items():
        if field not in FIELDS:
            raise FilterError(f"expected the fields {', '.join(FIELDS)}, got {_shown(field)}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise FilterError(f"{field}: expected a string or a list of strings, got {_shown(values)}")
        distinct = tuple(sorted({value for value in values if value}))
        if len(distinct) > VALUES_MAX:
            raise FilterError(f"{field}: expected at most {VALUES_MAX} values, got {len(distinct)}")
        if any(len(value) > VALUE_CHARS_MAX for value in distinct):
            raise FilterError(f"{field}: expected values of at most {VALUE_CHARS_MAX} characters")
        wanted["class_" if field == "class" else field] = distinct
    return Filter(**wanted)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Facets:
    """The filterable columns of some batches, one after the other, each dictionary-encoded when first asked for."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.rows = sum(batch.num_rows for batch in batches)
        self._batches = batches
        self._encoded: dict[str, tuple[pa.Array, Rows]] = {}

    def codes(self, field: str) -> tuple[pa.Array, Rows]:
        """The distinct values of a field, and per row the index of its value (-1: none)."""
        if field not in self._encoded:
            column = pa.chunked_array([_column(batch, field) for batch in self._batches], pa.string())
            encoded = pc.dictionary_encode(column).combine_chunks()
            # combine_chunks of a chunked array with one chunk or more gives an array; of none, an empty chunked array.
            array = encoded if isinstance(encoded, pa.Array) else pa.array([], pa.dictionary(pa.int32(), pa.string()))
            codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
            self._encoded[field] = (array.dictionary, codes)
        return self._encoded[field]

    def select(self, wanted: Filter) -> Rows:
        """The rows that pass the filter, in order."""
        mask: Mask | None = None
        for field, values in wanted.restrictions():
            distinct, codes = self.codes(field)
            # One more entry, False, is what the code -1 (no value) picks.
            passing = np.append(_passing(distinct, values, glob=field == "device"), False)[codes]
            mask = passing if mask is None else mask & passing
        return np.arange(self.rows, dtype=np.int64) if mask is None else np.flatnonzero(mask)

    def newest_per_device(self, rows: Rows) -> Rows:
        """Of these rows the last one of each device, in order."""
        distinct, codes = self.codes("device")
        last = np.full(len(distinct), -1, dtype=np.int64)
        last[codes[rows]] = rows  # of repeated indexes NumPy keeps the last
        return np.sort(last[last >= 0])


def _column(batch: pa.RecordBatch, field: str) -> pa.Array:
    if field == "device":
        return batch.column("device")
    context = batch.column("context")
    index = context.type.get_field_index(field)
    if index < 0:
        return pa.nulls(batch.num_rows, pa.string())
    child = pc.struct_field(context, index)
    return child if pa.types.is_string(child.type) else child.cast(pa.string())


def _passing(distinct: pa.Array, values: tuple[str, ...], *, glob: bool) -> Mask:
    patterns = [value for value in values if glob and "*" in value]
    exact = [value for value in values if value not in patterns]
    passing: Any = pc.is_in(distinct, value_set=pa.array(exact, pa.string()))
    for pattern in patterns:
        passing = pc.or_(passing, pc.match_like(distinct, _like(pattern)))
    mask: Mask = passing.to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask


def _like(glob: str) -> str:
    """A glob as an SQL LIKE pattern: only `*` is special in it."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")
