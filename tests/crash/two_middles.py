"""An edge and two middles (or more), each a process of its own: what the tests of links to several far tiers have in common."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from headrace.testing.oracle import Oracle
from headrace.testing.site import SiteProcess

MIDDLES: Final = ("one", "two")
EDGE: Final = """
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "{data}/edge-queue"
size_bytes_max = 134_217_728
"""
MIDDLE: Final = """
[tiers.{name}.sources.links]
use = "transport_zmq"
listen = "{address}"
[tiers.{name}.queue]
use = "queue_pmem"
path = "{data}/{name}-queue"
size_bytes_max = 134_217_728
[tiers.{name}.outputs.lake]
use = "sink_lake"
path = "{data}/{name}/lake"
flush_interval_s = 0.2
"""


class TwoMiddles:
    """Used with `with`: its processes end with it. `edge`, and all of them by tier in `sides`."""

    def __init__(self, folder: Path, uplinks: str, more: str = "", middles: Sequence[str] = MIDDLES) -> None:
        """uplinks: outputs of the edge, with `{one}` and so on for the middles; more: of each middle, with its `{name}`."""
        self.data, self._file, self._more = folder / "data", folder / "site.toml", more
        self._addresses = dict(zip(middles, free_addresses(len(middles)), strict=True))
        self.configure(uplinks)
        self.sides: dict[str, SiteProcess] = {}
        for tier in ("edge", *middles):
            (folder / tier).mkdir()
            self.sides[tier] = SiteProcess(self._file, folder / tier, [], {"HEADRACE_DATA": str(self.data)}, [tier])
        self.edge = self.sides["edge"]

    def configure(self, uplinks: str) -> None:
        """The edge has these from its next start on."""
        middles = [(MIDDLE + self._more).format(name=name, address=address, data=self.data) for name, address in self._addresses.items()]
        self._file.write_text(EDGE.format(data=self.data) + uplinks.format(**self._addresses) + "".join(middles))

    def __enter__(self) -> TwoMiddles:
        return self

    def __exit__(self, *error: object) -> None:
        for side in self.sides.values():
            side.__exit__(*error)

    async def start(self, tier: str) -> None:
        await asyncio.to_thread(self.sides[tier].start)

    async def received(self, tier: str, more: float = 200) -> None:
        """Wait until the middle has got so many events more."""
        side = self.sides[tier]
        wanted = await asyncio.to_thread(side.metric, "link_received_events_total") + more
        await asyncio.to_thread(side.wait_for_metric, "link_received_events_total", wanted)

    async def acked(self, more: float) -> None:
        """Wait until the edge has acknowledged so many events more."""
        wanted = await asyncio.to_thread(self.edge.metric, "ingest_acked_events_total") + more
        await asyncio.to_thread(self.edge.wait_for_metric, "ingest_acked_events_total", wanted)

    async def under_load(self, oracle: Oracle, scenario: Callable[[], Awaitable[None]]) -> None:
        """Devices send while the scenario runs; on return, every event has its answer."""
        done = asyncio.Event()
        load = asyncio.ensure_future(oracle.run(lambda: self.edge.url("devices"), done))
        try:
            await scenario()
        finally:
            done.set()
            await load
        await oracle.settle(lambda: self.edge.url("devices"))


def free_addresses(count: int) -> list[str]:
    """Ports that were free a moment ago, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    addresses = [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return addresses
