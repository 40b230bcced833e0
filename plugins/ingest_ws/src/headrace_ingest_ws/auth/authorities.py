"""The authorities that sign devices' certificates, and what they revoked. No I/O."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256

_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class Authorities(NamedTuple):
    """The authorities by their fingerprints, and (issuer, serial number) of every revoked certificate.

    outdated: Unix time from which on a revocation list, and with it every device, is refused; None: never.
    """

    certificates: dict[bytes, x509.Certificate]
    fingerprints: frozenset[bytes]
    revoked: frozenset[tuple[bytes, int]]
    outdated: float | None

    def signer(self, certificate: x509.Certificate) -> bytes | None:
        """The fingerprint of the authority that signed a certificate itself, or None."""
        return next((mark for mark, authority in self.certificates.items() if _signed(certificate, authority)), None)


def read_authorities(client_ca: bytes, crl: bytes) -> Authorities:
    """From the bytes of both PEM files. Raises ValueError."""
    certificates = {one.fingerprint(SHA256()): one for one in x509.load_pem_x509_certificates(client_ca)}
    lists = [x509.load_pem_x509_crl(block) for block in _CRL.findall(crl)]
    revoked = frozenset((one.issuer.public_bytes(), entry.serial_number) for one in lists for entry in one)
    outdated = min((one.next_update_utc.timestamp() for one in lists if one.next_update_utc is not None), default=None)
    return Authorities(certificates, frozenset(certificates), revoked, outdated)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate.issuer != authority.subject:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
