"""A worker: a host that was started by a supervisor, and does what that says."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop

from headrace.config import Site, load
from headrace.errors import QueueError
from headrace.host import SWITCH_INTERVAL_S, Host, Part
from headrace.log import Log, set_up
from headrace.scheduling import short_slices
from headrace.workers.colleagues import ByChannel
from headrace.workers.messages import Channel, Ended, Found, GivenUp, GiveUp, Reload, Reloaded, Start, Started, Stop
from headrace.workers.plan import Process, site_of

#: How often a former worker looks whether its queue is empty.
EMPTY_POLL_S: Final = 0.5


def run(channel: int, admin: int) -> int:
    """Serve the supervisor at the other end of the socket pair; the numbers are descriptors. The exit code, as of `headrace run`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(socket.socket(fileno=channel), socket.socket(fileno=admin)))


async def _serve(end: socket.socket, admin: socket.socket) -> int:
    channel = await Channel.over(end)
    start = await channel.receive()
    if not isinstance(start, Start):
        return 0  # the supervisor was gone before it said anything
    worker = Worker(channel, start, admin)
    return await worker.run()


class Worker:
    """One life of one worker."""

    def __init__(self, channel: Channel, start: Start, admin: socket.socket) -> None:
        self._channel, self._start = channel, start
        self._process = Process(start.name, start.tiers, start.worker, start.workers, start.former)
        self._text, self._overrides = start.text, start.overrides
        site = self._site()
        set_up(site.host.log_level)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        short_slices()
        self._log = Log("", host=site.host.name, worker=start.name)
        self._colleagues = ByChannel(channel)
        self._host = Host(site, list(site.tiers), self._site, Part(self._process, admin, start.first, self._colleagues))

    def _site(self) -> Site:
        return site_of(load(Path(self._start.file), self._overrides, only=self._start.tiers, text=self._text), self._process)

    async def run(self) -> int:
        """Until it is told to stop, or loses its supervisor; the exit code."""
        beside = [asyncio.ensure_future(work) for work in (self._obey(), self._report(), self._end_when_empty())]
        for task in beside:
            task.add_done_callback(self._unless_it_failed)
        try:
            code = await self._host.run()
        finally:
            for task in beside:
                task.cancel()
        if self._host.totals is not None:
            self._channel.send(Ended(*self._host.totals))
        await self._channel.close()
        return code

    def _unless_it_failed(self, task: asyncio.Future[None]) -> None:
        """A worker that is deaf to its supervisor must not go on."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.exception("worker cannot go on", error)
            self._host.stopping.ask()

    async def _obey(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while (message := await self._channel.receive()) is not None:
                if isinstance(message, Reload):
                    tasks.create_task(self._reload(message))
                elif isinstance(message, Stop):
                    self._host.drain_deadline_s = message.deadline_s
                    self._host.stopping.ask()
                elif isinstance(message, GiveUp):
                    tasks.create_task(self._give_up(message))
                elif isinstance(message, Found):
                    self._colleagues.told(message)
            self._log.warning("the supervisor is gone: draining")
            self._colleagues.gone()
            self._host.stopping.ask()

    async def _reload(self, message: Reload) -> None:
        self._text, self._overrides = message.text, message.overrides
        self._channel.send(Reloaded(await self._host.reload()))

    async def _give_up(self, message: GiveUp) -> None:
        try:
            mark = await self._host.give_up(message.origin)
        except Exception as error:
            if not isinstance(error, QueueError):
                self._log.exception("origin not given up", error)
            self._channel.send(GivenUp(message.number, None, None, known=False))
        else:
            last, note = mark or (None, None)
            self._channel.send(GivenUp(message.number, last, note, known=True))

    async def _report(self) -> None:
        await self._host.started.wait()
        self._channel.send(Started())

    async def _end_when_empty(self) -> None:
        if not self._process.former:
            return
        await self._host.started.wait()
        while self._host.queued():  # noqa: ASYNC110  the queue has no event for that
            await asyncio.sleep(EMPTY_POLL_S)
        self._log.info("the queue of a former worker is empty")
        self._host.stopping.ask()
