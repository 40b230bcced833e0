"""The file with the last context: whole, or set aside."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from context_driver import FIELDS, held_of

from headrace_enricher_context.held import Held
from headrace_enricher_context.stored import BrokenFile, ContextFile

ORIGIN = "devices"


def file_in(folder: Path, origin: str = ORIGIN) -> ContextFile:
    return ContextFile(folder, origin, lambda name: None)


def some_held(count: int = 3) -> Held:
    return held_of([f"ä-{number}" for number in range(count)], site=[None if number % 2 else f"hall {number}" for number in range(count)])


def test_what_was_saved_is_loaded_with_its_time(tmp_path: Path) -> None:
    held = some_held()
    file_in(tmp_path).save(held, 1_700_000_000.25)
    stored = file_in(tmp_path).load(held.fields)
    assert stored is not None
    assert stored.held.same_as(held)
    assert stored.at == 1_700_000_000.25


def test_a_large_context_survives_its_compact_form(tmp_path: Path) -> None:
    held = held_of([f"d{number}" for number in range(60_000)], site=["a rather long name of a site"] * 60_000)
    assert pa.types.is_dictionary(held.table.schema.field("site").type)
    file_in(tmp_path).save(held, 0)
    stored = file_in(tmp_path).load(held.fields)
    assert stored is not None
    assert stored.held.same_as(held)


def test_an_empty_context_is_a_context(tmp_path: Path) -> None:
    file_in(tmp_path).save(Held.empty(FIELDS), 0)
    stored = file_in(tmp_path).load(FIELDS)
    assert stored is not None
    assert len(stored.held) == 0


def test_confirming_moves_the_time_only(tmp_path: Path) -> None:
    held = some_held()
    file_in(tmp_path).save(held, 1000)
    file_in(tmp_path).confirm(2000)
    stored = file_in(tmp_path).load(held.fields)
    assert stored is not None
    assert stored.at == 2000
    assert stored.held.same_as(held)


def test_no_file_is_no_context(tmp_path: Path) -> None:
    assert file_in(tmp_path).load(FIELDS) is None


def test_a_file_of_another_table_is_not_used(tmp_path: Path) -> None:
    held = some_held()
    file_in(tmp_path).save(held, 0)
    assert file_in(tmp_path, "other table").load(held.fields) is None


def test_a_torn_file_is_set_aside_wherever_it_is_torn(tmp_path: Path) -> None:
    held = some_held()
    file_in(tmp_path).save(held, 0)
    path = tmp_path / "context.arrows"
    content = path.read_bytes()
    for size in [0, 1, 7, 8, *range(9, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(BrokenFile, match=r"context\.broken"):
            file_in(tmp_path).load(held.fields)
        assert not path.exists()
        assert (tmp_path / "context.broken").read_bytes() == content[:size]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    held = some_held()
    file_in(tmp_path).save(held, 0)
    path = tmp_path / "context.arrows"
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(BrokenFile):
            file_in(tmp_path).load(held.fields)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = some_held()
    file_in(tmp_path).save(old, 1000)

    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        file_in(tmp_path).save(some_held(5), 2000)
    stored = file_in(tmp_path).load(old.fields)
    assert stored is not None
    assert stored.held.same_as(old)
    assert stored.at == 1000
