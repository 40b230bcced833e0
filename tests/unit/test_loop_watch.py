"""Code that holds a loop is named in the log, once; a loop that waits or is only slow is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from headrace import loop_watch
from headrace.loop_watch import LoopWatch


class Lines:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, message: str, **fields: Any) -> None:
        self.lines.append((message, fields))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr(loop_watch, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(loop_watch, "HELD_S", 0.3)
    return Lines()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, log: Lines) -> Iterator[asyncio.AbstractEventLoop]:
    """A watched loop in a thread of its own."""
    loop = request.param()

    async def until_stopped() -> None:
        await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(until_stopped(),))
    thread.start()
    assert thread.ident is not None
    watch = LoopWatch(log)  # type: ignore[arg-type]
    watch.add("sources", loop, thread.ident)
    watch.start()
    yield loop
    watch.close()
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def hold(seconds: float) -> None:
    time.sleep(seconds)


async def idle(seconds: float) -> None:
    await asyncio.sleep(seconds)


def holding(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    async def plugin() -> None:
        hold(seconds)

    asyncio.run_coroutine_threadsafe(plugin(), loop).result()


def test_the_line_that_holds_a_loop_is_told_once_each_time(loop: asyncio.AbstractEventLoop, log: Lines) -> None:
    holding(loop, 2.0)
    asyncio.run_coroutine_threadsafe(idle(0.3), loop).result()
    holding(loop, 2.0)
    assert [(message, fields["loop"]) for message, fields in log.lines] == [("a loop is held", "sources")] * 2
    for _, fields in log.lines:
        assert fields["at"].startswith(f"{__file__}:")
        assert fields["at"].endswith(" hold")
        assert fields["stack"][-2].endswith(" plugin")
        assert fields["held_s"] >= 0.3


def test_a_loop_that_waits_is_not_held(loop: asyncio.AbstractEventLoop, log: Lines) -> None:
    asyncio.run_coroutine_threadsafe(idle(1.0), loop).result()
    for _ in range(20):
        holding(loop, 0.01)
    assert log.lines == []


def test_a_loop_that_was_closed_owes_nothing(log: Lines) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    watch = LoopWatch(log)  # type: ignore[arg-type]
    watch.add("gone", loop, threading.get_ident())
    watch.start()
    time.sleep(0.6)
    watch.close()
    assert log.lines == []


def test_it_may_be_closed_without_a_start(log: Lines) -> None:
    LoopWatch(log).close()  # type: ignore[arg-type]
