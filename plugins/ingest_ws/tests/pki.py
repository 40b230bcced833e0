"""Certificates made for a test: an authority, and what it signs."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate in two files."""

    certificate: Path
    key: Path
    x509: x509.Certificate


@dataclass
class Authority:
    """Signs certificates and revocation lists; its own certificate is in `file`."""

    folder: Path
    name: str = "test authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    revoked: list[int] = field(default_factory=list)
    parent: Authority | None = None

    def __post_init__(self) -> None:
        public = self.key.public_key()
        signer = self.parent or self
        builder = _builder(_named(self.name), _named(signer.name), public, 365 * DAY)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = builder.add_extension(usage, critical=True).sign(signer.key, SHA256())
        self.file = self.folder / f"{self.name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self, name: str, names: Sequence[x509.GeneralName], lasts: datetime.timedelta = 30 * DAY, password: bytes | None = None
    ) -> Issued:
        """A certificate `name`.pem with these subject alternative names, and its key `name`.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(name), self.certificate.subject, key.public_key(), lasts)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(authority, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, SHA256())
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key", certificate)
        issued.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return issued

    def server(self, name: str = "server") -> Issued:
        """A certificate for 127.0.0.1 and localhost."""
        return self.issue(name, [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])

    def device(self, name: str, lasts: datetime.timedelta = 30 * DAY, gateway: str = "") -> Issued:
        """A client certificate for a device; `gateway`: the pattern that it may write for."""
        uris = [x509.UniformResourceIdentifier(f"urn:headrace:devices:{gateway}")] if gateway else []
        return self.issue(name, [x509.DNSName(name), *uris], lasts)

    def revoke(self, *issued: Issued, lasts: datetime.timedelta = DAY) -> bytes:
        """The revocation list with these, and with those before, in PEM."""
        self.revoked += [one.x509.serial_number for one in issued]
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(NOW - DAY).next_update(NOW + lasts)
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lasts: datetime.timedelta) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + lasts)
