"""Calls of a store's blocking client: one at a time, and their failures told."""

import asyncio
import threading
from pathlib import Path

import pytest

from headrace import PermanentError, StoreCalls, TransientError
from headrace.testing import fake_context


def fail(error: Exception) -> None:
    raise error


def test_failures_of_the_store_are_transient_without_its_own_text_and_told_until_healed(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    calls = StoreCalls(context, (OSError,), lambda step, error: f"cannot {step}: {type(error).__name__}")

    async def main() -> None:
        assert await calls.make("read", int, "7") == 7
        calls.healed()
        with pytest.raises(TransientError, match=r"^cannot write: ConnectionError$") as caught:
            await calls.make("write", fail, ConnectionError("what a device sent"))
        assert caught.value.__suppress_context__
        with pytest.raises(TransientError, match="later") as again:
            await calls.make("write", fail, TransientError("later", 7.0))
        assert again.value.retry_after_s == 7.0
        calls.healed()
        calls.healed()

    asyncio.run(main())
    context.close()
    assert context.statuses == [("degraded", "cannot write: ConnectionError"), ("degraded", "later"), ("ok", "")]


def test_other_errors_and_quiet_calls_say_nothing_of_the_store(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    calls = StoreCalls(context, (OSError,), lambda step, error: step)

    async def main() -> None:
        with pytest.raises(PermanentError):
            await calls.make("write", fail, PermanentError("never"))
        with pytest.raises(ConnectionError):
            await calls.quietly(fail, ConnectionError())

    asyncio.run(main())
    context.close()
    assert context.statuses == []


def test_a_call_whose_caller_was_cancelled_meets_no_other(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    calls = StoreCalls(context, (OSError,), lambda step, error: step)
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)
        order.append("slow")

    async def main() -> None:
        first = asyncio.create_task(calls.make("write", slow))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        second = asyncio.create_task(calls.make("write", order.append, "second"))
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        await second

    asyncio.run(main())
    context.close()
    assert order == ["slow", "second"]
