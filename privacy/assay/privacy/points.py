"""A holder's points for one person, encrypted to whoever the person chose: the statement and its bytes.

Several holders each know a part of what counts for a person. Each states the points of its part, so that
the total can be put together by the recipient alone; no holder and no coordinator sees another's points::

    bytes 0..7    magic "ASSAYPT1"
    bytes 8..11   length H of the header, big-endian
    H bytes       header: canonical JSON {"admission", "components", "ephemeral", "expires", "format",
                  "issued", "request", "version"}; public
    2064 bytes    ChaCha20-Poly1305 of 2048 bytes: 32 bytes salt, 4 bytes number of features F, F points of
                  4 bytes in study order (-2^31: not stated), zeros
    64 bytes      Ed25519 by the holder over all bytes before it, context "points"

================  =====================================================================================
one key, one use  an ephemeral X25519 key per statement; the cipher's key is derived from the agreed secret,
                  the hash of the header and both public keys, and so is bound to request, purpose and holder
size says nothing the ciphertext has one length, whatever is stated
admission         the header holds the coordinator's signed admission of the holder (``JOIN.toml``), so that
                  whoever trusts the coordinator can check offline whose statement it is
no second spelling a file that is not what :func:`state` would write of its content is refused
================  =====================================================================================

``docs/points.md`` describes the format byte by byte and what it does not protect.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from assay.privacy.enrolment import Join
from assay.privacy.errors import BadInput, Refused, Tampered
from assay.privacy.keys import SIGNATURE_BYTES, Identity, canonical_json, fingerprint, verify
from assay.privacy.masking import agree, derive, framed, u32
from assay.privacy.names import exact_keys
from assay.privacy.noise import Entropy
from assay.privacy.pointsrequest import PointsRequest, read_bounded, whole
from assay.privacy.transport import load_certificate, require_valid_at

__all__ = ["MAX_FEATURES", "Opened", "Statement", "commitment", "state"]

MAX_FEATURES = 500
MAX_STATEMENT_BYTES = 64 << 10
_MAGIC = b"ASSAYPT1"
_VERSION = 1
_SALT_BYTES = 32
_PLAIN_BYTES = 2048
_CIPHER_BYTES = _PLAIN_BYTES + 16
_NONCE = bytes(12)  # a key encrypts one message
_NOT_STATED = -(1 << 31)
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEYS = ("admission", "components", "ephemeral", "expires", "format", "issued", "request", "version")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What only the recipient can read.

    Attributes:
        points: one per feature of the study, in study order; None where the holder states nothing.
        salt: 32 random bytes; with the file they give the commitment in the holder's audit log.
    """

    points: tuple[int | None, ...]
    salt: bytes


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement as it was read: well-formed, signed by the key that the coordinator in it admitted.

    Who that coordinator is, and whether the statement answers one's own request, is not checked here.

    Attributes:
        request: what is answered.
        admission: the coordinator's admission of the holder.
        components: which components the holder states, in order.
        ephemeral: X25519 key that was made for this statement, 32 bytes.
        issued: seconds since 1970.
        expires: seconds since 1970, after ``issued``.
        data: the whole file.
        where: the file, for messages.

    Raises:
        BadInput: a field is not what it must be.
        Tampered: a signature does not verify.
    """

    request: PointsRequest
    admission: Join
    components: tuple[str, ...]
    ephemeral: bytes
    issued: int
    expires: int
    data: bytes = field(repr=False)
    where: str = field(default="statement", compare=False)

    @property
    def holder(self) -> str:
        """Name of the holder in its federation."""
        return self.admission.holder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the holder's identity."""
        return fingerprint(self.admission.identity_public)

    @classmethod
    def parse(cls, data: bytes, *, where: str = "statement") -> Statement:
        """Read the bytes that :func:`state` returned, and verify both signatures in them."""
        header, document = _header(data, where)
        _require_format(document, where)
        try:
            admission = Join.parse(document["admission"].encode("ascii"), where=f"{where}: admission")
            spelled = admission.to_bytes().decode("ascii") == document["admission"]
        except (AttributeError, UnicodeEncodeError):
            spelled = False
        if not spelled:
            raise BadInput("admission", where=where, allowed="the content of a JOIN.toml")
        signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        verify(admission.identity_public, "points", signed, signature, what=where)
        statement = cls(
            request=PointsRequest.from_table(document["request"], where=where),
            admission=admission,
            components=_components(document["components"], where),
            ephemeral=_key(document["ephemeral"], where),
            issued=whole("issued", document["issued"], where),
            expires=whole("expires", document["expires"], where),
            data=data,
            where=where,
        )
        if not statement.issued < statement.expires:
            raise BadInput("expires", where=where, allowed="after issued")
        if statement.header != header:
            raise BadInput("header", where=where, allowed="canonical JSON")
        return statement

    @classmethod
    def read(cls, path: Path) -> Statement:
        """Read and verify the file at ``path``."""
        return cls.parse(read_bounded(path, MAX_STATEMENT_BYTES), where=str(path))

    def require_member(self, now: float) -> None:
        """Refuse a holder whose admission is out of date; that it was revoked since cannot be seen offline.

        Args:
            now: seconds since 1970.

        Raises:
            BadInput: the certificate in the admission is not valid at ``now``.
        """
        pem = self.admission.certificate_pem
        certificate = load_certificate(pem, setting="certificate_pem", where=self.where)
        moment = datetime.fromtimestamp(now, tz=UTC)
        require_valid_at(certificate, moment, where=self.where, remedy="The holder has to be admitted again")

    @property
    def header(self) -> bytes:
        """The public part, as it is signed and bound into the encryption."""
        return _encode(
            self.request, self.admission, self.components, self.ephemeral, self.issued, self.expires
        )

    def open(self, private: X25519PrivateKey) -> Opened:
        """Decrypt with the recipient's key.

        Raises:
            Tampered: it was not encrypted to this key, or not with this header.
            BadInput: what was encrypted is not a list of points.
        """
        header, public = self.header, private.public_key().public_bytes_raw()
        start = len(_MAGIC) + 4 + len(header)
        try:
            secret = agree(private, self.ephemeral, sender=self.holder)
            cipher, bound = _cipher(secret, header, self.ephemeral, public)
            plain = cipher.decrypt(_NONCE, self.data[start : start + _CIPHER_BYTES], bound)
        except (InvalidTag, Refused):
            raise Tampered(f"{self.where}: it cannot be decrypted with this key") from None
        return _unpacked(plain, self.where)


def state(
    request: PointsRequest,
    points: Sequence[int | None],
    *,
    components: tuple[str, ...],
    admission: Join,
    identity: Identity,
    issued: int,
    expires: int,
    entropy: Entropy = os.urandom,
) -> tuple[bytes, str]:
    """Sign a statement, encrypted to the recipient of ``request``.

    Args:
        request: what is answered.
        points: one per feature of the study, at most :data:`MAX_FEATURES`; None where nothing is stated.
        components: what is stated.
        admission: the holder's own.
        identity: the holder's; signs.
        issued: seconds since 1970.
        expires: likewise.
        entropy: random bytes.

    Returns:
        The file, and its commitment for the audit log.

    Raises:
        BadInput: points are too many or do not fit in 32 bits, or the key of ``request`` is none.
    """
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    public, salt = ephemeral.public_key().public_bytes_raw(), entropy(_SALT_BYTES)
    header = _encode(request, admission, components, public, issued, expires)
    secret = agree(ephemeral, request.recipient, sender="recipient")
    cipher, bound = _cipher(secret, header, public, request.recipient)
    body = cipher.encrypt(_NONCE, _packed(points, salt), bound)
    signed = _MAGIC + u32(len(header)) + header + body
    data = signed + identity.sign("points", signed)
    if len(data) > MAX_STATEMENT_BYTES:
        raise BadInput("statement", allowed=f"at most {MAX_STATEMENT_BYTES} bytes; shorten the context")
    return data, commitment(salt, data)


def commitment(salt: bytes, data: bytes) -> str:
    """Return what the holder's audit log keeps of a statement, 64 hexadecimal digits.

    The salt is inside the ciphertext: the recipient can show that this statement is in the log, and nobody
    can try guesses of what was stated about whom.
    """
    parts = framed(b"assay/points-commitment/v1", salt, hashlib.sha256(data).digest())
    return hashlib.sha256(parts).hexdigest()


def _encode(
    request: PointsRequest,
    admission: Join,
    components: tuple[str, ...],
    ephemeral: bytes,
    issued: int,
    expires: int,
) -> bytes:
    return canonical_json(
        {
            "admission": admission.to_bytes().decode("ascii"),
            "components": list(components),
            "ephemeral": ephemeral.hex(),
            "expires": expires,
            "format": "assay-points",
            "issued": issued,
            "request": request.table,
            "version": _VERSION,
        }
    )


def _cipher(
    secret: bytes, header: bytes, ephemeral: bytes, recipient: bytes
) -> tuple[ChaCha20Poly1305, bytes]:
    """Return the cipher of one statement and what it is bound to: the public part, in key and tag alike."""
    bound = header
    key = derive(secret, b"assay/points/v1", hashlib.sha256(bound).digest(), ephemeral, recipient)
    return ChaCha20Poly1305(key), bound


def _packed(points: Sequence[int | None], salt: bytes) -> bytes:
    numbers = [_NOT_STATED if number is None else number for number in points]
    stated = [number for number in points if number is not None]
    if not len(numbers) <= MAX_FEATURES or not all(_NOT_STATED < number < 1 << 31 for number in stated):
        raise BadInput("points", allowed=f"at most {MAX_FEATURES} whole numbers of 32 bits")
    plain = salt + u32(len(numbers)) + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    return plain.ljust(_PLAIN_BYTES, b"\0")


def _unpacked(plain: bytes, where: str) -> Opened:
    salt, count = plain[:_SALT_BYTES], int.from_bytes(plain[_SALT_BYTES : _SALT_BYTES + 4], "big")
    first = _SALT_BYTES + 4
    if not count <= MAX_FEATURES or any(plain[first + 4 * count :]):
        raise BadInput("points", where=where, allowed=f"at most {MAX_FEATURES}, then zeros")
    numbers = [
        int.from_bytes(plain[first + 4 * i : first + 4 * i + 4], "big", signed=True) for i in range(count)
    ]
    return Opened(points=tuple(None if n == _NOT_STATED else n for n in numbers), salt=salt)


def _header(data: bytes, where: str) -> tuple[bytes, dict[str, Any]]:
    """Return the header's bytes and what they say; the rest has exactly the length it must have."""
    first = len(_MAGIC) + 4
    length = int.from_bytes(data[len(_MAGIC) : first], "big")
    if not len(data) <= MAX_STATEMENT_BYTES or not data.startswith(_MAGIC):
        raise BadInput("file", where=where, allowed="a statement made by assay client points")
    if len(data) != first + length + _CIPHER_BYTES + SIGNATURE_BYTES:
        raise BadInput(
            "size", where=where, allowed="that of a whole statement; this one is cut off or longer"
        )
    header = data[first : first + length]
    try:
        document = json.loads(header.decode("ascii"))
    except (ValueError, RecursionError):
        raise BadInput("header", where=where, allowed="canonical JSON") from None
    return header, exact_keys(document, _KEYS, where=where)


def _require_format(document: dict[str, Any], where: str) -> None:
    if document["format"] != "assay-points":
        raise BadInput("format", value=document["format"], where=where, allowed='"assay-points"')
    if document["version"] is True or document["version"] != _VERSION:
        raise BadInput(
            "version", value=document["version"], where=where, allowed=f"{_VERSION}", remedy="Update Assay"
        )


def _components(value: object, where: str) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(word, str) and _WORD.fullmatch(word) for word in value)
    if not isinstance(value, list) or not good or not value or len(set(value)) < len(value):
        raise BadInput("components", where=where, allowed="a list of at least one component, each once")
    return tuple(value)


def _key(value: object, where: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise BadInput("ephemeral", where=where, allowed="64 lower-case hexadecimal digits")
    return bytes.fromhex(value)
