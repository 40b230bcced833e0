"""Segment files that are gone: what they held is declared lost, with its positions, at the open, to readers and by the commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace import NO_ORIGINS, Missing
from headrace_queue_pmem import reading
from headrace_queue_pmem.frame import encode
from headrace_queue_pmem.inspection import check, inspect
from headrace_queue_pmem.layout import SEGMENT_DATA_AT
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.upkeep import close, upkeep

sys.path.insert(0, str(Path(__file__).parent))
from conftest import numbers, rows
from rings import append, opened

EVENTS = 100


def build(directory: Path, reader: bool, release: int, closed: bool) -> list[tuple[str, int, int]]:
    """A queue of 100 events in several segments: (file, first, last) of each that is still there."""
    ring, _ = opened(directory)
    if reader:
        ring.open_reader("lake", "oldest")
    append(ring, 1, EVENTS)
    if release:
        ring.release("lake", release)
    upkeep(ring)
    found = [(segment.name, segment.base, segment.last) for segment in ring.segments]
    if closed:
        close(ring)
    ring.close()
    assert len(found) >= 3
    return found


def declared(ring: Ring, after: int) -> tuple[list[int], list[Missing]]:
    """What a reader gets from there on."""
    found: list[int] = []
    missing: list[Missing] = []
    while (part := reading.read(ring, "lake", after, 1000, 1 << 20)) is not None:
        assert part.first == after + 1
        found += numbers(part.batch)
        for hole in part.missing:
            if missing and missing[-1].last + 1 == hole.first and missing[-1].reason == hole.reason:
                hole = missing.pop()._replace(last=hole.last)
            missing.append(hole)
        after = part.last
    return found, missing


@pytest.mark.parametrize("reader", [True, False], ids=["reader", "no reader"])
@pytest.mark.parametrize(
    ("closed", "which"),
    [
        *((True, which) for which in ("first", "middle", "last", "all", "all but the last")),
        *((False, which) for which in ("first", "middle", "all but the last")),
    ],
)
def test_what_a_deleted_segment_held_is_lost_and_not_released(tmp_path, closed, reader, which):
    built = build(tmp_path, reader, 0, closed)
    gone = {"first": built[:1], "middle": built[1:2], "last": built[-1:], "all": built, "all but the last": built[:-1]}[which]
    for name, _, _ in gone:
        (tmp_path / name).unlink()
    first, last = gone[0][1], gone[-1][2]
    ring, report = opened(tmp_path)
    for life in range(2):
        assert [(damage.first, damage.last, damage.reason) for damage in report.damage] == [(first, last, "lost")]
        assert report.events == EVENTS - (last - first + 1)
        found, missing = declared(ring, 0)
        assert missing == [Missing(first, last, "lost")]
        assert found == [number for number in range(1, EVENTS + 1) if not first <= number <= last]
        if life == 0:
            close(ring)
            ring.close()
            ring, report = opened(tmp_path)


def test_what_every_reader_had_passed_is_released_and_no_loss(tmp_path):
    built = build(tmp_path, True, 60, True)
    assert built[0][1] > 1, "space was given back"
    ring, report = opened(tmp_path)
    assert (ring.upto, report.damage) == (EVENTS, [])
    found, missing = declared(ring, 0)
    assert missing == [Missing(1, built[0][1] - 1, "released")]
    assert found == list(range(built[0][1], EVENTS + 1))
    ring.drop_reader("lake")
    close(ring)
    ring.close()
    # The note of the marks knows what was given back, though no reader does any more.
    ring, report = opened(tmp_path)
    assert report.damage == []
    assert declared(ring, 0)[1] == missing
    ring.close()
    (tmp_path / built[0][0]).unlink()
    ring, report = opened(tmp_path)
    assert [(damage.first, damage.last) for damage in report.damage] == [(built[0][1], built[0][2])]
    assert declared(ring, 0)[1] == [*missing, Missing(built[0][1], built[0][2], "lost")]
    assert ring.open_reader("new", "oldest").cursor == built[0][1] - 1, "a reader that begins at the oldest is told of the loss"


def test_a_segment_that_every_reader_had_passed_may_go(tmp_path):
    built = build(tmp_path, True, 0, False)
    ring, _ = opened(tmp_path)
    ring.release("lake", built[1][2])
    close(ring)  # the cursor is durable, the space not given back yet
    ring.close()
    (tmp_path / built[0][0]).unlink()
    ring, report = opened(tmp_path)
    assert report.damage == []
    assert declared(ring, 0)[1] == [Missing(1, built[0][2], "released")]


def test_that_the_file_behind_a_sealed_one_is_gone_is_seen_after_a_crash_too(tmp_path):
    """Nothing tells how far the log went, but a segment is sealed only behind a commit into the next one."""
    built = build(tmp_path, True, 0, False)
    (tmp_path / built[-1][0]).unlink()
    first = built[-1][1]
    for life in range(3):
        verdict = check(inspect(tmp_path))
        assert verdict.lost == [(first, first)]
        ring, report = opened(tmp_path)
        assert [(damage.first, damage.last, damage.reason) for damage in report.damage] == [(first, first, "lost")]
        assert any("at least" in repair for repair in report.repairs) == (life == 0)
        entry = encode(rows(1000 + life, 1, 900), NO_ORIGINS, 1)
        ring.reserve(entry)
        ring.commit([entry])
        assert entry.first == first + 1 + life, "its positions are not given to other events"
        found, missing = declared(ring, 0)
        assert found == [*range(1, first), *range(1000, 1001 + life)]
        assert missing == [Missing(first, first, "lost")]
        close(ring)
        ring.close()


@pytest.mark.parametrize(
    ("first", "last", "sealed"),
    [(5, 8, False), (1, 8, False), (5, 8, True), (1, 8, True), (5, 12, True), (1, 12, True)],  # of 12 events, 6 of each id
)
def test_damage_over_the_end_of_a_queue_id_is_damage_on_both_sides(tmp_path, first, last, sealed):
    """A read ends with its queue id: what lies there unreadable before that end is corrupt, and not lost, and met by the next read too."""
    ends = {0: SEGMENT_DATA_AT}
    for begin in (1, 7):
        ring, _ = opened(tmp_path)
        ring.open_reader("lake", "oldest")
        for number in range(begin, begin + 6):
            append(ring, number, 1)
            ends[number] = ring.segments[-1].end
        if begin == 7 and sealed:
            while len(ring.segments) == 1:
                append(ring, ring.next, 1)
            upkeep(ring)
        close(ring)
        ring.close()
    held = ring.upto
    with (tmp_path / "segment-00000001").open("r+b") as file:
        file.seek(ends[first - 1])
        file.write(bytes(ends[last] - ends[first - 1]))
    verdict = check(inspect(tmp_path))
    assert (verdict.events, verdict.missing, verdict.lost) == (held - (last - first + 1), last - first + 1, [])
    ring, report = opened(tmp_path)
    told = [(damage.first, damage.last) for damage in report.damage]
    ring.on_damage = lambda damage: told.append((damage.first, damage.last))
    found, missing = declared(ring, 0)
    assert missing == [Missing(first, last, "corrupt")]
    assert found == [number for number in range(1, held + 1) if not first <= number <= last]
    assert {position for one, other in told for position in range(one, other + 1)} == set(range(first, last + 1))
