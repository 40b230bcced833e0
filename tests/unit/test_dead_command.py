"""`headrace dead`: which letters are found, what is said of them, what purging leaves."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.dead.command import main
from headrace.dead.content import hexdump
from headrace.engine import dead_letter_file
from headrace.engine.dead_letter_health import GROWTH_LETTERS, GROWTH_S, LettersHealth
from headrace.engine.dead_letters import DeadLetters, Letter, Stored
from headrace.errors import HeadraceError
from headrace.hookspecs import QueueSpan

NOW_US = 1_794_000_000_000_000
MEANWHILE = "2026-11-06T21:50:00Z"  # between the refusals


def letter(position: int, **facts: object) -> Letter:
    base = Letter("q", position, "lake", "output", "lake", f"value {position} is odd", NOW_US, "device", NOW_US, 1, b'{"n":1}')
    return base._replace(**facts)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    site, edge = (DeadLetters(tmp_path / name / dead_letter_file.NAME, 1 << 20) for name in ("site", "edge.1"))
    site.add(
        [letter(1), letter(2, device="other", output="", stage="decode", component="decode", reason="does not decode", payload=b"{\xff")]
    )
    site.add([letter(3, refused_us=NOW_US + 3_600_000_000, encoding=130)])
    edge.add([letter(9, reason="\x1b[31mred")])
    for store in (site, edge):
        store.close()
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[int]:
    assert main(["list", *words, "--json"]) == 0
    return [json.loads(line)["position"] for line in capsys.readouterr().out.splitlines()]


def test_letters_are_found_by_each_filter(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, str(data)) == [9, 1, 2, 3]
    assert listed(capsys, str(data), "--tier", "edge") == [9]
    place = str(data / "site")
    assert listed(capsys, place, "--output", "lake") == [1, 2, 3]
    assert listed(capsys, place, "--output", "other") == [2]
    assert listed(capsys, place, "--stage", "decode") == [2]
    assert listed(capsys, place, "--component", "lake") == [1, 3]
    assert listed(capsys, place, "--reason", "ODD") == [1, 3]
    assert listed(capsys, place, "--device", "other") == [2]
    assert listed(capsys, place, "--since", MEANWHILE) == [3]
    assert listed(capsys, place, "--until", MEANWHILE) == [1, 2]
    assert listed(capsys, place, "--seq", "2-9") == [2, 3]
    assert listed(capsys, f"{place}/dead_letters.db", "--limit", "2") == [1, 2]


def test_the_list_counts_by_reason_and_shows_nothing_that_steers_a_terminal(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(data)]) == 0
    text = capsys.readouterr().out
    assert "2        output  lake    value # is odd" in text
    assert "?[31mred" in text
    assert "\x1b" not in text


def test_a_store_that_was_set_aside_is_mentioned(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "site" / dead_letter_file.NAME
    path.write_bytes(b"no database " * 1000)
    DeadLetters(path, 1 << 20).close()
    assert main(["list", str(path)]) == 0
    assert "dead_letters.db.corrupt: set aside as corrupt; not readable" in capsys.readouterr().out
    path.write_bytes(b"once more")
    DeadLetters(path, 1 << 20).close()
    assert len(dead_letter_file.corrupt_files(path)) == 2


def test_show_has_the_bytes_as_they_came(data: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    place = str(data / "site")
    assert main(["show", place, "1"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert '"n": 1' in text
    assert "reason    value 1 is odd" in text
    assert main(["show", place, "2"]) == 0
    assert "7b ff" in capfdbinary.readouterr().out.decode()
    assert main(["show", place, "2", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"{\xff"
    assert main(["show", place, "2", "--json"]) == 0
    assert base64.b64decode(json.loads(capfdbinary.readouterr().out)["payload"]) == b"{\xff"
    assert main(["show", place, "77"]) == 1


def strange_events() -> dict[str, pa.RecordBatch]:
    """Events that outputs refuse for what Python has no value for either."""
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    readings = {
        "text": pa.StructArray.from_arrays([broken], ["t"]),
        "twice": pa.StructArray.from_arrays([pa.array([1.5]), pa.array([2.5])], ["x", "x"]),
        "when": pa.StructArray.from_arrays([pa.array([1 << 62], pa.timestamp("us", "UTC"))], ["at"]),
        "fine": pa.StructArray.from_arrays([pa.array([1], pa.timestamp("ns"))], ["at"]),
        "deep": pa.array([{"l": [{"d": 1 << 30}]}], pa.struct([("l", pa.list_(pa.struct([("d", pa.date32())])))])),
    }
    time = pa.array([-(1 << 62)], pa.timestamp("us", "UTC"))
    return {name: pa.RecordBatch.from_arrays([time, struct], ["time", "readings"]) for name, struct in readings.items()}


def test_events_with_what_python_has_no_value_for_are_shown_and_hide_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = DeadLetters(tmp_path / "site" / dead_letter_file.NAME, 1 << 20)
    for position, batch in enumerate(strange_events().values(), 1):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        store.add([letter(position, encoding=0, payload=sink.getvalue().to_pybytes(), received_us=1 << 62)])
    store.add([letter(9)])
    store.close()
    place = str(tmp_path)
    assert listed(capsys, place) == [1, 2, 3, 4, 5, 9]
    assert main(["replay", place, "--all", "--dry-run"]) == 0
    assert "6  for output lake; decodes now" in capsys.readouterr().out
    expected = {
        1: '"t": "\\\\xff"',
        2: '"x (2)": 2.5',
        3: f'"at": "{1 << 62} (timestamp[us, tz=UTC])"',
        4: "(timestamp[ns])",
        5: "(date32[day])",
    }
    for seq, text in expected.items():
        assert main(["show", place, str(seq)]) == 0
        told = capsys.readouterr().out
        assert text in told
        assert f"received  {1 << 62} us" in told
        assert main(["show", place, str(seq), "--json"]) == 0
        capsys.readouterr()


def test_a_limit_of_a_listing_for_programs_is_kept_whatever_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("site", "edge"):
        store = DeadLetters(tmp_path / name / dead_letter_file.NAME, 1 << 20)
        store.add([letter(position) for position in range(60)])
        store.close()
    assert len(listed(capsys, str(tmp_path), "--limit", "50")) == 50
    assert len(listed(capsys, str(tmp_path), "--limit", "70")) == 70
    assert len(listed(capsys, str(tmp_path))) == 120


def test_ages_beyond_all_time_are_no_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(listed(capsys, str(data), "--since", f"{'9' * 20}d")) == 4
    assert main(["purge", str(data), "--older-than", f"{'9' * 20}d"]) == 1
    assert "0 letters would be purged" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["", "create table devices (a)"])
def test_a_look_into_another_file_is_refused_and_does_not_change_it(tmp_path: Path, other: str) -> None:
    file = tmp_path / "context.db"
    file.touch()
    if other:
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(other)
    before = file.read_bytes()
    with pytest.raises(HeadraceError, match=r"context\.db holds no dead letters; expected a dead_letters\.db"):
        main(["list", str(file)])
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["context.db"]


def test_purge_wants_a_filter_and_a_yes_and_leaves_the_position(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(data / "site")
    assert main(["purge", place]) == 2
    assert main(["purge", place, "--reason", "odd"]) == 1
    assert "2 letters would be purged" in capsys.readouterr().out
    assert main(["purge", place, "--reason", "odd", "--yes"]) == 0
    capsys.readouterr()
    assert listed(capsys, place) == [2]
    store = DeadLetters(data / "site" / dead_letter_file.NAME, 1 << 20)
    assert store.positions("q", 1, 9, "lake") == {1, 2, 3}
    assert store.forget([QueueSpan("q", 1, None)], tail=3) == 1
    assert store.positions("q", 1, 9, "lake") == {2, 3}
    assert store.forget([], tail=1) == 1
    store.close()


def test_purging_makes_room(tmp_path: Path) -> None:
    store = DeadLetters(tmp_path / "site" / dead_letter_file.NAME, 64 << 10)
    store.add([letter(position, payload=b"x" * 1000) for position in range(80)])
    assert main(["purge", str(tmp_path), "--all", "--yes"]) == 0
    assert store.add([letter(100)]) == 1
    store.close()


def test_a_dry_run_says_what_would_happen_and_changes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(data / "site"), "--all", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "1  for output lake; decodes now" in text
    assert "1  for all outputs that take events; does not decode now: it would be refused again" in text
    assert "1  for output lake; encoding 130 is decoded by a plugin of the site, not tried here" in text
    assert "queued" not in json.dumps([json.loads(line)["state"] for line in _list(data, capsys)])
    assert main(["replay", str(data / "site")]) == 2


def _list(data: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["list", str(data), "--json"]) == 0
    return capsys.readouterr().out.splitlines()


def test_places_without_letters_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="no dead letters below"):
        main(["list", str(tmp_path)])
    with pytest.raises(HeadraceError, match="no such file"):
        main(["list", str(tmp_path / "x.toml")])


def test_a_file_of_the_first_version_is_read_and_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / dead_letter_file.NAME
    old = sqlite3.connect(path)
    old.execute(
        "create table letters (seq integer primary key autoincrement, queue_id text not null, position integer not null, "
        "output text not null, stage text not null, component text not null, reason text not null, refused_us integer not null, "
        "device text not null, received_us integer not null, encoding integer not null, payload blob not null, "
        "unique (queue_id, position, output))"
    )
    old.execute("insert into letters values (1, 'q', 1, 'lake', 'output', 'lake', 'odd', 1, 'd', 1, 1, x'7b7d')")
    old.commit()
    old.close()
    store = DeadLetters(path, 1 << 20)
    assert store.stored()[0] == 1
    assert store.add([letter(2)]) == 1
    store.close()


def test_growth_half_full_and_corrupt_stores_are_conditions(tmp_path: Path) -> None:
    health = LettersHealth(tmp_path / "dead.db")
    health.note(0.0, Stored(50, 1000, 1 << 20, 0))
    assert health.health(0.0).status == "ok"
    health.note(10.0, Stored(50 + GROWTH_LETTERS, 1000, 1 << 20, 0))
    assert health.health(10.0).status == "degraded"
    assert "headrace dead list" in health.health(10.0).reason
    assert health.health(11.0 + GROWTH_S).status == "ok"
    for step in range(3000):  # bounded, and still right about the last ten minutes
        health.note(700.0 + step, Stored(200 + step, 1000, 1 << 20, 0))
    assert len(health._seen) <= 1001
    assert health.health(3699.0).reason.startswith(("600 new", "601 new", "602 new"))
    health.note(4000.0, Stored(10, 1 << 19, 1 << 20, 0))
    assert "when they are full the outputs wait" in health.health(4000.0).reason
    health.note(4100.0, Stored(10, 1 << 20, 1 << 20, 0))
    assert "are full" in health.health(4100.0).reason
    assert "`headrace dead purge`" in health.health(4100.0).reason
    health.note(4200.0, Stored(10, 0, 1 << 20, 1))
    assert "set aside as corrupt" in health.health(4200.0).reason


def test_a_hex_dump_has_offsets_bytes_and_text() -> None:
    assert hexdump(b"abc\x00" + b"y" * 16).splitlines()[1] == f"00000010  {'79 79 79 79':<48} yyyy"
