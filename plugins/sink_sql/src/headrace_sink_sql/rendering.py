"""From an event batch to the table's columns. No I/O; work on columns, and on rows only where text needs escapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace_sink_sql.layout import Target

_ESCAPED: Final = r'[\x00-\x1f"\\\x7f]'
#: In CSV a server before version 18 takes a line that is `\\.` for the end of the data, in quotes too.
_END_OF_DATA: Final = r"(^|[\r\n])\\\."
_encode = msgspec.json.Encoder()


def render(batch: pa.RecordBatch, targets: Sequence[Target]) -> pa.RecordBatch:
    """One column per target, of the batch's length: JSON documents as text, the others as they are (null where a batch lacks them)."""
    fields = {name: _children(batch.column(name)) for name in ("readings", "context")}
    columns = []
    for target in targets:
        whole, _, field = target.source.partition(".")
        if field:
            columns.append(fields[whole].get(field, pa.nulls(batch.num_rows, pa.string())))
        elif whole in fields:
            columns.append(json_text(fields[whole], batch.num_rows))
        elif whole == "origin":
            columns.append(batch.column("origin").cast(pa.string()))
        else:
            columns.append(batch.column(whole))
    return pa.RecordBatch.from_arrays(columns, [target.name for target in targets])


def has_odd_lines(batch: pa.RecordBatch, targets: Sequence[Target]) -> bool:
    """Whether a text that is no document has a line that begins like the end of a COPY. (Documents have no line breaks.)"""
    texts = [batch.column("device")]
    for whole in ("readings", "context"):
        wanted = {target.source.partition(".")[2] for target in targets if target.source.startswith(f"{whole}.")}
        texts += [column for name, column in _children(batch.column(whole)).items() if name in wanted and pa.types.is_string(column.type)]
    return any(pc.any(pc.match_substring_regex(text, _END_OF_DATA)).as_py() for text in texts)


def _children(column: pa.StructArray) -> dict[str, pa.Array]:
    return dict(zip((field.name for field in column.type), column.flatten(), strict=True))


def json_text(children: dict[str, pa.Array], rows: int) -> pa.Array:
    """Each row as a JSON object of what it has: nulls are left out. Numbers that JSON has not are the strings "NaN", "Infinity"
    and "-Infinity"."""
    pairs = []
    for name, column in children.items():
        if column.null_count < rows:
            label = pa.scalar("," + _encode.encode(name).decode() + ":", pa.string())
            pairs.append(pc.binary_join_element_wise(label, _json_values(column), "", null_handling="emit_null"))
    if not pairs:
        return pa.array(["{}"] * rows, pa.string())
    # not null_handling="skip": pyarrow 26 then loses rows in which all are null
    joined = pc.ascii_ltrim(pc.binary_join_element_wise(*pairs, "", null_handling="replace", null_replacement=""), ",")
    return pc.binary_join_element_wise("{", joined, "}", "")


def _json_values(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind):
        text = column.cast(pa.string())
        if pc.all(pc.is_finite(column)).as_py() is not False:
            return text
        odd = pc.and_(pc.is_valid(column), pc.invert(pc.is_finite(column)))
        names = pc.if_else(pc.is_nan(column), '"NaN"', pc.if_else(pc.greater(column, 0), '"Infinity"', '"-Infinity"'))
        return pc.if_else(pc.fill_null(odd, False), names, text)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    if pa.types.is_string(kind):
        return _json_strings(column)
    if pa.types.is_timestamp(kind):
        return _json_strings(pc.replace_substring(column.cast(pa.string()), " ", "T"))
    return pa.array([None if value is None else _encode.encode(value).decode() for value in column.to_pylist()], pa.string())


def _json_strings(column: pa.Array) -> pa.Array:
    plain = pc.binary_join_element_wise('"', column, '"', "")
    special = pc.fill_null(pc.match_substring_regex(column, _ESCAPED), False)
    if not pc.any(special).as_py():
        return plain
    texts = [_encode.encode(text).decode() for text in column.filter(special).to_pylist()]
    return pc.replace_with_mask(plain, special, pa.array(texts, pa.string()))


def python_rows(rendered: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows for a driver: times as naive UTC, since not every database has zones."""
    columns = [column.cast(pa.timestamp("us")) if pa.types.is_timestamp(column.type) else column for column in rendered.columns]
    rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(columns, rendered.schema.names).to_pylist()
    return rows
