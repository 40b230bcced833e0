"""The keys that JSON Web Tokens are checked with: from one key file, or from a JSON Web Key Set.

Each key is good for the one algorithm of its kind, so that nobody can have a public key taken for a shared secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from headrace_ingest_ws.auth.options import Algorithm, JwtOptions
from headrace_ingest_ws.auth.rereading import Unreadable, read_file, stamp_of

#: RFC 7518 section 3.2: as long as the hash.
SECRET_BYTES_MIN: Final = 32
RSA_BITS_MIN: Final = 2048
KEYS_MAX: Final = 1024
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


class Key(NamedTuple):
    """A key, its algorithm, its name in tokens, and what tells it from others."""

    kid: str | None
    algorithm: Algorithm
    key: Any
    fingerprint: bytes


class KeySet:
    """All keys that hold."""

    def __init__(self, keys: list[Key]) -> None:
        """Raises ValueError when there is none, or when two have the same `kid`."""
        if not keys:
            raise ValueError("expected at least one key for the algorithms that are taken, got none")
        self._by_kid = {key.kid: key for key in keys if key.kid is not None}
        if len(self._by_kid) + sum(key.kid is None for key in keys) != len(keys):
            raise ValueError("expected each `kid` once")
        self._only = keys[0] if len(keys) == 1 else None
        self.fingerprints = frozenset(key.fingerprint for key in keys)
        self._named = frozenset((key.kid, key.fingerprint) for key in keys)

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self._named == other._named

    __hash__ = None  # type: ignore[assignment]

    def find(self, kid: str | None) -> Key | None:
        """The key for a token: by its `kid`; without one only where there is no choice."""
        if kid is None:
            return self._only
        found = self._by_kid.get(kid)
        # a key without a name, such as that of a key file, is meant whatever the token calls it
        return found or (self._only if self._only is not None and self._only.kid is None else None)


class KeyFile:
    """Where the keys come from; an `Origin`."""

    def __init__(self, options: JwtOptions) -> None:
        self._options = options
        self._path = Path(options.key_file or options.jwks_file)

    def stamp(self) -> object:
        return stamp_of(self._path)

    def read(self) -> KeySet:
        data = read_file(self._path)
        algorithms = self._options.algorithms
        try:
            return KeySet([one_key(data, algorithms[0])] if self._options.key_file else list(_jwks(data, algorithms)))
        except ValueError as error:
            raise Unreadable(f"{self._path}: {error}") from None


def one_key(data: bytes, algorithm: Algorithm) -> Key:
    """The key in a key file. Raises ValueError, which never quotes it."""
    if algorithm == "HS256":
        return _shared(None, data.strip())
    if b"PRIVATE KEY-----" in data:
        raise ValueError("expected the public key alone, got a private one; keep that with whoever signs")
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            public: Any = x509.load_pem_x509_certificate(data).public_key()
        else:
            public = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("expected a public key or a certificate in PEM") from None
    return _public(None, public, algorithm)


def _jwks(data: bytes, algorithms: list[Algorithm]) -> Iterator[Key]:
    try:
        members = msgspec.json.decode(data, type=_Jwks).keys
    except (msgspec.DecodeError, RecursionError):
        raise ValueError('expected a JSON Web Key Set: {"keys": [{...}, ...]}') from None
    if len(members) > KEYS_MAX:
        raise ValueError(f"expected at most {KEYS_MAX} keys, got {len(members)}")
    for index, member in enumerate(members):
        algorithm = _algorithm(member)
        # RFC 7517 section 5: what one does not understand, or does not want, is to be ignored
        if algorithm not in algorithms or member.get("use", "sig") != "sig":
            continue
        kid = member.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise ValueError(f"key {index}: expected `kid` to be a string")
        try:
            if algorithm == "HS256":
                yield _shared(kid, jwt.PyJWK(member, algorithm).key)
            elif _PRIVATE & member.keys():
                raise ValueError("expected public keys alone, got a private one; keep that with whoever signs")
            else:
                yield _public(kid, jwt.PyJWK(member, algorithm).key, algorithm)
        except jwt.PyJWTError:
            raise ValueError(f"key {index}: expected a JSON Web Key of kind {member.get('kty')}") from None
        except ValueError as error:
            raise ValueError(f"key {index}: {error}") from None


class _Jwks(msgspec.Struct):
    keys: list[dict[str, Any]]


def _algorithm(member: dict[str, Any]) -> Algorithm | None:
    """The one algorithm that a JSON Web Key is good for here."""
    kinds: dict[tuple[Any, Any], Algorithm] = {("oct", None): "HS256", ("RSA", None): "RS256", ("EC", "P-256"): "ES256"}
    kind, curve = member.get("kty"), member.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithm = kinds.get((kind, curve))
    return algorithm if member.get("alg", algorithm) == algorithm else None


def _shared(kid: str | None, secret: Any) -> Key:
    if not isinstance(secret, bytes) or len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"expected a shared secret of at least {SECRET_BYTES_MIN} bytes")
    if b"-----BEGIN" in secret:
        raise ValueError("expected a shared secret for HS256, got PEM; for a public key take RS256 or ES256")
    return Key(kid, "HS256", secret, hashlib.sha256(b"HS256" + secret).digest())


def _public(kid: str | None, key: Any, algorithm: Algorithm) -> Key:
    if algorithm == "RS256" and isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS_MIN:
            raise ValueError(f"expected an RSA key of at least {RSA_BITS_MIN} bits, got {key.key_size}")
    elif not (algorithm == "ES256" and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        kind = "an RSA public key" if algorithm == "RS256" else "a public key on the curve P-256"
        raise ValueError(f"expected {kind} for {algorithm}, got {type(key).__name__.strip('_')}")
    text = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(kid, algorithm, key, hashlib.sha256(algorithm.encode() + text).digest())
