"""The metrics of sink_akumuli."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.metrics import Metrics
from headrace_sink_akumuli.feed import Counts
from headrace_sink_akumuli.state import Gap


class Measures:
    """Counts what became of readings, and what it took to keep the view whole."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._points = metrics.counter("akumuli_points_total", "Points that the server applied.")
        self._held = metrics.counter("akumuli_held_points_total", "Points left out because the server had them, or newer ones, already.")
        self._series = metrics.gauge("akumuli_series", "Series known.")
        self._gaps = metrics.gauge("akumuli_rebuild_positions", "Positions whose points the server lacks until a rebuild from the lake.")
        self._lost = metrics.counter("akumuli_lost_series_total", "Series whose newest points the server had lost when it was asked.")

    def flushed(self, counts: Counts, series: int, gaps: Sequence[Gap]) -> None:
        """A flush made these durable enough to be forgotten by the queue."""
        self._points.inc(counts.points)
        self._held.inc(counts.held)
        for reason, count in counts.refused.items():
            if reason == "late":
                counter = self._metrics.counter("akumuli_late_points_total", "Points older than their series' last one; the lake has them.")
            else:
                counter = self._metrics.counter(
                    "akumuli_refused_points_total", "Readings that make no point; the lake has them.", reason=reason
                )
            counter.inc(count)
        self._series.set(series)
        self.gaps(gaps)

    def filled(self, counts: Counts) -> None:
        """The server applied these, read from the lake."""
        self._points.inc(counts.points)
        self._held.inc(counts.held)

    def gaps(self, gaps: Sequence[Gap]) -> None:
        """The ranges that only a rebuild brings back."""
        self._gaps.set(sum(gap.last - gap.first + 1 for gap in gaps))

    def resynced(self, reason: str, lost: int) -> None:
        """The server was asked what it holds, because of `reason`."""
        self._metrics.counter("akumuli_resyncs_total", "Times the server was asked for its last timestamps.", reason=reason).inc()
        self._lost.inc(lost)
