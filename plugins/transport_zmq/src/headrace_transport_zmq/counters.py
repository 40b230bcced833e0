"""What operators see of a link."""

from __future__ import annotations

from headrace.metrics import Metrics


class SendingCounters:
    """An output's."""

    def __init__(self, metrics: Metrics) -> None:
        self.batches = metrics.counter("link_sent_batches_total", "Batches put on the wire, again ones included.")
        self.bytes = metrics.counter("link_sent_bytes_total", "Bytes of these batches.")
        self.sessions = metrics.counter("link_sessions_total", "Sessions begun: hellos that the far side answered.")
        self.rewinds = metrics.counter("link_rewinds_total", "Sessions that ended because something was lost on the way.")
        self.connected = metrics.gauge("link_connected", "1 while the far side answers.")
        self.in_flight = metrics.gauge("link_in_flight_events", "Events on their way, without an answer yet.")
        self.bound = metrics.counter("link_bound_resent_total", "Changes of peer after which what the old one may hold was sent again.")


class _Nowhere:
    """In the place of a gauge that somebody else sets."""

    def set(self, value: float) -> None:
        pass


class LaneCounters(SendingCounters):
    """Of one of several links of an output: they count together, and what is now is for the whole of them to say."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self.connected = self.in_flight = _Nowhere()  # type: ignore[assignment]


class FleetCounters:
    """An output's with several far tiers."""

    def __init__(self, metrics: Metrics) -> None:
        self.connected = metrics.gauge("link_connected", "1 while the far side answers.")
        self.lanes = metrics.counter("link_lanes_total", "Lanes opened, one each time that new batches go to another far tier.")
        self.bound = metrics.gauge("link_bound_batches", "Batches that wait for a far tier that is away, while new ones go elsewhere.")
        self.resent = metrics.counter("link_bound_resent_total", "Changes of peer after which what the old one may hold was sent again.")


class ReceivingCounters:
    """A source's."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.events = metrics.counter("link_received_events_total", "Events received and durable here, duplicates included.")
        self.commits = metrics.counter("link_commits_total", "Appends, each of what came meanwhile from all links.")
        self.peers = metrics.gauge("link_peers", "Links whose hello was accepted.")
        self.missing = metrics.counter("link_missing_events_total", "Positions that senders declared missing.")

    def discarded(self, reason: str) -> None:
        """A frame was not taken; its sender still has it."""
        self._metrics.counter("link_discarded_frames_total", "Frames not taken; their senders still have them.", reason=reason).inc()

    def refused(self, code: str) -> None:
        """A hello was refused."""
        self._metrics.counter("link_refused_hellos_total", "Hellos that were refused.", code=code).inc()


class GuardCounters:
    """Of a listening socket."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.connections = metrics.gauge("link_connections", "Connections to a listening end, those that have not shaken hands included.")

    def refused(self, reason: str) -> None:
        """A connection ended before its peer had said anything that belongs here, or was cut."""
        self._metrics.counter("link_refused_connections_total", "Connections that were not let in, or were cut.", reason=reason).inc()


class PublishingCounters:
    """A publishing output's."""

    def __init__(self, metrics: Metrics) -> None:
        self.events = metrics.counter("fanout_published_events_total", "Events put on the wire, once for all subscribers.")
        self.messages = metrics.counter("fanout_published_messages_total", "Messages with these events.")
        self.bytes = metrics.counter("fanout_published_bytes_total", "Bytes of these messages.")
        self.slow = metrics.counter("fanout_slow_messages_total", "Messages that at least one subscriber was too slow for.")
        self.oversize = metrics.counter("fanout_oversize_events_total", "Events that RADIO could not send: too large, or too long a topic.")
        self.prefixes = metrics.gauge("fanout_subscriptions", "Different prefixes of topics that somebody wants.")


class SubscribingCounters:
    """A subscribing source's."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.events = metrics.counter("fanout_received_events_total", "Events that came from publishers and were handed on.")
        self.lost_events = metrics.counter("fanout_lost_events_total", "Events that were published and did not come.")
        self.lost_messages = metrics.counter("fanout_lost_messages_total", "Messages with these events.")
        self.connected = metrics.gauge("fanout_connected", "1 while there is a publisher.")

    def discarded(self, reason: str) -> None:
        """A message came and was not handed on."""
        self._metrics.counter("fanout_discarded_messages_total", "Messages that came and were not handed on.", reason=reason).inc()
