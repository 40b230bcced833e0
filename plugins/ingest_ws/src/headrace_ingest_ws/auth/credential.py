"""The bearer token of a request: in `Authorization`, or for browsers as a subprotocol. Never in the URL. No I/O."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

from headrace_ingest_ws.auth.identity import NotAuthorized

#: Browsers cannot set headers on a WebSocket, but may name subprotocols: this, and the token in base64url without padding.
BEARER_SUBPROTOCOL: Final = "base64url.bearer.authorization.headrace."

TOKEN_LENGTH_MAX: Final = 8192
#: RFC 6750 section 2.1
_B64TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def bearer_token(authorizations: Sequence[str], subprotocols: Sequence[str]) -> str:
    """The one token among the values of `Authorization` and the subprotocols offered; NotAuthorized when there is not one."""
    tokens = [_from_header(value) for value in authorizations]
    tokens += [_from_subprotocol(offer) for offer in subprotocols if offer.startswith(BEARER_SUBPROTOCOL)]
    if not tokens:
        raise NotAuthorized("missing", "expected the header Authorization: Bearer TOKEN")
    if len(tokens) > 1:
        raise NotAuthorized("malformed", f"expected one token, got {len(tokens)}")
    return tokens[0]


def subprotocols_offered(values: Sequence[str]) -> list[str]:
    """The subprotocols in the values of `Sec-WebSocket-Protocol`, in their order."""
    return [offer for value in values for offer in map(str.strip, value.split(",")) if offer]


def _from_header(value: str) -> str:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise NotAuthorized("malformed", "expected the header Authorization: Bearer TOKEN, got another scheme")
    return _checked(token.strip(" "))


def _from_subprotocol(offer: str) -> str:
    text = offer.removeprefix(BEARER_SUBPROTOCOL)
    try:
        if len(text) > 2 * TOKEN_LENGTH_MAX or "=" in text:
            raise ValueError
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        raise NotAuthorized("malformed", f"expected {BEARER_SUBPROTOCOL} and the token in base64url without padding") from None
    return _checked(token)


def _checked(token: str) -> str:
    if len(token) > TOKEN_LENGTH_MAX or _B64TOKEN.fullmatch(token) is None:
        raise NotAuthorized("malformed", "expected a token of letters, digits and -._~+/")
    return token
