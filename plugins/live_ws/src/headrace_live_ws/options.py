"""The options of `live_ws`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from headrace import Config


class LiveConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the live feed listens, and its bounds."""

    listen: Annotated[
        str,
        Meta(
            description="Address and port of the live feed and its page; port 0 takes a free one.",
            pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):[0-9]{1,5}$",
        ),
    ] = "127.0.0.1:8081"
    origins_allowed: Annotated[
        tuple[str, ...],
        Meta(description="Origins (scheme://host:port) of web pages that may connect beside the feed's own; `*` allows all."),
    ] = ()
    tick_ms: Annotated[
        int, Meta(ge=5, le=10_000, description="A client gets at most one frame of events in this time, in milliseconds.")
    ] = 100
    events_per_tick_max: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Events rendered per tick for all clients together; more are left out, with a gap notice."),
    ] = 5_000
    clients_max: Annotated[int, Meta(ge=1, le=100_000, description="Clients at one time; more are refused with 503.")] = 256
    client_events_max: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Events that wait for one slow client; the oldest are left out, with a gap notice.")
    ] = 20_000
    client_bytes_max: Annotated[
        int, Meta(ge=1_024, le=1 << 30, description="Bytes that wait for one slow client, and the largest snapshot.")
    ] = 8 << 20
    client_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3_600, description="A client that takes nothing for so many seconds is disconnected (1013).")
    ] = 15.0
    heartbeat_s: Annotated[
        float, Meta(ge=0.1, le=3_600, description="Seconds of silence after which a client is sent a heartbeat frame.")
    ] = 10.0
    message_bytes_max: Annotated[
        int, Meta(ge=128, le=1 << 20, description="Largest message taken from a client, in bytes; a larger one ends the connection (1009).")
    ] = 16_384
    devices_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Devices whose newest event is kept for snapshots; the oldest are forgotten.")
    ] = 10_000
    devices_bytes_max: Annotated[
        int, Meta(ge=1 << 16, le=1 << 34, description="Bytes of Arrow data kept for snapshots; the oldest devices are forgotten.")
    ] = 64 << 20
