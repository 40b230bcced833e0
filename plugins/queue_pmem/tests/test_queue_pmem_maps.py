"""Maps of segments: what is looked at stays what it was, and what was written through them reaches the device when it has to."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace_queue_pmem import reading
from headrace_queue_pmem.upkeep import checkpoint, upkeep

sys.path.insert(0, str(Path(__file__).parent))
from cachestat import dirty_pages
from conftest import numbers
from rings import append, opened


def test_a_segment_given_back_while_a_read_maps_it_is_not_what_the_reader_gets(tmp_path, monkeypatch):
    """A sink that begins again below its cursor reads what may be given back at any moment."""
    ring, _ = opened(tmp_path / "queue")
    ring.open_reader("lake", "oldest")
    append(ring, 1, 100)
    upkeep(ring)
    maps, mapped = ring.medium.read, []

    def read(name: str):
        area = maps(name)
        if not mapped:
            mapped.append(name)
            ring.release("lake", ring.upto)
            upkeep(ring)  # the segment is a spare one now
        return area

    monkeypatch.setattr(ring.medium, "read", read)
    part = reading.read(ring, "lake", 0, 1, 1)
    assert mapped
    append(ring, 101, 100)
    while part is not None:
        assert [*numbers(part.batch), *(at for hole in part.missing for at in range(hole.first, hole.last + 1))] == list(
            range(part.first, part.last + 1)
        )
        assert all(hole.reason == "released" for hole in part.missing)
        part = reading.read(ring, "lake", part.last, 1, 1)
    ring.close()


def test_each_of_two_maps_of_a_segment_keeps_it_from_being_used_again(tmp_path, monkeypatch):
    ring, _ = opened(tmp_path / "queue")
    ring.open_reader("lake", "oldest")
    append(ring, 1, 100)
    upkeep(ring)
    maps, others = ring.medium.read, []

    def read(name: str):
        area = maps(name)
        if not others:  # another reader comes to the same segment meanwhile
            others.append(None)
            others[0] = reading.read(ring, "other", 0, 1, 1)
        return area

    monkeypatch.setattr(ring.medium, "read", read)
    assert reading.read(ring, "lake", 0, 1, 1) is not None
    ring.release("lake", ring.upto)
    upkeep(ring)
    append(ring, 101, 200)
    assert numbers(others[0].batch) == [1], "still in somebody's hands"
    ring.close()


def test_a_note_of_marks_comes_behind_the_frames_that_it_covers_where_nobody_maps_them(tmp_path):
    """At level `process` too: a mark that outlived its frames would have the sender think that they are held."""
    ring, _ = opened(tmp_path / "queue")
    append(ring, 1, 100)
    upkeep(ring)
    assert [segment.writer for segment in ring.segments[:-1]] == [None] * (len(ring.segments) - 1), "sealed, and let go of"
    paths = [tmp_path / "queue" / segment.name for segment in ring.segments]
    assert sum(dirty_pages(path) for path in paths)
    checkpoint(ring)
    assert [dirty_pages(path) for path in paths] == [0] * len(paths)
    ring.close()


def test_a_queue_opened_at_level_power_makes_durable_what_it_held_at_level_process(tmp_path):
    ring, _ = opened(tmp_path / "queue")
    append(ring, 1, 100)
    ring.close()  # as a kill leaves it
    paths = [tmp_path / "queue" / segment.name for segment in ring.segments]
    assert sum(dirty_pages(path) for path in paths)
    ring, _ = opened(tmp_path / "queue", "power")
    assert [dirty_pages(path) for path in paths] == [0] * len(paths)
    ring.close()
