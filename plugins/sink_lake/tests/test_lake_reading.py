"""What readers find: partitions, columns, and files whose events have different readings."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_driver import START_US, events, make_lake, positions, read, store
from pyarrow import dataset

from headrace import CLOCK_FLOOR_US, EVENT_COLUMNS, Missing, RangeKey
from headrace_sink_lake import LocalStore, encoding
from headrace_sink_lake.inspection import inspect


def stored(path: Path, *batches: pa.RecordBatch, **options: Any) -> None:
    """One roll of batches that follow each other."""

    async def run() -> None:
        lake = make_lake(path, **options)
        await lake.open()
        position = 0
        for batch in batches:
            key = RangeKey("q", position + 1, position + batch.num_rows)
            await lake.sink_write(batch, key)
            position = key.last
        await lake.sink_flush(RangeKey("q", 1, position))
        await lake.close()

    asyncio.run(run())


def files(path: Path) -> list[Path]:
    return sorted(path.glob("**/*.parquet"))


def span(first: int, last: int) -> RangeKey:
    return RangeKey("q", first, last)


def test_duckdb_reads_files_of_different_readings_as_one_table(tmp_path: Path) -> None:
    stored(
        tmp_path / "lake",
        events(span(1, 2), {"temperature": [20.5, 21.0]}, {"class": ["thermostat"] * 2}),
        events(span(3, 4), {"open": [True, False], "battery": [3.0, 3.1]}, {"class": ["door"] * 2, "site": ["s1", "s2"]}),
        events(span(5, 5), {"note": ["hello"]}, {"class": ["door"]}),
    )
    rows = read(tmp_path / "lake", "select position, readings, context, class from lake order by 1")
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0][1] == {"temperature": 20.5, "open": None, "battery": None, "note": None}
    assert rows[3][1] == {"temperature": None, "open": False, "battery": 3.1, "note": None}
    assert rows[4][1]["note"] == "hello"
    assert [row[2]["site"] for row in rows] == [None, None, "s1", "s2", None]
    assert [row[3] for row in rows] == ["thermostat", "thermostat", "door", "door", "door"]


def test_files_carry_the_lake_columns_exactly(tmp_path: Path) -> None:
    stored(tmp_path / "lake", events(span(1, 3), {"t": [1.0, 2.0, 3.0]}, {"class": ["a"] * 3}))
    (file,) = files(tmp_path / "lake")
    schema = pq.read_schema(file)
    assert tuple(schema.names) == EVENT_COLUMNS
    assert schema.metadata[b"headrace.kind"] == b"event"
    assert schema.field("origin").type == pa.dictionary(pa.int32(), pa.string())
    assert schema.field("time").type == pa.timestamp("us", "UTC")
    assert schema.field("position").type == pa.uint64()
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert "RLE_DICTIONARY" in column.encodings


def test_default_partitions_are_class_and_utc_date_of_the_time(tmp_path: Path) -> None:
    late = 1_789_948_799_999_999  # 2026-09-20 23:59:59.999999 UTC
    stored(tmp_path / "lake", events(span(1, 2), {"t": [1.0, 2.0]}, {"class": ["a", None]}, [late, late + 1]))
    folders = {str(file.parent.relative_to(tmp_path / "lake")) for file in files(tmp_path / "lake")}
    assert folders == {"class=a/date=2026-09-20", "class=unknown/date=2026-09-21"}


def test_partition_keys_may_be_any_context_fields_and_the_hour(tmp_path: Path) -> None:
    batch = events(
        span(1, 2), {"t": [1.0, 2.0]}, {"site": ["s1", "s2"], "floor": [3, None], "a.b": ["x", "y"]}, [START_US, START_US + 3_600_000_000]
    )
    stored(tmp_path / "lake", batch, partition_by=("site", "floor", "hour", "absent", "a.b"))
    folders = {str(file.parent.relative_to(tmp_path / "lake")) for file in files(tmp_path / "lake")}
    assert folders == {"site=s1/floor=3/hour=14/absent=unknown/a.b=x", "site=s2/floor=unknown/hour=15/absent=unknown/a.b=y"}


def test_no_partition_keys_put_the_files_into_the_root(tmp_path: Path) -> None:
    stored(tmp_path / "lake", events(span(1, 5)), partition_by=())
    (file,) = files(tmp_path / "lake")
    assert file.parent == tmp_path / "lake"
    assert positions(tmp_path / "lake") == [1, 2, 3, 4, 5]


WEIRD = [
    "ü/ñ",
    "..",
    ".",
    "",
    "a=b&c",
    "x" * 400,
    "\u6c34" * 300,
    "line\nbreak",
    "%41",
    "nul\x00",
    " ",
    "unknown",
    "🦀",
    "C:\\",
    "a'b\"",
    "*?[x]",
]


def test_weird_class_names_stay_inside_the_lake_and_read_back(tmp_path: Path) -> None:
    classes = [*WEIRD, None]
    key = span(1, len(classes))
    stored(tmp_path / "lake", events(key, {"n": [1.0] * len(classes)}, {"class": classes}, [START_US] * len(classes)))
    assert all(len(part) <= 255 for file in files(tmp_path / "lake") for part in file.parts)
    assert {file.parent.parent.parent for file in files(tmp_path / "lake")} == {tmp_path / "lake"}
    rows = read(tmp_path / "lake", "select position, context['class'], class from lake order by 1")
    assert [row[1] for row in rows] == classes
    shown = [row[2] for row in rows]
    for name, value in zip(classes, shown, strict=True):
        if name is None or name == "":
            assert value == "unknown"
        elif len(name) < 100:
            assert value == name
    assert len({shown[5], shown[6]}) == 2


def test_numbers_booleans_and_dictionaries_may_be_partition_keys(tmp_path: Path) -> None:
    context = {"level": [1, 2], "on": [True, False], "kind": pa.array(["a", "b"]).dictionary_encode(), "tags": [["x"], []]}
    stored(tmp_path / "lake", events(span(1, 2), {"n": [1.0, 2.0]}, context), partition_by=("level", "on", "kind", "tags"))
    folders = {str(file.parent.relative_to(tmp_path / "lake")) for file in files(tmp_path / "lake")}
    assert folders == {"level=1/on=true/kind=a/tags=unknown", "level=2/on=false/kind=b/tags=unknown"}


def test_structs_without_children_and_null_structs_are_stored(tmp_path: Path) -> None:
    stored(tmp_path / "lake", events(span(1, 3), {}, {}))
    assert positions(tmp_path / "lake") == [1, 2, 3]
    (file,) = {file.parent.parent for file in files(tmp_path / "lake")}
    assert file.name == "class=unknown"
    assert read(tmp_path / "lake", "select distinct readings from lake") == [({"_empty": None},)]


def test_null_structs_are_kept_apart_from_structs_of_nulls(tmp_path: Path) -> None:
    batch = events(span(1, 2), {"n": [1.0, 2.0]}, {"class": ["a", "a"]})
    context = pa.array([None, {"class": "a"}], batch.schema.field("context").type)
    stored(tmp_path / "lake", batch.set_column(4, batch.schema.field("context"), context))
    assert read(tmp_path / "lake", "select position, context is null from lake order by 1") == [(1, True), (2, False)]


def test_batches_of_one_partition_are_joined_by_name(tmp_path: Path) -> None:
    day = [START_US]
    stored(
        tmp_path / "lake",
        events(span(1, 1), {"a": [1.0]}, {"class": ["c"]}, day),
        events(span(2, 2), {"b": ["x"], "a": [2.0]}, {"class": ["c"]}, day),
        events(span(3, 3), {"a": pa.nulls(1)}, {"site": ["s"], "class": ["c"]}, day),
    )
    assert len(files(tmp_path / "lake")) == 1
    rows = read(tmp_path / "lake", "select readings, context from lake order by position")
    assert rows[1] == ({"a": 2.0, "b": "x"}, {"class": "c", "site": None})
    assert rows[2] == ({"a": None, "b": None}, {"class": "c", "site": "s"})


NAMES = [("", "_"), ("a\0b", "a\ufffdb"), ("a.b", "a.b"), ("ключ", "ключ"), ('"q"', '"q"'), ("_empty", "_empty")]


@pytest.mark.parametrize(("name", "stored_as"), NAMES)
def test_any_name_of_a_reading_can_be_read_beside_others(tmp_path: Path, name: str, stored_as: str) -> None:
    first = events(span(1, 2), {name: [1.0, None], "t": [5.0, 6.0]}, {"class": ["a", "b"]})
    context = pa.array([None, {"class": "b"}], first.schema.field("context").type)
    stored(tmp_path / "lake", first.set_column(4, first.schema.field("context"), context), events(span(3, 3), {"t": [7.0]}))
    rows = read(tmp_path / "lake", "select readings from lake order by position")
    assert [row[0] for row in rows] == [{"t": 5.0, stored_as: 1.0}, {"t": 6.0, stored_as: None}, {"t": 7.0, stored_as: None}]


def test_names_that_would_become_the_same_stay_apart(tmp_path: Path) -> None:
    stored(tmp_path / "lake", events(span(1, 1), {"": [1.0], "_": [2.0], "a\0": [3.0], "a\ufffd": [4.0]}))
    assert read(tmp_path / "lake", "select readings from lake") == [({"__": 1.0, "_": 2.0, "a\ufffd_": 3.0, "a\ufffd": 4.0},)]


def test_readings_whose_types_clash_go_to_files_of_their_own(tmp_path: Path) -> None:
    day = [START_US]
    stored(
        tmp_path / "lake",
        events(span(1, 1), {"a": [1.5]}, {"class": ["c"]}, day),
        events(span(2, 2), {"a": ["x"]}, {"class": ["c"]}, day),
        events(span(3, 3), {"a": [2.5]}, {"class": ["c"]}, day),
    )
    assert len(files(tmp_path / "lake")) == 2
    assert [row[0] for row in read(tmp_path / "lake", "select readings['a'] from lake order by position")] == ["1.5", "x", "2.5"]


def test_readings_that_no_event_of_a_class_has_are_not_in_its_files(tmp_path: Path) -> None:
    stored(tmp_path / "lake", events(span(1, 2), {"t": [1.0, None], "open": [None, True]}, {"class": ["a", "b"]}))
    names = {file.parent.parent.name: pq.read_schema(file).field("readings").type.names for file in files(tmp_path / "lake")}
    assert {name: [str(child) for child in children] for name, children in names.items()} == {"class=a": ["t"], "class=b": ["open"]}


def test_rows_are_ordered_by_device_and_time_over_all_batches(tmp_path: Path) -> None:
    day = 86_400_000_000 * (START_US // 86_400_000_000)
    batches = [
        events(span(n * 50 + 1, n * 50 + 50), {"n": [1.0] * 50}, {"class": ["c"] * 50}, [day + (i * 7919 + n) % 50 for i in range(50)])
        for n in range(4)
    ]
    stored(tmp_path / "lake", *batches)
    (file,) = files(tmp_path / "lake")
    rows = [(row["device"], row["time"]) for row in pq.read_table(file).to_pylist()]
    assert rows == sorted(rows)
    assert len(rows) == 200


def test_more_partitions_than_allowed_share_one_and_lose_nothing(tmp_path: Path) -> None:
    async def run() -> float:
        lake = make_lake(tmp_path / "lake", partitions_max=10)
        await lake.open()
        key = span(1, 500)
        await store(lake, key, (key, events(key, {"n": [1.0] * 500}, {"class": [f"c{i}" for i in range(500)]}, [START_US] * 500)))
        await lake.close()
        return float(lake._overflow._value.get())

    assert asyncio.run(run()) == 490
    assert positions(tmp_path / "lake") == list(range(1, 501))
    assert len(files(tmp_path / "lake")) == 11
    assert read(tmp_path / "lake", "select count(distinct context['class']) from lake where class = '_other'") == [(490,)]


def test_many_partitions_with_few_open_files(tmp_path: Path) -> None:
    key = span(1, 300)
    batch = events(key, {"n": [1.0] * 300}, {"class": [f"c{i}" for i in range(300)]}, [START_US] * 300)
    stored(tmp_path / "lake", batch, partition_files_max=2)
    assert len(files(tmp_path / "lake")) == 300
    assert positions(tmp_path / "lake") == list(range(1, 301))


def test_more_rows_than_the_buffer_holds_go_to_temporary_files_early(tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake", buffer_bytes_max=1_048_576)
        await lake.open()
        for n in range(10):
            key = span(n * 4000 + 1, n * 4000 + 4000)
            await lake.sink_write(events(key, None, {"class": ["c"] * 4000}, [START_US] * 4000), key)
        assert len(list((tmp_path / "lake/_tmp").glob("*/*.tmp"))) >= 1
        assert positions(tmp_path / "lake") == []
        await lake.sink_flush(span(1, 40_000))
        await lake.close()

    asyncio.run(run())
    assert positions(tmp_path / "lake") == list(range(1, 40_001))


@pytest.mark.parametrize("missing", [(), (Missing(1, 3, "corrupt"), Missing(7, 9, "released"))])
def test_origin_names_the_first_queue_whatever_queue_is_read(tmp_path: Path, missing: tuple[Missing, ...]) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.open()
        await store(lake, RangeKey("q", 1, 10, missing))
        await lake.close()

    asyncio.run(run())
    gone = {position for hole in missing for position in range(hole.first, hole.last + 1)}
    assert read(tmp_path / "lake", "select origin, position from lake order by 2") == [("q", n) for n in range(1, 11) if n not in gone]


def many(count: int) -> pa.RecordBatch:
    """Events of 40 devices, a second apart, whose readings repeat little (noise) or much (level)."""
    chance = np.random.default_rng(7)
    readings = {"noise": chance.random(count), "level": np.round(chance.random(count), 2), "note": [f"n{i % 9}" for i in range(count)]}
    batch = events(span(1, count), readings, {"class": ["a"] * count}, [START_US + i for i in range(count)])
    devices = pa.array([f"dev-{i % 40:03}" for i in range(count)])
    return batch.set_column(0, batch.schema.field(0), devices)


def test_files_have_what_readers_skip_by(tmp_path: Path) -> None:
    stored(tmp_path / "lake", many(20_000), row_group_rows=5000)
    (file,) = files(tmp_path / "lake")
    metadata = pq.read_metadata(file)
    assert metadata.num_row_groups == 4
    device = metadata.row_group(1).column(0)
    assert (device.statistics.min, device.statistics.max) == ("dev-010", "dev-019")
    assert device.has_column_index
    assert device.has_offset_index
    with duckdb.connect() as database:
        probe = "select count(*) filter (bloom_filter_excludes), count(*) from parquet_bloom_probe('{}', 'device', '{}')"
        assert database.sql(probe.format(file, "dev-0155")).fetchall() == [(4, 4)]
        assert database.sql(probe.format(file, "dev-015")).fetchall() == [(3, 4)]


def test_a_struct_that_is_null_in_no_row_is_required_and_one_that_is_stays_null(tmp_path: Path) -> None:
    whole = events(span(1, 2), {"t": [1.0, None]}, {"class": ["a", "a"]})
    holed = events(span(3, 5), {"t": [1.0, 2.0, None]}, {"class": ["b", "b", "b"]})
    context = pa.StructArray.from_arrays([pa.array(["b"] * 3)], ["class"], mask=pa.array([False, True, False]))
    holed = holed.set_column(4, holed.schema.field(4), context)
    stored(tmp_path / "lake", whole)
    stored(tmp_path / "other", holed)
    (one,), both = files(tmp_path / "lake"), files(tmp_path / "other")
    assert [pq.read_schema(one).field(name).nullable for name in ("readings", "context")] == [False, False]
    assert pq.read_schema(one).field("readings").type.field("t").nullable
    assert {pq.read_schema(file).field("context").nullable for file in both} == {True}
    rows = [row for file in (one, *both) for row in pq.read_table(file, partitioning=None).to_pylist()]
    assert sorted(rows, key=lambda row: row["position"]) == whole.to_pylist() + holed.to_pylist()
    # a reader of folders takes the schema of the first file for that of all
    for order in ([one, *both], [*both, one]):
        table = dataset.dataset([str(file) for file in order]).to_table()
        assert sorted(table["position"].to_pylist()) == [1, 2, 3, 4, 5]
        assert table["context"].combine_chunks().null_count == 1


def test_a_page_has_a_good_many_rows(tmp_path: Path) -> None:
    # Of 20,000 rows each, there were five of each column, and each begins the compression anew.
    stored(tmp_path / "lake", many(100_000))
    (file,) = files(tmp_path / "lake")
    options = encoding.parquet_options(pq.read_table(file, partitioning=None), 3)
    assert options.get("max_rows_per_page") == (65_536 if encoding.HAS_PAGE_ROWS else None)
    small = tmp_path / "small.parquet"
    options.pop("max_rows_per_page", None)
    pq.write_table(pq.read_table(file, partitioning=None), small, **options)
    assert file.stat().st_size <= small.stat().st_size


def test_readings_have_dictionaries_where_values_repeat(tmp_path: Path) -> None:
    stored(tmp_path / "lake", many(20_000))
    (file,) = files(tmp_path / "lake")
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    assert {name: columns[f"readings.{name}"].has_dictionary_page for name in ("noise", "level", "note")} == {
        "noise": False,
        "level": True,
        "note": True,
    }
    assert columns["device"].has_dictionary_page
    assert "BYTE_STREAM_SPLIT" in columns["readings.noise"].encodings
    chance = np.random.default_rng(7)
    assert [row[0] for row in read(tmp_path / "lake", "select readings.noise from lake order by position")] == chance.random(
        20_000
    ).tolist()


def test_readings_that_hardly_repeat_have_an_encoding_for_their_type(tmp_path: Path) -> None:
    count = 5000
    chance = np.random.default_rng(11)
    readings = {
        "float": pa.array(chance.random(count).astype(np.float32)),
        "counter": pa.array(np.arange(count) * 7),
        "large": pa.array(chance.integers(0, 1 << 64, count, np.uint64)),
        "text": pa.array([f"message {number}" for number in range(count)]),
        "sparse": pa.array([None if number % 3 else number / 7 for number in range(count)]),
        "rare": pa.array([None if number % 300 else number / 7 for number in range(count)]),
    }
    stored(tmp_path / "lake", events(span(1, count), readings, {"class": ["a"] * count}, [START_US + i for i in range(count)]))
    (file,) = files(tmp_path / "lake")
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    expected = {"float": "BYTE_STREAM_SPLIT", "counter": "DELTA_BINARY_PACKED", "large": "DELTA_BINARY_PACKED", "text": "PLAIN"}
    expected |= {"sparse": "BYTE_STREAM_SPLIT", "rare": "RLE_DICTIONARY"}
    assert {name: encoding in columns[f"readings.{name}"].encodings for name, encoding in expected.items()} == dict.fromkeys(expected, True)
    back = read(tmp_path / "lake", "select unnest(readings) from lake order by position")
    assert [dict(zip(readings, row, strict=True)) for row in back] == pa.table(readings).to_pylist()


def test_a_large_roll_is_split_into_files_that_follow_each_other(tmp_path: Path) -> None:
    stored(tmp_path / "lake", many(300_000), row_group_rows=5000, file_bytes=1_048_576)
    found = files(tmp_path / "lake")
    sizes = [file.stat().st_size for file in found]
    assert len(found) > 2
    assert all(1_048_576 <= size < 1_300_000 for size in sizes[:-1])
    bounds = [pq.ParquetFile(file).read(["device"])["device"].to_pylist() for file in found]
    assert all(one[-1] <= other[0] for one, other in pairwise(bounds))
    assert positions(tmp_path / "lake") == list(range(1, 300_001))


def test_late_events_go_to_their_own_day(tmp_path: Path) -> None:
    day = 86_400_000_000
    stored(tmp_path / "lake", events(span(1, 3), {"t": [1.0] * 3}, {"class": ["a"] * 3}, [START_US, START_US - 40 * day, START_US]))
    rows = read(tmp_path / "lake", "select position, cast(date as varchar) from lake order by 1")
    assert [row[1] for row in rows] == ["2026-09-21", "2026-08-12", "2026-09-21"]
    assert len(files(tmp_path / "lake")) == 2


def test_events_of_a_wrong_clock_lie_where_their_own_time_says_and_are_counted(tmp_path: Path) -> None:
    batch = events(span(1, 4), {"t": [1.0] * 4}, {"class": ["a"] * 4})
    wrong = pa.array([1_000_000, 2_000_000, CLOCK_FLOOR_US, CLOCK_FLOOR_US + 1], pa.timestamp("us", "UTC"))
    stored(tmp_path / "lake", batch.set_column(2, batch.schema.field(2), wrong))
    assert {row[0] for row in read(tmp_path / "lake", "select cast(date as varchar) from lake")} == {"2026-09-21"}
    facts = inspect(LocalStore(tmp_path / "lake")).facts()
    assert facts["queue_ids"][0]["wrong_clock"] == 2


def test_a_file_is_looked_at_once_for_what_does_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counted(rows: pa.Table) -> dict[str, str]:
        looked.append(rows.num_rows)
        return scattered(rows)

    scattered = encoding.scattered
    monkeypatch.setattr(encoding, "scattered", counted)
    many = {f"r{number}": [0.5] * 5 for number in range(20)}
    stored(tmp_path / "lake", events(span(1, 5), many, {"class": ["a", "a", "b", "b", "b"]}))
    assert sorted(looked) == [2, 3]
