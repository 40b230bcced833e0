"""The refused messages of a device session that its client may not have heard of yet, and the note that keeps them. No I/O.

The note travels with the session's mark in the queue, in the commit that makes the refusals final; the hello of the next
connection repeats them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

_VERSION: Final = 1

#: About what one refusal adds to a note: a run of its own.
NOTE_BYTES_PER_REFUSAL: Final = 8


class RefusedMessage(NamedTuple):
    """Message `number` was refused with `code`. again: the same message may be taken later."""

    number: int
    code: str
    again: bool = False

    def fields(self) -> dict[str, Any]:
        """As it stands in the hello: a reject without its reason, and without a wait, for that is over."""
        fields: dict[str, Any] = {"reject": self.number, "code": self.code}
        if self.again:
            fields["retry_ms"] = 0
        return fields


class Refusals:
    """Refused messages by ascending number."""

    __slots__ = ("_held", "_note", "_stale")

    def __init__(self, held: Iterable[RefusedMessage] = ()) -> None:
        self._held = deque(held)
        self._note: bytes | None = None
        self._stale = bool(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, refused: RefusedMessage) -> None:
        """One more, with a number above all others."""
        self._held.append(refused)
        self._stale = True

    def forget(self, upto: int) -> None:
        """The client knows of all up to this number."""
        held = self._held
        while held and held[0].number <= upto:
            held.popleft()
            self._stale = True

    def note(self) -> bytes | None:
        """All of them as bytes, None when there is none."""
        if self._stale:
            self._note = encode(self._held)
            self._stale = False
        return self._note


def encode(refused: Iterable[RefusedMessage]) -> bytes | None:
    """A note: the codes, then runs of (numbers since the last run, length, code). None for nothing."""
    codes: dict[tuple[str, bool], int] = {}
    runs: list[int] = []
    upto, before = 0, -1
    for number, code, again in refused:
        kind = codes.setdefault((code, again), len(codes))
        if number == upto + 1 and kind == before:
            runs[-2] += 1
        else:
            runs += (number - upto, 1, kind)
        upto, before = number, kind
    return msgspec.msgpack.encode((_VERSION, list(codes), runs)) if runs else None


def decode(note: bytes | None) -> list[RefusedMessage]:
    """What a note holds; ValueError when it is none of ours."""
    if note is None:
        return []
    try:
        version, codes, runs = _decode(note)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected a note of refused messages, got {note[:40]!r} ({error})") from None
    if version != _VERSION:
        raise ValueError(f"expected a note of version {_VERSION}, got {version}")
    refused: list[RefusedMessage] = []
    upto = 0
    for gap, length, kind in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        first = upto + gap
        upto = first + length - 1
        code, again = codes[kind]
        refused += [RefusedMessage(number, code, again) for number in range(first, upto + 1)]
    return refused


_decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, bool]], list[int]]).decode
