"""Tokens and their hashes: how one is made, what is kept of it, and which one a request has. No I/O.

A token is `hrt_<id>_<secret>`. The id finds its record; the secret is 256 random bits, of which only the SHA-256 of the whole
token is kept. A slow hash (bcrypt, Argon2) protects passwords, which people choose and which can be guessed; 256 random bits
cannot be, from their hash either. And it would hand whoever sends invalid tokens our processor.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

from headrace_ingest_ws.auth.identity import DevicePatterns, Identity, NotAuthorized, Unknown, patterns_problem
from headrace_ingest_ws.protocol import device_problem

PREFIX: Final = "hrt"
_ID_BYTES: Final = 10
_SECRET_BYTES: Final = 32
_TOKEN: Final = re.compile(rf"{PREFIX}_([a-z2-7]{{16}})_[a-z2-7]{{52}}")
_ID: Final = re.compile("[a-z2-7]{16}")
_SHA256: Final = re.compile("[0-9a-f]{64}")
_END: Final = b"\0"
_NOT_KNOWN: Final = "this token is not known, or was revoked"


class Record(NamedTuple):
    """What is kept of a token. devices: the patterns of a gateway, empty for a device. created: RFC 3339 text."""

    id: str
    sha256: str
    name: str
    devices: str = ""
    created: str = ""

    def problem(self) -> str | None:
        """What is wrong with it, or None. The hash is not shown."""
        if not _ID.fullmatch(self.id):
            return "expected an id of 16 characters a-z and 2-7"
        if not _SHA256.fullmatch(self.sha256):
            return f"expected a SHA-256 of 64 lower-case hexadecimal digits for token {self.id}"
        if problem := device_problem(self.name):
            return f"token {self.id}: {problem}"
        if self.devices and (problem := patterns_problem(self.devices)):
            return f"token {self.id}: {problem}"
        return None


def new_token(name: str, devices: str = "", created: str = "") -> tuple[str, Record]:
    """A fresh token, which is not kept anywhere, and its record."""
    identifier, secret = _text(secrets.token_bytes(_ID_BYTES)), _text(secrets.token_bytes(_SECRET_BYTES))
    token = f"{PREFIX}_{identifier}_{secret}"
    return token, Record(identifier, _sha256(token).hex(), name, devices, created)


class TokenSet:
    """All tokens that hold. A look-up costs one hash, one dict access and one comparison, however many there are.

    A record is one `bytes` object: 100,000 of them take some 12 MB, and nothing of that is looked at by the garbage collector.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        """Raises ValueError for the first record that is wrong, or that has the id of another."""
        self._packed: dict[str, bytes] = {}
        for record in records:
            if problem := record.problem():
                raise ValueError(problem)
            if record.id in self._packed:
                raise ValueError(f"expected each id once, got token {record.id} again")
            self._packed[record.id] = bytes.fromhex(record.sha256) + record.name.encode() + _END + record.devices.encode()

    def __len__(self) -> int:
        return len(self._packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSet) and self._packed == other._packed

    __hash__ = None  # type: ignore[assignment]

    def records(self) -> Iterable[Record]:
        """The records again, without their times of creation."""
        for identifier, packed in self._packed.items():
            name, _, devices = packed[32:].partition(_END)
            yield Record(identifier, packed[:32].hex(), name.decode(), devices.decode())

    def identify(self, token: str) -> Identity:
        """Whose token this is; NotAuthorized when it is nobody's, and then Unknown when its id is new to us."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise NotAuthorized("malformed", "expected a token as headrace devices token add prints it")
        packed = self._packed.get(match[1])
        # the id is no secret, so its absence may show in the time it takes; how much of a hash agrees must not
        if packed is None:
            raise Unknown(_NOT_KNOWN)
        if not hmac.compare_digest(packed[:32], _sha256(token)):
            raise NotAuthorized("unknown", _NOT_KNOWN)
        name, _, devices = packed[32:].partition(_END)
        gateway = DevicePatterns(devices.decode()) if devices else None
        return Identity(name.decode(), gateway, credential=match[1], proof=packed)

    def holds(self, identity: Identity) -> bool:
        """Whether the token of an identity is still there, with the same name and patterns."""
        return identity.proof is not None and self._packed.get(identity.credential) == identity.proof


def _text(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
