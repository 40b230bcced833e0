"""What is read again when it changed: when, what stays after a failure, and that nothing ends the task that looks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.log import Log
from headrace_ingest_ws.auth.rereading import FRESH_S, Rereading, Unreadable, stamp_of


class Scripted:
    """An origin whose answers a test sets: a value, or an error to raise."""

    def __init__(self) -> None:
        self.stamp_is: Any = 1
        self.value: Any = [1]
        self.reads = 0

    def stamp(self) -> object:
        return self._given(self.stamp_is)

    def read(self) -> Any:
        self.reads += 1
        return self._given(self.value)

    @staticmethod
    def _given(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


async def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def rereading(origin: Scripted, changes: list[Any]) -> Rereading[Any]:
    context: Any = SimpleNamespace(call_blocking=_here, log=Log("test"))
    reading: Rereading[Any] = Rereading(origin, "tokens", context, lambda: changes.append(reading.value))
    return reading


def test_it_is_read_when_its_stamp_moved_and_told_when_its_value_did() -> None:
    origin, changes = Scripted(), list[Any]()
    reading = rereading(origin, changes)
    for stamp, value, reads, told in ((1, [1], 1, 1), (1, [9], 1, 1), (2, [1], 2, 1), (3, [2], 3, 2), (None, [2], 4, 2), (None, [3], 5, 3)):
        origin.stamp_is, origin.value = stamp, value
        asyncio.run(reading.refresh())
        assert (origin.reads, len(changes)) == (reads, told)
    assert reading.value == [3]


@pytest.mark.parametrize("failure", [Unreadable("no such file"), RuntimeError("a bug of a library"), OSError(5, "input/output error")])
@pytest.mark.parametrize("where", ["stamp_is", "value"])
def test_a_failure_of_any_kind_keeps_the_value_and_is_tried_again(failure: Exception, where: str) -> None:
    origin, changes = Scripted(), list[Any]()
    reading = rereading(origin, changes)
    asyncio.run(reading.refresh())
    origin.stamp_is = 2
    setattr(origin, where, failure)
    asyncio.run(reading.refresh())
    assert reading.problem
    assert (reading.value, changes) == ([1], [[1]])
    origin.stamp_is, origin.value = 1, [1]  # as before the failure, and yet read again
    asyncio.run(reading.refresh())
    assert reading.problem == ""
    assert changes == [[1]]


def test_a_fresh_file_has_no_stamp_yet(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    assert stamp_of(file) is None, "another change within the clock's step would look the same"
    old = time.time() - FRESH_S - 1
    os.utime(file, (old, old))
    stamp = stamp_of(file)
    assert stamp is not None
    other = tmp_path / "g"
    other.write_text("y")
    os.utime(other, (old, old))
    other.replace(file)
    assert stamp_of(file) != stamp, "of the same size and time, and yet another file"
    with pytest.raises(Unreadable, match="No such file"):
        stamp_of(tmp_path / "none")
