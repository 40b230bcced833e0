"""One worker at a time takes an origin, and none before all others have given it up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace.testing.clock import FakeClock
from headrace.workers.messages import Found, GivenUp, Questions, Take
from headrace.workers.plan import Process
from headrace.workers.takeovers import AWAY_S, Takeovers


class Worker:
    """Answers with `mark` once `gate` is open; None: not at all."""

    def __init__(self, number: int, tier: str = "edge") -> None:
        self.process = Process(f"{tier}.{number}", (tier,), number, 3)
        self.runs, self.over = True, False
        self.gate = asyncio.Event()
        self.gate.set()
        self.mark: GivenUp | None = GivenUp(0, None, None, known=True)
        self.asked: list[str] = []

    async def give_up(self, origin: str, wait_s: float) -> GivenUp | None:
        self.asked.append(origin)
        await self.gate.wait()
        return self.mark


def mark(last: int, note: bytes | None = None, known: bool = True) -> GivenUp:
    return GivenUp(0, last, note, known)


class Case:
    """Three workers of one tier, and one of another."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.workers = [Worker(0), Worker(1), Worker(2), Worker(0, "other")]
        self.takeovers = Takeovers(self.workers, self.clock)

    def take(self, worker: int, origin: str = "d/s") -> tuple[asyncio.Future[Found], asyncio.Event, asyncio.Task[None]]:
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        taken = asyncio.Event()
        task = asyncio.create_task(self.takeovers.serve(self.workers[worker], Take(7, origin), answer, taken))
        return answer, taken, task


def case(scenario: Callable[[Case], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(20):
            return await scenario(Case())

    return asyncio.run(main())


async def turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_highest_mark_of_all_other_workers_says_where_it_goes_on() -> None:
    async def scenario(case: Case) -> None:
        case.workers[1].mark, case.workers[2].mark = mark(5, b"five"), mark(9, b"nine")
        answer, taken, task = case.take(0)
        assert await answer == Found(7, 9, b"nine", known=True, busy=False)
        taken.set()
        await task
        assert [worker.asked for worker in case.workers] == [[], ["d/s"], ["d/s"], []]

    case(scenario)


def test_an_origin_that_nobody_knows_is_known_to_be_new() -> None:
    async def scenario(case: Case) -> None:
        assert await case.take(0)[0] == Found(7, None, None, known=True, busy=False)

    case(scenario)


def test_who_comes_while_another_takes_waits_until_that_one_holds_it() -> None:
    async def scenario(case: Case) -> None:
        _, taken, _ = case.take(0)
        answer, _, _ = case.take(1)
        other, _, _ = case.take(2, "d/other")
        await turn()
        assert not answer.done()
        assert other.done(), "another origin has a turn of its own"
        assert case.workers[0].asked == ["d/other"], "nobody gives up what the first has yet to set up"
        taken.set()
        await answer
        assert case.workers[0].asked == ["d/other", "d/s"]

    case(scenario)


def test_who_gives_up_waiting_or_dies_is_passed_over() -> None:
    async def scenario(case: Case) -> None:
        _, first, _ = case.take(0)
        given_up, second, _ = case.take(1)
        _, _, dead = case.take(1)
        last, third, task = case.take(2)
        await turn()
        second.set()
        dead.cancel()
        first.set()
        await last
        assert not given_up.done()
        third.set()
        await task
        assert case.takeovers._turns == {}, "nothing is kept of it"

    case(scenario)


def test_a_worker_that_is_started_again_is_waited_for() -> None:
    async def scenario(case: Case) -> None:
        case.workers[1].runs, case.workers[1].mark = False, mark(3)
        answer, _, _ = case.take(0)
        await turn()
        assert not answer.done()
        case.workers[1].runs = True
        await case.clock.advance(1.0)
        assert (await answer).last == 3

    case(scenario)


@pytest.mark.parametrize("running", [True, False])
def test_a_worker_that_does_not_answer_is_asked_again_for_a_while_and_then_unknown(running: bool) -> None:
    async def scenario(case: Case) -> None:
        case.workers[1].runs, case.workers[1].mark = running, None
        case.workers[2].mark = mark(4)

        async def found() -> Found:
            answer, taken, task = case.take(0)
            while not answer.done():
                await turn()
                await case.clock.advance(1.0)
            taken.set()
            await task
            return await answer

        first = await found()
        assert (first.known, first.busy, first.last) == (False, True, 4)
        await case.clock.advance(AWAY_S)
        assert ((await found()).busy, (await found()).known) == (False, False)
        case.workers[1].runs, case.workers[1].mark = True, mark(8)
        assert await found() == Found(7, 8, None, known=True, busy=False)

    case(scenario)


def test_what_a_worker_cannot_tell_is_unknown() -> None:
    async def scenario(case: Case) -> None:
        case.workers[1].mark = GivenUp(0, None, None, known=False)
        assert await case.take(0)[0] == Found(7, None, None, known=False, busy=False)

    case(scenario)


def test_a_former_worker_that_has_ended_is_not_asked() -> None:
    async def scenario(case: Case) -> None:
        case.workers[1].over, case.workers[1].runs = True, False
        assert (await case.take(0)[0]).known
        assert case.workers[1].asked == []

    case(scenario)


def test_questions_get_their_own_answers_or_none() -> None:
    async def scenario(_: Case) -> None:
        questions: Questions[str] = Questions()
        numbers: list[int] = []
        asking = [asyncio.create_task(questions.ask(numbers.append)) for _ in range(3)]
        await turn()
        questions.answer(numbers[1], "second")
        questions.answer(numbers[0], "first")
        questions.answer(99, "to nobody")
        questions.nobody_answers()
        assert await asyncio.gather(*asking) == ["first", "second", None]

    case(scenario)
