"""`headrace lake compact|vacuum`: large files in place of small ones, and no reader ever sees an event twice or not at all."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from lake_driver import START_US, events, make_lake, positions, store

from headrace import RangeKey
from headrace_sink_lake import LocalStore, live_files
from headrace_sink_lake import compact as compaction
from headrace_sink_lake.command import main
from headrace_sink_lake.compact import Options, compact
from headrace_sink_lake.manifest import ORPHAN_S
from headrace_sink_lake.merging import merged, mixed
from headrace_sink_lake.snapshot import commit_partitions, newest, read_manifest
from headrace_sink_lake.vacuum import vacuum
from headrace_sink_lake.verify import verify


class KilledError(BaseException):
    """Stands for a SIGKILL at a fault point."""


def dies_at(point: str, nth: int = 1) -> Callable[[str], None]:
    left = nth

    def fault(name: str) -> None:
        nonlocal left
        left -= name == point
        if name == point and left == 0:
            raise KilledError

    return fault


def write(lake: Path, *keys: RangeKey, batches: Callable[[RangeKey], pa.RecordBatch] = events, **options: Any) -> None:
    async def run() -> None:
        sink = make_lake(lake, **{"partition_by": ["class"], **options})
        await sink.open()
        for key in keys:
            await store(sink, key, (key, batches(key)))
        await sink.close()

    asyncio.run(run())


def spans(first: int, last: int, step: int, queue_id: str = "q") -> list[RangeKey]:
    return [RangeKey(queue_id, low, low + step - 1) for low in range(first, last, step)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = tmp_path_factory.mktemp("written") / "lake"
    write(lake, *spans(1, 200, 40), *spans(1, 200, 40, "r"))
    return lake


@pytest.fixture
def lake(written: Path, tmp_path: Path) -> Path:
    """400 events of two queue ids in ten rolls, 40 files in four partitions."""
    return Path(shutil.copytree(written, tmp_path / "lake"))


def counted(lake: Path) -> list[tuple[str, int]]:
    """What a reader of the manifest sees."""
    files = [str(lake / path) for path in live_files(str(lake))]
    with duckdb.connect() as database:
        database.execute("set threads = 1")
        found = f"select origin, position from read_parquet({files!r}, hive_partitioning=true, union_by_name=true) order by all"
        return database.sql(found).fetchall()


def by_folder(lake: Path) -> int:
    """What readers count that take a folder, as Spark and Trino do: all files but those that begin with `_` or a dot."""
    return int(pyarrow.dataset.dataset(lake, format="parquet", partitioning="hive").count_rows())


def everything(first: int = 1, last: int = 200) -> list[tuple[str, int]]:
    return [(queue, position) for queue in "qr" for position in range(first, last + 1)]


def well(lake: Path) -> None:
    assert [str(finding) for finding in verify(LocalStore(lake)).findings] == []


def later() -> float:
    return time.time() + 7200


def test_small_files_become_few_and_every_reader_sees_each_event_once(lake: Path) -> None:
    before = sorted(lake.glob("**/*.parquet"))
    done = compact(LocalStore(lake), Options(files_min=2))
    assert done.files_before > 3 * done.files_after > 0
    assert sorted(lake.glob("**/*.parquet")) == before, "a reader's glob sees no change"
    assert by_folder(lake) == 400
    assert counted(lake) == everything()
    well(lake)
    removed = vacuum(LocalStore(lake), 3600, wall=later)
    assert removed.files == done.files_before
    assert counted(lake) == everything()
    assert len(positions(lake)) == 400, "a reader's glob finds the merged files"
    assert by_folder(lake) == 400
    assert len(list(lake.glob("**/*.parquet"))) == len(before) - done.files_before + done.files_after
    well(lake)


def test_what_was_replaced_a_moment_ago_stays(lake: Path) -> None:
    compact(LocalStore(lake), Options(files_min=2))
    assert vacuum(LocalStore(lake), 3600).files == 0
    assert vacuum(LocalStore(lake), 3600, wall=later).files > 0
    # The names that readers of the older manifest know go with the next vacuum that is as far away again.
    twins = set(lake.glob("**/*.merged"))
    assert twins
    assert vacuum(LocalStore(lake), 3600, wall=later).files == 0
    assert vacuum(LocalStore(lake), 3600, wall=lambda: later() + 7200).files == len(twins)
    assert counted(lake) == everything()
    well(lake)


def test_rolls_that_come_later_are_read_beside_merged_files_and_merged_with_them(lake: Path) -> None:
    compact(LocalStore(lake), Options(files_min=2))
    write(lake, *spans(201, 280, 40), *spans(201, 280, 40, "r"))
    assert counted(lake) == everything(1, 280)
    vacuum(LocalStore(lake), 0, wall=later)
    assert counted(lake) == everything(1, 280)
    assert len(positions(lake)) == 560
    compact(LocalStore(lake), Options(files_min=2))
    assert counted(lake) == everything(1, 280)
    assert len(positions(lake)) == 560
    vacuum(LocalStore(lake), 0, wall=later)
    assert counted(lake) == everything(1, 280)
    assert len(positions(lake)) == 560
    well(lake)


def test_a_merged_file_has_the_order_the_types_and_the_columns_of_a_rolls_file(lake: Path) -> None:
    name = sorted(lake.glob("**/q-*.parquet"))[0].parent
    one = pq.read_schema(next(iter(name.glob("q-*.parquet"))))
    compact(LocalStore(lake), Options(files_min=2))
    (file,) = name.glob("*.merged")
    table = pq.ParquetFile(file).read()
    assert table.schema.remove_metadata() == one.remove_metadata()
    assert b"headrace.first" not in table.schema.metadata
    assert table.schema.metadata[b"headrace.kind"] == b"event"
    keys = list(zip(table["device"].to_pylist(), table["time"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert [(entry.column_index, entry.descending) for entry in pq.read_metadata(file).row_group(0).sorting_columns] == [
        (0, False),
        (1, False),
    ]


def test_files_end_at_the_target_and_large_ones_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_sink_lake.merging.ROWS_HELD", 4096)

    def noisy(key: RangeKey) -> pa.RecordBatch:
        count = key.last - key.first + 1
        noise = np.random.default_rng(key.first).random(count)
        return events(key, {"noise": noise}, {"class": ["a"] * count}, times=[START_US + i for i in range(count)])

    lake = tmp_path / "lake"
    write(lake, *spans(1, 60_000, 10_000), batches=noisy)
    small = compact(LocalStore(lake), Options(target_bytes=200_000, files_min=2, row_group_rows=1000))
    assert small.files_before == 6
    sizes = [file.stat().st_size for file in lake.glob("**/*.merged")]
    assert len(sizes) == small.files_after >= 3
    assert sum(200_000 <= size < 240_000 for size in sizes) >= len(sizes) - 1
    assert compact(LocalStore(lake), Options(target_bytes=200_000, files_min=2)).partitions == 0
    well(lake)


def test_types_that_do_not_go_together_and_files_without_readings_keep_every_event(tmp_path: Path) -> None:
    def shaped(key: RangeKey) -> pa.RecordBatch:
        count = key.last - key.first + 1
        kinds: list[dict[str, Any]] = [{"t": [1.0] * count}, {"t": ["warm"] * count}, {"u": [True] * count}, {}]
        return events(key, kinds[key.first // 10 % 4], {"class": ["a"] * count} if key.first % 20 == 1 else {}, [START_US] * count)

    lake = tmp_path / "lake"
    write(lake, *spans(1, 120, 10), batches=shaped, partition_by=[])
    done = compact(LocalStore(lake), Options(files_min=2))
    assert (done.files_before, done.files_after) == (12, 2)
    assert [position for _, position in counted(lake)] == list(range(1, 121))
    well(lake)


@pytest.mark.parametrize("struct", ["readings", "context"])
def test_a_reading_that_is_named_as_the_placeholder_of_none_stays(tmp_path: Path, struct: str) -> None:
    def named(key: RangeKey) -> pa.RecordBatch:
        count = key.last - key.first + 1
        kinds: list[dict[str, Any]] = [
            {"_empty": [True] * count},
            {"_empty": [False] * count, "t": [1.0] * count},
            {},
            {"t": [1.0] * count},
        ]
        own = kinds[key.first // 10 % 4]
        return events(key, *((own, {}) if struct == "readings" else ({}, own)))

    lake = tmp_path / "lake"
    write(lake, *spans(1, 80, 10), batches=named, partition_by=[])
    compact(LocalStore(lake), Options(files_min=2))
    vacuum(LocalStore(lake), 0, wall=later)
    rows = [row for file in lake.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found = {row["position"]: row[struct].get("_empty") for row in rows}
    assert found == {number: {0: True, 1: False}.get((number - 1) // 10 % 4) for number in range(1, 81)}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    """In the first page of the first column."""
    data = bytearray(file.read_bytes())
    place = data.index(b"\x28\xb5\x2f\xfd")  # where zstd's frame begins
    data[place] ^= 1
    file.write_bytes(data)


def garble(file: Path) -> None:
    table = pq.read_table(file)
    device = pa.Array.from_buffers(pa.string(), len(table), pa.array([b"\xff"] * len(table), pa.binary()).buffers())
    pq.write_table(table.set_column(0, "device", device), file)


def shorten(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(1), file)


def replace(file: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), file)


@pytest.mark.parametrize("harm", [cut, flip, garble, shorten, replace])
def test_a_damaged_file_is_named_and_keeps_no_other_partition_from_being_merged(
    lake: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted(lake.glob("class=meter/*.parquet"))[3]
    harm(file)
    assert main(["compact", str(lake), "--files-min", "2"]) == 1
    told = capsys.readouterr().out
    assert "30 files made 3 in 3 partitions" in told
    assert "note     class=meter: left alone, for" in told
    assert f"class=meter/{file.name}" in told
    assert "restore the file from a backup" in told
    assert sorted(path.parent.name for path in lake.glob("**/*.merged")) == ["class=door", "class=thermostat", "class=unknown"]


def test_a_store_that_does_not_answer_is_no_damaged_file(lake: Path) -> None:
    class Gone(LocalStore):
        def open_input(self, path: str) -> Any:
            raise OSError("no answer")

        def size(self, path: str) -> int | None:
            raise OSError("no answer")

    with pytest.raises(OSError, match=r"^no answer$"):
        compact(Gone(lake), Options(files_min=2))


def test_rolls_that_are_not_published_or_stand_behind_a_hole_are_left_alone(lake: Path) -> None:
    attempt = next(iter(lake.glob("**/q-00000000000000000121-*.parquet"))).name.rsplit("-", 1)[0]
    (lake / "_tmp" / attempt).mkdir()
    (lake / "_commits/r/00000000000000000041.json").rename(lake / "away")
    done = compact(LocalStore(lake), Options(files_min=2))
    covered = {(entry.queue, entry.upto) for partition in read_manifest(LocalStore(lake)).partitions for entry in partition.covered}
    assert {queue for queue, _ in covered} == {"q", "r"}
    assert max(upto for queue, upto in covered if queue == "q") == 81
    assert max(upto for queue, upto in covered if queue == "r") == 1
    assert any("r only up to 40, where its records have a hole" in note for note in done.notes)
    (lake / "away").rename(lake / "_commits/r/00000000000000000041.json")
    assert counted(lake) == everything()


def test_two_compactions_at_once_are_one(lake: Path) -> None:
    second: list[compaction.Outcome] = []

    def fault(name: str) -> None:
        if name == "lake.before_manifest" and not second:
            second.append(compact(LocalStore(lake), Options(files_min=2)))

    first = compact(LocalStore(lake), Options(files_min=2), fault=fault)
    assert first.partitions == 0
    assert second[0].partitions > 0
    assert all("another compaction was faster" in note for note in first.notes)
    assert len(list(lake.glob("**/*.merged"))) == second[0].files_after
    assert counted(lake) == everything()
    well(lake)


@pytest.mark.parametrize("point", ["lake.before_merge", "lake.after_merge", "lake.before_manifest", "lake.after_manifest"])
def test_a_compaction_that_is_killed_changes_nothing_and_is_repeated(lake: Path, point: str) -> None:
    with pytest.raises(KilledError):
        compact(LocalStore(lake), Options(files_min=2), fault=dies_at(point))
    assert counted(lake) == everything()
    assert len(positions(lake)) == 400
    well(lake)
    compact(LocalStore(lake), Options(files_min=2))
    assert counted(lake) == everything()
    vacuum(LocalStore(lake), 0, wall=lambda: time.time() + ORPHAN_S + 7200)
    assert counted(lake) == everything()
    assert len(positions(lake)) == 400
    well(lake)


@pytest.mark.parametrize("point", ["lake.after_link", "lake.mid_remove", "lake.before_manifest", "lake.after_manifest"])
def test_a_vacuum_that_is_killed_is_finished_by_the_next(lake: Path, point: str) -> None:
    compact(LocalStore(lake), Options(files_min=2))
    with pytest.raises(KilledError):
        vacuum(LocalStore(lake), 0, fault=dies_at(point), wall=later)
    assert counted(lake) == everything()
    well(lake)
    compact(LocalStore(lake), Options(files_min=2))
    vacuum(LocalStore(lake), 0, wall=lambda: later() + 10)
    assert counted(lake) == everything()
    assert len(positions(lake)) == 400
    well(lake)


def test_nothing_is_removed_where_the_merged_file_is_not_as_it_should_be(lake: Path) -> None:
    compact(LocalStore(lake), Options(files_min=2))
    file = sorted(lake.glob("**/*.merged"))[0]
    file.write_bytes(file.read_bytes()[:-1])
    there = sorted(file.parent.glob("*.parquet"))
    with pytest.raises(OSError, match="nothing was removed there"):
        vacuum(LocalStore(lake), 0, wall=later)
    assert sorted(file.parent.glob("*.parquet")) == there
    assert any(file.name in str(finding) for finding in verify(LocalStore(lake)).findings)


def test_a_merge_that_changed_an_event_replaces_nothing(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Any, schema: pa.Schema) -> Any:
        for table in merged(inputs, schema):
            yield table.set_column(6, schema.field(6), pa.array(np.sort(table["position"].to_numpy())[::-1] + np.uint64(1)))

    monkeypatch.setattr("headrace_sink_lake.compact.merged", wrong)
    with pytest.raises(OSError, match="found others; nothing was replaced"):
        compact(LocalStore(lake), Options(files_min=2))
    assert newest(LocalStore(lake)) == 0
    assert list(lake.glob("**/*.merged")) == []


def test_a_change_made_from_an_older_entry_is_refused(lake: Path) -> None:
    local = LocalStore(lake)
    compact(local, Options(files_min=2))
    entry = read_manifest(local).partitions[0]
    assert commit_partitions(local, {entry.folder: (None, entry)}, 0.0) == set()
    assert commit_partitions(local, {entry.folder: (entry, entry)}, 0.0) == {entry.folder}
    assert newest(local) == 2
    assert [path.suffix for path in (lake / "_manifest").iterdir()] == [".json", ".json"]


def test_merging_is_sorting_whatever_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(3)
    key = RangeKey("q", 1, 5000)
    rows = events(key, times=[START_US + int(n) for n in chance.integers(0, 50, 5000)])
    parts = np.sort(chance.integers(0, 5000, 6)).tolist()
    inputs = []
    for start, stop in zip([0, *parts], [*parts, 5000], strict=True):
        run = pa.Table.from_batches([rows.slice(start, stop - start)]).sort_by([("device", "ascending"), ("time", "ascending")])
        inputs.append(iter(run.combine_chunks().to_batches(max_chunksize=int(chance.integers(1, 900)))))
    table = pa.concat_tables(list(merged(inputs, rows.schema)))
    keys = list(zip(table["device"].to_pylist(), table["time"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert sorted(table["position"].to_pylist()) == list(range(1, 5001))
    assert len(set(mixed(np.arange(5000, dtype=np.uint64)).tolist())) == 5000


def test_the_commands_and_the_sql_of_the_readme_work(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(lake), "--files-min", "2"]) == 0
    assert "files made" in capsys.readouterr().out
    write(lake, RangeKey("q", 201, 210))
    expected = everything() + [("q", position) for position in range(201, 211)]
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    sql = readme.partition("<!-- the live files -->\n```sql\n")[2].partition("```")[0]
    with duckdb.connect() as database:
        database.execute(sql.replace("data/lake", str(lake)))
        found = database.sql(
            "select origin, position from read_parquet(getvariable('files'), union_by_name = true) order by all"
        ).fetchall()
    assert found == sorted(expected)
    assert main(["info", str(lake)]) == 0
    assert "partitions not vacuumed" in capsys.readouterr().out
    assert main(["vacuum", str(lake), "--older-than", "0"]) == 0
    assert "removed in" in capsys.readouterr().out
    assert counted(lake) == sorted(expected)
