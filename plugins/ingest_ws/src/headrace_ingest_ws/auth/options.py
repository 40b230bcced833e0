"""The options of TLS and of each `auth`, and what is wrong with their combination. No I/O."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from headrace.config import Secret

Auth = Literal["none", "tokens", "jwt", "mtls"]
Algorithm = Literal["HS256", "RS256", "ES256"]

#: Where the name of the device stands in `mtls.san`, and the pattern in `mtls.gateway_san`.
DEVICE_PLACE: Final = "{device}"
DEVICES_PLACE: Final = "{devices}"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the nested tables."""


class TlsOptions(Options, frozen=True, kw_only=True):
    """`[...tls]`: the server's certificate."""

    certificate: Annotated[str, Meta(min_length=1, description="File with the certificate and its chain, PEM.")]
    key: Annotated[str, Meta(min_length=1, description="File with the certificate's private key, PEM.")]
    key_password: Annotated[Secret, Meta(description="Password of the private key. Empty: it has none.")] = Secret("")
    version_min: Annotated[Literal["1.2", "1.3"], Meta(description="Oldest version of TLS that is spoken.")] = "1.2"


class TokensOptions(Options, frozen=True, kw_only=True):
    """`[...tokens]`: where the hashes of the tokens are. Exactly one of `file` and `database`."""

    file: Annotated[str, Meta(description="File with the tokens' hashes, as `headrace devices token add --file` writes it.")] = ""
    database: Annotated[
        Secret, Meta(description="SQLAlchemy URL of a database with the table `headrace_tokens` (`headrace devices token add --database`).")
    ] = Secret("")
    connect_timeout_s: Annotated[int, Meta(ge=1, le=300, description="Longest wait for a connection to the database.")] = 5

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.database):
            raise ValueError(f"expected one of `file` and `database`, got {'both' if self.file else 'neither'}")


class JwtOptions(Options, frozen=True, kw_only=True):
    """`[...jwt]`: whose tokens are believed, and what they say. Exactly one of `key_file` and `jwks_file`."""

    algorithms: Annotated[
        list[Algorithm], Meta(min_length=1, description="The algorithms that are taken, and no others; one of them with `key_file`.")
    ]
    key_file: Annotated[
        str, Meta(description="File with the public key (RS256, ES256: PEM), or with the shared secret (HS256: 32 bytes or more).")
    ] = ""
    jwks_file: Annotated[str, Meta(description="File with a JSON Web Key Set; a token's `kid` chooses the key.")] = ""
    audience: Annotated[str, Meta(description="What `aud` has to name. Empty: a token with `aud` is refused.")] = ""
    issuer: Annotated[str, Meta(description="What `iss` has to be. Empty: any.")] = ""
    skew_s: Annotated[float, Meta(ge=0, le=600, description="How far clocks may differ, for `exp` and `nbf`.")] = 30.0
    device_claim: Annotated[str, Meta(min_length=1, description="The claim with the name of the device, or of the gateway.")] = "sub"
    gateway_claim: Annotated[
        str, Meta(min_length=1, description="The claim that makes a gateway: a pattern of device names, or a list of them.")
    ] = "headrace_devices"

    def __post_init__(self) -> None:
        if bool(self.key_file) == bool(self.jwks_file):
            raise ValueError(f"expected one of `key_file` and `jwks_file`, got {'both' if self.key_file else 'neither'}")
        if self.key_file and len(self.algorithms) != 1:
            raise ValueError("expected one entry of `algorithms` with `key_file`: a key is good for one")

    @property
    def rules(self) -> object:
        """What a token is judged by, besides the keys."""
        return self.algorithms, self.audience, self.issuer, self.skew_s, self.device_claim, self.gateway_claim


class MtlsOptions(Options, frozen=True, kw_only=True):
    """`[...mtls]`: which client certificates are believed, and where the device's name stands in them."""

    client_ca: Annotated[str, Meta(min_length=1, description="File with the certificates of the authorities that sign devices', PEM.")]
    crl: Annotated[
        str, Meta(description="File with their revocation lists, PEM, one of each authority; one that is out of date refuses everybody.")
    ] = ""
    san: Annotated[
        str,
        Meta(description="The subject alternative name that holds the device's name: `dns:` or `uri:`, then text with `{device}` in it."),
    ] = "dns:{device}"
    gateway_san: Annotated[str, Meta(description="The one that makes a gateway: as `san`, with `{devices}` where the pattern stands.")] = (
        "uri:urn:headrace:devices:{devices}"
    )

    def __post_init__(self) -> None:
        for name, place in (("san", DEVICE_PLACE), ("gateway_san", DEVICES_PLACE)):
            template = getattr(self, name)
            if not template.startswith(("dns:", "uri:")) or template.count(place) != 1:
                raise ValueError(f"expected `{name}` to begin with dns: or uri: and to have {place} once, got {template!r}")

    @property
    def rules(self) -> object:
        """What a certificate is judged by, besides the authorities."""
        return self.san, self.gateway_san


def tables_problem(auth: Auth, tls: object, tables: dict[Auth, object]) -> str | None:
    """What is wrong with the tables that are there beside this `auth`, or None. One that is not used would look as if it were."""
    for name, table in tables.items():
        if table is not None and name != auth:
            return f'auth = "{auth}" does not use the table `{name}`; set auth = "{name}", or leave the table out'
    if auth != "none" and tables[auth] is None:
        return f'auth = "{auth}" needs the table `{auth}`'
    if auth == "mtls" and tls is None:
        return 'auth = "mtls" needs the table `tls`'
    return None


def exposure_problem(auth: Auth, has_tls: bool, listen: str) -> str | None:
    """Why nobody should listen on an address that others reach, or None."""
    sentences = []
    if auth == "none":
        sentences.append('with auth = "none" anyone there could write as any device')
    if not has_tls:
        sentences.append("without the table `tls` credentials and events travel in the clear")
    if not sentences:
        return None
    return (
        f"{listen} is not a loopback address, and {' and '.join(sentences)}; add what is missing, listen on 127.0.0.1, "
        "or set insecure = true if something before this server takes care of it"
    )
