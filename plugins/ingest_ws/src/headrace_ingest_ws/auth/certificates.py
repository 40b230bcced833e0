"""The server's certificate, and the authorities and revocation lists for devices' certificates: files to an SSL context."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace_ingest_ws.auth.options import MtlsOptions, TlsOptions
from headrace_ingest_ws.auth.rereading import Unreadable, read_file, stamp_of
from headrace_ingest_ws.half_close import HalfClosable

if TYPE_CHECKING:  # it needs the library cryptography, which TLS alone does not
    from headrace_ingest_ws.auth.authorities import Authorities

#: Of TLS 1.2 only what has forward secrecy and authenticated encryption; TLS 1.3 has nothing else.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsContext(ssl.SSLContext):
    """An SSL context that knows whom it trusts, and whose clients may end their side first."""

    sslobject_class = HalfClosable

    authorities: Authorities | None = None


def trusted_by(context: ssl.SSLContext) -> frozenset[bytes]:
    """The fingerprints of the authorities that a handshake with this context trusted."""
    authorities = context.authorities if isinstance(context, TlsContext) else None
    return authorities.fingerprints if authorities is not None else frozenset()


class Certificates:
    """One state of the files, as an SSL context; equal to another when the files' bytes are."""

    def __init__(self, context: TlsContext, digest: bytes, expires: float | None) -> None:
        self.context, self._digest = context, digest
        self.expires = expires
        """Unix time at which the server's own ends; None where no library can tell."""

    @property
    def authorities(self) -> Authorities | None:
        """Of devices' certificates; None without `mtls`."""
        return self.context.authorities

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificates) and self._digest == other._digest

    __hash__ = None  # type: ignore[assignment]


class CertificateFiles:
    """Where they come from; an `Origin`."""

    def __init__(self, tls: TlsOptions, mtls: MtlsOptions | None) -> None:
        self._tls, self._mtls = tls, mtls
        files = [tls.certificate, tls.key, *([mtls.client_ca] if mtls else []), *([mtls.crl] if mtls and mtls.crl else [])]
        self._paths = [Path(file) for file in files]

    def stamp(self) -> object:
        return stamp_of(*self._paths)

    def read(self) -> Certificates:
        before = self._contents()
        context = self._context()
        if self._contents() != before:
            raise Unreadable(f"{self._paths[0]}: the files changed while they were read")
        digest = hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in before)).digest()
        if self._mtls is not None:
            context.authorities = self._authorities(*before[2:])
        return Certificates(context, digest, _expires(before[0]))

    def _contents(self) -> list[bytes]:
        return [read_file(path) for path in self._paths]

    def _authorities(self, client_ca: bytes, crl: bytes = b"") -> Authorities:
        from headrace_ingest_ws.auth.authorities import read_authorities

        try:
            return read_authorities(client_ca, crl)
        except ValueError as error:
            raise Unreadable(f"{self._paths[2]}: expected certificates and revocation lists in PEM: {_plain(error)}") from None

    def _context(self) -> TlsContext:
        context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self._tls.version_min]
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        self._load_own(context)
        if self._mtls is not None:
            self._load_authorities(context, self._mtls)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        tls = self._tls
        try:
            # without a password given, OpenSSL would ask for it on the terminal
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: tls.key_password.reveal())
        except (ssl.SSLError, ValueError) as error:
            raise Unreadable(
                f"{tls.certificate} and {tls.key}: expected a certificate and its private key in PEM, and the key's password where it "
                f"has one: {_plain(error)}"
            ) from None
        except OSError as error:
            raise Unreadable(f"{error.filename or tls.certificate}: {error.strerror}") from None

    def _load_authorities(self, context: ssl.SSLContext, mtls: MtlsOptions) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        for file in filter(None, (mtls.client_ca, mtls.crl)):
            try:
                context.load_verify_locations(file)
            except (ssl.SSLError, ValueError) as error:
                raise Unreadable(f"{file}: expected certificates or revocation lists in PEM: {_plain(error)}") from None
            except OSError as error:
                raise Unreadable(f"{file}: {error.strerror}") from None
        stats = context.cert_store_stats()
        if not stats["x509_ca"]:
            raise Unreadable(f"{mtls.client_ca}: expected at least one certificate of an authority, got none")
        if mtls.crl:
            if not stats["crl"]:
                raise Unreadable(f"{mtls.crl}: expected at least one revocation list, got none")
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def _expires(pem: bytes) -> float | None:
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:  # OpenSSL takes it, and that is what counts
        return None


def _plain(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error) or type(error).__name__).lower().replace("_", " ")
