"""`auth = "jwt"`: tokens that somebody else signs, with the device and the end of their life in them."""

from __future__ import annotations

from typing import Any, Final

import jwt

from headrace import Context
from headrace_ingest_ws.auth.guard import Bearers
from headrace_ingest_ws.auth.identity import SEPARATOR, DevicePatterns, Identity, NotAuthorized, NotReady, Unknown, Why
from headrace_ingest_ws.auth.jwt_keys import Key, KeyFile, KeySet
from headrace_ingest_ws.auth.options import JwtOptions
from headrace_ingest_ws.auth.rereading import Rereading

#: What else a library may raise over hostile bytes: numbers that do not fit, JSON nested too deeply.
_BAD_BYTES: Final = (ValueError, TypeError, ArithmeticError, RecursionError)

_FAILURES: Final[tuple[tuple[type[jwt.PyJWTError], Why, str], ...]] = (
    (jwt.ExpiredSignatureError, "expired", "this token has expired"),
    (jwt.InvalidSignatureError, "signature", "the signature of this token does not fit"),
    (jwt.InvalidAudienceError, "claims", "this token is not for this server (aud)"),
    (jwt.InvalidIssuerError, "claims", "this token is from another issuer (iss)"),
    (jwt.ImmatureSignatureError, "claims", "this token does not hold yet (nbf or iat)"),
    (jwt.MissingRequiredClaimError, "claims", "this token lacks a claim that it needs"),
)


class JwtGuard(Bearers):
    """Checks signature and claims of each token; nothing is looked up anywhere."""

    def __init__(self, options: JwtOptions, context: Context) -> None:
        super().__init__()
        self._options = options
        self._keys: Rereading[KeySet] = Rereading(KeyFile(options), "keys", context, self.changed)

    @property
    def problem(self) -> str:
        return self._keys.problem

    def files(self) -> list[Rereading[Any]]:
        return [self._keys]

    async def refresh(self) -> None:
        await self._keys.refresh()

    def stands(self, identity: Identity) -> bool:
        """Whether the key that the token was checked with still holds."""
        keys = self._keys.value
        return keys is None or identity.proof in keys.fingerprints

    def identify_token(self, token: str) -> Identity:
        keys = self._keys.value
        if keys is None:
            raise NotReady
        key = self._key(keys, token)
        claims = self._claims(key, token)
        name = claims.get(self._options.device_claim)
        if not isinstance(name, str) or not name:
            raise NotAuthorized("claims", f"expected the claim {self._options.device_claim} with a name")
        return Identity(
            name,
            self._gateway(claims),
            credential=str(claims.get("jti") or key.kid or "")[:64],
            # accepted until then, so not ended before
            expires=claims["exp"] + self._options.skew_s,
            proof=key.fingerprint,
        )

    def _key(self, keys: KeySet, token: str) -> Key:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, *_BAD_BYTES):
            raise NotAuthorized("malformed", "expected a JSON Web Token") from None
        kid = header.get("kid")
        key = keys.find(kid) if kid is None or isinstance(kid, str) else None
        if key is None:
            raise Unknown("the key of this token (kid) is not known")
        if header.get("alg") != key.algorithm:
            raise NotAuthorized("signature", f"expected a token signed with {key.algorithm}")
        return key

    def _claims(self, key: Key, token: str) -> dict[str, Any]:
        options = self._options
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],  # never what the token says
                audience=options.audience or None,
                issuer=options.issuer or None,
                leeway=options.skew_s,
                options={"require": ["exp"]},
            )
            claims["exp"] = float(claims["exp"])
            return claims
        except jwt.PyJWTError as error:
            for kind, why, reason in _FAILURES:
                if isinstance(error, kind):
                    raise NotAuthorized(why, reason) from None
        except _BAD_BYTES:
            pass
        raise NotAuthorized("malformed", "expected a JSON Web Token")

    def _gateway(self, claims: dict[str, Any]) -> DevicePatterns | None:
        name = self._options.gateway_claim
        if name not in claims:
            return None
        value = claims[name]
        patterns = value if isinstance(value, list) else [value]
        try:
            if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError("expected a pattern of device names, or a list of them")
            return DevicePatterns(SEPARATOR.join(patterns))
        except ValueError as error:
            raise NotAuthorized("claims", f"claim {name}: {error}") from None
