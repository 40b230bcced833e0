"""Texts are dictionaries inside the sink, and text for readers; rows are in the order of device and time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lake_driver import START_US, events, read
from test_lake_reading import files, span, stored

from headrace_sink_lake import columns
from headrace_sink_lake.ordering import ordered
from headrace_sink_lake.partition import partition
from headrace_sink_lake.texts import CODED, Texts, compacted


def rows_of(path: Path) -> list[dict[str, object]]:
    """What pyarrow reads, in the order of positions."""
    found = [row for file in files(path) for row in pq.read_table(file, partitioning=None).to_pylist()]
    return sorted(found, key=lambda row: row["position"])


def test_readers_find_texts_and_the_schema_that_was_given(tmp_path: Path) -> None:
    readings = {"note": ["a", "b", None], "t": [1.0, 2.0, 3.0]}
    context = {"class": pa.array(["x", "x", "x"]).dictionary_encode(), "site": ["s1", None, "s1"]}
    batch = events(span(1, 3), readings, context, [START_US] * 3)
    stored(tmp_path / "lake", batch)
    (file,) = files(tmp_path / "lake")
    schema = pq.read_schema(file)
    assert schema.field("device").type == pa.string()
    assert not schema.field("device").nullable
    assert schema.field("readings").type == pa.struct({"note": pa.string(), "t": pa.float64()})
    assert schema.field("context").type == pa.struct({"class": pa.string(), "site": pa.string()})
    assert schema.field("origin").type == CODED
    assert rows_of(tmp_path / "lake") == batch.to_pylist()
    assert read(tmp_path / "lake", "select readings.note from lake order by position") == [("a",), ("b",), (None,)]


def test_dictionaries_of_any_shape_are_stored_as_the_text_that_they_mean(tmp_path: Path) -> None:
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None], pa.int8()), pa.array(["a", "b", "a"]))
    null_word = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1, 0], pa.int32()), pa.array(["a", None]))
    unused = pa.DictionaryArray.from_arrays(pa.array([3, 3, 3, 3], pa.int16()), pa.array(["a", "b", "c", "d"]))
    numbers = pa.array([7, 7, None, 8]).dictionary_encode()
    large = pa.array(["p", "q", "p", None], pa.large_string()).dictionary_encode()
    batch = events(span(1, 4), {"twice": twice, "null": null_word}, {"class": unused, "n": numbers, "large": large}, [START_US] * 4)
    stored(tmp_path / "lake", batch)
    assert rows_of(tmp_path / "lake") == batch.to_pylist()
    assert {file.parent.parent.name for file in files(tmp_path / "lake")} == {"class=d"}
    assert read(tmp_path / "lake", "select context from lake order by position") == [(row["context"],) for row in batch.to_pylist()]


def test_words_differ_from_batch_to_batch_and_some_batches_have_none(tmp_path: Path) -> None:
    day = [START_US]
    given = [
        events(span(1, 1), {"note": ["a"]}, {"class": ["c"]}, day),
        events(span(2, 2), {"note": pa.array(["b"]).dictionary_encode()}, {"class": ["c"], "site": ["s"]}, day),
        events(span(3, 3), {"t": [1.0]}, {"class": ["c"]}, day),
        events(span(4, 4), {"note": pa.nulls(1)}, {"class": ["c"], "site": pa.nulls(1)}, day),
    ]
    stored(tmp_path / "lake", *given)
    assert len(files(tmp_path / "lake")) == 1
    assert [row["readings"]["note"] for row in rows_of(tmp_path / "lake")] == ["a", "b", None, None]  # type: ignore[index]
    assert [row["context"]["site"] for row in rows_of(tmp_path / "lake")] == [None, "s", None, None]  # type: ignore[index]


def test_a_text_that_hardly_repeats_is_not_coded_and_stored_all_the_same(tmp_path: Path) -> None:
    texts = Texts()
    unique = events(span(1, 300), {"log": [f"line {i}" for i in range(300)], "state": ["on", "off"] * 150}, {"class": ["c"] * 300})
    again = events(span(301, 302), {"log": ["line 1", None], "state": ["on", None]}, {"class": ["c"] * 2})
    held = [columns.checked(batch, texts) for batch in (unique, again)]
    assert [batch and str(batch.schema.field("readings").type.field("log").type) for batch in held] == ["string", "string"]
    assert [batch and batch.schema.field("readings").type.field("state").type for batch in held] == [CODED, CODED]
    # the other way round the first batch is too small to tell, and the two are joined
    for name, batches in {"one": (unique, again), "other": (events(span(1, 2), {"log": ["x", "x"]}, {"class": ["c"] * 2}), unique)}.items():
        stored(tmp_path / name, *(one.set_column(6, one.schema.field(6), pa.array(range(len(one)), pa.uint64())) for one in batches))
        count = sum(batch.num_rows for batch in batches)
        assert read(tmp_path / name, "select count(*), count(distinct readings.log) from lake") == [(count, 300 + (name == "other"))]


def test_a_code_that_leads_elsewhere_is_found_behind_a_batch_with_the_same_words() -> None:
    words = pa.array(["on", "off"])
    texts = Texts()
    for codes, good in (
        ([0, 1, 1], True),
        ([1, 1, 0], True),
        ([0, 2, 1], False),
        ([0, -1, 1], False),
        ([0, None, 1], True),
        ([1, 0, 1], True),
    ):
        state = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), words, safe=False)
        held = columns.checked(events(span(1, 3), {"n": [1.0] * 3}, {"class": ["c"] * 3, "state": state}), texts)
        assert (held is not None) == good, codes
        if held is not None:
            assert held.column("context").field(1).to_pylist() == [None if code is None else words[code].as_py() for code in codes]


def test_words_that_are_kept_for_the_next_batch_are_a_copy() -> None:
    memory = bytearray(b"onoff")
    offsets = pa.array([0, 2, 5], pa.int32()).buffers()[1]
    words = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(memory))
    state = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), words)
    batch = events(span(1, 2), {"n": [1.0] * 2}, {"class": ["c"] * 2, "state": state})
    texts = Texts()
    assert columns.checked(batch, texts) is not None
    memory[:] = b"\xff\xff\xff\xff\xff"  # the queue uses its space again
    assert columns.checked(batch, texts) is None


def test_batches_of_other_columns_are_looked_at_anew() -> None:
    texts = Texts()
    one = events(span(1, 2), {"n": [1.0, 2.0]}, {"class": ["c", "d"]})
    other = events(span(3, 4), {"note": ["a", None], "n": [1, 2]}, {"class": ["c", "d"]})
    for batch in (one, other, one, other):
        held = columns.checked(batch, texts)
        assert held is not None
        assert held.to_pylist() == batch.to_pylist()
        assert held.schema.names == batch.schema.names


def test_a_row_group_has_few_words_of_other_rows() -> None:
    words = [f"w{number:03}" for number in range(200)]
    codes = pa.array(np.repeat(np.arange(200), 20).astype(np.int32))
    mixed = pa.array([None if number % 7 == 0 else number for number in codes.to_pylist()], pa.int32())
    table = pa.table({"one": pa.DictionaryArray.from_arrays(codes, words), "two": pa.DictionaryArray.from_arrays(mixed, words)})
    part = compacted(table.slice(1000, 500))
    assert part.to_pydict() == table.slice(1000, 500).to_pydict()
    assert [len(part.column(name).chunk(0).dictionary) for name in ("one", "two")] == [25, 22]


def test_late_events_are_put_in_the_order_of_their_times_whatever_those_are() -> None:
    chance = np.random.default_rng(5)
    count = 5000
    batch = events(span(1, count), {"n": np.arange(count)}, {"class": ["c"] * count}, [START_US + i for i in range(count)])
    devices = [f"dev-{int(number)}" for number in chance.integers(0, 40, count)]
    partitions = chance.integers(0, 3, count)
    late = np.arange(count)
    late[chance.integers(0, count, 50)] -= 3000
    wild = np.array([-(1 << 62), 1 << 62, 0])[chance.integers(0, 3, count)]
    for times in (np.arange(count), late, wild, np.zeros(count, np.int64)):
        own = batch.set_column(0, batch.schema.field(0), pa.array(devices))
        own = own.set_column(1, own.schema.field(1), pa.array(times, pa.timestamp("us", "UTC")))
        order, runs = ordered(own, partitions)
        rows = range(count)
        expected = sorted(rows, key=lambda row: (partitions[row], devices[row].encode(), times[row], row))
        assert order.tolist() == expected
        assert [run.partition for run in runs for _ in range(run.start, run.stop)] == sorted(partitions.tolist())


def test_more_devices_and_partitions_than_sixteen_bits_are_ordered_too() -> None:
    count = 100_000
    batch = events(span(1, count), {"n": np.zeros(count)}, {"class": ["c"] * count}, np.arange(count))
    numbers = np.random.default_rng(6).permutation(count)
    batch = batch.set_column(0, batch.schema.field(0), pa.array([f"dev-{number:06}" for number in numbers.tolist()]))
    partitions = numbers % 50
    order, runs = ordered(batch, partitions)
    assert order.tolist() == np.lexsort((numbers, partitions)).tolist()
    assert [run.stop - run.start for run in runs] == [2000] * 50


def test_keys_of_more_values_than_sixteen_bits_name_each_partition_once() -> None:
    count = 2000
    context = {"a": [f"a{number}" for number in range(count)], "b": [f"b{number % 700}" for number in range(count)], "c": ["x"] * count}
    batch = events(span(1, count), {"n": np.zeros(count)}, context, [START_US + number * 86_400_000_000 for number in range(count)])
    numbers, parts = partition(batch, ("a", "c", "b", "date", "none"))
    days = np.datetime64(START_US, "us").astype("datetime64[D]") + np.arange(count)
    expected = [f"a=a{row}/c=x/b=b{row % 700}/date={days[row]}/none=unknown" for row in range(count)]
    assert [parts[number].folder for number in numbers.tolist()] == expected
    assert [part.rows for part in parts] == [1] * count
