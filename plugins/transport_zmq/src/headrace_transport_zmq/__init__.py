"""headrace's links between tiers over ZeroMQ."""

from headrace_transport_zmq.component import TransportZmq

__all__ = ["TransportZmq"]
