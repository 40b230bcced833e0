"""One worker, seen from the supervisor: started, told what to do, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process as Running
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from headrace.component import Clock
from headrace.faults import VARIABLE as FAULTS_VARIABLE
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.retry import Backoff
from headrace.workers.asking import AdminClient, Answer
from headrace.workers.messages import (
    Channel,
    Ended,
    Found,
    GivenUp,
    GiveUp,
    Message,
    Questions,
    Reload,
    Reloaded,
    Start,
    Started,
    Stop,
    Take,
    Taken,
)
from headrace.workers.plan import Process
from headrace.workers.takeovers import Takeovers

#: A worker that lived for so long was well: the next restart comes soon again.
WELL_AFTER_S: Final = 30.0
#: Longest wait until a worker has taken a reload: its components may have to be drained.
RELOAD_S: Final = 60.0
#: A worker gets so much longer than the drain's deadline before it is killed, which is harmless.
KILL_AFTER_S: Final = 12.0
#: Codes with which a start is over for good: nothing will change by itself.
HOPELESS: Final = (2, 78)

State = Literal["waiting", "starting", "running", "ended"]


class WorkerProcess:
    """Keeps one process of the plan running until `stop`, or until a former worker has emptied its queue."""

    def __init__(self, process: Process, sockets: int, clock: Clock, backoff: Backoff, metrics: Metrics, log: Log) -> None:
        """`sockets` is the descriptor of the folder for the workers' sockets."""
        self.process, self.name = process, process.name
        self._clock, self._backoff = clock, backoff
        self._log = log.bind(worker=process.name)
        labels = {"tier": "+".join(process.tiers), "worker": process.name}
        self._restarts = metrics.counter("worker_restarts_total", "Times that a worker ended unasked and was started again.", **labels)
        self._up = metrics.gauge("worker_up", "1 while the worker runs.", "min", **labels)
        self._up.set(0)
        self.state: State = "waiting"
        self.reason = "not started yet"
        #: grows with each start
        self.life = 0
        self.ended: Ended | None = None
        self._ever_ran = self._stopping = False
        self._channel: Channel | None = None
        self._running: Running | None = None
        self._life: asyncio.Future[int] | None = None
        self._reloaded: asyncio.Queue[Reloaded] = asyncio.Queue(1)
        self._missed: Reload | None = None
        self._given_up: Questions[GivenUp] = Questions()
        self._taking: dict[int, asyncio.Event] = {}
        self._takeovers: Takeovers | None = None
        self._admin = AdminClient(sockets, process.name)

    @property
    def runs(self) -> bool:
        return self.state == "running"

    @property
    def over(self) -> bool:
        return self.state == "ended"

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self, start: Callable[[], Start]) -> int:
        """Until it is stopped or done: 0; or until its very first start is hopeless: the exit code. `start` says what to run."""
        while not self._stopping:
            since = self._clock.monotonic()
            code = await self._live(start())
            self._up.set(0)
            if self._stopping or self._emptied:
                break
            self.state, self.reason = "waiting", f"to be started again: it ended with {_shown(code)}"
            if code in HOPELESS and not self._ever_ran:
                return code
            self._restarts.inc()
            if self._clock.monotonic() - since > WELL_AFTER_S:
                self._backoff.reset()
            wait_s = self._backoff.next_s()
            self._log.error("worker ended and is started again", ended_with=_shown(code), wait_s=round(wait_s, 3))
            await self._clock.sleep(wait_s)
        self.state, self.reason = "ended", ""
        return 0

    @property
    def _emptied(self) -> bool:
        return self.process.former and self.ended is not None and not self.ended.queued

    async def _live(self, start: Start) -> int:
        """One life; its exit code, negative for a signal."""
        self.life += 1
        self.state, self.reason, self.ended, self._missed = "starting", "starting", None, None
        ours, theirs = socket.socketpair()
        try:
            command = [sys.executable, "-P", "-m", "headrace.workers", start.file, self.name]
            descriptors = theirs.fileno(), self._admin.socket.fileno()
            # a session of its own: a Ctrl-C in the terminal is for the supervisor, which then says what to do
            self._running = running = await asyncio.create_subprocess_exec(
                *command, *map(str, descriptors), pass_fds=descriptors, start_new_session=True, env=self._environ()
            )
        except OSError as error:
            ours.close()
            self._log.error("worker cannot be started", error=str(error))
            return 1
        finally:
            theirs.close()
        channel = self._channel = await Channel.over(ours)
        channel.send(start)
        if self._stopping:
            channel.send(Stop(0.0))
        listening = asyncio.ensure_future(self._listen(channel, Path(start.file)))
        self._life = asyncio.ensure_future(running.wait())
        try:
            code = await asyncio.shield(self._life)
            with contextlib.suppress(TimeoutError):  # what it said last
                await asyncio.wait_for(listening, 1.0)
        except asyncio.CancelledError:
            running.kill()
            raise
        finally:
            listening.cancel()
            self._given_up.nobody_answers()
            self._channel = self._running = self._life = None
            await channel.close()
        return code

    def _environ(self) -> dict[str, str]:
        """A fault that a test has armed is for the first life, else it would strike in each."""
        return {name: value for name, value in os.environ.items() if self.life == 1 or name != FAULTS_VARIABLE}

    async def _listen(self, channel: Channel, file: Path) -> None:
        takes: set[asyncio.Task[None]] = set()
        try:
            while (message := await channel.receive()) is not None:
                if isinstance(message, Take):
                    # known from here on: its `Taken` may be the very next message
                    self._taking[message.number] = asyncio.Event()
                    task = asyncio.create_task(self._take(channel, message))
                    takes.add(task)
                    task.add_done_callback(takes.discard)
                else:
                    self._told(message, channel, file)
        finally:
            for task in takes:
                task.cancel()
            await asyncio.gather(*takes, return_exceptions=True)
            self._taking.clear()

    def _told(self, message: Message, channel: Channel, file: Path) -> None:
        if isinstance(message, Started):
            self.state, self.reason, self._ever_ran = "running", "", True
            self._up.set(1)
            if self._missed is not None:  # it came while this one was starting with the text before
                channel.send(self._missed)
            self._log.info("worker runs", pid=self.pid, life=self.life, file=str(file))
        elif isinstance(message, Reloaded):
            with contextlib.suppress(asyncio.QueueFull):
                self._reloaded.put_nowait(message)
        elif isinstance(message, Ended):
            self.ended = message
        elif isinstance(message, GivenUp):
            self._given_up.answer(message.number, message)
        elif isinstance(message, Taken) and message.number in self._taking:
            self._taking[message.number].set()

    async def _take(self, channel: Channel, message: Take) -> None:
        """It wants to take an origin over."""
        assert self._takeovers is not None
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda answer: None if answer.cancelled() else channel.send(answer.result()))
        try:
            await self._takeovers.serve(self, message, answer, self._taking[message.number])
        finally:
            answer.cancel()
            self._taking.pop(message.number, None)

    # --- what the supervisor wants -----------------------------------------------------------------------------------

    async def reload(self, text: str, overrides: tuple[str, ...]) -> str:
        """Let it take this text; what went wrong, or nothing. One that does not run now starts with it."""
        message = Reload(text, overrides)
        if self.state != "running" or self._channel is None or self._life is None:
            self._missed = message if self.state == "starting" else None
            return ""
        while not self._reloaded.empty():
            self._reloaded.get_nowait()
        self._channel.send(message)
        answer = asyncio.ensure_future(self._reloaded.get())
        both: list[asyncio.Future[Any]] = [answer, self._life]
        done, _ = await asyncio.wait(both, timeout=RELOAD_S, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result().problem
        answer.cancel()
        return "" if done else f"no answer within {RELOAD_S:.0f} s"

    def takes_over_by(self, takeovers: Takeovers) -> None:
        self._takeovers = takeovers

    async def give_up(self, origin: str, wait_s: float) -> GivenUp | None:
        """Let it give an origin up; None when it does not answer."""
        channel = self._channel
        if channel is None:
            return None
        return await self._given_up.ask(lambda number: channel.send(GiveUp(number, origin)), wait_s)

    async def stop(self, deadline_s: float) -> None:
        """Let it drain in this time, and wait for its end."""
        self._stopping = True
        if self._channel is not None:
            self._channel.send(Stop(deadline_s))
        running = self._running
        if running is None:
            return
        try:
            await asyncio.wait_for(running.wait(), deadline_s + KILL_AFTER_S)
        except TimeoutError:
            self._log.error("worker did not end in time and is killed", pid=running.pid)
            self.kill()

    def stop_at_once(self) -> None:
        """A second word: it ends without draining."""
        self._stopping = True
        if self._channel is not None:
            self._channel.send(Stop(0.0))

    def kill(self) -> None:
        """SIGKILL; harmless."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                self._running.kill()

    async def ask(self, path: str) -> Answer:
        """Status, body and content type of a page of its admin server; None while it does not answer."""
        if self.state != "running" or self._life is None:
            return None
        return await self._admin.ask(path, self._life)

    async def close(self) -> None:
        await self._admin.close()


def _shown(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
