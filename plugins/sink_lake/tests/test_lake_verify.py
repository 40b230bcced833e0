"""`headrace lake info|verify|files`: what is well passes, and each kind of damage is told with file, expectation and remedy."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_driver import events, make_lake, positions, store

from headrace import Missing, RangeKey
from headrace.schema import ORIGIN_TYPE
from headrace_sink_lake import CommitRecord, LocalStore
from headrace_sink_lake.command import main
from headrace_sink_lake.positions import Seen, passes_for
from headrace_sink_lake.verify import Verdict, verify

KEYS = (
    RangeKey("q", 1, 50),
    RangeKey("q", 51, 100, (Missing(60, 69, "corrupt"),), (71, 72, 80)),
    RangeKey("q", 101, 130),
    RangeKey("r/2", 1, 20),
)


def linked(key: RangeKey) -> pa.RecordBatch:
    """Rows that came over a link: named by the queue that took them first."""
    batch = events(key)
    origin = pa.DictionaryArray.from_arrays(pa.array(np.zeros(batch.num_rows, np.int32)), pa.array(["far"])).cast(ORIGIN_TYPE)
    return batch.set_column(5, batch.schema.field(5), origin).set_column(
        6, batch.schema.field(6), pa.array(batch.column(6).to_numpy() + np.uint64(7_000_000_000))
    )


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Three rolls of q, one of r/2, and one whose rows came over a link."""

    async def run() -> None:
        sink = make_lake(tmp_path / "lake")
        await sink.open()
        for key in KEYS:
            await store(sink, key)
        await store(sink, RangeKey("l", 1, 30), (RangeKey("l", 1, 30), linked(RangeKey("l", 1, 30))))
        await sink.close()

    asyncio.run(run())
    return tmp_path / "lake"


def looked(lake: Path, *, fast: bool = False) -> Verdict:
    return verify(LocalStore(lake), fast=fast)


def problems(lake: Path, *, fast: bool = False) -> list[str]:
    return [str(finding) for finding in looked(lake, fast=fast).findings]


def a_file(lake: Path, pattern: str = "**/q-*-0.parquet") -> Path:
    return sorted(lake.glob(pattern))[0]


@pytest.mark.parametrize("fast", [False, True])
def test_a_lake_that_is_well_has_no_findings(lake: Path, fast: bool) -> None:
    verdict = looked(lake, fast=fast)
    assert verdict.findings == []
    assert (verdict.rolls, verdict.rows, verdict.missing, verdict.dead) == (5, 167, 10, 3)
    assert verdict.notes == []


def test_a_file_that_is_gone_is_told_with_its_rows(lake: Path) -> None:
    file = a_file(lake)
    rows = pq.read_metadata(file).num_rows
    file.unlink()
    (problem,) = problems(lake, fast=True)
    assert problem.startswith(f"{file.relative_to(lake)}: expected a file of {rows} rows, found none; restore")


def test_a_file_that_no_record_names_is_told(lake: Path) -> None:
    (lake / "class=x").mkdir()
    file = a_file(lake)
    copy = lake / "class=x" / f"copy-of-{file.name}"
    copy.write_bytes(file.read_bytes())
    (problem,) = problems(lake)
    assert str(copy.relative_to(lake)) in problem
    assert "move it out" in problem


def test_a_file_that_was_cut_or_replaced_is_told(lake: Path) -> None:
    one, other = sorted(lake.glob("**/q-*.parquet"))[:2]
    one.write_bytes(one.read_bytes()[:-7])
    pq.write_table(pq.ParquetFile(other).read().slice(1), other)
    found = problems(lake)
    assert any(f"{one.name}: expected a Parquet file of" in problem for problem in found)
    rows = pq.read_metadata(other).num_rows
    assert any(f"{other.name}: expected {rows + 1} rows, found {rows}" in problem for problem in found)


def test_an_event_that_is_there_twice_is_told_with_its_files(lake: Path) -> None:
    one, other = sorted(lake.glob("**/q-*.parquet"))[:2]
    table = pq.ParquetFile(other).read()
    stolen = pq.ParquetFile(one).read().column("position")[0]
    changed = pa.chunked_array([pa.array([stolen, *table.column("position").to_pylist()[1:]], pa.uint64())])
    pq.write_table(table.set_column(6, table.schema.field(6), changed), other)
    found = [problem for problem in problems(lake) if "twice" in problem]
    assert {problem.partition(":")[0] for problem in found} == {str(file.relative_to(lake)) for file in (one, other)}
    assert all(f"({stolen})" in problem for problem in found)


def test_a_position_that_was_declared_missing_or_lies_outside_is_told(lake: Path) -> None:
    file = sorted(lake.glob("**/q-00000000000000000051-*.parquet"))[0]
    table = pq.ParquetFile(file).read()
    wrong = pa.chunked_array([pa.array([65, 400, *table.column("position").to_pylist()[2:]], pa.uint64())])
    pq.write_table(table.set_column(6, table.schema.field(6), wrong), file)
    assert any("2 others (65, 400)" in problem for problem in problems(lake))


@pytest.mark.parametrize("fast", [False, True])
def test_a_hole_in_the_chain_of_records_is_told(lake: Path, fast: bool) -> None:
    record = lake / "_commits/q/00000000000000000051.json"
    files = msgspec.json.decode(record.read_bytes(), type=CommitRecord).files
    record.unlink()
    found = problems(lake, fast=fast)
    assert any("expected a record that begins at 51" in problem and "a hole: it begins at 101" in problem for problem in found)
    assert sum(
        "restore that record from a backup of the lake; only where there never was one, move it out" in problem for problem in found
    ) == len(files)


def test_a_record_that_does_not_add_up_or_cannot_be_read_is_told(lake: Path) -> None:
    one, other = lake / "_commits/q/00000000000000000001.json", lake / "_commits/r%2F2/00000000000000000001.json"
    one.write_bytes(one.read_bytes().replace(b'"last": 50', b'"last": 49'))
    other.write_bytes(b"{")
    found = problems(lake)
    assert any("expected 49 positions in 1..49, found 50 rows" in problem for problem in found)
    assert any("cannot be read" in problem and "r%2F2" in problem for problem in found)


def test_files_whose_record_is_damaged_are_not_to_be_moved_away(lake: Path) -> None:
    (lake / "_commits/r%2F2/00000000000000000001.json").write_bytes(b"{")
    told = [problem for problem in problems(lake) if ".parquet: " in problem]
    assert len(told) == len(list(lake.glob("**/r%2F2-*.parquet"))) > 0
    assert all(
        "whose record _commits/r%2F2/00000000000000000001.json is not there or cannot be read; restore" in problem for problem in told
    )


def test_what_else_lies_among_the_folders_is_passed_over(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("", "_commits", "_commits/q", "_tmp"):
        (lake / folder / ".DS_Store").write_bytes(b"x")
    for command in ("info", "verify", "files", "compact"):
        assert main([command, str(lake)]) == 0, capsys.readouterr().out


def test_a_roll_that_is_committed_and_not_yet_published_is_well(tmp_path: Path) -> None:
    class KilledError(BaseException):
        pass

    def fault(name: str) -> None:
        if name == "sink_lake.mid_rename":
            raise KilledError

    async def run() -> None:
        sink = make_lake(tmp_path / "lake", fault)
        await sink.open()
        await store(sink, RangeKey("q", 1, 50))

    with pytest.raises(KilledError):
        asyncio.run(run())
    verdict = looked(tmp_path / "lake")
    assert verdict.findings == []
    assert (verdict.rows, len(verdict.notes)) == (50, 3)
    assert "not yet moved" in verdict.notes[0]


def test_the_command_tells_and_sets_the_exit_code(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(lake)]) == 0
    assert "each position exactly once, missing or dead" in capsys.readouterr().out
    a_file(lake).unlink()
    assert main(["verify", str(lake), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["found"] == "none"
    assert main(["verify", str(lake / "nowhere")]) == 1
    assert "expected a lake with a folder _commits" in capsys.readouterr().err


def test_info_counts_rows_files_partitions_and_queue_ids(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lake / "_tmp/s-00000000000000000001-00").mkdir()
    assert main(["info", str(lake), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    files = list(lake.glob("**/*.parquet"))
    assert (facts["rows"], facts["files"], facts["bytes"]) == (167, len(files), sum(file.stat().st_size for file in files))
    assert facts["small_files"] == len(files)
    assert facts["partitions"] == len({file.parent for file in files})
    (queue,) = [queue for queue in facts["queue_ids"] if queue["id"] == "q"]
    assert (queue["first"], queue["last"], queue["rolls"], queue["missing"], queue["dead"]) == (1, 130, 3, 10, 3)
    assert facts["pending"] == [{"attempt": "s-00000000000000000001-00", "committed": False, "files": 0}]
    assert main(["info", str(lake)]) == 0
    shown = capsys.readouterr().out
    assert "r/2  1-20: 1 rolls, 20 rows" in shown
    assert "pending: _tmp/s-" in shown


def test_files_lists_what_readers_are_to_open(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["files", str(lake)]) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in sorted(lake.glob("**/*.parquet"))]
    assert len(positions(lake)) == 167


def test_events_seen_are_told_from_new_ones_in_several_passes() -> None:
    chance = random.Random(5)
    runs = [np.array([chance.randrange(400_000) for _ in range(50_000)], np.uint64) for _ in range(4)]
    for passes in (1, 3):
        told: set[int] = set()
        for number in range(passes):
            seen = Seen(passes, number)
            for run in runs:
                told.update(seen.add("q", run).tolist())
                assert len(seen.add("other", run[:1])) <= 1
        everything = np.concatenate(runs).tolist()
        assert told == {p for p, count in zip(*np.unique(everything, return_counts=True), strict=True) if count > 1}
    assert passes_for(1_000_000_000) == 1
    assert passes_for(5_000_000_000) == 3
