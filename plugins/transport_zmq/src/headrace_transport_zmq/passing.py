"""Into a tier without a queue: batches are handed over before earlier ones are safe, so that one flush covers many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import pyarrow as pa

from headrace import Deliver, PermanentError, QueueFull, TransientError
from headrace_transport_zmq.content import joined
from headrace_transport_zmq.receiver import Receiver, Staged

#: Groups that are handed over and not safe yet; their bytes are bounded by the tier.
PASSED_MAX: Final = 4096


class Answers(NamedTuple):
    """Whom to tell: before a group is handed over, when it is safe, when it was not taken, and (a reason) when there is no room."""

    begins: Callable[[], None]
    committed: Callable[[Sequence[Staged]], None]
    not_taken: Callable[[Staged, PermanentError | TransientError], Awaitable[None]]
    full: Callable[[str], None]


class Passing:
    """The way from the receiver to the tier. `quiet` is set while nothing is under way."""

    def __init__(self, receiver: Receiver, deliver: Deliver, bytes_max: int, answers: Answers, quiet: asyncio.Event) -> None:
        self._receiver, self._deliver, self._bytes_max, self._answers, self._quiet = receiver, deliver, bytes_max, answers, quiet
        self._under_way: asyncio.Queue[tuple[list[Staged], asyncio.Task[Exception | None]]] = asyncio.Queue(PASSED_MAX)
        self._answering = False

    async def run(self, staged: asyncio.Event) -> None:
        """Hand over what is there whenever `staged` says so; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer())
            while True:
                await staged.wait()
                staged.clear()
                while group := self._receiver.next(self._bytes_max):
                    self._answers.begins()
                    await self._under_way.put((group, await self._handed_over(group, tasks)))
                if self._receiver.hurried:
                    self._receiver.hurried = False
                    self._deliver.hurry()
                self._look_if_quiet()

    async def _handed_over(self, group: Sequence[Staged], tasks: asyncio.TaskGroup) -> asyncio.Task[Exception | None]:
        """The call that hands a group over, once there was room for it: it ends when the group is safe."""
        batch, origins = joined(group)
        while True:
            task = tasks.create_task(self._outcome(batch, origins))
            await asyncio.sleep(0)  # QueueFull comes at once, and nothing may be handed over before this group then
            if not task.done() or not isinstance(full := task.result(), QueueFull):
                return task
            self._answers.full(str(full))
            await self._deliver.room()
            self._answers.full("")

    async def _outcome(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> Exception | None:
        """None when the batch is safe, else what went wrong."""
        try:
            await self._deliver(batch, origins)
        except Exception as error:
            return error
        return None

    async def _answer(self) -> None:
        """In the order in which they were handed over, for so they become safe."""
        while True:
            group, task = await self._under_way.get()
            self._answering = True
            error = await task
            if error is None:
                self._answers.committed(group)
            elif isinstance(error, PermanentError | TransientError):
                for staged in group:
                    await self._answers.not_taken(staged, error)
            else:
                raise error
            self._answering = False
            self._look_if_quiet()

    def _look_if_quiet(self) -> None:
        if self._under_way.empty() and not self._answering and not self._receiver.waiting:
            self._quiet.set()
