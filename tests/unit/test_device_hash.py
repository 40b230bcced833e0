"""Whose a device is: the same everywhere, evenly, and with few moves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from headrace.device_hash import hashes, winners

WRITTEN_DOWN = [
    "0xe220a8397b1dcdaf", "0x3e506e5796335af0", "0x8e0d7924c7cf8c31", "0x82177327e1e4daac", "0xb0f00539162b363b", "0x8e92e4c3870d9be5",
    "0x1aa83696e88582b4",
]  # fmt: skip
WON = [2, 0, 1, 0, 0, 0, 0, 2, 1, 1, 2, 1]
NAMES = [f"device-{number}" for number in range(20_000)]


def test_the_numbers_are_those_that_were_written_down() -> None:
    # what was sent stays where it is only if no version and no machine ever computes anything else
    found = hashes(pa.array(["", "a", "pump-7", "12345678", "123456789", "größe", "x" * 200]))
    assert [hex(number) for number in found.tolist()] == WRITTEN_DOWN
    assert winners(hashes(pa.array(NAMES[:12])), ["a", "b", "c"]).tolist() == WON


def test_another_process_comes_to_the_same() -> None:
    program = "import pyarrow as pa; from headrace.device_hash import hashes; print(hashes(pa.array(['pump-7', 'x' * 33])).tolist())"
    said = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "4711"}, capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == str(hashes(pa.array(["pump-7", "x" * 33])).tolist())


def test_a_name_has_its_number_whatever_stands_beside_it() -> None:
    together = hashes(pa.array(NAMES))
    assert together[::500].tolist() == [int(hashes(pa.array([name]))[0]) for name in NAMES[::500]]
    assert hashes(pa.array(NAMES).slice(777, 50)).tolist() == together[777:827].tolist()
    assert hashes(pa.array(["x" * 300_000, "pump-7"]))[1] == hashes(pa.array(["pump-7"]))[0]
    assert len(hashes(pa.array([], pa.string()))) == 0


def test_names_that_differ_only_by_zero_bytes_differ() -> None:
    assert len(set(hashes(pa.array(["a", "a\0", "a\0\0", "", "\0"])).tolist())) == 5


@pytest.mark.parametrize("takers", [1, 2, 3, 5, 16])
def test_the_devices_are_spread_evenly(takers: int) -> None:
    counts = np.bincount(winners(hashes(pa.array(NAMES)), [f"up-{number}" for number in range(takers)]), minlength=takers)
    assert counts.sum() == len(NAMES)
    assert (np.abs(counts - len(NAMES) / takers) < 5 * np.sqrt(len(NAMES) / takers)).all(), counts


def test_one_more_taker_takes_its_part_and_moves_nothing_else() -> None:
    before = winners(hashes(pa.array(NAMES)), ["a", "b", "c"])
    after = winners(hashes(pa.array(NAMES)), ["a", "b", "c", "d"])
    moved = before != after
    assert set(after[moved].tolist()) == {3}
    assert 0.22 < moved.mean() < 0.28


def test_the_order_of_the_takers_does_not_matter() -> None:
    one, other = ["a", "b", "c"], ["c", "a", "b"]
    devices = hashes(pa.array(NAMES))
    assert [one[taker] for taker in winners(devices, one)] == [other[taker] for taker in winners(devices, other)]
