"""Files of another queue in a queue's directory: set aside with a report, never delivered; and no file of ours is given up for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from headrace_queue_pmem import layout
from headrace_queue_pmem.marks import Marks, Note, pack, unpack
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.ownership import Claim, read_claim, whose
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.segment import read_segment_header
from headrace_queue_pmem.state import Options
from headrace_queue_pmem.upkeep import checkpoint, close

sys.path.insert(0, str(Path(__file__).parent))
from rings import append, held, opened


def lives(directory: Path, first: int, count: int, each: int = 10) -> list[int]:
    """So many lives of a queue with `each` events in each; returns them all. It is left as a crash leaves it."""
    for life in range(count):
        ring, _ = opened(directory)
        append(ring, first + life * each, each)
        if life < count - 1:
            close(ring)
        ring.close()
    return list(range(first, first + count * each))


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("segment-*"))


@pytest.mark.parametrize("name", ["segment-00000003", "segment-00000007"])
def test_a_segment_of_a_generation_that_the_head_does_not_know_is_set_aside_when_it_is_of_another_queue(tmp_path, name):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 2)
    # Nine generations: the head of ours knows two. Its segments' positions go on where ours end, or lie far behind.
    lives(theirs, 1001, 9, each=25)
    stranger = segments(theirs)[-1]
    header, _ = read_segment_header(FileMedium(theirs, "process").read(stranger.name))
    assert header is not None
    assert header.generation > 2
    shutil.copy(stranger, ours / name)
    content = stranger.read_bytes()
    ring, report = opened(ours)
    assert held(ring) == wanted
    assert ring.upto == len(wanted), "and its positions count for nothing"
    ((set_aside, reason),) = report.set_aside
    assert set_aside == name
    assert "it is of another queue" in reason
    assert (ours / f"foreign-{name}").read_bytes() == content
    append(ring, 500, 5)
    close(ring)
    ring.close()
    ring, report = opened(ours)
    assert held(ring) == [*wanted, *range(500, 505)]
    assert not report.set_aside


def test_a_file_of_another_queue_is_never_put_in_the_place_of_one_that_was_set_aside_before(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    lives(ours, 1, 1)
    contents = set()
    for number in range(3):
        shutil.rmtree(theirs, ignore_errors=True)
        lives(theirs, 100 * number, 3)
        shutil.copy(segments(theirs)[-1], ours / "segment-00000009")
        contents.add((ours / "segment-00000009").read_bytes())
        opened(ours)[0].close()
    assert {path.read_bytes() for path in ours.glob("foreign-*")} == contents
    assert len(contents) == 3


@pytest.mark.parametrize("gone", [["head"], ["head", "marks-a"], ["head", "marks-a", "marks-b"]], ids=len)
def test_without_its_head_a_queue_still_knows_its_segments(tmp_path, gone):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 4, each=20)
    lives(theirs, 1001, 2)
    for name in gone:
        (ours / name).unlink()
    shutil.copy(segments(theirs)[-1], ours / "segment-00000099")
    for _ in range(2):
        ring, _ = opened(ours)
        assert held(ring) == wanted
        assert (ours / "foreign-segment-00000099").exists()
        close(ring)
        ring.close()


def test_segments_are_ours_whatever_the_head_has_forgotten(tmp_path):
    """A head that was put back from a copy made earlier does not know the later generations."""
    wanted = lives(tmp_path / "ours", 1, 2)
    shutil.copy(tmp_path / "ours" / "head", tmp_path / "older head")
    ring, _ = opened(tmp_path / "ours")
    close(ring)
    ring.close()
    for life in range(2):
        ring, _ = opened(tmp_path / "ours")
        append(ring, 100 * life + 100, 20)
        wanted += range(100 * life + 100, 100 * life + 120)
        close(ring)
        ring.close()
    shutil.copy(tmp_path / "older head", tmp_path / "ours" / "head")
    ring, report = opened(tmp_path / "ours")
    assert held(ring) == wanted
    assert not report.set_aside
    assert any("learned from the log" in repair for repair in report.repairs)


def test_the_head_of_another_queue_costs_no_segment(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 3)
    lives(theirs, 1001, 9)
    shutil.copy(theirs / "head", ours / "head")
    ring, report = opened(ours)
    assert held(ring) == wanted
    assert [name for name, _ in report.set_aside] == ["head"]
    assert (ours / "foreign-head").exists()
    close(ring)
    ring.close()
    ring, report = opened(ours)
    assert (held(ring), report.set_aside) == (wanted, [])


def test_the_marks_of_another_queue_are_not_taken_for_ours(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 2)
    lives(theirs, 1001, 9)
    for name in ("marks-a", "marks-b"):
        shutil.copy(theirs / name, ours / name)
    ring, report = opened(ours)
    assert (held(ring), ring.upto, report.damage) == (wanted, len(wanted), [])
    assert {name for name, _ in report.set_aside} == {"marks-a", "marks-b"}


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
@pytest.mark.parametrize("damaged", [(0,), (1,), (0, 1)], ids=["first copy", "second copy", "both copies"])
def test_what_a_segment_says_of_its_owner_may_be_damaged(tmp_path, kind, damaged):
    medium = kind(tmp_path, "process")
    options = Options(8 << 20, 32 << 20)
    ring, _ = recover("site", "queue", medium, options, Marks(8, 8, 8))
    append(ring, 1, 10)
    ring.close()
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    start = next(at for at in range(0, len(content), 4096) if content[at : at + 8] == layout.SEGMENT_MAGIC)
    for copy in damaged:
        content[start + layout.SEGMENT_OWNER_AT[copy] + 12] ^= 4
    path.write_bytes(content)
    ring, report = recover("site", "queue", medium, options, Marks(8, 8, 8))
    assert (held(ring), report.set_aside) == (list(range(1, 11)), [])


def test_a_queue_of_an_earlier_program_opens_and_its_new_segments_say_whose_they_are(tmp_path, monkeypatch):
    """Such a head has no owner, and neither has a segment nor a note."""
    wanted = lives(tmp_path / "ours", 1, 3, each=20)
    ring, _ = opened(tmp_path / "ours")
    close(ring)
    ring.close()
    medium = FileMedium(tmp_path / "ours", "process")
    for name in medium.names():
        if name == "head" or name.startswith("segment"):
            area = medium.open(name)
            places = layout.SEGMENT_OWNER_AT if name != "head" else (layout.OWNER_CELL_AT, layout.OWNER_CELL_AT + layout.OWNER_CELL)
            for at in places:
                area.write(at, bytes(64), 64)
        elif name.startswith("marks"):
            note = unpack(medium.load(name))
            assert note is not None
            medium.save(name, pack(Note(note.marks, note.upto)))
    medium.remove("owner")
    old = [path.name for path in segments(tmp_path / "ours")]
    ring, report = opened(tmp_path / "ours")
    assert (held(ring), report.set_aside, report.damage) == (wanted, [], [])
    append(ring, 100, 40)
    checkpoint(ring)
    ring.close()
    ring, report = opened(tmp_path / "ours")
    assert (held(ring), report.set_aside) == ([*wanted, *range(100, 140)], [])
    assert [bool(segment.owner) for segment in ring.segments] == [segment.name not in old for segment in ring.segments]
    ring.close()
    # One that does not say whose it is, and has a number from which on all of ours do, is none of ours.
    lives(tmp_path / "theirs", 1001, 9, each=25)
    stranger = segments(tmp_path / "theirs")[-1]
    area = FileMedium(tmp_path / "theirs", "process").open(stranger.name)
    for at in layout.SEGMENT_OWNER_AT:
        area.write(at, bytes(64), 64)
    shutil.copy(stranger, tmp_path / "ours" / "segment-00000099")
    ring, report = opened(tmp_path / "ours")
    assert held(ring) == [*wanted, *range(100, 140)]
    assert [name for name, _ in report.set_aside] == ["segment-00000099"]


def test_of_two_copies_of_a_segment_the_better_one_counts(tmp_path):
    wanted = lives(tmp_path, 1, 1)
    path = segments(tmp_path)[0]
    shutil.copy(path, tmp_path / "segment-00000007")
    content = bytearray(path.read_bytes())
    content[content.index(b" 5", 8192)] ^= 1
    path.write_bytes(content)
    ring, report = opened(tmp_path)
    assert (held(ring), report.damage, report.repairs) == (wanted, [], [])
    assert report.set_aside == [("segment-00000001", "it is a copy of segment segment-00000007")]


def test_what_two_copies_of_a_segment_have_whole_together_is_held(tmp_path):
    wanted = lives(tmp_path, 1, 2)
    path = segments(tmp_path)[0]
    shutil.copy(path, tmp_path / "segment-00000007")
    for damaged, numbers_ in ((path, (3, 5)), (tmp_path / "segment-00000007", (4, 8, 9))):
        content = bytearray(damaged.read_bytes())
        for number in numbers_:
            content[content.index(b" %d" % number, 8192)] ^= 1
        damaged.write_bytes(content)
    for _ in range(2):
        ring, report = opened(tmp_path)
        assert (held(ring), report.damage) == (wanted, [])
        ring.close()


def test_a_new_queue_whose_head_is_swapped_for_anothers_keeps_its_events(tmp_path):
    """It has given nothing back and was never closed: its notes are those of its first open."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 1)
    lives(theirs, 1001, 1)
    shutil.copy(theirs / "head", ours / "head")
    ring, report = opened(ours)
    assert held(ring) == wanted
    assert [name for name, _ in report.set_aside] == ["head"]


def test_a_swapped_head_that_came_with_a_segment_of_its_own_is_outvoted(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 3, each=30)
    lives(theirs, 1001, 2)
    shutil.copy(theirs / "head", ours / "head")
    shutil.copy(segments(theirs)[-1], ours / "segment-00000040")
    ring, report = opened(ours)
    assert held(ring) == wanted
    assert {name for name, _ in report.set_aside} == {"head", "segment-00000040"}


@pytest.mark.parametrize("lost", [(), ("owner",), ("owner", "marks-a"), ("marks-a", "marks-b")], ids=len)
def test_one_note_that_was_written_here_stands_against_all_files_of_another_queue(tmp_path, lost):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    lives(ours, 1, 2)
    theirs_held = lives(theirs, 1001, 3)
    wanted = [path.name for path in segments(ours)]
    for name in ("owner", "marks-a", "marks-b", "head"):
        if name in lost or name == "head":
            shutil.copy(theirs / name, ours / name)
    for number, path in enumerate(segments(theirs)):
        shutil.copy(path, ours / f"segment-{50 + number:08d}")
    ring, report = opened(ours)
    assert [segment.name for segment in ring.segments] == wanted
    assert not set(held(ring)) & set(theirs_held)
    assert "head" in {name for name, _ in report.set_aside}
    close(ring)
    ring.close()
    ring, report = opened(ours)
    assert ([segment.name for segment in ring.segments], report.set_aside) == (wanted, [])


def test_a_head_of_another_queue_that_does_not_say_so_any_more_is_known_by_its_queue_ids(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = lives(ours, 1, 3)
    lives(theirs, 1001, 3)
    shutil.copy(theirs / "head", ours / "head")
    area = FileMedium(ours, "process").open("head")
    area.write(layout.OWNER_CELL_AT, b"x" * 128, 128)
    ring, report = opened(ours)
    assert held(ring) == wanted
    assert [name for name, _ in report.set_aside] == ["head"]


def test_a_directory_that_was_moved_or_copied_is_still_its_queues(tmp_path):
    wanted = lives(tmp_path / "ours", 1, 3)
    (tmp_path / "ours").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    before = (tmp_path / "copied" / "owner").read_bytes()
    for name in ("moved", "copied"):
        ring, report = opened(tmp_path / name)
        assert (held(ring), report.set_aside, report.repairs) == (wanted, [], [])
        close(ring)
        ring.close()
    assert (tmp_path / "moved" / "owner").read_bytes() == before
    assert (tmp_path / "copied" / "owner").read_bytes() != before, "it says where it is now"


def test_files_that_another_queue_left_here_whole_are_that_queue(tmp_path):
    """All notes came with them: nothing says that anything else was here."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    lives(ours, 1, 1)
    wanted = lives(theirs, 1001, 3)
    for path in theirs.iterdir():
        shutil.copy(path, ours / path.name)
    ring, _ = opened(ours)
    assert held(ring) == wanted


def test_without_a_note_that_was_written_here_a_head_stands_against_notes_alone():
    ours, theirs, here = b"a" * 16, b"b" * 16, b"h" * 16
    assert whose(b"", [], [], here) == b""
    assert whose(ours, [], [], here) == ours
    assert whose(b"", [Note([], 0, theirs, 0)], [], here) == theirs
    assert whose(ours, [Note([], 0, theirs, 0), Claim(theirs, b"t" * 16)], [], here) == ours
    assert whose(ours, [Claim(theirs, here)], [], here) == theirs
    assert whose(ours, [Claim(theirs, here), Note([], 0, ours, 0, here)], [], here) == ours, "they differ: a vote"


def test_a_note_of_the_owner_is_read_back_or_is_none():
    claim = Claim(b"a" * 16, b"p" * 16)
    content = claim.pack()
    assert read_claim(content) == claim
    for at in range(len(content)):
        assert read_claim(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]) is None
        assert read_claim(content[:at]) is None
    note = Note([], 7, b"a" * 16, 3, b"p" * 16)
    assert unpack(pack(note)) == note
