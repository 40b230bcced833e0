"""What a queue tells its host: metrics, log lines and its status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from prometheus_client import Counter, Gauge

from headrace import Context, QueueFull
from headrace.metrics import COUNT_BUCKETS, OverWorkers
from headrace_queue_pmem.config import QueueConfig
from headrace_queue_pmem.failing import told
from headrace_queue_pmem.frame import Entry
from headrace_queue_pmem.medium import Medium
from headrace_queue_pmem.probe import Probe
from headrace_queue_pmem.quarantine import Quarantine
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.state import Damage

#: Damaged ranges that are known to have been told of; beyond it the same may be counted again.
DAMAGE_TOLD_MAX: Final = 4096


class Telling:
    """Called from any thread; made on the loop that `context.status` belongs to."""

    def __init__(self, context: Context, config: QueueConfig) -> None:
        self._context, self._config = context, config
        self._loop = asyncio.get_running_loop()
        self._degraded = False
        self._evicted_told = 0
        self._damage_told: set[tuple[str, int, int, int]] = set()
        self._quarantine = Quarantine(Path(config.path))
        metrics, queue = context.metrics, context.tier
        self._commit_seconds = metrics.hot_histogram(
            "queue_commit_duration_seconds", "Time of one commit, from write to durable.", queue=queue
        )
        self._commit_events = metrics.hot_histogram("queue_commit_events", "Events in one commit.", COUNT_BUCKETS, queue=queue)
        self._received = metrics.hot_counter("queue_received_events_total", "Events that became durable here.", queue=queue)
        self._duplicates = metrics.counter("queue_duplicate_events_total", "Events that were held already and dropped.", queue=queue)
        self._evicted = metrics.counter(
            "queue_evicted_sessions_total", "Device sessions whose mark was given up for others: the oldest idle.", queue=queue
        )
        self._failures = metrics.counter(
            "queue_commit_failures_total", "Batches whose commit failed; their sources were told.", queue=queue
        )
        self._files_set_aside = metrics.counter(
            "queue_quarantined_files_total", "Files that an open set aside whole: of another queue, or copies.", queue=queue
        )

    def opened(self, ring: Ring, report: Report, probe: Probe, seconds: float) -> None:
        """The queue is open: what it really does, and what recovery found."""
        medium, level, method = medium_name(ring.medium, probe), self._config.level, ring.medium.method
        self._gauge("durability_info", "What the queue really does.", level=level, medium=medium, method=method).set(1)
        self._gauge("queue_recovered_events", "Events that the last open found in the queue.").set(report.events)
        self._gauge("queue_recovery_duration_seconds", "How long the last open took.", "max").set(seconds)
        for damage in report.damage:
            # what is known, and of no concern to anybody any more, lies there until its segment is given back
            if damage.last > report.passed or not self._quarantine.has(damage):
                self.damaged(damage)
        for name, reason in report.set_aside:
            self._context.log.error("queue segment set aside", segment=name, reason=reason, path=self._config.path)
            self._quarantine.set_aside(name, reason)
            self._files_set_aside.inc()
        for repair in report.repairs:
            self._context.log.warning("queue repaired", what=repair, path=self._config.path)
        self._context.log.info(
            "queue open",
            path=self._config.path,
            level=level,
            medium=medium,
            method=method,
            sync_p50_us=probe.sync_p50_us,
            sync_p99_us=probe.sync_p99_us,
            events=report.events,
            lost=report.lost_behind(report.passed),
            tail_frames_dropped=report.tail_dropped,
            seconds=round(seconds, 3),
        )

    def committed(self, entries: Sequence[Entry], seconds: float, evicted: int) -> None:
        """Entries became durable; `evicted` sessions have lost their mark since the queue was opened."""
        events = sum(entry.count for entry in entries)
        self._commit_seconds.observe(seconds)
        self._commit_events.observe(events)
        self._received.inc(events)
        if self._degraded:
            self._status("ok", "")
        if evicted > self._evicted_told:
            self._evicted.inc(evicted - self._evicted_told)
            self._evicted_told = evicted

    def dropped(self, events: int) -> None:
        """So many events were held already."""
        self._duplicates.inc(events)

    def commit_failed(self, error: Exception, batches: int) -> None:
        """So many batches were given up."""
        self._failures.inc(batches)
        if not isinstance(error, QueueFull):
            self._status("degraded", f"commits fail: {error}")
        self._context.log.error("queue commit failed", error=str(error), batches=batches)

    def waits(self, error: OSError) -> None:
        """A reader waits until the medium answers."""
        self._status("degraded", f"{self._config.path} cannot be read: {told(error)}")
        self._context.log.error("queue waits for its medium", error=told(error), path=self._config.path)

    def goes_on(self) -> None:
        """The medium answers a reader again."""
        self._status("ok", "")
        self._context.log.info("queue medium answers again", path=self._config.path)

    def upkeep_failed(self, error: Exception) -> None:
        """A pass of the upkeep ended early; the next one tries again."""
        what = told(error) if isinstance(error, OSError) else str(error)
        self._context.log.error("queue upkeep failed", error=what, path=self._config.path)

    def damaged(self, damage: Damage) -> None:
        """Set a damaged range aside, count it and say so: once, though the open and then each reader meet it."""
        known = (damage.segment, damage.offset, damage.first, damage.last)
        if known in self._damage_told:
            return
        if len(self._damage_told) < DAMAGE_TOLD_MAX:
            self._damage_told.add(known)
        self._quarantined(damage.reason).inc(max(damage.last - damage.first + 1, 0))
        where = self._quarantine.keep(damage)
        self._context.log.error(
            "queue damage set aside",
            segment=damage.segment,
            offset=damage.offset,
            bytes=damage.length,
            first=damage.first,
            last=damage.last,
            reason=damage.reason,
            kept=where,
        )

    def _status(self, status: Literal["ok", "degraded"], reason: str) -> None:
        self._degraded = status == "degraded"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._context.status, status, reason)

    def _gauge(self, name: str, documentation: str, over_workers: OverWorkers | None = None, **labels: str) -> Gauge:
        return self._context.metrics.gauge(name, documentation, over_workers, queue=self._context.tier, **labels)

    def _quarantined(self, reason: str) -> Counter:
        return self._context.metrics.counter(
            "queue_quarantined_records_total", "Events that were lost to damage, by reason.", queue=self._context.tier, reason=reason
        )


def medium_name(medium: Medium, probe: Probe) -> str:
    """What `queue_info` and `headrace_durability_info` call a medium."""
    return ("dax-" if probe.dax else "") + medium.filesystem + ("" if medium.name == "pmem" else "-file")
