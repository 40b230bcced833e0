"""One tier of a trial: its process, and what is done to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import Final

from headrace.errors import HeadraceError
from headrace.testing.site import SiteError, SiteProcess
from headrace.torture.layout import TierLayout
from headrace.torture.outcome import TierRun
from headrace.torture.schedule import Step

START_S: Final = 90.0
STOP_S: Final = 90.0
#: How long a tier that is ready may take to pass a point, while others are dead as well; and when all of them live.
POINT_WAIT_S: Final = 8.0
POINT_OWED_WAIT_S: Final = 30.0
POLL_S: Final = 0.025
READY_POLL_S: Final = 0.25
KILLED: Final = -signal.SIGKILL


class TrialError(HeadraceError):
    """The trial could not be carried out: it says nothing about the site."""


class Victim:
    """`process` runs the tier of `layout`; `run` counts."""

    def __init__(self, layout: TierLayout, process: SiteProcess) -> None:
        self.process, self.run = process, TierRun()
        self._name = layout.name

    async def do(self, step: Step, point_wait_s: float = POINT_WAIT_S) -> None:
        """One step of its lane, until it is undone."""
        process, run = self.process, self.run
        self.keep_alive()
        if step.deed == "pause":
            assert process.process is not None
            os.kill(process.process.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(step.hold_s)
            finally:
                os.kill(process.process.pid, signal.SIGCONT)
        elif step.deed == "drain":
            await self.stop()
            process.start(ready=False)
        elif step.deed == "kill":
            process.kill()
            await asyncio.sleep(step.hold_s)
            process.start(ready=False)
        else:
            process.kill()
            run.done["kill"] += 1
            process.start(faults=f"{step.point}=kill@{step.hit}", ready=False)
            await self._die_at(step.point, point_wait_s)
            process.start(ready=False)
        if step.deed != "point":
            run.done[step.deed] += 1

    async def _die_at(self, point: str, wait_s: float) -> None:
        """Until the point kills it; one that is not passed in time is killed from outside. On a slow machine a start takes its time."""
        begun, ready_at, look_at = time.monotonic(), None, 0.0
        while (code := self.process.died()) is None:
            now = time.monotonic()
            if now > (begun + START_S if ready_at is None else ready_at + wait_s):
                break
            if ready_at is None and now >= look_at:
                look_at = now + READY_POLL_S
                ready_at = now if await asyncio.to_thread(self.process.is_ready) else None
            await asyncio.sleep(POLL_S)
        if code is None:
            self.process.kill()
            self.run.points_not_passed[point] += 1
        elif code == KILLED:
            self.run.points_hit[point] += 1
        else:
            self._ended_by_itself(code)

    def keep_alive(self) -> None:
        """What ended by itself is counted against the site, and started again."""
        if (code := self.process.died()) is not None:
            self._ended_by_itself(code)
            self.process.start(ready=False)

    async def until_ready(self) -> None:
        """TrialError when it does not get ready."""
        deadline = time.monotonic() + START_S
        while not await asyncio.to_thread(self.process.is_ready):
            if self.process.died() is not None or time.monotonic() > deadline:
                raise TrialError(f"the tier {self._name} does not become ready\n{self.process.log_end()}")
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """SIGTERM; it has to end well, and in time."""
        try:
            await asyncio.to_thread(self.process.stop, STOP_S)
        except SiteError:
            code = self.process.died() or 0
            if code != -signal.SIGTERM:  # the signal came before the process was there to drain anything
                self._ended_by_itself(code)
        except subprocess.TimeoutExpired:
            self.run.deaths.append(f"tier {self._name} did not stop within {STOP_S:.0f} s; its log is {self.process.log}")
            self.process.kill()

    def _ended_by_itself(self, code: int) -> None:
        self.run.deaths.append(f"tier {self._name} ended by itself with code {code}; its log is {self.process.log}")
