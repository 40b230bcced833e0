"""The plugin's metrics, each made once. Names and meanings are in the README."""

from __future__ import annotations

from headrace import Context


class Meters:
    """Counters and gauges under the component's labels."""

    def __init__(self, context: Context) -> None:
        self._metrics = metrics = context.metrics
        self.clients = metrics.gauge("live_clients", "clients connected to the live feed")
        self.sent = metrics.counter("live_sent_events_total", "events sent, summed over clients")
        self.sent_bytes = metrics.counter("live_sent_bytes_total", "bytes of frames sent, summed over clients")
        self.rendered = metrics.counter("live_rendered_events_total", "events rendered to JSON, once for all clients")
        self.conflated = metrics.counter("live_conflated_events_total", "events for which a client got a newer one instead")
        self.evicted = metrics.counter("live_evicted_devices_total", "devices forgotten for the snapshot's bounds")

    def gap(self, events: int, reason: str) -> None:
        """Count events that a client did not get."""
        if events:
            self._metrics.counter("live_gap_events_total", "events that a client did not get", reason=reason).inc(events)

    def refused(self, reason: str) -> None:
        """Count a connection that was not accepted."""
        self._metrics.counter("live_refused_clients_total", "connections refused", reason=reason).inc()

    def closed(self, reason: str) -> None:
        """Count a connection that the server ended."""
        self._metrics.counter("live_closed_clients_total", "connections ended by the server", reason=reason).inc()

    def invalid(self) -> None:
        """Count a client's message that was answered with an error."""
        self._metrics.counter("live_invalid_messages_total", "client messages answered with an error").inc()
