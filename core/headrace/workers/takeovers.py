"""Who takes over a sender from whom: an origin belongs to one worker of its tier at a time (DELIVERY 17).

The order that keeps the promise: one taker at a time for each origin; all other workers give the origin up, so that nothing of it is
in flight anywhere; the highest mark of all queues says where it goes on; the taker sets up its holder; then comes the next
taker. A worker that died may have held it: its queue is asked once it was started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from headrace.component import Clock
from headrace.workers.messages import Found, GivenUp, Take
from headrace.workers.plan import Process

#: So long a taker waits for a worker that does not answer, or is being started again: about what its device waits for its hello.
ANSWER_S: Final = 3.0
POLL_S: Final = 0.05
#: A worker that could not be asked for so long holds up nobody any more: then it is unknown what it holds.
AWAY_S: Final = 30.0
#: A taker that says nothing more loses its turn.
TURN_S_MAX: Final = 30.0


class Worker(Protocol):
    """What is needed of a worker process."""

    process: Process

    @property
    def runs(self) -> bool:
        """It can be asked."""

    @property
    def over(self) -> bool:
        """It will never be there again, and holds nothing."""

    async def give_up(self, origin: str, wait_s: float) -> GivenUp | None:
        """Ask it; None when no answer came."""


class Takeovers:
    """All take-overs of one site."""

    def __init__(self, workers: Sequence[Worker], clock: Clock) -> None:
        self._workers, self._clock = workers, clock
        self._turns: dict[tuple[str, ...], _Turn] = {}
        self._silent_since: dict[str, float] = {}

    async def serve(self, taker: Worker, message: Take, answer: asyncio.Future[Found], taken: asyncio.Event) -> None:
        """Give one taker its turn: `answer` what the others hold, and wait until it has `taken` the origin.

        known is False when a worker has been away for too long: nobody knows what it holds. busy says that one is away, and that
        it is better to ask again.
        """
        key = (*taker.process.tiers, message.origin)
        turn = self._turns.setdefault(key, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                if taken.is_set():
                    return  # it has given up asking
                answer.set_result(await self._found(taker, message))
                async with asyncio.timeout(TURN_S_MAX):
                    await taken.wait()
        except TimeoutError:
            pass
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[key]

    async def _found(self, taker: Worker, message: Take) -> Found:
        others = [
            worker for worker in self._workers if worker is not taker and worker.process.tiers == taker.process.tiers and not worker.over
        ]
        answers = await asyncio.gather(*(self._given_up(worker, message.origin) for worker in others))
        given = [one for one in answers if one is not None]
        now = self._clock.monotonic()
        busy = any(
            now - self._silent_since[worker.process.name] < AWAY_S
            for worker, one in zip(others, answers, strict=True)
            if one is None
        )  # fmt: skip
        newest = max((one for one in given if one.last is not None), key=lambda one: one.last or 0, default=None)
        return Found(
            message.number,
            newest.last if newest else None,
            newest.note if newest else None,
            known=len(given) == len(others) and all(one.known for one in given),
            busy=busy,
        )

    async def _given_up(self, worker: Worker, origin: str) -> GivenUp | None:
        name, until = worker.process.name, self._clock.monotonic() + ANSWER_S
        while not worker.runs and not worker.over and self._clock.monotonic() < until:
            await self._clock.sleep(POLL_S)
        if worker.over:
            return GivenUp(0, None, None, known=True)
        left_s = until - self._clock.monotonic()
        given = await worker.give_up(origin, max(POLL_S, left_s)) if worker.runs else None
        if given is None:
            self._silent_since.setdefault(name, self._clock.monotonic())
        else:
            self._silent_since.pop(name, None)
        return given


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
