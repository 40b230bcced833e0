"""The component: what the host calls."""

from __future__ import annotations

import pyarrow as pa

from headrace import Component, Context, RangeKey, TransientError, hookimpl
from headrace_live_ws.hub import Hub
from headrace_live_ws.latest import Latest
from headrace_live_ws.meters import Meters
from headrace_live_ws.options import LiveConfig
from headrace_live_ws.server import Server, host_and_port, is_loopback
from headrace_live_ws.snapshot import Snapshots


class LiveWs(Component):
    """Broadcasts event batches to WebSocket clients; holds nothing back for them, and never waits for one.

    `url` is where it listens, once open.
    """

    Config = LiveConfig
    holds = False
    config: LiveConfig

    def __init__(self, config: LiveConfig, context: Context) -> None:
        super().__init__(config, context)
        meters = Meters(context)
        latest = Latest(config.devices_max, config.devices_bytes_max)
        self._snapshots = Snapshots(latest, config.client_bytes_max, context, meters)
        self._hub = Hub(config.events_per_tick_max, meters)
        self._last: RangeKey | None = None
        self._server = Server(config, context, self._hub, self._snapshots, meters)

    @property
    def url(self) -> str:
        """`http://host:port` of the page; the feed is at `/v1/live` below it."""
        return self._server.url

    async def open(self) -> None:
        """Listen; TransientError while the address cannot be had."""
        try:
            await self._server.start()
        except OSError as error:
            raise TransientError(f"cannot listen on {self.config.listen}: {error.strerror or error}") from error
        self.context.log.info("listening", url=self.url)
        if not is_loopback(host_and_port(self.config.listen)[0]):
            self.context.log.warning("the live feed has no authentication and is reachable from other machines", url=self.url)

    async def run(self) -> None:
        """A tick as soon as there are events, and then one in `tick_ms` at most."""
        while True:
            await self._hub.wake.wait()
            begun = self.context.clock.monotonic()
            await self._hub.tick()
            # from its beginning: what came while it rendered has waited for that already
            await self.context.clock.sleep(max(0.0, begun + self.config.tick_ms / 1000 - self.context.clock.monotonic()))

    async def drain(self, deadline_s: float) -> None:
        """Send what waits, and close every client with 1012 (service restart)."""
        await self._hub.tick()
        await self._server.drain(deadline_s)

    async def close(self) -> None:
        """Stop listening."""
        await self._server.stop()

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        """Broadcast one event batch, and tell of the positions before it that the queue or the host left out."""
        if skipped := positions_skipped(self._last, key):
            self._hub.skipped(skipped)
        self._last = key
        if batch.num_rows:
            self._hub.add(batch)
            await self._snapshots.add(batch)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        """Nothing: a live feed promises nothing."""

    @hookimpl
    async def sink_reset(self) -> None:
        """Nothing: what was broadcast cannot be called back."""


def positions_skipped(before: RangeKey | None, key: RangeKey) -> int:
    """How many positions lie between two keys that came one after the other, or are missing or dead within the later one."""
    between = key.first - before.last - 1 if before is not None and before.queue_id == key.queue_id else 0
    return max(between, 0) + sum(hole.size for hole in key.missing) + len(key.dead)
