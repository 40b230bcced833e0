"""What misbehaving connections may cost in a turn of the loop, and that behaving ones do not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from headrace_ingest_ws.lane import Lane


class Turns:
    """A loop that turns when it is told to."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def turn(self) -> int:
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        return len(calls)


class Spender:
    """A connection that spends what is left, up to `wants`."""

    def __init__(self, lane: Lane, turns: Turns, wants: int) -> None:
        self._lane, self._turns, self.wants, self.went_on = lane, turns, wants, 0

    def go_on(self) -> None:
        self.went_on += 1
        self._turns.call_soon(self.spend)

    def spend(self) -> None:
        while self.wants and self._lane.left > 0:
            self._lane.spend()
            self.wants -= 1
        if self.wants:
            self._lane.wait(self)


def test_a_turn_costs_no_more_than_the_lane_has_and_all_get_through_in_their_order() -> None:
    turns = Turns()
    lane = Lane(turns.call_soon, per_turn=10)
    spenders = [Spender(lane, turns, wants) for wants in (25, 5, 0, 30, 1)]
    for spender in spenders:
        spender.spend()
    before, most, rounds = sum(spender.wants for spender in spenders), 0, 0
    while before:
        assert turns.turn()
        after = sum(spender.wants for spender in spenders)
        most, before, rounds = max(most, before - after), after, rounds + 1
    assert most <= 10
    assert rounds <= 25
    assert spenders[4].went_on <= 2, "nobody is overtaken again and again"


def test_a_lane_that_nobody_uses_keeps_the_loop_asleep() -> None:
    turns = Turns()
    lane = Lane(turns.call_soon, per_turn=10)
    assert turns.turn() == 0
    lane.spend()
    assert turns.turn() == 1
    assert (turns.turn(), lane.left) == (0, 10)


def test_those_who_are_gone_hold_up_nobody() -> None:
    turns = Turns()
    lane = Lane(turns.call_soon, per_turn=2)
    waiting = [Spender(lane, turns, 0) for _ in range(3)]
    for spender in waiting:
        lane.wait(spender)
    for _ in range(4):
        turns.turn()
    assert all(spender.went_on == 1 for spender in waiting)


@pytest.mark.usefixtures("each_loop")
def test_thousands_of_refusals_are_spread_over_turns_and_all_are_answered(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        most, spent = 0, 0
        async with kit.running(window_messages=5000) as site:
            bad = [await site.raw(f"bad{number}") for number in range(5)]
            lane = site.component._intake.lane
            spend = lane.spend

            def counting_spend() -> None:
                nonlocal spent
                spent += 1
                spend()

            turn = lane._next_turn

            def counting_turn() -> None:
                nonlocal most, spent
                most, spent = max(most, spent), 0
                turn()

            lane.spend, lane._next_turn = counting_spend, counting_turn
            for client in bad:
                client.send(kit.frame(1, b"bad") * 2000 + kit.frame(1, b'{"n":1}'))
            for client in bad:
                rejects = 0
                while (text := (await asyncio.wait_for(client.receive(), 20))[1]) != b'{"ack":2001}':
                    rejects += text.startswith(b'{"reject"')
                assert rejects == 2000
            assert most <= 6 * 128, "what came before the first refusal of each, and the lane's own"
            assert site.deliver.payloads == [b'{"n":1}'] * 5
            assert site.metric("ingest_rejected_events_total", reason="payload_invalid") == 10_000

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_a_flood_of_pings_is_answered_by_and_by_and_what_is_behind_it_is_taken(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            client.send(kit.frame(9, b"p") * 3000 + kit.frame(1, b"{}"))
            pongs = 0
            while (got := await asyncio.wait_for(client.receive(), 20)) != (1, b'{"ack":1}'):
                pongs += got == (10, b"p")
            assert pongs == 3000

    asyncio.run(scenario())
