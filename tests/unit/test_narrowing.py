"""The search for the event at fault."""

import random

import pytest

from headrace.engine.narrowing import Narrowing


def search(size: int, poison: set[int]) -> tuple[list[int], int]:
    """Feed positions 1..size to a store that refuses any range with a poison event; found events, and tries."""
    narrowing, flushed, tries, found = Narrowing(), 0, 0, []
    while flushed < size:
        tries += 1
        first, last = flushed + 1, min(size, flushed + (narrowing.limit or size))
        bad = [position for position in range(first, last + 1) if position in poison and position not in found]
        if not bad:
            flushed = last
            narrowing.done(flushed)
        elif narrowing.failed(first, last):
            found.append(first)
    return found, tries


def test_every_event_at_fault_is_found_and_no_other() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(200):
        size = rng.randint(1, 500)
        poison = set(rng.sample(range(1, size + 1), min(size, rng.randint(0, 5))))
        found, _ = search(size, poison)
        assert set(found) == poison, f"seed {seed}"


def test_one_event_among_many_is_found_in_logarithmic_tries() -> None:
    found, tries = search(16_384, {11_111})
    assert found == [11_111]
    assert tries < 60


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_ranges_end(size: int) -> None:
    assert search(size, set(range(1, size + 1)))[0] == list(range(1, size + 1))


def test_suspicion_ends_behind_the_suspect_range() -> None:
    narrowing = Narrowing()
    assert not narrowing.failed(1, 10)
    assert narrowing.limit == 5
    narrowing.done(5)
    assert narrowing.limit == 5
    narrowing.done(10)
    assert not narrowing.active
