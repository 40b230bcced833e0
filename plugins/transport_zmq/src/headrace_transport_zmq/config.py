"""The options of a link, at either end."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

from msgspec import Meta

from headrace import Config

MIB: Final = 1 << 20
_ADDRESS: Final = r"^tcp://.+:\d{1,5}$"


class TransportConfig(Config, frozen=True, kw_only=True):
    """`listen` makes it a source, `connect` an output."""

    listen: Annotated[
        Annotated[str, Meta(pattern=_ADDRESS)] | None,
        Meta(description="As a source: where links arrive, such as `tcp://127.0.0.1:5555`; port 0 takes a free one."),
    ] = None
    connect: Annotated[
        Annotated[str, Meta(pattern=_ADDRESS)] | None,
        Meta(description="As an output: the far tier's address, such as `tcp://127.0.0.1:5555`."),
    ] = None
    peer: Annotated[
        str,
        Meta(max_length=200, description="As an output: the far tier's name; keep it when only its address changes. The address if empty."),
    ] = ""
    insecure: Annotated[
        bool, Meta(description="Allow an address that is not loopback; links have neither encryption nor keys yet, so trust that network.")
    ] = False
    allow_lower_level: Annotated[
        bool, Meta(description="As an output: send to a tier whose queue is less durable than this one's (`power` to `process`).")
    ] = False
    resend_bound: Annotated[
        bool,
        Meta(
            description="As an output, after `peer` changed: send to the new one what the old one may hold already; doubles are possible."
        ),
    ] = False
    window_events: Annotated[int, Meta(ge=1, le=1 << 24, description="Most events of one lane on their way at once.")] = 262_144
    window_bytes: Annotated[int, Meta(ge=1 << 12, le=1 << 30, description="Most bytes of one lane on their way at once.")] = 16 * MIB
    heartbeat_s: Annotated[float, Meta(ge=0.05, le=60, description="As an output: silence after which it asks for a sign of life.")] = 1.0
    dead_after_s: Annotated[float, Meta(ge=0.2, le=600, description="Silence after which the other end counts as dead.")] = 5.0
    reconnect_ms_max: Annotated[
        int, Meta(ge=10, le=600_000, description="As an output: longest wait between two attempts to reach the far tier; with jitter.")
    ] = 5_000
    frame_bytes_max: Annotated[
        int, Meta(ge=1 << 16, le=1 << 30, description="As a source: largest batch that is taken; a connection that sends more is cut.")
    ] = 16 * MIB
    staged_bytes_max: Annotated[
        int, Meta(ge=1 << 16, le=1 << 34, description="As a source: most bytes that wait for their commit; what is beyond is sent again.")
    ] = 64 * MIB
    commit_bytes_max: Annotated[int, Meta(ge=1 << 12, le=1 << 30, description="As a source: most bytes appended in one commit.")] = 4 * MIB
    peers_max: Annotated[int, Meta(ge=1, le=65_536, description="As a source: most links at once.")] = 1024


def problem(config: TransportConfig) -> str:
    """Why this cannot be a link; empty when it can."""
    if (config.listen is None) == (config.connect is None):
        return "expected `listen` (a source) or `connect` (an output), got " + ("both" if config.listen else "neither")
    address = config.listen or config.connect or ""
    if not config.insecure and not is_loopback(address):
        return (
            f"{address} is not a loopback address: links have neither encryption nor keys yet; set insecure = true if you trust the network"
        )
    if config.heartbeat_s >= config.dead_after_s:
        return f"dead_after_s: expected more than heartbeat_s ({config.heartbeat_s:g}), got {config.dead_after_s:g}"
    return ""


def is_loopback(address: str) -> bool:
    """Whether only this machine can be on the other end."""
    host = re.sub(r"^tcp://\[?(.*?)\]?:\d+$", r"\1", address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
