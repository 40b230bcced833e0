"""The options of a link, at either end."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

import msgspec
import zmq
from msgspec import Meta

from headrace import Config

MIB: Final = 1 << 20
_ADDRESS: Final = r"^tcp://.+:\d{1,5}$"
#: A topic, where it is a group of RADIO and DISH.
GROUP_BYTES_MAX: Final = 255
_FAN_ADDRESS: Final = r"^(tcp|udp)://.+:\d{1,5}$"


class Peer(Config, frozen=True, kw_only=True):
    """One of several far tiers of an output: `[[...peers]]`."""

    name: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,64}$", description="Its name; keep it when only its address changes.")]
    connect: Annotated[str, Meta(pattern=_ADDRESS, description="Its address.")]
    server_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None, Meta(description="Its public key, where it is not the output's `server_key`.")
    ] = None


class TransportConfig(Config, frozen=True, kw_only=True):
    """`listen` makes it a source, `connect` an output: a durable link. `publish` makes it an output, `subscribe` a source: a fan-out."""

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
    peers: Annotated[
        tuple[Peer, ...],
        Meta(max_length=16, description="As an output, in the place of `connect`: several far tiers, the preferred one first."),
    ] = ()
    publish: Annotated[
        Annotated[str, Meta(pattern=_FAN_ADDRESS)] | None,
        Meta(description='As an output with `hold = "none"`: where subscribers come to, such as `tcp://127.0.0.1:5556`.'),
    ] = None
    subscribe: Annotated[
        Annotated[str, Meta(pattern=_FAN_ADDRESS)] | None, Meta(description="As a source: the address of a tier that publishes.")
    ] = None
    topics: Annotated[
        tuple[Annotated[str, Meta(max_length=255)], ...],
        Meta(
            min_length=1, max_length=4096, description="With `subscribe`: beginnings of the topics that are wanted; an empty one wants all."
        ),
    ] = ("",)
    pattern: Annotated[
        Literal["pubsub", "radio"],
        Meta(description="With `publish` or `subscribe`: PUB and SUB, or RADIO and DISH (also over `udp://`)."),
    ] = "pubsub"
    queued_messages_max: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Most messages kept by `publish` for a subscriber that is behind, which then loses; most waiting at `subscribe`.",
        ),
    ] = 128
    message_bytes_max: Annotated[
        int, Meta(ge=1 << 12, le=1 << 30, description="With `publish`: larger batches are published in parts of about this size.")
    ] = MIB // 2
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

    @property
    def ends(self) -> dict[str, str]:
        """Option -> address of what it is to be; one of them, when it is right."""
        options = {
            "listen": self.listen,
            "connect": self.connect,
            "peers": self.peers[0].connect if self.peers else None,
            "publish": self.publish,
            "subscribe": self.subscribe,
        }
        return {option: address for option, address in options.items() if address is not None}

    @property
    def sends(self) -> bool:
        """Whether it is the output of a link."""
        return self.connect is not None or bool(self.peers)

    def of_peer(self, peer: Peer) -> TransportConfig:
        """The options of a link to one of several far tiers."""
        key = peer.server_key or self.server_key
        return msgspec.structs.replace(self, connect=peer.connect, peer=peer.name, peers=(), server_key=key)

    @property
    def waits(self) -> bool:
        """Whether others connect to it."""
        return bool(self.listen or self.publish)


def problem(config: TransportConfig) -> str:
    """Why this cannot be a link or a fan-out; empty when it can."""
    if config.peers and not config.ends.keys() - {"peers"}:
        return _peers_problem(config)
    if len(config.ends) != 1:
        came = " and ".join(config.ends) or "none"
        return f"expected one of `listen`, `subscribe` (a source), `connect`, `peers` and `publish` (an output), got {came}"
    if found := _keys_problem(config) or _pattern_problem(config):
        return found
    (address,) = config.ends.values()
    if not config.insecure and config.key_file is None and not is_loopback(address):
        needed = "allow_keys_file" if config.waits else "server_key"
        if address.startswith("udp:"):
            return f"{address} is not a loopback address, and there are no keys over UDP: set insecure = true, if whoever is there may read"
        return (
            f"{address} is not a loopback address, and there are no keys: make them with `headrace keys new`, and set key_file and {needed}"
            " (or insecure = true, if whoever reaches that address may read and send)"
        )
    if config.heartbeat_s >= config.dead_after_s:
        return f"dead_after_s: expected more than heartbeat_s ({config.heartbeat_s:g}), got {config.dead_after_s:g}"
    return ""


def _peers_problem(config: TransportConfig) -> str:
    names, places = {peer.name for peer in config.peers}, {peer.connect for peer in config.peers}
    if config.peer or len(names) < len(config.peers) or len(places) < len(config.peers):
        return "peers: expected names and addresses that are all different, and no `peer` beside them"
    found = ((peer, problem(config.of_peer(peer))) for peer in config.peers)
    return next((f"peers: {peer.name}: {why}" for peer, why in found if why), "")


def _keys_problem(config: TransportConfig) -> str:
    needed, foreign = ("allow_keys_file", "server_key") if config.waits else ("server_key", "allow_keys_file")
    end = "listening" if config.waits else "connecting"
    if getattr(config, foreign) is not None:
        return f"{foreign}: not for the {end} end, which has {needed}"
    if (config.key_file is None) != (getattr(config, needed) is None):
        have, lack = ("key_file", needed) if config.key_file else (needed, "key_file")
        return f"{lack}: expected one beside {have}, got none; make keys with `headrace keys new`"
    return ""


def _pattern_problem(config: TransportConfig) -> str:
    (address,) = config.ends.values()
    if config.pattern == "pubsub":
        return f'{address}: udp needs pattern = "radio"' if address.startswith("udp:") else ""
    if not config.ends.keys() & {"publish", "subscribe"}:
        return "pattern: only for `publish` and `subscribe`"
    if not zmq.DRAFT_API:
        return (
            f'pattern: "radio" needs the draft API of libzmq, and libzmq {zmq.zmq_version()} under pyzmq {zmq.__version__} is built without'
            ' it; use pattern = "pubsub", which carries the same events'
        )
    if config.subscribe is not None and "" in config.topics:
        return 'topics: DISH knows whole topics and no beginnings: name each that is wanted, or publish all under one (`topic = "all"`)'
    if any(len(topic.encode()) > GROUP_BYTES_MAX for topic in config.topics):
        return f"topics: DISH takes {GROUP_BYTES_MAX} bytes of UTF-8 at most"
    if address.startswith("udp:") and config.key_file is not None:
        return "key_file: nothing is encrypted over UDP; use tcp, or no keys and insecure = true"
    return ""


def is_loopback(address: str) -> bool:
    """Whether only this machine can be on the other end."""
    host = re.sub(r"^(?:tcp|udp)://\[?(.*?)\]?:\d+$", r"\1", address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
