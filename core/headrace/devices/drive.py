"""Runs many device clients in one process: connections, progress, Ctrl-C, the end."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

import aiohttp
import msgspec

from headrace.devices import progress
from headrace.devices.client import DeviceClient
from headrace.devices.outbox import Message
from headrace.devices.reconnect import GaveUp
from headrace.devices.totals import Totals

#: Handshakes under way at once: more would overrun a server's accept backlog and end in SYN retries.
HANDSHAKES_MAX: Final = 64
FILES_SPARE: Final = 64
REPORTS_MAX: Final = 5


@dataclass(frozen=True, kw_only=True)
class Drive:
    """How to run the clients of `devices` against the server at `url` (`ws://HOST:PORT`)."""

    url: str
    devices: Sequence[str]
    window: int
    capacity: int
    seed: int | None = None
    settle_s: float = 30.0
    as_json: bool = False
    #: A bearer token for each device that needs one.
    tokens: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | bool = True
    tag_text: Callable[[object], str] = str
    err: TextIO | None = None
    out: TextIO | None = None


Feed = Callable[[Sequence[DeviceClient], asyncio.Event], Awaitable[None]]


async def drive(how: Drive, feed: Feed) -> Totals:
    """Connect every device, run `feed(clients, stop)`, wait until all is acked, print the summary.

    `feed` gives the clients their messages and returns when it has no more, or when `stop` is set (Ctrl-C, SIGTERM, or no
    device is left). A second Ctrl-C stops the wait for the last acks.
    """
    need_files(len(how.devices))
    totals, started = Totals(), time.monotonic()
    shown = progress.Progress(totals, len(how.devices), how.err or sys.stderr)
    reports = Reports(shown, how.tag_text)
    rng, gate = random.Random(how.seed), asyncio.Semaphore(HANDSHAKES_MAX)
    stop, hurry = asyncio.Event(), asyncio.Event()
    restore = _on_signals(stop, hurry)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)) as http:
            clients = [
                DeviceClient(
                    http,
                    how.url,
                    device,
                    totals,
                    gate=gate,
                    window=how.window,
                    capacity=how.capacity,
                    rng=random.Random(rng.getrandbits(64)),
                    on_reject=reports.rejected,
                    token=how.tokens.get(device),
                    tls=how.tls,
                )
                for device in how.devices
            ]
            left = Left(len(clients), totals, reports, stop)
            background = [asyncio.create_task(left.run(client)) for client in clients]
            background.append(asyncio.create_task(shown.run()))
            try:
                await feed(clients, stop)
                await _settle(clients, hurry, how.settle_s)
            finally:
                for task in background:
                    task.cancel()
                ends = await asyncio.gather(*background, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end
    finally:
        restore()
    out = how.out or sys.stdout
    elapsed_s = time.monotonic() - started
    print(msgspec.json.encode(totals.summary(elapsed_s)).decode() if how.as_json else progress.summary(totals, elapsed_s), file=out)
    return totals


class Left:
    """Counts the clients that still try; when none is left, the run ends."""

    def __init__(self, count: int, totals: Totals, reports: Reports, stop: asyncio.Event) -> None:
        self._count, self._totals, self._reports, self._stop = count, totals, reports, stop

    async def run(self, client: DeviceClient) -> None:
        try:
            await client.run()
        except GaveUp as error:
            self._totals.gave_up += 1
            self._reports.gave_up(error)
        finally:
            self._count -= 1
            if not self._count:
                self._stop.set()


class Reports:
    """Says on stderr what was refused; the first few in words, the rest only in the counts."""

    def __init__(self, shown: progress.Progress, tag_text: Callable[[object], str]) -> None:
        self._shown, self._tag_text, self._said = shown, tag_text, 0

    def rejected(self, message: Message, code: str, reason: str) -> None:
        self._say(f"rejected {self._tag_text(message.tag)}: {code}: {reason}")

    def gave_up(self, error: GaveUp) -> None:
        self._say(str(error))

    def _say(self, text: str) -> None:
        self._said += 1
        if self._said <= REPORTS_MAX:
            self._shown.say(text)
        elif self._said == REPORTS_MAX + 1:
            self._shown.say("more were refused; the summary counts them")


async def _settle(clients: Sequence[DeviceClient], hurry: asyncio.Event, settle_s: float) -> None:
    """Wait until every client has settled, `settle_s` has passed, or somebody is in a hurry."""

    async def all_settled() -> None:
        for client in clients:
            await client.settled()

    waiters = [asyncio.create_task(all_settled()), asyncio.create_task(hurry.wait())]
    await asyncio.wait(waiters, timeout=settle_s, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)


def _on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)

    def restore() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    return restore


def need_files(connections: int) -> None:
    """Raise the limit of open files to what so many connections take, or say what the machine allows."""
    need = connections + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if need <= soft:
        return
    if hard != resource.RLIM_INFINITY and need > hard:
        raise OSError(f"{connections} connections need {need} open files, this machine allows {hard}; ask for fewer devices")
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
