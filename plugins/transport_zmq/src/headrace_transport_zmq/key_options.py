"""The keys that the options of a link name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.keys import KeysError, Pair, public_key, read_allowed, read_pair

T = TypeVar("T")


class Keys(NamedTuple):
    """pair: this end's (None: no keys at all). server: at a connecting end, the other's public key. allowed: at a listening end, the
    public keys that may come in, with their names."""

    pair: Pair | None = None
    server: bytes = b""
    allowed: dict[bytes, str] | None = None


def read_keys(config: TransportConfig) -> Keys:
    """Read what the options name. KeysError, with the option, when one cannot be used. Blocks."""
    if config.key_file is None:
        return Keys()
    pair = _of("key_file", lambda: read_pair(Path(config.key_file or "")))
    server, allowed = config.server_key, config.allow_keys_file
    return Keys(
        pair,
        _of("server_key", lambda: public_key(server)) if server is not None else b"",
        _of("allow_keys_file", lambda: read_allowed(Path(allowed))) if allowed is not None else None,
    )


def _of(option: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except KeysError as error:
        error.option = option
        raise
