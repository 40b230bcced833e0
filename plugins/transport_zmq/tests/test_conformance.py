"""Both halves keep the contract of links, and of a fan-out."""

from __future__ import annotations

from headrace import Context
from headrace.testing import FanOutContract, LinkContract
from headrace_transport_zmq import TransportZmq
from headrace_transport_zmq.config import TransportConfig


class TestTransportZmq(LinkContract):
    def make(self, context: Context) -> TransportZmq:
        address = f"tcp://127.0.0.1:{self.port}"
        return TransportZmq(TransportConfig(connect=address, heartbeat_s=0.05, dead_after_s=0.5, reconnect_ms_max=50), context)

    def make_receiver(self, context: Context) -> TransportZmq:
        return TransportZmq(TransportConfig(listen=f"tcp://127.0.0.1:{self.port}"), context)


class TestFanOut(FanOutContract):
    batches = 60

    def make(self, context: Context) -> TransportZmq:
        return TransportZmq(TransportConfig(publish=f"tcp://127.0.0.1:{self.port}", queued_messages_max=4), context)

    def make_subscriber(self, context: Context) -> TransportZmq:
        address = f"tcp://127.0.0.1:{self.port}"
        settings = TransportConfig(subscribe=address, heartbeat_s=0.1, dead_after_s=1.0, reconnect_ms_max=50, queued_messages_max=4)
        return TransportZmq(settings, context)
