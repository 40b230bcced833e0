"""The context in memory: joined row by row, in little room."""

from __future__ import annotations

import os
import random

import pyarrow as pa
import pytest
from context_driver import FIELDS, held_of
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.enrichment import fits
from headrace.schema import WORDS_TYPE
from headrace_enricher_context.held import KEY, WORDS_MAX, Held

NAMES = st.text(max_size=12)
VALUES = st.tuples(NAMES | st.none(), st.floats(allow_nan=False) | st.none())


@settings(deadline=None)
@given(
    known=st.dictionaries(NAMES, st.tuples(NAMES | st.none(), st.floats(allow_nan=False) | st.none())), asked=st.lists(NAMES, max_size=50)
)
def test_every_row_gets_its_own_device(known: dict[str, tuple[str | None, float | None]], asked: list[str]) -> None:
    texts = pa.array([text for text, _ in known.values()], pa.string())
    numbers = pa.array([number for _, number in known.values()], pa.float64())
    fields = pa.schema([("text", pa.string()), ("number", pa.float64())])
    held = Held(pa.table([pa.array(known, pa.string()), texts, numbers], [KEY, *fields.names]), fields)
    asked = asked + list(known)

    joined = held.join(pa.array(asked, pa.string()))

    expected = [known.get(name, (None, None)) for name in asked]
    assert joined.added.column("text").to_pylist() == [text for text, _ in expected]
    assert joined.added.column("number").to_pylist() == [number for _, number in expected]
    assert joined.unknown_events == sum(name not in known for name in asked)
    assert set(joined.unknown.to_pylist()) == set(asked) - set(known)


def test_an_empty_context_gives_nulls() -> None:
    joined = Held.empty(FIELDS).join(pa.array(["a", "b"]))
    assert fits(joined.added.schema, FIELDS)
    assert [column.null_count for column in joined.added.columns] == [2] * len(FIELDS)


def test_no_rows_give_no_rows() -> None:
    assert held_of(["a"], site=["hall"]).join(pa.array([], pa.string())).added.num_rows == 0


@pytest.mark.parametrize("times", [1, 1000])
def test_devices_that_repeat_and_unknown_ones_are_found_in_batches_of_any_size(times: int) -> None:
    held = held_of(["a", "b", "c"], site=["hall", "yard", "gate"])
    joined = held.join(pa.array(["b", "x", "a", "b", "y", "x"] * times))
    assert joined.added.column("site").to_pylist() == ["yard", None, "hall", "yard", None, None] * times
    assert joined.unknown_events == 3 * times
    assert joined.unknown.to_pylist() == ["x", "y"]


def test_text_that_repeats_is_held_once_and_given_as_words() -> None:
    names = [f"device-{number}" for number in range(60_000)]
    sites = [f"a rather long name of site {number % 7}" for number in range(60_000)]
    held = held_of(names, site=sites)
    assert pa.types.is_dictionary(held.table.schema.field("site").type)
    added = held.join(pa.array([names[17], "?", names[6]])).added
    assert added.schema.field("site").type == WORDS_TYPE
    assert added.column("site").to_pylist() == [sites[17], None, sites[6]]


def test_text_of_many_words_is_given_as_text() -> None:
    names = [f"device-{number}" for number in range(60_000)]
    rooms = [f"a rather long name of room {number % (WORDS_MAX + 1)}" for number in range(60_000)]
    held = held_of(names, room=rooms)
    assert pa.types.is_dictionary(held.table.schema.field("room").type)
    added = held.join(pa.array([names[17], "?", names[6]])).added
    assert added.schema.field("room").type == pa.string()
    assert added.column("room").to_pylist() == [rooms[17], None, rooms[6]]


def test_contexts_are_the_same_whatever_the_order_of_rows() -> None:
    keys, sites = ["a", "b", "c"], ["x", "y", None]
    first = held_of(keys, site=sites)
    assert first.same_as(held_of(keys[::-1], site=sites[::-1]))
    assert not first.same_as(held_of(keys, site=["x", "y", "z"]))
    assert not first.same_as(held_of(keys[:2], site=sites[:2]))


def test_a_device_takes_less_than_200_bytes_and_is_found() -> None:
    count = 1_000_000 if os.environ.get("HEADRACE_FULL") else 20_000
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed).sample(range(count), 1000)
    places = [number / 7 for number in range(count)]
    before = pa.total_allocated_bytes()
    held = held_of(
        [f"building-{number % 90}/device-{number:07d}" for number in range(count)],
        kind=[f"class-{number % 20}" for number in range(count)],
        site=[f"site-{number % 500}" for number in range(count)],
        latitude=places,
        longitude=places,
    )
    assert held.nbytes / count < 200
    assert pa.total_allocated_bytes() - before < 200 * count
    joined = held.join(pa.array([f"building-{number % 90}/device-{number:07d}" for number in numbers]))
    assert joined.added.column("latitude").to_pylist() == [places[number] for number in numbers]
