"""The index over device ids, against a dict."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_enricher_context.lookup import DeviceIndex, Hashes, HashOf, hash_order, hash_strings

NAMES = st.lists(st.text(max_size=40), max_size=60)


def two_bits(strings: pa.StringArray) -> Hashes:
    """A hash so weak that almost all keys share one."""
    return hash_strings(strings) & np.uint64(3)


def constant(strings: pa.StringArray) -> Hashes:
    return np.zeros(len(strings), np.uint64)


def find(keys: list[str], asked: list[str], hash_of: HashOf) -> list[str | None]:
    """What the index says of each asked name: the key at the row that it found."""
    column = pa.array(keys, pa.string())
    order, hashes, replaced = hash_order(column, hash_of)
    assert replaced == len(keys) - len(set(keys))
    kept = column.take(pa.array(order))
    rows = DeviceIndex(kept, hashes, hash_of).find(pa.array(asked, pa.string())).rows
    found: list[str | None] = kept.take(rows).to_pylist()
    return found


@pytest.mark.parametrize("hash_of", [hash_strings, two_bits, constant])
@settings(deadline=None)
@given(keys=NAMES, others=NAMES)
def test_every_key_is_found_and_nothing_else(hash_of: HashOf, keys: list[str], others: list[str]) -> None:
    asked = keys + others
    assert find(keys, asked, hash_of) == [name if name in keys else None for name in asked]


@pytest.mark.parametrize("hash_of", [hash_strings, two_bits, constant])
@settings(deadline=None)
@given(keys=st.lists(st.sampled_from(["a", "b", "ab", "ba", ""]), max_size=30))
def test_of_equal_keys_the_last_row_stays(hash_of: HashOf, keys: list[str]) -> None:
    order, _, _ = hash_order(pa.array(keys, pa.string()), hash_of)
    assert sorted(order.tolist()) == sorted({key: row for row, key in enumerate(keys)}.values())


@given(strings=NAMES, before=st.integers(0, 5))
def test_a_slice_hashes_as_its_copy(strings: list[str], before: int) -> None:
    whole = pa.array(["x" * before] * before + strings, pa.string())
    assert hash_strings(whole.slice(before)).tolist() == hash_strings(pa.array(strings, pa.string())).tolist()


def test_words_of_neighbours_do_not_leak_into_a_hash() -> None:
    # eight bytes are read at a time, and a short string's word reaches into the next string
    alone = hash_strings(pa.array(["abc"]))[0]
    assert hash_strings(pa.array(["abc", "defghijkl"]))[0] == alone
    assert hash_strings(pa.array(["abc", "zzzzzzzzz"]))[0] == alone


def test_hashes_differ_where_strings_do() -> None:
    strings = [f"device-{number:06d}" for number in range(50_000)] + ["", "\0", "\0\0", "a", "a\0", "ä", "a" * 8, "a" * 9, "a" * 16]
    assert len(set(hash_strings(pa.array(strings)).tolist())) == len(strings)


def test_long_keys_and_keys_that_end_in_zeros_are_told_apart() -> None:
    keys = ["a", "a\0", "a" * 8, "a" * 8 + "\0", "b" * 32, "b" * 33, "b" * 40 + "x", "b" * 40 + "y"]
    for hash_of in (None, constant):
        order, hashes, _ = hash_order(pa.array(keys), hash_of)
        index = DeviceIndex(pa.array(keys).take(pa.array(order)), hashes, hash_of)
        found = index.find(pa.array([*keys, "b" * 40 + "z", "", "a\0\0", "b" * 31])).rows
        assert [None if row is None else keys[order[row]] for row in found.to_pylist()] == [*keys, None, None, None, None]
