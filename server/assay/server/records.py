"""The rows of the coordinator's database, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACTIVE", "STATES", "Checkpoint", "Event", "Member", "Model", "Run", "Session"]

# Where a run may go from each state. A final state has nowhere to go.
STATES: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"running", "refused", "aborted", "failed"}),
    "running": frozenset({"done", "refused", "aborted", "failed"}),
    "done": frozenset(),
    "refused": frozenset(),
    "aborted": frozenset(),
    "failed": frozenset(),
}
ACTIVE = ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One line of the roster, as the coordinator's key signed it.

    Attributes:
        seq: 1, 2, ... in the order of admission; never used twice.
        name: the holder's name; only one member of that name is not revoked.
        identity_public: Ed25519 key, 64 hexadecimal digits.
        transport_public: P-384 key, SubjectPublicKeyInfo in PEM, the form Flower names a node by.
        certificate_pem: its current TLS client certificate.
        serial: serial number of that certificate, hexadecimal.
        fingerprint: of ``identity_public``.
        admitted_at: seconds since 1970.
        revoked_at: seconds since 1970, or None.
        signature: 64 bytes.
    """

    seq: int
    name: str
    identity_public: str
    transport_public: str
    certificate_pem: str
    serial: str
    fingerprint: str
    admitted_at: int
    revoked_at: int | None
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a study.

    Attributes:
        run: 32 hexadecimal digits.
        name: name of the study.
        study: text of the study file.
        digest: SHA-256 of that text, hexadecimal.
        state: a key of :data:`STATES`.
        rounds: planned gradient rounds; None until they are chosen.
        round: last round that is checkpointed; None before the first.
        holders: names of those who take part; empty until they are known.
        created: seconds since 1970; likewise ``started`` and ``ended`` once they happened.
        message: one line for people, e.g. why it failed.
    """

    run: str
    name: str
    study: str
    digest: str
    state: str
    rounds: int | None
    round: int | None
    holders: tuple[str, ...]
    created: float
    started: float | None
    ended: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run continues from: everything after ``round`` of it, as bytes."""

    run: str
    round: int
    state: bytes


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session of secure aggregation.

    Attributes:
        session: 0, 1, ...; see :mod:`assay.privacy.secagg`.
        holders: everybody whose keys were asked for: Ed25519 key (64 hexadecimal digits) by name.
        tally: packed ``secagg.Tally``: the public keys, and the encrypted shares once they are in; empty
            while keys are asked for.
    """

    run: str
    session: int
    holders: Mapping[str, str]
    tally: bytes


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What is to be opened in one round: whose masked values, and their sum, which is still masked.

    Attributes:
        round: of the run.
        sent: of every survivor, by name in order, its signature that it sent masked values (128
            hexadecimal digits).
        total: the survivors' masked values added up modulo 2^64: uint64, little-endian.
    """

    run: str
    round: int
    sent: Mapping[str, str]
    total: bytes


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a run's progress.

    Attributes:
        seq: increasing over all runs; where to continue reading.
        time: seconds since 1970.
    """

    seq: int
    run: str
    time: float
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One bundle in the registry.

    Attributes:
        name: name of its study.
        version: 1, 2, ... per name.
        path: of the bundle, relative to the coordinator's directory.
        sha256: of the bundle, hexadecimal.
        created: seconds since 1970; likewise ``expires``.
        label: the privacy label, as in the bundle, and under ``held`` why the model must not be used.
    """

    name: str
    version: int
    run: str
    path: str
    sha256: str
    created: float
    expires: float
    purpose: str
    label: Mapping[str, Any]
