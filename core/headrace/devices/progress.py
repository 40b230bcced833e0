"""What a person sees of a run: one line that is rewritten on a terminal, a line every few seconds elsewhere, and a summary."""

from __future__ import annotations

import asyncio
import time
from typing import Final, TextIO

from headrace.devices.totals import Latencies, Totals

EVERY_S_TERMINAL: Final = 0.5
EVERY_S_ELSEWHERE: Final = 5.0


class Progress:
    """Writes a run's progress to `out`."""

    def __init__(self, totals: Totals, devices: int, out: TextIO) -> None:
        self._totals, self._devices, self._out = totals, devices, out
        self._terminal = out.isatty()
        self._then, self._acked = time.monotonic(), 0

    async def run(self) -> None:
        """Show the line again and again until cancelled; then leave the terminal on a fresh line."""
        try:
            while True:
                await asyncio.sleep(EVERY_S_TERMINAL if self._terminal else EVERY_S_ELSEWHERE)
                self._show()
        finally:
            if self._terminal:
                self._show()
                self._out.write("\n")
                self._out.flush()

    def say(self, text: str) -> None:
        """One line of text that stays."""
        self._out.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._out.flush()

    def _show(self) -> None:
        now = time.monotonic()
        rate = (self._totals.acked - self._acked) / max(now - self._then, 1e-9)
        self._then, self._acked = now, self._totals.acked
        text = line(self._totals, self._devices, rate)
        self._totals.recent = Latencies()
        self._out.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        self._out.flush()


def line(totals: Totals, devices: int, acked_per_s: float) -> str:
    """The progress line; latencies are those since the line before."""
    latency = f"ack p50 {duration(totals.recent.quantile(0.5))} p99 {duration(totals.recent.quantile(0.99))}"
    trouble = f"  no connection: {totals.trouble}" if totals.trouble and not totals.connections else ""
    return (
        f"sent {totals.sent:,}  acked {totals.acked:,} ({acked_per_s:,.0f}/s)  rejected {totals.rejected:,}  "
        f"unacked {totals.unacked:,}  {latency}  connections {totals.connections:,}/{devices:,}{trouble}"
    )


def summary(totals: Totals, elapsed_s: float) -> str:
    """The end of a run, for people."""
    facts = totals.summary(elapsed_s)
    latency = totals.latency
    lines = [
        f"sent        {totals.sent:,} in {elapsed_s:.1f} s ({facts['acked_per_s']:,.0f} acked/s)",
        f"acked       {totals.acked:,}",
        f"rejected    {totals.rejected:,}" + "".join(f"  {code}: {count:,}" for code, count in facts["rejects_by_code"].items()),
        f"unacked     {totals.unacked:,}",
        f"re-sent     {totals.resent:,} after {totals.reconnects:,} reconnects, {totals.resumed:,} more were held already",
        f"ack latency p50 {duration(latency.quantile(0.5))}, p99 {duration(latency.quantile(0.99))}, "
        f"max {duration(latency.max_s if latency.count else None)}",
    ]
    if totals.skipped:
        lines.append(f"skipped     {totals.skipped:,} (not taken: the device's outbox was full)")
    if totals.gave_up:
        lines.append(f"gave up     {totals.gave_up:,} devices")
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.2f} s"
