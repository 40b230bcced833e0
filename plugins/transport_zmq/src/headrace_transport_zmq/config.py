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
    key_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="This end's secret key (`headrace keys new`): all its connections are encrypted, and both ends prove who they are."
        ),
    ] = None
    server_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="At the connecting end, with `key_file`: the other end's public key, such as `${file:/etc/headrace/middle.pub}`."),
    ] = None
    allow_keys_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="At the listening end, with `key_file`: who may come in, `PUBLIC_KEY NAME` in each line; read again when changed."
        ),
    ] = None
    insecure: Annotated[
        bool, Meta(description="Allow an address that is not loopback without keys: whoever reaches it can read and send.")
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
    handshake_timeout_s: Annotated[
        float, Meta(ge=0.1, le=60, description="At the listening end: a connection that has not shaken hands after this long is cut.")
    ] = 5.0
    handshakes_max: Annotated[
        int,
        Meta(
            ge=1,
            le=65_536,
            description="At the listening end: most connections at once that have said nothing that belongs here; then the oldest are cut.",
        ),
    ] = 256


def problem(config: TransportConfig) -> str:
    """Why this cannot be a link; empty when it can."""
    if (config.listen is None) == (config.connect is None):
        return "expected `listen` (a source) or `connect` (an output), got " + ("both" if config.listen else "neither")
    if found := _keys_problem(config):
        return found
    address = config.listen or config.connect or ""
    if not config.insecure and config.key_file is None and not is_loopback(address):
        needed = "key_file and allow_keys_file" if config.listen else "key_file and server_key"
        return (
            f"{address} is not a loopback address, and there are no keys: make them with `headrace keys new`, and set {needed}"
            " (or insecure = true, if whoever reaches that address may read and send)"
        )
    if config.heartbeat_s >= config.dead_after_s:
        return f"dead_after_s: expected more than heartbeat_s ({config.heartbeat_s:g}), got {config.dead_after_s:g}"
    return ""


def _keys_problem(config: TransportConfig) -> str:
    needed, foreign = ("allow_keys_file", "server_key") if config.listen else ("server_key", "allow_keys_file")
    end = "listening" if config.listen else "connecting"
    if getattr(config, foreign) is not None:
        return f"{foreign}: not for the {end} end, which has {needed}"
    if (config.key_file is None) != (getattr(config, needed) is None):
        have, lack = ("key_file", needed) if config.key_file else (needed, "key_file")
        return f"{lack}: expected one beside {have}, got none; make keys with `headrace keys new`"
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
