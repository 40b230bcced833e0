"""What is packed beside the keys comes out as it went in: values, nulls, words, whatever the types and however many columns."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from headrace.schema import TIMESTAMP
from headrace_enricher_context.held import KEY, Held
from headrace_enricher_context.lookup import DeviceIndex, hash_order
from headrace_enricher_context.packing import COLUMNS_MAX, Packing

ROWS = 300


def columns(chance: random.Random, share_of_nulls: float) -> list[pa.Array]:
    def some(value: object) -> object:
        return None if chance.random() < share_of_nulls else value

    def made(kind: pa.DataType, one: object) -> pa.Array:
        return pa.array([some(one()) for _ in range(ROWS)], kind)  # type: ignore[operator]

    words = [f"w{number}" for number in range(9)]
    return [
        made(pa.float64(), lambda: chance.choice((chance.random(), -0.0, float("nan"), float("inf")))),
        made(pa.bool_(), lambda: chance.random() < 0.5),
        made(pa.string(), lambda: chance.choice(words)).dictionary_encode(),
        made(pa.string(), lambda: chance.choice(words) * 3),
        made(pa.int64(), lambda: chance.randrange(-(2**63), 2**63)),
        made(TIMESTAMP, lambda: chance.randrange(2**50)),
        pa.nulls(ROWS, pa.int64()),
    ]


def values(array: pa.Array) -> list[str]:
    return [repr(value) for value in array.to_pylist()]


@pytest.mark.parametrize("share_of_nulls", [0.0, 0.2])
@pytest.mark.parametrize("times", [1, 10])
def test_what_is_taken_is_what_arrow_takes(share_of_nulls: float, times: int) -> None:
    chance = random.Random(f"{share_of_nulls}{times}")
    given = [column for _ in range(times) for column in columns(chance, share_of_nulls)]
    packing = Packing(given)
    words = packing.pack(given, ROWS)
    assert list(map(values, packing.columns(words))) == list(map(values, given))
    places = np.array([chance.randrange(ROWS) for _ in range(1000)])
    for rows in (pa.array(places), pa.array(places, mask=places % 3 == 0), pa.nulls(1000, pa.int64())):
        taken = packing.take(rows, words.take(places, axis=0))
        for one, column in zip(taken, given, strict=True):
            one.validate(full=True)
            assert one.type == column.type
            assert values(one) == values(column.take(rows))
    assert (len(given) > COLUMNS_MAX) == (times == 10)


def test_a_sliced_column_is_packed_from_where_it_begins_and_is_not_held() -> None:
    whole = pa.array(range(100_000), pa.int64())
    part = whole.slice(70_000, 10)
    packing = Packing([part])
    assert packing.columns(packing.pack([part], 10))[0].to_pylist() == list(range(70_000, 70_010))
    assert packing.nbytes == 0


def test_words_beside_keys_are_found_with_them_even_where_hashes_clash() -> None:
    def all_alike(keys: pa.StringArray) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.full(len(keys), 7, np.uint64)

    keys = pa.array([f"sensor-{number}" for number in range(20)])
    for hash_of in (None, all_alike):
        order, hashes, _ = hash_order(keys, hash_of)
        kept = keys.take(pa.array(order))
        beside = np.array([[int(key.removeprefix("sensor-")), 1] for key in kept.to_pylist()], np.uint64)
        index = DeviceIndex(kept, hashes, hash_of, beside)
        for one in (index, index.with_beside(beside)):
            found = one.find(pa.concat_arrays([keys, pa.array(["other"])]))
            assert found.beside[:-1, 0].tolist() == list(range(20))
            assert found.rows.is_valid().to_pylist() == [True] * 20 + [False]
            assert one.beside.tolist() == beside.tolist()


def test_a_context_without_fields_finds_its_devices() -> None:
    held = Held(pa.table([pa.array(["a", "b"])], [KEY]), pa.schema([]))
    joined = held.join(pa.array(["b", "x", "a"]))
    assert (joined.unknown_events, joined.unknown.to_pylist(), held.table.num_rows) == (1, ["x"], 2)
