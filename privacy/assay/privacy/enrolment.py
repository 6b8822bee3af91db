"""The two files a holder and the coordinator hand each other to enrol, and their bytes.

``REQUEST.json`` (holder to coordinator)::

    {"csr_pem", "format": "assay-request", "identity_public", "name", "signature", "version": 1}

``JOIN.toml`` (coordinator to holder)::

    format = "assay-join", version = 1, signature
    [federation] name, id, address, coordinator_public, ca_pem
    [holder]     name, identity_public, certificate_pem

Neither holds a secret. Keys and signatures are hexadecimal. A signature covers the canonical JSON of
everything else in its file, in the context ``request`` or ``join``. A file proves that nobody changed
it, not who wrote it: people compare the fingerprints of the two Ed25519 keys over another channel.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import Identity, canonical_json, fingerprint, verify
from assay.privacy.names import (
    check_federation_name,
    check_holder_name,
    exact_keys,
    federation_id,
    split_address,
)
from assay.privacy.transport import (
    common_name,
    load_certificate,
    load_request,
    public_pem,
    require_client_certificate,
)

__all__ = ["Join", "Request"]

MAX_REQUEST_BYTES = 16 << 10
MAX_JOIN_BYTES = 32 << 10
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A holder's wish to be admitted. Constructing one verifies it whole.

    Attributes:
        name: the name the holder asks for.
        identity_public: Ed25519 key that will sign its messages and its ledger, 32 raw bytes.
        csr_pem: signing request for its P-384 transport key.
        signature: by the identity over all of the above, 64 bytes.
        where: the file it stands in, for messages.

    Raises:
        BadInput: a field is not what it must be.
        Tampered: one of the two signatures does not verify.
    """

    name: str
    identity_public: bytes
    csr_pem: str
    signature: bytes
    where: str = field(default="REQUEST.json", compare=False, repr=False)

    def __post_init__(self) -> None:
        check_holder_name(self.name, where=self.where)
        body = _request_body(self.name, self.identity_public, self.csr_pem)
        _verify(
            self.identity_public,
            "request",
            body,
            self.signature,
            self.where,
            "Ask the holder to send it again",
        )
        subject = common_name(load_request(self.csr_pem, where=self.where).subject)
        if subject != self.name:
            raise BadInput("subject of csr_pem", value=subject, where=self.where, allowed=f"CN={self.name}")

    @property
    def fingerprint(self) -> str:
        """What the holder reads out and the coordinator compares before admitting."""
        return fingerprint(self.identity_public)

    @property
    def transport_public(self) -> str:
        """The transport key as SubjectPublicKeyInfo in PEM."""
        return public_pem(load_request(self.csr_pem, where=self.where).public_key(), where=self.where)

    @classmethod
    def make(cls, name: str, identity: Identity, csr_pem: str) -> Request:
        """Sign a request."""
        signature = identity.sign("request", _request_body(name, identity.public, csr_pem))
        return cls(name=name, identity_public=identity.public, csr_pem=csr_pem, signature=signature)

    def to_bytes(self) -> bytes:
        """Return the content of ``REQUEST.json``."""
        document = json.loads(_request_body(self.name, self.identity_public, self.csr_pem))
        return json.dumps(document | {"signature": self.signature.hex()}, indent=2).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, where: str = "REQUEST.json") -> Request:
        """Read and verify the content of ``REQUEST.json``."""
        _bounded(data, MAX_REQUEST_BYTES, where)
        try:
            document = json.loads(data.decode("ascii"), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise BadInput("file", where=where, allowed=f"JSON made by assay client init ({error})") from None
        wanted = ("csr_pem", "format", "identity_public", "name", "signature", "version")
        document = exact_keys(document, wanted, where=where)
        _check_format(document, "assay-request", where)
        return cls(
            name=document["name"],
            identity_public=_hex(document, "identity_public", 32, where),
            csr_pem=_text(document, "csr_pem", where),
            signature=_hex(document, "signature", 64, where),
            where=where,
        )

    @classmethod
    def read(cls, path: Path) -> Request:
        """Read and verify the file at ``path``."""
        return cls.parse(_read(path, MAX_REQUEST_BYTES), where=str(path))


@dataclass(frozen=True, kw_only=True)
class Join:
    """The coordinator's admission of one holder. Constructing one verifies it whole.

    Attributes:
        federation: name of the federation, for people.
        address: ``host:port`` of the coordinator.
        coordinator_public: Ed25519 key of the federation, 32 raw bytes; its digest is the federation id.
        ca_pem: the only certificate authority that the holder accepts the coordinator's certificate from.
        holder: name of the admitted holder.
        identity_public: the holder's Ed25519 key, 32 raw bytes.
        certificate_pem: the holder's TLS client certificate, issued by ``ca_pem`` to ``holder``.
        signature: by the coordinator over all of the above, 64 bytes.
        where: the file it stands in, for messages.

    Raises:
        BadInput: a field is not what it must be.
        Tampered: the signature does not verify, or the certificate is not the authority's.
    """

    federation: str
    address: str
    coordinator_public: bytes
    ca_pem: str
    holder: str
    identity_public: bytes
    certificate_pem: str
    signature: bytes
    where: str = field(default="JOIN.toml", compare=False, repr=False)

    def __post_init__(self) -> None:
        check_federation_name(self.federation, where=self.where)
        check_holder_name(self.holder, where=self.where)
        split_address(self.address, where=self.where)
        body = canonical_json(_join_tables(self))
        remedy = "Ask the coordinator to send it again"
        _verify(self.coordinator_public, "join", body, self.signature, self.where, remedy)
        certificate = load_certificate(self.certificate_pem, setting="certificate_pem", where=self.where)
        ca = load_certificate(self.ca_pem, setting="ca_pem", where=self.where)
        require_client_certificate(certificate, ca, where=self.where)
        subject = common_name(certificate.subject)
        if subject != self.holder:
            raise BadInput(
                "subject of certificate_pem", value=subject, where=self.where, allowed=f"CN={self.holder}"
            )

    @property
    def federation_id(self) -> str:
        """The federation's name on the wire."""
        return federation_id(self.coordinator_public)

    @property
    def fingerprint(self) -> str:
        """What the coordinator reads out and the holder compares before joining."""
        return fingerprint(self.coordinator_public)

    @property
    def transport_public(self) -> str:
        """The certified transport key as SubjectPublicKeyInfo in PEM."""
        certificate = load_certificate(self.certificate_pem, setting="certificate_pem", where=self.where)
        return public_pem(certificate.public_key(), where=self.where)

    @classmethod
    def make(
        cls,
        request: Request,
        certificate_pem: str,
        *,
        federation: str,
        address: str,
        ca_pem: str,
        identity: Identity,
    ) -> Join:
        """Sign the admission of ``request`` with the coordinator's ``identity``."""
        unsigned = {
            "federation": federation,
            "address": address,
            "coordinator_public": identity.public,
            "ca_pem": ca_pem,
            "holder": request.name,
            "identity_public": request.identity_public,
            "certificate_pem": certificate_pem,
        }
        signature = identity.sign("join", canonical_json(_tables(unsigned)))
        return cls(**unsigned, signature=signature)  # type: ignore[arg-type]

    def to_bytes(self) -> bytes:
        """Return the content of ``JOIN.toml``."""
        tables = _join_tables(self)
        # The fingerprint is not in the comment: nothing signs a comment, so people must not compare it there.
        lines = [
            f"# Admits the holder {self.holder} to the federation {self.federation}. It holds no secret.",
            "# At the holder: assay client join DIR JOIN.toml",
            "# which shows the fingerprint of the federation; compare it with its operator, by telephone.",
            f'format = "{tables["format"]}"',
            f"version = {_VERSION}",
            f'signature = "{self.signature.hex()}"',
        ]
        for section in ("federation", "holder"):
            lines += ["", f"[{section}]"]
            lines += [_toml_line(key, value) for key, value in tables[section].items()]
        return ("\n".join(lines) + "\n").encode("ascii")

    @classmethod
    def parse(cls, data: bytes, *, where: str = "JOIN.toml") -> Join:
        """Read and verify the content of ``JOIN.toml``."""
        _bounded(data, MAX_JOIN_BYTES, where)
        try:
            document = tomllib.loads(data.decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise BadInput(
                "file", where=where, allowed=f"TOML made by assay server admit ({error})"
            ) from None
        exact_keys(document, ("format", "version", "signature", "federation", "holder"), where=where)
        _check_format(document, "assay-join", where)
        wanted = ["name", "id", "address", "coordinator_public", "ca_pem"]
        federation = exact_keys(document["federation"], wanted, where=where, section="federation")
        wanted = ["name", "identity_public", "certificate_pem"]
        holder = exact_keys(document["holder"], wanted, where=where, section="holder")
        join = cls(
            federation=federation["name"],
            address=_text(federation, "address", where),
            coordinator_public=_hex(federation, "coordinator_public", 32, where),
            ca_pem=_text(federation, "ca_pem", where),
            holder=holder["name"],
            identity_public=_hex(holder, "identity_public", 32, where),
            certificate_pem=_text(holder, "certificate_pem", where),
            signature=_hex(document, "signature", 64, where),
            where=where,
        )
        if federation["id"] != join.federation_id:
            raise Tampered(f"{where}: id is not the digest of coordinator_public")
        return join

    @classmethod
    def read(cls, path: Path) -> Join:
        """Read and verify the file at ``path``."""
        return cls.parse(_read(path, MAX_JOIN_BYTES), where=str(path))


def _request_body(name: str, identity_public: bytes, csr_pem: str) -> bytes:
    return canonical_json(
        {
            "csr_pem": csr_pem,
            "format": "assay-request",
            "identity_public": identity_public.hex(),
            "name": name,
            "version": _VERSION,
        }
    )


def _join_tables(join: Join) -> dict[str, Any]:
    return _tables(vars(join))


def _tables(values: Mapping[str, Any]) -> dict[str, Any]:
    public: bytes = values["coordinator_public"]
    return {
        "format": "assay-join",
        "version": _VERSION,
        "federation": {
            "name": values["federation"],
            "id": federation_id(public),
            "address": values["address"],
            "coordinator_public": public.hex(),
            "ca_pem": values["ca_pem"],
        },
        "holder": {
            "name": values["holder"],
            "identity_public": values["identity_public"].hex(),
            "certificate_pem": values["certificate_pem"],
        },
    }


def _toml_line(key: str, value: str) -> str:
    # Every value passed the constructor: ASCII without quotes, backslashes or control characters but
    # the line ends of a PEM, so that no escaping is needed.
    return f'{key} = """\n{value}"""' if "\n" in value else f'{key} = "{value}"'


def _verify(public: bytes, context: str, body: bytes, signature: bytes, where: str, remedy: str) -> None:
    try:
        verify(public, context, body, signature, what=where)
    except Tampered as error:
        raise Tampered(f"{error}. {remedy}") from None


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise BadInput("file", value=str(path), allowed="an existing, readable file") from None


def _bounded(data: bytes, limit: int, where: str) -> None:
    if len(data) > limit:
        raise BadInput("size", where=where, allowed=f"at most {limit} bytes")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _check_format(document: Mapping[str, Any], wanted: str, where: str) -> None:
    if document["format"] != wanted:
        raise BadInput("format", value=document["format"], where=where, allowed=f'"{wanted}"')
    if document["version"] is True or document["version"] != _VERSION:
        raise BadInput(
            "version", value=document["version"], where=where, allowed=f"{_VERSION}", remedy="Update Assay"
        )


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise BadInput(key, value=value, where=where, allowed="text")
    return value


def _hex(table: Mapping[str, Any], key: str, size: int, where: str) -> bytes:
    value = _text(table, key, where)
    if not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
        raise BadInput(key, value=value, where=where, allowed=f"{2 * size} lower-case hexadecimal digits")
    return bytes.fromhex(value)
