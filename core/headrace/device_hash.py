"""Which of several takers a device belongs to: a function of the names alone, the same on every machine and in every version. No I/O.

Rendezvous hashing: each taker draws a number for each device, the highest wins. One taker more takes only what it wins, from all others
alike; one less leaves what the others have where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

_WORD: Final = 8
#: Bytes of padded names that are looked at together.
_BLOCK_BYTES: Final = 1 << 17
_SEED: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def hashes(names: pa.Array) -> Hashes:
    """A number for each name of a string column without nulls, by its UTF-8 bytes."""
    offsets = np.frombuffer(names.buffers()[1], np.int32, len(names) + 1, names.offset * 4).astype(np.int64)
    lengths = np.diff(offsets)
    found = np.empty(len(names), np.uint64)
    longest = int(lengths.max()) if len(names) else 0
    step = max(1, _BLOCK_BYTES // (longest + _WORD))
    content = names.buffers()[2]
    octets = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
    for at in range(0, len(names), step):
        rows = slice(at, min(at + step, len(names)))
        found[rows] = _of_block(octets[offsets[rows.start] : offsets[rows.stop]], lengths[rows])
    return found


def _of_block(octets: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> Hashes:
    words = -(-int(lengths.max()) // _WORD)
    padded = np.zeros((len(lengths), words * _WORD), np.uint8)
    # row after row, as the names lie one behind the other
    padded[np.arange(words * _WORD) < lengths[:, None]] = octets
    table = padded.view("<u8")
    # the length keeps apart what differs only by zero bytes at the end
    state = _mixed(lengths.astype(np.uint64) + _SEED)
    for word in range(words):
        # what has no such word stays as it is: a name's number must not depend on those beside it
        state = np.where(lengths > word * _WORD, _mixed(state ^ table[:, word]), state)
    return state


def _mixed(state: Hashes) -> Hashes:
    """The finalizer of SplitMix64: every bit of the input moves every bit of the output. Overflow is part of it."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def winners(devices: Hashes, takers: Sequence[str]) -> np.ndarray[Any, Any]:
    """For each device the index of the taker that it belongs to. Their order does not matter to whom that is."""
    seeds = hashes(pa.array(takers, pa.string()))
    best = np.zeros(len(devices), np.int64)
    highest = _mixed(devices ^ seeds[0])
    for taker in range(1, len(takers)):
        drawn = _mixed(devices ^ seeds[taker])
        better = drawn > highest
        highest[better], best[better] = drawn[better], taker
    return best
