"""Finds devices among millions, a batch at a time. No I/O.

`pyarrow.compute.index_in` hashes its whole value set again on every call: 200 ms a batch at a million devices. This index
is built once and costs about 50 ns a device looked up: a 64-bit hash of the key's bytes, eight at a time, then buckets by
the hash's upper bits, then a comparison with the key itself, whose bytes lie beside its hash, as does what is known of the
device (`headrace_enricher_context.packing`): most of the time goes into waiting for memory, and a device's row is one wait.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
HashOf = Callable[[pa.StringArray], Hashes]

_SEED: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)
_WORD: Final = 8
#: Words of a key that lie beside its hash; a longer key is looked at where it is.
_WORDS_MAX: Final = 4
#: Bytes that the processor takes from memory at a time.
_LINE: Final = 64


class Found(NamedTuple):
    """Of each device its row (null where there is none), and what lies beside the row's key (anything where there is none)."""

    rows: pa.Int64Array
    beside: Words


class DeviceIndex:
    """Rows of a key column by key. The column is given in hash order (`hash_order`), without nulls or repeated keys; `beside` are
    so many words of each row that are found with it."""

    def __init__(self, keys: pa.StringArray, hashes: Hashes, hash_of: HashOf | None = None, beside: Words | None = None) -> None:
        self._keys = keys
        self._hash_of = hash_of
        bits = len(keys).bit_length() + 1
        self._shift = np.uint64(64 - bits)
        starts = np.searchsorted(hashes >> self._shift, np.arange(2**bits + 1, dtype=np.uint64))
        self._starts = starts.astype(np.int32)
        self._fullest = int(np.diff(starts).max())
        self._words = -(-min(_longest(keys), _WORDS_MAX * _WORD) // _WORD)
        # In each row the hash, the key's words, its length, what is beside it. Looking on behind a short bucket does no harm, for only
        # the same hash counts. Behind the last bucket lie zeros; only the hash 0 equals them, and it looks in the first bucket, never
        # so far.
        beside = np.zeros((len(keys), 0), np.uint64) if beside is None else beside
        self._table = _aligned(len(keys) + self._fullest, self._words + 2 + beside.shape[1])
        self._table[: len(keys), 0] = hashes
        for number, column in enumerate(_hashed(keys, self._words)[1], 1):
            self._table[: len(keys), number] = column
        self._table[: len(keys), self._words + 2 :] = beside

    def with_beside(self, beside: Words) -> DeviceIndex:
        """The same keys with other words beside them, as many as before."""
        other = copy(self)
        other._table = _aligned(*self._table.shape)
        other._table[:, : self._words + 2] = self._table[:, : self._words + 2]
        other._table[: len(self._keys), self._words + 2 :] = beside
        return other

    @property
    def hashes(self) -> Hashes:
        """The keys' hashes, in their order."""
        return self._table[: len(self._keys), 0]

    @property
    def nbytes(self) -> int:
        """Bytes held beside the keys."""
        return self._table.nbytes + self._starts.nbytes

    @property
    def beside(self) -> Words:
        """What lies beside the keys, in their order."""
        return self._table[: len(self._keys), self._words + 2 :]

    def find(self, devices: pa.StringArray) -> Found:
        """The row of each device; `devices` has no nulls."""
        if not len(self._keys):
            return Found(pa.nulls(len(devices), pa.int64()), np.zeros((len(devices), self.beside.shape[1]), np.uint64))
        hashes, own = _hashed(devices, self._words)
        if self._hash_of is not None:
            hashes = self._hash_of(devices)
        held = self._table[:, 0]
        rows = self._starts[(hashes >> self._shift).astype(np.int64)].astype(np.int64)
        missed = np.flatnonzero(held[rows] != hashes)
        candidates, wanted = rows[missed], hashes[missed]
        for _ in range(1, self._fullest):  # what is not found at the first place is looked for at the next ones: ever fewer
            if not len(missed):
                break
            candidates = candidates + 1
            same = held[candidates] == wanted
            rows[missed[same]] = candidates[same]
            missed, candidates, wanted = missed[~same], candidates[~same], wanted[~same]
        rows[missed] = -1
        there = self._table.take(rows, axis=0)
        for place in np.flatnonzero(self._differ(rows, there, own, devices) & (rows >= 0)).tolist():
            rows[place] = self._among_equal_hashes(int(rows[place]), devices[place].as_py())
            there[place] = self._table[rows[place]]
        return Found(pa.array(rows, mask=rows < 0), there[:, self._words + 2 :])

    def _differ(self, rows: Rows, there: Words, own: list[Hashes], devices: pa.StringArray) -> npt.NDArray[np.bool_]:
        """Whether the key of each row is another than the device; says nothing of rows that are none."""
        differ = np.zeros(len(rows), np.bool_)
        for number, column in enumerate(own, 1):
            differ |= there[:, number] != column
        if int(own[-1].max(initial=0)) > self._words * _WORD:
            long = np.flatnonzero((own[-1] > self._words * _WORD) & ~differ & (rows >= 0))
            equal = pc.equal(self._keys.take(pa.array(rows[long])), devices.take(pa.array(long)))
            differ[long] = ~equal.to_numpy(zero_copy_only=False)
        return differ

    def _among_equal_hashes(self, row: int, device: str) -> int:
        for other in range(row, len(self._keys)):
            if self._table[other, 0] != self._table[row, 0]:
                break
            if self._keys[other].as_py() == device:
                return other
        return -1


def hash_order(keys: pa.StringArray, hash_of: HashOf | None = None) -> tuple[Rows, Hashes, int]:
    """The rows to keep, in the order of their hashes, those hashes, and how many rows a later one of the same key replaced."""
    hashes = (hash_of or hash_strings)(keys)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    same_as_next = hashes[:-1] == hashes[1:]
    if not same_as_next.any():
        return order, hashes, 0
    keep = np.ones(len(order), dtype=np.bool_)
    last: dict[str, int] = {}
    suspects = np.flatnonzero(np.append(same_as_next, False) | np.insert(same_as_next, 0, False))
    for place, key in zip(suspects.tolist(), keys.take(pa.array(order[suspects])).to_pylist(), strict=True):
        if key in last:
            keep[last[key]] = False
        last[key] = place
    return order[keep], hashes[keep], int(len(keep) - keep.sum())


def hash_strings(strings: pa.StringArray) -> Hashes:
    """A 64-bit hash of each string's UTF-8 bytes; nulls hash like empty strings."""
    return _hashed(strings, 0)[0]


def _aligned(rows: int, words: int) -> Words:
    """Zeros that begin where a line does, so that rows lie across as few lines as can be."""
    whole = np.zeros(rows * words + _LINE // _WORD, np.uint64)
    first = -whole.ctypes.data // _WORD % (_LINE // _WORD)
    return whole[first : first + rows * words].reshape(rows, words)


def _longest(strings: pa.StringArray) -> int:
    """The bytes of the longest of them."""
    return int(pc.max(pc.binary_length(strings)).as_py() or 0)


def _hashed(strings: pa.StringArray, kept: int) -> tuple[Hashes, list[Hashes]]:
    """The hashes; and so many words of each string, zeros behind its end, and last its length."""
    count = len(strings)
    if not count:
        return np.zeros(0, np.uint64), [np.zeros(0, np.uint64)] * (kept + 1)
    _, offset_buffer, value_buffer = strings.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[strings.offset : strings.offset + count + 1].astype(np.int64)
    lengths = np.diff(offsets)
    values = np.frombuffer(value_buffer, np.uint8)[offsets[0] : offsets[-1]] if value_buffer else np.zeros(0, np.uint8)
    padded = np.concatenate((values, np.zeros(2 * _WORD, np.uint8)))
    # Every byte begins a word of this view, so that a string's words can be taken where it happens to lie.
    words = np.ndarray((len(padded) - _WORD + 1,), np.dtype("<u8"), padded, 0, (1,))
    starts = offsets[:-1] - offsets[0]
    hashes: Hashes = lengths.astype(np.uint64) * _SEED
    shortest = int(lengths.min())
    words_kept = [np.zeros(count, np.uint64) for _ in range(kept)]
    for done in range(0, int(lengths.max()), _WORD):
        # names are mostly of one length, and choosing rows costs as much as the rest
        rows = slice(None) if done < shortest else np.flatnonzero(lengths > done)
        next_words = words[starts[rows] + done]
        if done + _WORD > shortest:
            next_words <<= (_WORD - np.minimum(lengths[rows] - done, _WORD)).astype(np.uint64) * np.uint64(8)
        if done < kept * _WORD:
            words_kept[done // _WORD][rows] = next_words
        mixed = (hashes[rows] ^ next_words) * _MIX
        hashes[rows] = mixed ^ (mixed >> _HALF)
    return hashes, [*words_kept, lengths.astype(np.uint64)]
