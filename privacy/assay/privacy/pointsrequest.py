"""A request for points: which model, for which purpose, until when, and whose key they are encrypted to.

``points-request.json``::

    {"bundle", "context", "expires", "format": "assay-points-request", "id", "issued", "platform", "purpose",
     "recipient", "study", "study_name", "version": 1}

Whoever is to read the points makes it: the person, or a relying party that the person named. It holds no
secret and nothing about the person. Nothing signs it, since the recipient has no name that others know:
people compare the fingerprint of the recipient's key over another channel, and a holder answers with the
whole request in its statement, so that a changed one is of no use to its maker. It is *not* a proof that the
person agreed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import PRIVATE_FILE, require_private, write_durably
from assay.privacy.keys import fingerprint
from assay.privacy.masking import require_point
from assay.privacy.names import exact_keys

__all__ = [
    "DAY_S",
    "KEY_FILE",
    "REQUEST_FILE",
    "SKEW_S",
    "PointsRequest",
    "load_recipient_key",
    "read_bounded",
    "save_recipient_key",
    "whole",
]

REQUEST_FILE = "points-request.json"
KEY_FILE = "keys/recipient.key"
MAX_REQUEST_BYTES = 16 << 10
SKEW_S = 120
"""How far two clocks may be apart."""
DAY_S = 86_400
_VERSION = 1
_FORMAT = "assay-points-request"
_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class PointsRequest:
    """What is asked for. Constructing one checks it.

    Attributes:
        id: 128 random bits, 32 hexadecimal digits.
        bundle: SHA-256 of the bundle's file, 64 hexadecimal digits.
        study: digest of its study, likewise.
        study_name: what the study is called, for people.
        purpose: what the score is for.
        context: where it is to be used; None: it is not said.
        platform: the platform it is to be used on, if any: compliance counts only where it arose.
        recipient: X25519 key that points are encrypted to, 32 bytes.
        issued: seconds since 1970.
        expires: seconds since 1970, after ``issued``.
        where: the file it stands in, for messages.

    Raises:
        BadInput: a field is not what it must be.
    """

    id: str
    bundle: str
    study: str
    study_name: str
    purpose: str
    context: str | None
    platform: str | None
    recipient: bytes
    issued: int
    expires: int
    where: str = field(default=REQUEST_FILE, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, pattern in (("id", _ID), ("bundle", _DIGEST), ("study", _DIGEST)):
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise BadInput(name, where=self.where, allowed="lower-case hexadecimal digits, all of them")
        for name in ("study_name", "purpose", "context", "platform"):
            value = getattr(self, name)
            if value is None and name in ("context", "platform"):
                continue
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise BadInput(name, where=self.where, allowed="one line of text")
        try:
            require_point(self.recipient, sender=self.where)
        except Refused:
            raise BadInput("recipient", where=self.where, allowed="an X25519 key of large order") from None
        whole("issued", self.issued, self.where)
        if not self.issued < whole("expires", self.expires, self.where):
            raise BadInput("expires", where=self.where, allowed="after issued")

    @property
    def fingerprint(self) -> str:
        """What the recipient reads out and a holder compares before it answers."""
        return fingerprint(self.recipient)

    @property
    def table(self) -> dict[str, Any]:
        """The request as JSON."""
        fields = {key: value for key, value in vars(self).items() if key != "where"}
        return {**fields, "recipient": self.recipient.hex(), "format": _FORMAT, "version": _VERSION}

    def require_time(self, now: float, *, days: int) -> None:
        """Refuse a request that is over, not begun, or made to last longer than its rules allow.

        Args:
            now: seconds since 1970.
            days: how long statements are kept at most.

        Raises:
            Refused: code ``"expired"``.
        """
        if not self.issued - SKEW_S <= now < self.expires:
            raise Refused(
                f"{self.where}: the request has expired, or is of the future; ask for a new one"
                " (assay model request), and check the clock",
                code="expired",
            )
        if not self.expires - self.issued <= days * DAY_S:
            raise Refused(
                f"{self.where}: the request is made to last longer than {days} days, which is the longest"
                " that statements are kept; ask for a new one",
                code="expired",
            )

    def to_bytes(self) -> bytes:
        """Return the content of ``points-request.json``."""
        return json.dumps(self.table, indent=2, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, where: str = REQUEST_FILE) -> PointsRequest:
        """Read the content of ``points-request.json``; there is one spelling of it."""
        try:
            document = json.loads(data.decode("ascii"))
        except (ValueError, RecursionError):
            raise BadInput("file", where=where, allowed="JSON made by assay model request") from None
        request = cls.from_table(document, where=where)
        if request.to_bytes() != data:
            raise BadInput("file", where=where, allowed="exactly what assay model request writes")
        return request

    @classmethod
    def read(cls, path: Path) -> PointsRequest:
        """Read the file at ``path``."""
        return cls.parse(read_bounded(path, MAX_REQUEST_BYTES), where=str(path))

    @classmethod
    def from_table(cls, value: object, *, where: str) -> PointsRequest:
        """Read what :attr:`table` returned."""
        names = [key for key in cls.__dataclass_fields__ if key != "where"]
        table = exact_keys(value, (*names, "format", "version"), where=where)
        if table["format"] != _FORMAT:
            raise BadInput("format", value=table["format"], where=where, allowed=f'"{_FORMAT}"')
        if table["version"] is True or table["version"] != _VERSION:
            raise BadInput("version", where=where, allowed=f"{_VERSION}", remedy="Update Assay")
        recipient = table["recipient"]
        if not isinstance(recipient, str) or not _DIGEST.fullmatch(recipient):
            raise BadInput("recipient", where=where, allowed="64 lower-case hexadecimal digits")
        fields = {name: table[name] for name in names} | {"recipient": bytes.fromhex(recipient)}
        return cls(**fields, where=where)


def whole(name: str, value: object, where: str) -> int:
    """Return ``value`` if it is a whole number of seconds that JSON can carry.

    Raises:
        BadInput: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise BadInput(name, where=where, allowed="a whole number of seconds since 1970")
    return value


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes.

    Raises:
        BadInput: it is missing, unreadable or larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise BadInput("file", value=str(path), allowed="an existing, readable file") from None
    if len(data) > limit:
        raise BadInput("size", where=path, allowed=f"at most {limit} bytes")
    return data


def save_recipient_key(key: X25519PrivateKey, path: Path) -> None:
    """Write a recipient's private key to ``path`` with mode 0600."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(path, pem, mode=PRIVATE_FILE)


def load_recipient_key(path: Path) -> X25519PrivateKey:
    """Read a key written by :func:`save_recipient_key`.

    Raises:
        BadInput: the file is missing, readable by others, or not an X25519 private key.
    """
    require_private(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (TypeError, UnsupportedAlgorithm, ValueError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise BadInput("key file", value=str(path), allowed="an X25519 private key in PEM, no password")
    return key
