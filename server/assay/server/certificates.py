"""The federation's certificate authority: one root, one server certificate, one certificate per holder.

X.509 version 3 (RFC 5280), P-384 and SHA-384 throughout. The root signs leaves only (path length 0).
Every certificate carries the key identifiers and usages that strict verifiers ask for.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from assay.privacy.enrolment import Request
from assay.privacy.files import write_durably
from assay.privacy.transport import load_certificate, load_request, load_transport_key, new_transport_key

__all__ = ["CLIENT_DAYS", "Authority", "days_left", "serves_host"]

CA_DAYS = 3650
SERVER_DAYS = 397
CLIENT_DAYS = 730
# A holder's clock may be behind by a day without refusing a fresh certificate.
_BACKDATED = timedelta(days=1)


def days_left(pem: str, now: float, *, where: str) -> float:
    """Return how many days a PEM certificate is still valid at ``now``; negative when it has expired."""
    last = load_certificate(pem, setting="certificate", where=where).not_valid_after_utc
    return (last.timestamp() - now) / 86400


class Authority:
    """The root key and certificate of one federation.

    Attributes:
        certificate_pem: the root certificate, which every holder pins.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate_pem: str) -> None:
        self._key = key
        self._certificate = load_certificate(certificate_pem, setting="certificate", where="ca.pem")
        self.certificate_pem = certificate_pem

    @classmethod
    def create(cls, key_file: Path, certificate_file: Path, name: str, now: float) -> Authority:
        """Make a root key and certificate for the federation ``name`` and write both."""
        key = new_transport_key(key_file)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Assay {name}")])
        builder = _builder(subject, subject, key.public_key(), now, CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        certificate = builder.add_extension(authority_key, critical=False).sign(key, hashes.SHA384())
        write_durably(certificate_file, _pem(certificate).encode())
        return cls(key, _pem(certificate))

    @classmethod
    def load(cls, key_file: Path, certificate_file: Path) -> Authority:
        """Read what :meth:`create` wrote.

        Raises:
            BadInput: a file is missing, readable by others or not what it must be.
        """
        return cls(load_transport_key(key_file), certificate_file.read_text(encoding="ascii"))

    def certify_client(self, request: Request, now: float) -> str:
        """Return a TLS client certificate for the holder of ``request``, valid for two years.

        Only the key and the name are taken from the request; what else a signing request asks for is
        not granted.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.name)])
        key = load_request(request.csr_pem, where=request.where).public_key()
        return _pem(self._leaf(subject, key, now, CLIENT_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, None))

    def certify_server(self, key_file: Path, certificate_file: Path, host: str, now: float) -> None:
        """Make a new server key and a certificate for ``host`` and the loopback names, and write both."""
        names = list(dict.fromkeys([host, "localhost", "127.0.0.1", "::1"]))
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        key = new_transport_key(key_file)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")])
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        certificate = self._leaf(subject, key.public_key(), now, SERVER_DAYS, usage, alternatives)
        write_durably(certificate_file, _pem(certificate).encode())

    def _leaf(
        self,
        subject: x509.Name,
        key: object,
        now: float,
        days: int,
        usage: ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> x509.Certificate:
        builder = _builder(subject, self._certificate.subject, key, now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA384())


def serves_host(pem: str, host: str, *, where: str) -> bool:
    """Whether a PEM server certificate names ``host``."""
    certificate = load_certificate(pem, setting="certificate", where=where)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    return _general_name(host) in list(extension.value)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: object, now: float, days: int
) -> x509.CertificateBuilder:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("every key here is a P-384 key")
    start = datetime.fromtimestamp(int(now), tz=UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start - _BACKDATED).not_valid_after(start + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
