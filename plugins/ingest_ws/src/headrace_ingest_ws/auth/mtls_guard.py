"""`auth = "mtls"`: the device's certificate says who it is. The TLS handshake has checked it; here it is read."""

from __future__ import annotations

import re
import ssl
import urllib.parse
from typing import Any, NamedTuple

from aiohttp import web
from cryptography import x509

from headrace import Clock
from headrace_ingest_ws.auth.authorities import Authorities
from headrace_ingest_ws.auth.certificates import Certificates, trusted_by
from headrace_ingest_ws.auth.guard import Guard
from headrace_ingest_ws.auth.identity import SEPARATOR, DevicePatterns, Identity, NotAuthorized, NotReady
from headrace_ingest_ws.auth.options import DEVICE_PLACE, DEVICES_PLACE, MtlsOptions
from headrace_ingest_ws.auth.rereading import Rereading


class Proof(NamedTuple):
    """What is kept of a certificate: enough to see later whether it was revoked, or its authority taken out."""

    issuer: bytes
    serial: int
    #: The authority that signed it, or None where one of its intermediates did.
    authority: bytes | None
    #: All authorities that its handshake trusted.
    authorities: frozenset[bytes]


class MtlsGuard(Guard):
    """Takes the device's name from a subject alternative name."""

    def __init__(self, options: MtlsOptions, certificates: Rereading[Certificates], clock: Clock) -> None:
        super().__init__()
        self._san = _template(options.san, DEVICE_PLACE)
        self._gateway_san = _template(options.gateway_san, DEVICES_PLACE)
        self._certificates, self._clock = certificates, clock

    def identify(self, request: web.Request, device: str) -> Identity:
        authorities = self._authorities()
        tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        der = tls.getpeercert(True) if tls is not None else None
        if tls is None or not der:
            raise NotAuthorized("missing", "expected a client certificate")
        identity = self._read(der, authorities, device, tls.context)
        self._refuse_outlived(identity)
        identity.refuse_unless(device)
        identity.generation = self.generation
        return identity

    def stands(self, identity: Identity) -> bool:
        proof, authorities = identity.proof, self._authorities()
        if not isinstance(proof, Proof) or (proof.issuer, proof.serial) in authorities.revoked:
            return False
        if proof.authority is not None:
            return proof.authority in authorities.fingerprints
        # an intermediate signed it: other authorities have to see the whole chain again
        return proof.authorities == authorities.fingerprints

    @property
    def problem(self) -> str:
        certificates = self._certificates.value
        authorities = certificates.authorities if certificates is not None else None
        if authorities is not None and authorities.outdated is not None and self._clock.wall() >= authorities.outdated:
            return "a revocation list is out of date, so no device is let in; put a new one in its place"
        return ""

    def _authorities(self) -> Authorities:
        certificates = self._certificates.value
        if certificates is None or certificates.authorities is None:
            raise NotReady
        return certificates.authorities

    def _refuse_outlived(self, identity: Identity) -> None:
        """A connection that stays for many POSTs shook hands once, and files and time have gone on since."""
        if identity.expired(self._clock.wall()):
            raise NotAuthorized("expired", "this client certificate has expired")
        if not self.stands(identity):
            raise NotAuthorized("unknown", "this client certificate was revoked, or its authority is not trusted any more")

    def _read(self, der: bytes, authorities: Authorities, device: str, context: ssl.SSLContext) -> Identity:
        try:
            certificate = x509.load_der_x509_certificate(der)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            raise NotAuthorized("claims", "expected a client certificate with a subject alternative name") from None
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion):
            raise NotAuthorized("malformed", "expected a client certificate that can be read") from None
        devices = self._san.found(names)
        if not devices:
            raise NotAuthorized("claims", "expected a client certificate with the name of a device")
        return Identity(
            device if device in devices else devices[0],
            self._gateway(names),
            credential=f"{certificate.serial_number:x}",
            expires=certificate.not_valid_after_utc.timestamp(),
            proof=Proof(certificate.issuer.public_bytes(), certificate.serial_number, authorities.signer(certificate), trusted_by(context)),
        )

    def _gateway(self, names: x509.SubjectAlternativeName) -> DevicePatterns | None:
        patterns = self._gateway_san.found(names)
        if not patterns:
            return None
        try:
            return DevicePatterns(SEPARATOR.join(patterns))
        except ValueError as error:
            raise NotAuthorized("claims", f"subject alternative name: {error}") from None


class _Template(NamedTuple):
    kind: type[Any]
    matches: re.Pattern[str]

    def found(self, names: x509.SubjectAlternativeName) -> list[str]:
        """What stands in the place, in each name of this kind that has the text around it."""
        matches = [self.matches.fullmatch(name) for name in names.get_values_for_type(self.kind)]
        texts = [match[1] for match in matches if match is not None]
        return [urllib.parse.unquote(text) for text in texts] if self.kind is x509.UniformResourceIdentifier else texts


def _template(text: str, place: str) -> _Template:
    kind, _, rest = text.partition(":")
    before, _, behind = rest.partition(place)
    pattern = re.compile(f"{re.escape(before)}(.+){re.escape(behind)}", re.DOTALL)
    return _Template(x509.DNSName if kind == "dns" else x509.UniformResourceIdentifier, pattern)
