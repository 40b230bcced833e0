"""What `headrace queue` says of queues that lost a file, hold another queue's, were cut short by a crash, or are running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import NO_ORIGINS, QueueFull
from headrace_queue_pmem import command as module
from headrace_queue_pmem import joining
from headrace_queue_pmem.command import command
from headrace_queue_pmem.inspection import check, contents, inspect
from headrace_queue_pmem.upkeep import close, upkeep

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, numbers, rows, run
from rings import append, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stopped queue of 100 events in several segments, with a reader that has released nothing."""
    ring = opened(tmp_path / "queue")[0]
    ring.open_reader("lake", "oldest")
    append(ring, 1, 100)
    upkeep(ring)
    close(ring)
    ring.close()
    return tmp_path / "queue"


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_given_back_and_used_again_while_it_is_decoded_is_not_shown(path, monkeypatch, whole):
    """Of a queue that runs a dump showed the bytes of later events under the positions of earlier ones."""
    found, decode = inspect(path), joining.decode_batch
    name = found.ring.segments[0].name
    reused = []

    def decoding(kind: int, payload: pa.Buffer) -> pa.RecordBatch:
        if not reused:
            reused.append(name)
            content = (path / name).read_bytes()
            with (path / name).open("r+b") as file:
                file.write(content.replace(b" 1", b" 7") if whole else bytes(len(content)))
        return decode(kind, payload)

    monkeypatch.setattr(joining, "decode_batch", decoding)
    shown = [(content.first + row, value) for content in contents(found) for row, value in enumerate(numbers(content.batch))]
    assert reused
    assert shown
    assert all(position == value for position, value in shown)
    assert shown[0][0] > 1


def dumped(path: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[int, int]]:
    capsys.readouterr()
    assert command(["dump", str(path)]) == 0
    return [(line["position"], int(line["payload"])) for line in map(json.loads, capsys.readouterr().out.splitlines())]


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
def test_a_deleted_segment_is_reported_with_its_positions(path, capsys, which):
    segments = inspect(path).ring.segments
    gone = segments[which]
    first, last = gone.base, min(gone.last, 100) if which != -1 else 100
    (path / gone.name).unlink()
    assert command(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lost"] == [{"first": first, "last": last}]
    assert facts["lost_events"] == last - first + 1
    assert facts["events"] == 100 - facts["lost_events"]
    assert command(["info", str(path)]) == 0
    assert f"problem: positions {first}-{last} are lost" in capsys.readouterr().out
    assert command(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"positions {first}-{last} are lost" in out
    assert f"headrace queue repair {path}" in out
    for _ in range(2):
        assert command(["repair", str(path)]) == 0
        out = capsys.readouterr().out
        assert f"lost: positions {first}-{last}" in out
        assert f"{last - first + 1} are damaged or lost" in out
    reported = [json.loads(line) for line in (path / "quarantine" / "report.ndjson").read_text().splitlines()]
    assert [(line["first"], line["last"], line["reason"]) for line in reported] == [(first, last, "lost")], "once"
    assert dumped(path, capsys) == [(n, n) for n in range(1, 101) if not first <= n <= last]
    # Once every reader has passed them nothing is amiss any more.
    assert command(["readers", str(path), "rewind", "lake", "--to", "100"]) == 0
    assert command(["check", str(path)]) == 0


def test_a_segment_of_another_queue_is_named_and_never_dumped(path, tmp_path, capsys):
    for _ in range(5):
        ring = opened(tmp_path / "other")[0]
        append(ring, 1000, 10)
        close(ring)
        ring.close()
    shutil.copy(sorted((tmp_path / "other").glob("segment-*"))[-1], path / "segment-00000077")
    assert command(["check", str(path)]) == 1
    assert "segment-00000077: it is of another queue" in capsys.readouterr().out
    assert dumped(path, capsys) == [(n, n) for n in range(1, 101)]
    assert command(["repair", str(path)]) == 0
    assert "foreign-segment-00000077" in capsys.readouterr().out
    assert "another queue" in (path / "quarantine" / "report.ndjson").read_text()
    assert command(["check", str(path)]) == 0


def test_a_copy_of_a_segment_is_named_and_its_events_are_dumped_once(path, capsys):
    shutil.copy(path / "segment-00000001", path / "segment-00000077")
    assert command(["check", str(path)]) == 1
    assert "segment-00000077: it is a copy of segment segment-00000001" in capsys.readouterr().out
    assert dumped(path, capsys) == [(n, n) for n in range(1, 101)]


@pytest.mark.parametrize("torn", [0, 1])
def test_what_a_crash_cut_short_is_neither_damage_nor_dumped(tmp_path, capsys, torn):
    """A commit of three frames of which one is torn was acknowledged to nobody; the next open drops all of it from there on."""
    ring = opened(tmp_path / "queue")[0]
    append(ring, 1, 4)
    append(ring, 5, 3, together=3)
    segment = ring.segments[0]
    ring.close()
    file = tmp_path / "queue" / segment.name
    content = bytearray(file.read_bytes())
    at = content.index(b"%d" % (5 + torn), content.rindex(b" %d" % (4 + torn)) + 2)
    content[at] ^= 1
    file.write_bytes(content)
    assert command(["check", str(tmp_path / "queue")]) == 0, capsys.readouterr().out
    whole = [(n, n) for n in range(1, 5 + torn)]
    assert dumped(tmp_path / "queue", capsys) == whole
    ring = opened(tmp_path / "queue")[0]
    assert ring.upto == len(whole)


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_a_check_of_a_running_queue_finds_nothing_amiss(make, tmp_path, medium):
    """Segments are begun, given back and used again while they are looked at."""

    async def body() -> None:
        queue = make(medium=medium, segment_bytes=8 * MIB, size_bytes_max=24 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        done = False

        async def write() -> None:
            number = 0
            while not done:
                with contextlib.suppress(QueueFull):  # the upkeep is behind
                    await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
                    number += 100
                await queue.queue_release("lake", number)
                await asyncio.sleep(0)

        def look() -> list[str]:
            found: list[str] = []
            while not found and queue.queue_info().tail < 5_000:  # some segments were given back, and used again
                found += check(inspect(tmp_path / "queue")).problems
            return found

        writing = asyncio.ensure_future(write())
        try:
            found = await asyncio.to_thread(look)
        finally:
            done = True
            await writing
        assert found == []
        await queue.close()

    run(body())


def test_long_work_says_how_far_it_is(path, capsys, monkeypatch, tmp_path):
    assert command(["check", str(path)]) == 0
    assert capsys.readouterr().err == "", "short work says nothing"
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    for words in (["check", str(path)], ["dump", str(path)], ["export", str(path), str(tmp_path / "out.parquet")], ["repair", str(path)]):
        assert command(words) == 0
        assert " of at most 0 MiB" in capsys.readouterr().err, words


def test_a_reader_of_the_dump_that_has_seen_enough_is_no_error(path):
    words = [sys.executable, "-c", "import sys; from headrace_queue_pmem.command import command; sys.exit(command(sys.argv[1:]))"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        ended = subprocess.run([*words, "dump", str(path)], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_export_that_fails_leaves_what_was_there(path, tmp_path, monkeypatch, capsys):
    output = tmp_path / "events.parquet"
    output.write_text("an earlier export")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", refuse)
        assert command(["export", str(path), str(output)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert output.read_text() == "an earlier export"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("events")] == ["events.parquet"]
    assert command(["export", str(path), str(output)]) == 0
    assert pq.read_table(output).num_rows == 100


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".ndjson"])
def test_an_export_of_nothing_is_a_file_without_events(path, tmp_path, ending):
    output = tmp_path / f"none{ending}"
    assert command(["export", str(path), str(output), "--first", "1000"]) == 0
    if ending == ".parquet":
        assert pq.read_table(output).num_rows == 0
    elif ending == ".arrow":
        assert pa.ipc.open_stream(output.read_bytes()).read_all().num_rows == 0
    else:
        assert output.read_text() == ""


@pytest.mark.parametrize(
    "words",
    [["info"], ["check"], ["dump"], ["export", "out.parquet"], ["repair"], ["readers"], ["readers", "remove", "lake"]],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_where_there_is_no_queue_every_command_says_so(tmp_path, capsys, words, kind):
    place = tmp_path / "place"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("no directory")
    rest = [str(tmp_path / word) if word.endswith(".parquet") else word for word in words[1:]]
    assert command([words[0], str(place), *rest]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(place) in printed.err
    assert "expected the directory of a queue" in printed.err
    assert not (tmp_path / "out.parquet").exists()
    assert place.exists() == (kind != "missing"), "nothing is made"


def test_a_check_after_a_repair_says_that_the_damage_was_set_aside(path, capsys):
    segment = inspect(path).ring.segments[1]
    file = path / segment.name
    content = bytearray(file.read_bytes())
    content[content.index(b" %d" % (segment.base + 3), 8192)] ^= 1
    file.write_bytes(content)
    assert command(["check", str(path)]) == 1
    assert f"headrace queue repair {path}" in capsys.readouterr().out
    assert command(["repair", str(path)]) == 0
    capsys.readouterr()
    assert command(["check", str(path)]) == 1
    assert "was set aside before" in capsys.readouterr().out
