"""The options of `ingest_ws`."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec
from msgspec import Meta

from headrace import Config
from headrace_ingest_ws.auth.options import (
    Auth,
    JwtOptions,
    MtlsOptions,
    TlsOptions,
    TokensOptions,
    exposure_problem,
    tables_problem,
)


class IngestWsConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where devices connect, and every bound."""

    auth: Annotated[
        Auth,
        Meta(
            description="How devices prove who they are, with a table of the same name. `none`: not at all, only for loopback; it has to "
            "be written down."
        ),
    ]
    tokens: Annotated[TokensOptions | None, Meta(description='With `auth = "tokens"`: where the hashes of the tokens are.')] = None
    jwt: Annotated[JwtOptions | None, Meta(description='With `auth = "jwt"`: whose tokens are believed.')] = None
    mtls: Annotated[MtlsOptions | None, Meta(description='With `auth = "mtls"`: whose client certificates are believed.')] = None
    tls: Annotated[TlsOptions | None, Meta(description="The server's certificate. Without this table it speaks no TLS.")] = None
    insecure: Annotated[
        bool,
        Meta(
            description='Listen on an address that others reach, although `auth = "none"` or `tls` is missing: for whom something before '
            "this server takes care of it."
        ),
    ] = False
    listen: Annotated[
        str, Meta(description="Address and port for devices, `HOST:PORT`; HOST is an IP address or `localhost`, port 0 takes a free one.")
    ] = "127.0.0.1:8080"

    message_bytes_max: Annotated[
        int, Meta(ge=64, le=16 << 20, description="Longest WebSocket message in bytes; a longer one closes the connection with 1009.")
    ] = 131_072
    unfinished_bytes_max: Annotated[
        int,
        Meta(
            ge=1 << 20,
            description="Bytes of unfinished WebSocket messages that are held for all connections together; "
            "the one that needs more is closed with 1013.",
        ),
    ] = 256 << 20
    post_bytes_max: Annotated[
        int, Meta(ge=64, le=64 << 20, description="Longest body of a POST in bytes, inflated; a longer one gets 413.")
    ] = 1 << 20
    events_per_message_max: Annotated[
        int, Meta(ge=1, le=65_536, description="Most events in one message (an array, a SenML pack), and in one POST.")
    ] = 1024
    window_messages: Annotated[
        int, Meta(ge=1, le=65_536, description="Most messages of one connection without an ack; then it is not read until acks are out.")
    ] = 1024
    connections_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Most WebSocket connections at a time; further upgrades get 503.")
    ] = 10_000
    connections_per_address_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Most sockets of one IP address (IPv6: of one /64) at a time, of any kind; further ones get 429. 0: no such bound.",
        ),
    ] = 0
    connections_per_address_per_s_max: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="Most new sockets per second of one IP address (IPv6: of one /64), after a pause ten seconds' worth at once; "
            "further ones get 429. 0: no such bound.",
        ),
    ] = 0.0
    handshakes_max: Annotated[
        int,
        Meta(
            ge=1,
            le=65_536,
            description="Most sockets at a time that are no WebSocket connection: before their request, in a POST, between two. "
            "When all are taken, newcomers wait, and who has waited a quarter of request_timeout_s for a request is closed.",
        ),
    ] = 4096
    posts_max: Annotated[int, Meta(ge=1, le=65_536, description="Most POST requests at a time; further ones get 503.")] = 256

    device_events_per_s_max: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="Most events per second of one device, over all its connections and POSTs; further messages are rejected "
            "with the code `rate`, POSTs get 429. 0: no limit.",
        ),
    ] = 0.0
    device_bytes_per_s_max: Annotated[
        float, Meta(ge=0, le=1 << 30, description="Most bytes of messages per second of one device, likewise. 0: no limit.")
    ] = 0.0
    device_burst_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3_600,
            description="For how many seconds' worth of both rates a device may send at once, after a pause of that length.",
        ),
    ] = 10.0

    post_wait_s: Annotated[
        float, Meta(gt=0, le=3_600, description="How long a POST waits for its commit (longer only while the queue is full); then 503.")
    ] = 10.0

    idempotency_keep_s: Annotated[
        float, Meta(gt=0, le=31_536_000, description="How long a POST is remembered by its `Idempotency-Key`.")
    ] = 86_400.0
    idempotency_keys_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Most keys of POSTs remembered; the oldest goes first. The queue's own bounds hold too.")
    ] = 16_384

    idle_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1, le=86_400, description="A connection silent for so long is closed with 1001; after half of it the server sends a ping."
        ),
    ] = 120.0
    message_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3_600,
            description="Longest time from a message's first byte to its last, or for a ping's; then the connection is closed with 1008.",
        ),
    ] = 60.0
    connection_age_s_max: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description="A connection of that age is closed with 1012 after its acks, so that devices spread over new servers; 0: never.",
        ),
    ] = 0.0
    connection_age_jitter_ratio: Annotated[
        float,
        Meta(ge=0, le=0.9, description="Each connection ends at a random age, by up to this share of `connection_age_s_max` before it."),
    ] = 0.2
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
    commits_in_flight: Annotated[int, Meta(ge=1, le=64, description="Commits under way at a time while the next batch gathers.")] = 1

    def __post_init__(self) -> None:
        if problem := tables_problem(self.auth, self.tls, {"tokens": self.tokens, "jwt": self.jwt, "mtls": self.mtls}):
            raise ValueError(problem)


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


def only_credentials_differ(one: IngestWsConfig, other: IngestWsConfig) -> bool:
    """Whether a server can go from one config to the other without a restart."""
    as_before = msgspec.structs.replace(
        other, tokens=one.tokens, jwt=one.jwt, mtls=one.mtls, tls=one.tls, insecure=one.insecure, auth=one.auth
    )
    return as_before == one and other.auth == one.auth and (other.tls is None) == (one.tls is None)


def listen_problem(config: IngestWsConfig) -> str | None:
    """Why devices cannot be served at `listen`, or None."""
    try:
        parse_listen(config.listen)
    except ValueError as error:
        return str(error)
    if config.insecure:
        return None
    return exposed(config)


def exposed(config: IngestWsConfig) -> str | None:
    """What is open to whoever reaches `listen` beyond this machine, or None."""
    host, _ = parse_listen(config.listen)
    if ipaddress.ip_address(host).is_loopback:
        return None
    return exposure_problem(config.auth, config.tls is not None, config.listen)
