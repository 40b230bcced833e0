"""A rush is spread over turns of the loop."""

from __future__ import annotations

import asyncio

from headrace.testing import run
from headrace_ingest_ws.turnstile import Turnstile, allowed


class Turns:
    """Counts the turns of the loop while it is used."""

    def __init__(self) -> None:
        self.count = 0
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def end(self) -> None:
        self._handle.cancel()


def test_so_many_pass_in_a_turn_and_in_the_order_in_which_they_came() -> None:
    async def scenario() -> None:
        stile, turns, through = Turnstile(2), Turns(), list[tuple[int, int]]()

        async def caller(number: int) -> None:
            await stile.passed()
            through.append((turns.count, number))

        await asyncio.gather(*(caller(number) for number in range(20)))
        turns.end()
        assert [number for _, number in through] == list(range(20))
        by_turn = [turn for turn, _ in through]
        assert max(by_turn.count(turn) for turn in by_turn) == 2
        assert by_turn[-1] - by_turn[0] <= 11, "no turn is left out"

    run(scenario())


def test_who_comes_alone_does_not_wait() -> None:
    async def scenario() -> None:
        stile = Turnstile(1)
        for _ in range(3):
            passing = stile.passed()
            try:
                passing.send(None)
            except StopIteration:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                continue
            raise AssertionError("it waits")

    run(scenario())


def test_who_left_costs_nobody_a_turn() -> None:
    async def scenario() -> None:
        stile = Turnstile(1)
        await stile.passed()
        leaving = [asyncio.ensure_future(stile.passed()) for _ in range(100)]
        last = asyncio.ensure_future(stile.passed())
        await asyncio.sleep(0)
        for one in leaving:
            one.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert last.done()

    run(scenario())


def test_a_busy_loop_gives_a_share_of_its_time_and_an_idle_one_the_least() -> None:
    assert allowed(0.0, 0.0004, 0.25, 1, 8) == 1
    assert allowed(0.001, 0.0004, 0.25, 1, 8) == 1
    assert allowed(0.008, 0.0004, 0.25, 1, 8) == 5
    assert allowed(60.0, 0.0004, 0.25, 1, 8) == 8
