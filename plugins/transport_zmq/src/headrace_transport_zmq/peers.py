"""What sends for an output: one link, or, with several far tiers, a fleet of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from headrace import LEVELS, Context, TransientError
from headrace_transport_zmq import assignments
from headrace_transport_zmq.config import Peer, TransportConfig
from headrace_transport_zmq.counters import FleetCounters, LaneCounters
from headrace_transport_zmq.fleet import Fleet, Link
from headrace_transport_zmq.sending import Sending


def sending_to(config: TransportConfig, context: Context) -> Sending | Fleet:
    """For `connect` a link; for `peers`, or as long as there were some and what was sent to them is not over, a fleet."""
    if not config.peers and not (context.data_dir / assignments.FILE).exists():
        return Sending(config, context)
    peers = config.peers or (Peer(name=config.peer or config.connect or "", connect=config.connect or ""),)
    levels: dict[str, str] = {}
    counters = LaneCounters(context.metrics)

    def make(name: str, address: str, lane: int, told: Callable[[bool, str], None]) -> Link:
        peer = next((peer for peer in peers if peer.name == name), Peer(name=name, connect=address))

        def status(status: Literal["ok", "degraded"], reason: str) -> None:
            told(status == "ok", reason)

        def far_level(level: str) -> None:
            levels[name] = level
            context.far_level(min(levels.values(), key=LEVELS.index))

        folder = context.data_dir / f"peer-{name}"
        folder.mkdir(exist_ok=True)
        own = replace(context, data_dir=folder, status=status, far_level=far_level, log=context.log.bind(peer=name, lane=lane))
        return Sending(config.of_peer(peer), own, lane, counters)

    try:
        return Fleet({peer.name: peer.connect for peer in peers}, config.resend_bound, context, make, FleetCounters(context.metrics))
    except ValueError as error:
        raise TransientError(str(error)) from error
