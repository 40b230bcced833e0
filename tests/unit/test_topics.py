"""Under which topic an event is published."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.engine.topics import TOPIC_CHARS_MAX, Topics
from headrace.schema import EVENT_COLUMNS, event_schema
from headrace.testing import event_batch


def events(context: pa.StructType, rows: list[dict[str, Any] | None]) -> pa.RecordBatch:
    plain = event_batch(len(rows), devices=["d0"])
    columns = [pa.array(rows, context) if name == "context" else plain.column(name) for name in EVENT_COLUMNS]
    return pa.RecordBatch.from_arrays(columns, schema=event_schema(plain.schema.field("readings").type, context))


KIND = pa.struct([("class", pa.string()), ("floor", pa.int64())])


def split(template: str, context: pa.StructType, rows: list[dict[str, Any] | None]) -> list[tuple[str, list[int]]]:
    return [(topic, batch.column("position").to_pylist()) for topic, batch in Topics(template).split(events(context, rows))]


def test_events_are_split_by_class_and_keep_their_order() -> None:
    rows: list[dict[str, Any] | None] = [{"class": kind} for kind in ("pump", "door", "pump", "pump", "door")]
    assert split("{class}", KIND, rows) == [("pump", [1, 3, 4]), ("door", [2, 5])]


def test_what_the_context_does_not_say_is_unknown() -> None:
    rows: list[dict[str, Any] | None] = [{"class": None}, {"class": "pump"}, None]
    assert split("{class}", KIND, rows) == [("unknown", [1, 3]), ("pump", [2])]
    assert split("{site}", KIND, rows) == [("unknown", [1, 2, 3])]
    assert split("{class}", pa.struct([]), [{}]) == [("unknown", [1])]


@pytest.mark.parametrize(
    ("template", "topics"),
    [("all", ["all"]), ("{class}/{floor}", ["pump/2"]), ("x{device}.", ["xd0."]), ("", [""]), ("{floor}{class}", ["2pump"])],
)
def test_a_template_is_text_and_fields_in_any_order(template: str, topics: list[str]) -> None:
    assert [topic for topic, _ in split(template, KIND, [{"class": "pump", "floor": 2}])] == topics


def test_a_topic_has_a_bound_and_no_events_make_none() -> None:
    (topic, _), = split("{class}", KIND, [{"class": "ä" * 1000}])  # fmt: skip
    assert topic == "ä" * TOPIC_CHARS_MAX
    assert split("{class}", KIND, []) == []
