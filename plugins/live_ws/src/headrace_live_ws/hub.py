"""From batches to every client's backlog, once per tick and once per distinct filter. No sockets.

The order of work in a tick: filter all events for each distinct subscription, share out the rendering budget, render the
chosen events once, hand each subscription its own. Nothing here waits for a client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from headrace_live_ws.client import CLOSED, FILTER_CHANGED, RATE_LIMIT, SKIPPED, SLOW_CLIENT, Chunk, Client, Mode
from headrace_live_ws.filters import Facets, Filter, Mask, Rows
from headrace_live_ws.meters import Meters
from headrace_live_ws.render import RENDER_ROWS, render
from headrace_live_ws.rows import join, take

#: Events that wait for a tick: so many ticks' budgets, and so many bytes; beyond it they are only counted.
PENDING_TICKS_MAX: Final = 8
PENDING_BYTES_MAX: Final = 64 << 20


@dataclass
class Subscription:
    """Clients that want the same of one tick: its rows from `begin` on that pass the filter, and how many they miss."""

    wanted: Filter
    mode: Mode
    begin: int
    clients: list[Client]
    rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    conflated: int = 0
    skipped: int = 0

    def select(self, facets: Facets) -> None:
        """Find the rows; in mode `latest` only the newest of each device."""
        rows = facets.select(self.wanted)
        rows = rows[np.searchsorted(rows, self.begin) :]
        self.rows = rows if self.mode == "all" else facets.newest_per_device(rows)
        self.conflated = len(rows) - len(self.rows)


def share_out(subscriptions: list[Subscription], rows: int, budget: int) -> Rows:
    """Choose at most `budget` of a tick's rows to be rendered, and leave the others out of the subscriptions, counted.

    The narrowest subscription chooses first, so that one that wants everything cannot crowd it out; each loses its oldest.
    """
    chosen: Mask = np.zeros(rows, dtype=np.bool_)
    left = budget
    for subscription in sorted(subscriptions, key=lambda subscription: len(subscription.rows)):
        new = subscription.rows[~chosen[subscription.rows]]
        affordable = new[max(len(new) - left, 0) :]
        chosen[affordable] = True
        left -= len(affordable)
        if len(affordable) < len(new):
            kept = subscription.rows[chosen[subscription.rows]]
            subscription.skipped = len(subscription.rows) - len(kept)
            subscription.rows = kept
    return np.flatnonzero(chosen)


class Hub:
    """The clients, and the events that wait for the next tick."""

    def __init__(self, events_per_tick_max: int, meters: Meters) -> None:
        self.clients: set[Client] = set()
        self.wake = asyncio.Event()  # events wait for a tick
        self.left = asyncio.Event()  # a client has gone
        self._ticking = asyncio.Lock()  # a tick begun in drain must not overtake the one before
        self._budget = events_per_tick_max
        self._meters = meters
        self._batches: deque[pa.RecordBatch] = deque()
        self._first = 0  # number of the first waiting event
        self._next = 0  # number that the next event will get
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Let a batch wait for the next tick. Without clients it is not even kept."""
        if not self.clients:
            return
        self._batches.append(batch)
        self._next += batch.num_rows
        self._bytes += batch.nbytes
        while len(self._batches) > 1 and (self._next - self._first > PENDING_TICKS_MAX * self._budget or self._bytes > PENDING_BYTES_MAX):
            self._count_oldest()
        self.wake.set()

    def skipped(self, events: int) -> None:
        """Tell all clients of events that never came here; nobody knows whose filter they would have passed."""
        for client in self.clients:
            client.missed(events, SKIPPED)
            self._meters.gap(events, SKIPPED)

    def join(self, client: Client) -> None:
        """From the next event on, the client gets what it wants."""
        client.start = self._next
        self.clients.add(client)
        self._meters.clients.set(len(self.clients))

    def leave(self, client: Client) -> None:
        """Forget the client; what still waited for it counts as a gap."""
        self.clients.discard(client)
        self.left.set()
        self._meters.gap(client.backlog.events, CLOSED)
        self._meters.clients.set(len(self.clients))
        if not self.clients:
            self._batches.clear()
            self._first, self._bytes = self._next, 0

    def change(self, client: Client, wanted: Filter) -> None:
        """Give a client another filter from the next event on; what waited under the old one is given up, counted."""
        self._meters.gap(client.change(wanted, self._next), FILTER_CHANGED)

    async def tick(self) -> None:
        """Bring the waiting events to the clients' backlogs."""
        async with self._ticking:
            await self._tick()

    async def _tick(self) -> None:
        batches, first = list(self._batches), self._first
        self._batches.clear()
        self._first, self._bytes = self._next, 0
        self.wake.clear()
        facets = Facets(batches)
        subscriptions = self._subscriptions(first)
        for subscription in subscriptions:
            subscription.select(facets)
            await asyncio.sleep(0)
        chosen = share_out(subscriptions, facets.rows, self._budget)
        events: list[bytes] = []
        for piece in join(batches if len(chosen) == facets.rows else take(batches, chosen)):
            for offset in range(0, piece.num_rows, RENDER_ROWS):
                events += render(piece.slice(offset, RENDER_ROWS))
                await asyncio.sleep(0)
        self._meters.rendered.inc(len(events))
        for subscription in subscriptions:
            self._hand_over(subscription, facets, first, chosen, events)

    def _subscriptions(self, first: int) -> list[Subscription]:
        # A client that came while events were waiting begins behind them, and is on its own for this tick.
        found: dict[tuple[Filter, Mode, int], list[Client]] = {}
        for client in self.clients:
            found.setdefault((client.wanted, client.mode, max(client.start - first, 0)), []).append(client)
        return [Subscription(*key, clients) for key, clients in found.items()]

    def _hand_over(self, subscription: Subscription, facets: Facets, first: int, chosen: Rows, events: list[bytes]) -> None:
        places = np.searchsorted(chosen, subscription.rows)
        devices: list[str] = []
        if subscription.mode == "latest":
            distinct, codes = facets.codes("device")
            devices = distinct.take(pa.array(codes[subscription.rows])).to_pylist()
        chunk = Chunk([events[place] for place in places], devices)
        for client in subscription.clients:
            # It may have gone or changed its filter while the events were rendered.
            if client not in self.clients or client.wanted != subscription.wanted or client.start > first + subscription.begin:
                continue
            if subscription.conflated:
                client.conflated(subscription.conflated)
            if subscription.skipped:
                client.missed(subscription.skipped, RATE_LIMIT)
            conflated, dropped = client.offer(chunk) if chunk.events else (0, 0)
            self._meters.conflated.inc(subscription.conflated + conflated)
            self._meters.gap(subscription.skipped, RATE_LIMIT)
            self._meters.gap(dropped, SLOW_CLIENT)

    def _count_oldest(self) -> None:
        """Give up the oldest waiting batch: more came than a tick can look at."""
        batch = self._batches.popleft()
        facets = Facets([batch])
        for subscription in self._subscriptions(self._first):
            subscription.select(facets)
            missed = len(subscription.rows) + subscription.conflated
            for client in subscription.clients if missed else ():
                client.missed(missed, RATE_LIMIT)
                self._meters.gap(missed, RATE_LIMIT)
        self._first += batch.num_rows
        self._bytes -= batch.nbytes
