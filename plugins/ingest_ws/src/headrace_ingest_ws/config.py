"""The options of `ingest_ws`."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta

from headrace import Config


class IngestWsConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where devices connect, and every bound."""

    auth: Annotated[
        Literal["none"],
        Meta(description="How devices prove who they are. `none`: not at all, only for loopback; it has to be written down."),
    ]
    listen: Annotated[
        str, Meta(description="Address and port for devices, `HOST:PORT`; HOST is an IP address or `localhost`, port 0 takes a free one.")
    ] = "127.0.0.1:8080"

    message_bytes_max: Annotated[
        int, Meta(ge=64, le=16 << 20, description="Longest WebSocket message in bytes; a longer one closes the connection with 1009.")
    ] = 131_072
    post_bytes_max: Annotated[int, Meta(ge=64, le=64 << 20, description="Longest body of a POST in bytes; a longer one gets 413.")] = (
        1 << 20
    )
    events_per_message_max: Annotated[
        int, Meta(ge=1, le=65_536, description="Most events in one message (a JSON array), and in one POST.")
    ] = 1024
    window_messages: Annotated[
        int, Meta(ge=1, le=65_536, description="Most messages of one connection without an ack; then it is not read until acks are out.")
    ] = 1024
    connections_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Most WebSocket connections at a time; further upgrades get 503.")
    ] = 10_000
    posts_max: Annotated[int, Meta(ge=1, le=65_536, description="Most POST requests at a time; further ones get 503.")] = 256

    post_wait_s: Annotated[
        float, Meta(gt=0, le=3_600, description="How long a POST waits for its commit (longer only while the queue is full); then 503.")
    ] = 10.0

    idle_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1, le=86_400, description="A connection silent for so long is closed with 1001; after half of it the server sends a ping."
        ),
    ] = 120.0
    request_timeout_s: Annotated[
        float, Meta(ge=0.1, le=600, description="Longest wait for a whole request (its header, then its body), and between two requests.")
    ] = 15.0
    write_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3_600, description="A connection that reads none of its acks for so long is cut off.")
    ] = 30.0
    close_timeout_s: Annotated[
        float, Meta(ge=0.1, le=60, description="Longest wait for outstanding acks, and then for the client's answer, before a close.")
    ] = 5.0
    retry_after_s: Annotated[
        int, Meta(ge=1, le=3_600, description="What a 503 tells a client to wait (`Retry-After`, and `retry_ms` in the body).")
    ] = 5

    batch_rows_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Events gathered for one commit before reading stops (the last message may go over it).")
    ] = 16_384
    batch_bytes_max: Annotated[
        int,
        Meta(ge=1, le=1 << 30, description="Payload bytes gathered for one commit before reading stops (the last message may go over it)."),
    ] = 4 << 20
    batch_wait_us_max: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Extra wait for more events before a commit (the loop rounds it up to 1 ms); 0: none."),
    ] = 0
    commits_in_flight: Annotated[int, Meta(ge=1, le=64, description="Commits under way at a time while the next batch gathers.")] = 2


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` (`[::1]:8080` for IPv6); ValueError says what was expected."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"expected HOST:PORT with an IP address or localhost, got {listen!r}") from None
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"expected a port from 0 to 65535 behind the last colon, got {listen!r}")
    return host, int(port)


def listen_problem(config: IngestWsConfig) -> str | None:
    """Why devices cannot be served at `listen`, or None."""
    try:
        host, _ = parse_listen(config.listen)
    except ValueError as error:
        return str(error)
    if not ipaddress.ip_address(host).is_loopback:
        return f'expected a loopback address with auth = "none", got {config.listen!r}: anyone there could write as any device'
    return None
