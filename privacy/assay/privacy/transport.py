"""P-384 transport keys and the X.509 files around them.

One key per holder serves the TLS client certificate and Flower's node authentication, so that a
connection and the node that speaks on it are the same party. Curve and PEM form are Flower's.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.files import PRIVATE_FILE, require_private, write_durably

__all__ = [
    "common_name",
    "load_certificate",
    "load_request",
    "load_transport_key",
    "new_transport_key",
    "public_pem",
    "require_client_certificate",
    "require_valid_at",
    "signing_request",
]


def new_transport_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a P-384 key from the operating system's entropy and write it to ``path`` with mode 0600."""
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(path, pem, mode=PRIVATE_FILE)
    return key


def load_transport_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a key written by :func:`new_transport_key`.

    Raises:
        BadInput: the file is missing, readable by others, or not a P-384 private key.
    """
    require_private(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise BadInput("key file", value=str(path), allowed="a P-384 private key in PEM")
    return key


def public_pem(key: object, *, where: str) -> str:
    """Return a P-384 public key as SubjectPublicKeyInfo in PEM, the form in which Flower names a node.

    Raises:
        BadInput: ``key`` is a public key of another kind.
    """
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise BadInput("transport key", where=where, allowed="a P-384 public key")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a PEM certificate signing request for ``name``, signed by ``key`` itself (RFC 2986)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def load_request(pem: str, *, where: str) -> x509.CertificateSigningRequest:
    """Read one PEM signing request that proves possession of its P-384 key.

    Raises:
        BadInput: not exactly one request, or another kind of key.
        Tampered: the request is not signed by the key in it.
    """
    allowed = "exactly one certificate signing request in PEM"
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        whole = request.public_bytes(serialization.Encoding.PEM).decode("ascii") == pem
        public_pem(request.public_key(), where=where)
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput("csr_pem", where=where, allowed=allowed) from None
    if not whole:
        raise BadInput("csr_pem", where=where, allowed=allowed)
    if not proven:
        raise Tampered(f"{where}: csr_pem is not signed by its own key")
    return request


def load_certificate(pem: str, *, setting: str, where: str) -> x509.Certificate:
    """Read one PEM certificate that holds a P-384 key.

    Raises:
        BadInput: not exactly one certificate, or another kind of key.
    """
    allowed = "exactly one certificate in PEM"
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        whole = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii") == pem
        public_pem(certificate.public_key(), where=where)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(setting, where=where, allowed=allowed) from None
    if not whole:
        raise BadInput(setting, where=where, allowed=allowed)
    return certificate


def common_name(subject: x509.Name) -> str:
    """Return the one common name of a subject, or an empty text where there is none or more than one."""
    names = [str(item.value) for item in subject]
    only = len(names) == 1 and subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return names[0] if only else ""


def require_client_certificate(certificate: x509.Certificate, ca: x509.Certificate, *, where: str) -> None:
    """Check that ``ca`` is a certificate authority and issued ``certificate`` for TLS clients.

    Validity in time is the caller's question: an expired certificate still belongs to its holder.

    Raises:
        Tampered: issuer, signature, basic constraints or extended key usage do not fit.
    """
    try:
        ca.verify_directly_issued_by(ca)
        certificate.verify_directly_issued_by(ca)
        root = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        leaf = not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise Tampered(f"{where}: certificate_pem is not issued by ca_pem") from None
    if not (root and leaf and list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]):
        raise Tampered(f"{where}: certificate_pem is not a TLS client certificate of ca_pem")


def require_valid_at(certificate: x509.Certificate, moment: datetime, *, where: str, remedy: str) -> None:
    """Refuse a certificate outside its dates.

    Raises:
        BadInput: ``moment`` (with a time zone) is before or after its validity.
    """
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= moment <= last:
        raise BadInput(
            "certificate",
            where=where,
            allowed=f"a date from {first:%Y-%m-%d} to {last:%Y-%m-%d}",
            remedy=remedy,
        )
