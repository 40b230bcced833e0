"""`headrace queue ...` on a queue that is whole, damaged, and running."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import NO_ORIGINS, Origin, Plan, origin_batch
from headrace_queue_pmem.command import command

sys.path.insert(0, str(Path(__file__).parent))
from conftest import rows, run


@pytest.fixture(params=["pmem", "file"])
def path(request, make, tmp_path) -> Path:
    """A stopped queue of 30 events under two ids, with a reader at 7."""

    async def body() -> None:
        for life in range(2):
            queue = make(medium=request.param)
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            await queue.queue_append(rows(15 * life + 1, 10), origin_batch([Origin("up/0", 15 * life + 1, 15 * life + 10)]))
            await queue.queue_append(rows(15 * life + 11, 5), NO_ORIGINS)
            await queue.queue_release("lake", 7)
            await queue.queue_plan("lake", Plan(8, 12, 2))
            await queue.close()

    run(body())
    return tmp_path / "queue"


def test_info_tells_what_is_there(path, capsys):
    assert command(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["events"], facts["first"], facts["last"], facts["held_by"]) == (30, 1, 30, None)
    assert [(span["first"], span["last"]) for span in facts["queue_ids"]] == [(1, 15), (16, 30)]
    assert facts["readers"][0]["plan"]["attempts"] == 2
    assert facts["readers"][0]["lag_events"] == 23
    assert command(["info", str(path)]) == 0
    assert "lake" in capsys.readouterr().out


def test_info_of_a_running_queue_names_the_holder(make, tmp_path, capsys):
    async def body() -> None:
        queue = make()
        await queue.open()
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        assert command(["info", str(tmp_path / "queue"), "--json"]) == 0
        assert command(["repair", str(tmp_path / "queue")]) == 1
        await queue.close()

    run(body())
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["events"] == 3
    assert "process" in facts["held_by"]
    assert "is held by process" in printed.err


def test_check_of_a_whole_queue_is_zero(path, capsys):
    assert command(["check", str(path)]) == 0
    assert "30 events" in capsys.readouterr().out


def damage(path: Path, what: bytes) -> None:
    """Overwrite the last place where `what` stands in a segment."""
    segment = next(path.glob("segment-*"))
    content = bytearray(segment.read_bytes())
    at = content.rindex(what)
    content[at : at + 4] = b"\xff\xff\xff\xff"
    segment.write_bytes(content)


def test_damage_is_found_set_aside_and_survived(path, capsys):
    damage(path, b" 12")
    assert command(["check", str(path)]) == 1
    assert "positions 11-15" in capsys.readouterr().out
    assert command(["repair", str(path), "--dry-run"]) == 1
    assert command(["repair", str(path)]) == 0
    assert "25 events in" in capsys.readouterr().out
    assert (path / "quarantine" / "report.ndjson").read_text().count("\n") >= 1
    assert command(["dump", str(path)]) == 0
    positions = [json.loads(line)["position"] for line in capsys.readouterr().out.splitlines()]
    assert positions == [*range(1, 11), *range(16, 31)]


def test_dump_gives_a_range_with_origins(path, capsys):
    assert command(["dump", str(path), "--first", "9", "--last", "12"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["position"], int(line["payload"])) for line in lines] == [(9, 9), (10, 10), (11, 11), (12, 12)]
    assert lines[0]["origins"][0]["id"] == "up/0"
    assert command(["dump", str(path), "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".ndjson"])
def test_export_writes_every_event(path, tmp_path, ending):
    output = tmp_path / f"events{ending}"
    assert command(["export", str(path), str(output)]) == 0
    if ending == ".parquet":
        found = pq.read_table(output)["queue_position"].to_pylist()
    elif ending == ".arrow":
        found = pa.ipc.open_stream(output.read_bytes()).read_all()["queue_position"].to_pylist()
    else:
        found = [json.loads(line)["position"] for line in output.read_text().splitlines()]
    assert found == list(range(1, 31))


def test_export_to_an_unknown_format_is_refused(path, tmp_path, capsys):
    assert command(["export", str(path), str(tmp_path / "events.xml")]) == 1
    assert ".parquet, .arrow or .ndjson" in capsys.readouterr().err


def test_readers_are_listed_moved_and_removed(path, capsys):
    assert command(["readers", str(path)]) == 0
    assert "cursor 7, 23 events behind" in capsys.readouterr().out
    assert command(["readers", str(path), "rewind", "lake", "--to", "3"]) == 0
    assert command(["readers", str(path), "rewind", "lake", "--to", "99"]) == 1
    assert command(["readers", str(path), "rewind", "lake", "--to", "²"]) == 1
    assert "from 0 to 30" in capsys.readouterr().err
    assert command(["readers", str(path), "list"]) == 0
    assert "cursor 3, 27 events behind" in capsys.readouterr().out
    assert command(["readers", str(path), "remove", "nobody"]) == 1
    assert command(["readers", str(path), "remove", "lake"]) == 0
    assert command(["readers", str(path), "remove"]) == 2
    capsys.readouterr()
    assert command(["readers", str(path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_path_without_a_queue_is_an_error(tmp_path, capsys):
    assert command(["info", str(tmp_path)]) == 1
    assert command(["info", str(tmp_path / "nowhere")]) == 1
    assert "expected the directory of a queue" in capsys.readouterr().err


def test_repair_sets_aside_what_is_damaged_in_a_sealed_segment_once(tmp_path, make, capsys):
    async def body():
        queue = make()
        await queue.open()
        for number in range(25):
            await queue.queue_append(rows(number * 100, 100, 2000), NO_ORIGINS)
        await queue.close()

    run(body())
    path = tmp_path / "queue"
    segment = path / "segment-00000001"
    content = bytearray(segment.read_bytes())
    content[content.rindex(b" 1100")] ^= 1
    segment.write_bytes(content)
    for _ in range(2):
        assert command(["repair", str(path)]) == 0
    assert capsys.readouterr().out.count("set aside: positions 1101-1200 of segment-00000001 (body)") == 1
    (line,) = (path / "quarantine" / "report.ndjson").read_text().splitlines()
    assert json.loads(line)["first"] == 1101
    assert len(list((path / "quarantine").glob("*.bin"))) == 1


def test_readers_says_what_is_missing(path, capsys):
    assert command(["readers", str(path), "rewind", "lake"]) == 2
    assert "--to" in capsys.readouterr().err
    assert command(["readers", str(path), "remove"]) == 2
    assert "the reader's name" in capsys.readouterr().err
