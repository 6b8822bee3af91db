"""A holder's directory: its keys, its request to be admitted, and the federation it has joined."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from assay.privacy.enrolment import Join, Request
from assay.privacy.errors import BadInput, Refused, Tampered
from assay.privacy.files import PRIVATE_FILE, require_private, write_durably
from assay.privacy.homes import new_home
from assay.privacy.keys import Identity, same_fingerprint
from assay.privacy.names import check_holder_name
from assay.privacy.transport import (
    load_certificate,
    load_transport_key,
    new_transport_key,
    public_pem,
    require_valid_at,
    signing_request,
)

__all__ = ["HolderKeys", "init", "join", "load_join", "load_keys"]

REQUEST_FILE = "REQUEST.json"
JOIN_FILE = "join.toml"
CONFIG_FILE = "client.toml"
IDENTITY_KEY = "keys/identity.key"
TRANSPORT_KEY = "keys/transport.key"
CA_CERTIFICATE = "keys/ca.pem"
CLIENT_CERTIFICATE = "keys/client.pem"


@dataclass(frozen=True, kw_only=True)
class HolderKeys:
    """The two private keys of a holder; neither leaves the directory.

    Attributes:
        name: the holder's name.
        identity: Ed25519, signs messages and ledger.
        transport: P-384, for TLS and for Flower's node authentication.
    """

    name: str
    identity: Identity
    transport: ec.EllipticCurvePrivateKey


def init(directory: Path, name: str) -> str:
    """Make a holder's directory with new keys and ``REQUEST.json``.

    Args:
        directory: missing or empty; nothing in it is ever overwritten.
        name: the name the holder asks for.

    Returns:
        The fingerprint of the identity, to be read out to the coordinator.

    Raises:
        BadInput: the name is not allowed, or the directory is in use.
    """
    from assay.client.config import template

    check_holder_name(name, where="--name")
    with new_home(directory, remedy="Choose another directory; a holder keeps the keys it has"):
        identity = Identity.generate()
        identity.save(directory / IDENTITY_KEY)
        transport = new_transport_key(directory / TRANSPORT_KEY)
        request = Request.make(name, identity, signing_request(transport, name))
        write_durably(directory / CONFIG_FILE, template(name).encode(), mode=PRIVATE_FILE)
        write_durably(directory / REQUEST_FILE, request.to_bytes())
    return identity.fingerprint


def load_keys(directory: Path) -> HolderKeys:
    """Read the keys of a holder's directory.

    Raises:
        BadInput: it was not made by :func:`init`, or others on the machine could read it.
        Tampered: ``REQUEST.json`` does not verify or speaks of other keys.
    """
    request_file = directory / REQUEST_FILE
    if not request_file.exists():
        raise BadInput(
            "directory",
            value=str(directory),
            allowed="a holder's directory",
            remedy=f"Run: assay client init {directory} --name NAME",
        )
    require_private(directory)
    require_private(directory / "keys")
    identity = Identity.load(directory / IDENTITY_KEY)
    transport = load_transport_key(directory / TRANSPORT_KEY)
    request = Request.read(request_file)
    ours = public_pem(transport.public_key(), where=TRANSPORT_KEY)
    if request.identity_public != identity.public or request.transport_public != ours:
        raise Tampered(f"{request_file}: it does not speak of the keys in {directory / 'keys'}. Restore both")
    return HolderKeys(name=request.name, identity=identity, transport=transport)


def join(
    directory: Path,
    join_file: Path,
    expect_fingerprint: str | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Join:
    """Accept a federation: verify its join file and keep it.

    The same federation again is welcome, since its address or a certificate may have been renewed.

    Args:
        directory: a holder's directory.
        join_file: the file that the coordinator sent.
        expect_fingerprint: the federation's fingerprint as its operator read it out; upper and lower
            case and the dashes do not matter.
        clock: seconds since 1970.

    Raises:
        BadInput: the file is not a join file for this holder, its certificate is out of date, or the
            fingerprint is another.
        Tampered: a signature in it does not verify.
        Refused: the holder has joined another federation.
    """
    keys = load_keys(directory)
    received = Join.read(join_file)
    _require_ours(received, keys)
    _require_current(received, clock())
    if expect_fingerprint is not None and not same_fingerprint(expect_fingerprint, received.fingerprint):
        raise BadInput(
            "fingerprint",
            where=join_file,
            value=expect_fingerprint,
            allowed=received.fingerprint,
            remedy="Do not join unless the operator of the federation confirms it",
        )
    _require_same_federation(directory, received)
    write_durably(directory / CA_CERTIFICATE, received.ca_pem.encode(), mode=PRIVATE_FILE)
    write_durably(directory / CLIENT_CERTIFICATE, received.certificate_pem.encode(), mode=PRIVATE_FILE)
    write_durably(directory / JOIN_FILE, received.to_bytes(), mode=PRIVATE_FILE)
    return load_join(directory, clock=clock)


def load_join(directory: Path, *, clock: Callable[[], float] = time.time) -> Join:
    """Return the federation that this holder has joined, verified again.

    Raises:
        BadInput: none was joined, its certificate is out of date, or permissions are loose.
        Tampered: what :func:`join` wrote was changed or only half of it was written.
    """
    keys = load_keys(directory)
    path = directory / JOIN_FILE
    if not path.exists():
        raise BadInput(
            "federation",
            where=directory,
            allowed="a federation that was joined",
            remedy=f"Run: assay client join {directory} JOIN.toml",
        )
    joined = Join.read(path)
    _require_ours(joined, keys)
    _require_current(joined, clock())
    for name, wanted in ((CA_CERTIFICATE, joined.ca_pem), (CLIENT_CERTIFICATE, joined.certificate_pem)):
        file = directory / name
        if not file.exists() or file.read_bytes() != wanted.encode():
            raise Tampered(f"{file}: not what {path} says. Run: assay client join {directory} JOIN.toml")
    return joined


def _require_ours(received: Join, keys: HolderKeys) -> None:
    remedy = "Ask the coordinator for the join file of this holder's own request"
    if received.holder != keys.name:
        raise BadInput(
            "name in [holder]", value=received.holder, where=received.where, allowed=keys.name, remedy=remedy
        )
    if received.identity_public != keys.identity.public:
        raise BadInput(
            "identity_public", where=received.where, allowed=f"the key in {IDENTITY_KEY}", remedy=remedy
        )
    if received.transport_public != public_pem(keys.transport.public_key(), where=TRANSPORT_KEY):
        raise BadInput(
            "certificate_pem", where=received.where, allowed=f"one for {TRANSPORT_KEY}", remedy=remedy
        )


def _require_current(received: Join, now: float) -> None:
    remedy = "Check the clock; if it is right, ask the coordinator to admit this holder again"
    moment = datetime.fromtimestamp(now, tz=UTC)
    for setting, pem in (("certificate_pem", received.certificate_pem), ("ca_pem", received.ca_pem)):
        certificate = load_certificate(pem, setting=setting, where=received.where)
        require_valid_at(certificate, moment, where=received.where, remedy=remedy)


def _require_same_federation(directory: Path, received: Join) -> None:
    path = directory / JOIN_FILE
    if path.exists() and Join.read(path).federation_id != received.federation_id:
        raise Refused(
            f"{directory}: this holder has joined another federation; allowed: one federation per directory. "
            "Run assay client init with a new directory for the other one",
            code="federation",
        )
