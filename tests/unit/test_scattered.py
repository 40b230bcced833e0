"""Rows that do not follow each other in their origin: packed, cut and named."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from headrace import Missing, Origin, RangeKey, origin_batch, origins_of
from headrace.position import drop_rows, row_names, rows_of, rows_origin, slice_origins
from headrace.scattered import Names, Scattered, pack_rows, unpack_rows

QUEUE = "00000000-0000-4000-8000-000000000001"


def positions(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def same(one: Scattered, other: Scattered) -> bool:
    assert (one.names is None) == (other.names is None)
    if one.names is not None and other.names is not None:
        assert one.names.ids == other.names.ids
        assert one.names.codes.tolist() == other.names.codes.tolist()
        assert one.names.numbers.tolist() == other.names.numbers.tolist()
    return one.positions.tolist() == other.positions.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_what_is_packed_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    first = rng.choice([1, 1 << 40])
    found = positions(*sorted(rng.sample(range(first, first + 200), rng.randint(0, 100))))
    ids = tuple(f"queue-{number}" for number in range(rng.randint(1, 3)))
    codes = np.array([rng.randrange(len(ids)) for _ in found], np.uint16)
    names = Names(ids, codes, positions(*(rng.randint(1, 1 << 50) for _ in found))) if rng.random() < 0.5 else None
    scattered = Scattered(found, names)
    assert same(unpack_rows(pack_rows(scattered)), scattered)


def test_rows_that_follow_each_other_cost_nothing() -> None:
    assert len(pack_rows(Scattered(np.arange(1, 100_000, dtype=np.uint64)))) == 16
    assert len(pack_rows(Scattered(np.arange(1, 100_001, 2, dtype=np.uint64)))) == 16 + 12_500


def test_whatever_is_damaged_is_refused_with_one_error() -> None:
    packed = pack_rows(Scattered(positions(1, 4, 9), Names((QUEUE, "b"), np.array([0, 1, 0], np.uint16), positions(7, 8, 9))))
    for size in range(len(packed)):
        with pytest.raises(ValueError, match="scattered rows"):
            unpack_rows(packed[:size])
    with pytest.raises(ValueError, match="scattered rows"):
        unpack_rows(packed + b"x")
    with pytest.raises(ValueError, match="version 9"):
        unpack_rows(b"\x09" + packed[1:])
    with pytest.raises(ValueError, match="none of them"):
        unpack_rows(packed[:-30] + struct.pack("<3H", 0, 7, 0) + packed[-24:])
    with pytest.raises(ValueError, match="5 at most"):
        unpack_rows(pack_rows(Scattered(np.arange(1, 100, dtype=np.uint64))), 5)
    rng = random.Random(4)
    for _ in range(2000):
        damaged = bytearray(packed)
        damaged[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        try:
            unpack_rows(bytes(damaged))
        except ValueError:
            continue


def test_a_cut_origin_keeps_its_note_and_means_the_rest() -> None:
    names = Names(("a", "b"), np.array([0, 1, 0, 1], np.uint16), positions(50, 60, 70, 80))
    whole = rows_origin(f"{QUEUE}/up.1", 10, 30, 5, Scattered(positions(12, 15, 20, 21), names))
    assert rows_of(whole._replace(first=15, last=20)).positions.tolist() == [15, 20]
    cut = origins_of(slice_origins(origin_batch([whole]), 6, 2))
    assert [(origin.first, origin.last, origin.row_offset) for origin in cut] == [(15, 20, 0)]
    named = row_names("own", positions(900, 901), origin_batch(cut))
    assert [(named.ids[code], number) for code, number in zip(named.codes, named.numbers.tolist(), strict=True)] == [("b", 60), ("a", 70)]


def test_rows_without_names_are_named_by_their_lanes_queue() -> None:
    origins = origin_batch(
        [
            Origin("device/session", 1, 1, 0, 1),
            rows_origin(f"{QUEUE}/up.1", 10, 30, 1, Scattered(positions(12, 20, 21))),
            rows_origin(f"{QUEUE}/up.1", 31, 40, 4, Scattered(positions())),
        ]
    )
    names = row_names("own", positions(1, 2, 3, 4), origins)
    assert [names.ids[code] for code in names.codes] == ["own", QUEUE, QUEUE, QUEUE]
    assert names.numbers.tolist() == [1, 12, 20, 21]
    left = row_names("own", positions(1, 2, 4), drop_rows(origins, [2], 4))
    assert left.numbers.tolist() == [1, 12, 21]


def test_a_key_knows_the_positions_of_its_rows() -> None:
    share = pack_rows(Scattered(positions(3, 5, 6, 9)))
    key = RangeKey(QUEUE, 1, 10, (Missing(8, 8, "corrupt"),), (5,), share)
    assert key.positions().tolist() == [3, 6, 9]
    assert key.part(4, 7) == RangeKey(QUEUE, 4, 7, (), (5,), share)
    assert key.part(4, 8).positions().tolist() == [6]
    assert RangeKey(QUEUE, 1, 4, (Missing(2, 2, "x"),), (4,)).positions().tolist() == [1, 3]
