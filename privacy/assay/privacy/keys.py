"""Ed25519 identities: who signed this, and in which context.

Every signature covers a context string and a length-framed body, so that a signature made for one
purpose (a ledger row) is worthless for another (a bundle).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.files import PRIVATE_FILE, require_private, write_durably

__all__ = ["SIGNATURE_BYTES", "Identity", "canonical_json", "fingerprint", "same_fingerprint", "verify"]

SIGNATURE_BYTES = 64


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` as the one JSON text that is signed and hashed: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON cannot carry.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def fingerprint(public_key: bytes) -> str:
    """Return what two people compare over the telephone: 128 bits of SHA-256 in eight groups of four."""
    digest = hashlib.sha256(b"assay fingerprint v1" + public_key).hexdigest()[:32].upper()
    return "-".join(digest[i : i + 4] for i in range(0, 32, 4))


def same_fingerprint(typed: str, wanted: str) -> bool:
    """Compare a fingerprint as somebody typed it: case, dashes and spaces do not matter."""
    return typed.replace("-", "").replace(" ", "").upper() == wanted.replace("-", "")


def _framed(context: str, body: bytes) -> bytes:
    tag = f"assay/{context}/v1".encode("ascii")
    return len(tag).to_bytes(2, "big") + tag + body


class Identity:
    """An Ed25519 signing key that lives in one file of mode 0600 and never leaves it.

    Attributes:
        public: the 32 raw bytes of the public key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the public key."""
        return fingerprint(self.public)

    @classmethod
    def generate(cls) -> Identity:
        """Make a new key from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key written by :meth:`save`.

        Raises:
            BadInput: the file is missing, readable by others, or not an Ed25519 key.
        """
        require_private(path)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (TypeError, UnsupportedAlgorithm, ValueError):  # TypeError: it asks for a password
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInput("key file", value=str(path), allowed="an Ed25519 private key in PEM, no password")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to ``path`` with mode 0600."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(path, pem, mode=PRIVATE_FILE)

    def sign(self, context: str, body: bytes) -> bytes:
        """Return the 64-byte signature of ``body`` in ``context`` (RFC 8032)."""
        return self._key.sign(_framed(context, body))


def verify(public_key: bytes, context: str, body: bytes, signature: bytes, *, what: str) -> None:
    """Check a signature made by :meth:`Identity.sign`.

    Args:
        public_key: 32 raw bytes.
        context: the context it was made in.
        body: the signed bytes.
        signature: 64 bytes.
        what: words for the error message, e.g. ``"bundle card.bundle"``.

    Raises:
        Tampered: key, context, body and signature do not belong together.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _framed(context, body))
    except (InvalidSignature, ValueError):
        raise Tampered(f"{what}: the signature does not verify") from None
