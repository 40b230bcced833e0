"""No ring is lost, however threads and loop take turns."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

from headrace_queue_pmem import bell as module
from headrace_queue_pmem.bell import LoopBell, ThreadBell

sys.path.insert(0, str(Path(__file__).parent))
from conftest import run


def test_a_call_that_comes_while_the_loop_answers_is_not_lost(monkeypatch):
    async def body() -> None:
        bell = LoopBell(asyncio.get_running_loop())
        called: list[str] = []
        done = asyncio.Event()
        real = os.eventfd_read

        def interrupted(descriptor: int) -> int:
            # another thread runs while the read lets go of the interpreter
            monkeypatch.setattr(module.os, "eventfd_read", real)
            bell.call(called.append, "during")
            return real(descriptor)

        monkeypatch.setattr(module.os, "eventfd_read", interrupted)
        bell.call(called.append, "first")
        while len(called) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        bell.call(done.set)
        await asyncio.wait_for(done.wait(), 10)
        assert called == ["first", "during"]
        bell.close()

    run(body())


def test_thousands_of_calls_and_answers_between_a_thread_and_a_loop():
    async def body() -> None:
        loop = asyncio.get_running_loop()
        there, back = ThreadBell(), LoopBell(loop)
        waiting: list[asyncio.Future[None]] = []
        stop = threading.Event()

        def answer() -> None:
            while True:
                there.wait()
                if stop.is_set():
                    return
                back.call(waiting.pop().set_result, None)

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(3000):
            future = loop.create_future()
            waiting.append(future)
            there.ring()
            await asyncio.wait_for(future, 10)
        stop.set()
        there.ring()
        thread.join()
        back.close()

    run(body())


def test_calls_that_are_left_are_made_when_the_bell_is_closed():
    async def body() -> None:
        bell = LoopBell(asyncio.get_running_loop())
        called: list[int] = []
        bell.call(called.append, 1)
        bell.close()
        assert called == [1]

    run(body())
