"""The metrics of `ingest_ws`, made once."""

from __future__ import annotations

from prometheus_client import Counter

from headrace.metrics import Metrics
from headrace_ingest_ws.protocol import CLOSE_CODES


class Counters:
    """Every event is received once, and then acked or rejected; no device id is ever a label."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labelled: dict[tuple[str, ...], Counter] = {}
        self.connections = metrics.gauge("ingest_connections", "open WebSocket connections of devices")
        self.opened = metrics.counter("ingest_connections_opened_total", "WebSocket connections of devices opened")
        self.received = metrics.hot_counter(
            "ingest_received_events_total", "events received, refused ones too (an unreadable message is one)"
        )
        self.received_bytes = metrics.hot_counter("ingest_received_bytes_total", "bytes of the messages received, without framing")
        self.acked = metrics.hot_counter("ingest_acked_events_total", "events durable, and acked if the sender was still there")
        self.paused = metrics.gauge("ingest_paused", "1 while the queue is full and nothing is read", "max")
        self.ack_duration = metrics.hot_histogram(
            "ingest_ack_duration_seconds", "from receiving the oldest message of a commit until the commit's acks were written"
        )
        self.sessions_taken_over = metrics.counter(
            "ingest_sessions_taken_over_total", "connections closed because a newer one offered the same session"
        )
        self.posts_repeated = metrics.counter(
            "ingest_repeated_posts_total", "POSTs answered again by their Idempotency-Key, nothing stored"
        )
        self.connections.set(0)
        self.paused.set(0)

    def took(self, events: int, size: int) -> None:
        """So many events in `size` bytes were received."""
        self.received.inc(events)
        self.received_bytes.inc(size)

    def closed(self, code: int) -> None:
        """A connection ended with this close code (1006: without one)."""
        label = str(code) if code in CLOSE_CODES else "other"
        self._counter("ingest_connections_closed_total", "WebSocket connections of devices ended", code=label).inc()

    def rejected(self, reason: str, events: int = 1) -> None:
        """So many events were received and refused."""
        self._counter("ingest_rejected_events_total", "events received and refused", reason=reason).inc(events)

    def session_told(self, *, known: bool, new: bool) -> None:
        """A connection was told where its session goes on. Not known: what it sends again may be stored already."""
        resume = "new" if new else "known" if known else "unknown"
        self._counter("ingest_session_hellos_total", "connections that were told where their session goes on", resume=resume).inc()

    def not_authorized(self, why: str) -> None:
        """A request was not let in for what its credentials are, or lack."""
        self._counter("ingest_auth_failures_total", "requests refused for their credentials", reason=why).inc()

    def request_refused(self, status: int, reason: str) -> None:
        """An HTTP request (an upgrade or a POST) was answered with an error."""
        labels = {"status": str(status), "reason": reason}
        self._counter("ingest_refused_requests_total", "upgrades and POSTs answered with an error", **labels).inc()

    def connection_refused(self, reason: str) -> None:
        """A socket was closed because it went beyond a bound of its own, or found one of all used up."""
        self._counter("ingest_refused_connections_total", "sockets refused or cut off at a bound", reason=reason).inc()

    def _counter(self, name: str, documentation: str, **labels: str) -> Counter:
        key = (name, *labels.values())
        known = self._labelled.get(key)
        if known is None:
            known = self._labelled[key] = self._metrics.counter(name, documentation, **labels)
        return known
