"""The tiers of tiers.toml as processes of their own, on the cores that everything else of the benchmark has too."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from generator import LoadError, write_devices
from machine import process_cpu_s
from peers.contenders import free_port

from headrace.testing import forking
from headrace.testing.site import SiteProcess

FILE: Final = Path(__file__).parent / "tiers.toml"
POLL_S: Final = 0.05
DRAIN_S_MAX: Final = 300.0


class Tiers:
    """Edges, one middle and perhaps a live tier. Started with `with`; `cpu_s` and `lag` by tier."""

    def __init__(self, folder: Path, devices: int, edges: int = 1, live: bool = False, overrides: tuple[str, ...] = ()) -> None:
        if edges > 1:
            forking.enable()  # 32 new Pythons would take half a minute to import the same
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir()
        write_devices(folder / "devices.csv", devices)
        words = ["context", "import", str(folder / "devices.csv"), "--database", f"sqlite:///{self.data}/context.db"]
        subprocess.run([sys.executable, "-m", "headrace", *words], check=True, stdout=subprocess.DEVNULL)
        link, fan = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
        middle = [f"tiers.middle.sources.links.listen={link}", f"tiers.middle.outputs.fan.publish={fan}"]
        if not live:
            middle.append("tiers.middle.outputs.fan.enabled=false")
        self.middle = self._process("middle", "middle", [*middle, *overrides])
        self.edges = [
            self._process(f"edge-{number}", "edge", [
                "tiers.edge.sources.devices.listen=127.0.0.1:0", f"tiers.edge.outputs.uplink.connect={link}",
                f"tiers.edge.queue.path={self.data}/edge-queue-{number}", f"host.data_dir={self.data}/edge-{number}", *overrides,
            ])
            for number in range(edges)
        ]  # fmt: skip
        self.live = None
        if live:
            self.live = self._process(
                "live", "live", [f"tiers.live.sources.feed.subscribe={fan}", "tiers.live.outputs.page.listen=127.0.0.1:0", *overrides]
            )

    def _process(self, name: str, tier: str, overrides: list[str]) -> SiteProcess:
        own = self.folder / name
        own.mkdir()
        mine = [word for word in overrides if word.startswith((f"tiers.{tier}.", "host."))]
        environ = {"HEADRACE_DATA": str(self.data), "HEADRACE_NAME": name}
        return SiteProcess(FILE, own, ["admin.listen=127.0.0.1:0", *mine], environ, [tier])

    @property
    def all(self) -> list[SiteProcess]:
        """Every process, downstream first."""
        return [*([self.live] if self.live else []), self.middle, *self.edges]

    def __enter__(self) -> Tiers:
        for process in self.all:
            process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.all:
            process.__exit__()

    def stop(self) -> None:
        """In order, so that what is queued is handed on."""
        for process in reversed(self.all):
            process.stop(120)

    def port(self, edge: int = 0) -> int:
        """Where its devices connect."""
        return int(self.edges[edge].wait_for_url("devices").rpartition(":")[2])

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far: of all edges together, of the middle, of the live tier."""
        used = {"edge": sum(map(_cpu_s, self.edges)), "middle": _cpu_s(self.middle)}
        return used if self.live is None else {**used, "live": _cpu_s(self.live)}

    def lag(self) -> int:
        """Events that are acked and not in a committed file yet."""
        edges = sum(int(edge.metric("queue_reader_lag_events", reader="uplink")) for edge in self.edges)
        return edges + int(self.middle.metric("queue_reader_lag_events", reader="lake"))

    def drained(self) -> float:
        """The moment when everything is in committed files."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while self.lag() > 0:
            dead = next((process for process in self.all if process.died() is not None), None)
            if dead is not None or time.monotonic() > deadline:
                raise LoadError(f"not everything was in the lake after {DRAIN_S_MAX:.0f} s\n{(dead or self.middle).log_end()}")
            time.sleep(POLL_S)
        return time.monotonic()


def _cpu_s(process: SiteProcess) -> float:
    assert process.process is not None
    return process_cpu_s(process.process.pid)
