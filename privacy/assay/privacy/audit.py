"""Whether a holder's books are whole: the audit log, the ledger, and that each bears the other out.

Works offline, on the files of one holder's directory, also while its daemon runs.

=====================  ==============================================================================
log                    every line is signed by the holder and in its place (``auditlog``)
ledger                 every row is signed by its release key, chained and complete (``ledger_store``)
row and entry          each release, opening and close of the ledger has exactly one entry, with the same
                       run, round and hash of the row, and each such entry has its row
log head in a row      the log contains the entries that each ledger row says were there before it
countersigned heads    ledger and log contain what the coordinator's signatures in the log speak of
witness                likewise for heads that the coordinator hands out (``assay server witness``): the only
                       one of these that notices that all files together are an older copy
=====================  ==============================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.privacy.auditlog import AuditLog
from assay.privacy.enrolment import Join
from assay.privacy.errors import BadInput, Refused, Tampered
from assay.privacy.heads import Heads, verify_countersignature
from assay.privacy.keys import Identity, fingerprint
from assay.privacy.ledger import Landmark, Ledger
from assay.privacy.names import check_holder_name, exact_keys, federation_id

__all__ = ["Audit", "Witness", "audit"]

_WITNESS_FORMAT = "assay-witness-1"
_MAX_WITNESS_BYTES = 16 << 10
_UNFINISHED_LINE = "the log ends in an incomplete line: an entry that was being written"


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Where the coordinator says that a holder stood. Constructing one verifies its signature.

    Attributes:
        holder: name of the holder.
        federation: identifier of the federation, 64 hexadecimal digits.
        coordinator_public: the federation's signing key, 32 bytes.
        heads: where the holder's books stood.
        signature: by that key, 128 hexadecimal digits.

    Raises:
        BadInput: a field is not what it must be.
        Tampered: the signature does not verify.
    """

    holder: str
    federation: str
    coordinator_public: bytes
    heads: Heads
    signature: str

    def __post_init__(self) -> None:
        check_holder_name(self.holder, where="witness")
        if federation_id(self.coordinator_public) != self.federation:
            raise BadInput("federation", where="witness", allowed="the digest of coordinator_public")
        verify_countersignature(
            self.coordinator_public,
            federation=self.federation,
            holder=self.holder,
            heads=self.heads,
            signature=self.signature,
        )

    @classmethod
    def read(cls, path: Path) -> Witness:
        """Read the JSON file that ``assay server witness`` wrote.

        Raises:
            BadInput: the file is missing or not such a file.
            Tampered: the signature does not verify.
        """
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(_MAX_WITNESS_BYTES))
        except (OSError, RecursionError, ValueError):
            raise BadInput("witness", value=str(path), allowed="a readable JSON file") from None
        keys = ("format", "holder", "federation", "coordinator_public", "heads", "signature")
        texts = exact_keys(document, keys, where=str(path))
        for key, value in texts.items():
            if not isinstance(value, str):
                raise BadInput(key, value=value, where=path, allowed="text")
        if texts["format"] != _WITNESS_FORMAT:
            raise BadInput("format", value=texts["format"], where=path, allowed=_WITNESS_FORMAT)
        if not re.fullmatch("[0-9a-f]{64}", texts["coordinator_public"]):
            raise BadInput("coordinator_public", where=path, allowed="64 lower-case hexadecimal digits")
        return cls(
            holder=texts["holder"],
            federation=texts["federation"],
            coordinator_public=bytes.fromhex(texts["coordinator_public"]),
            heads=Heads.parse(texts["heads"]),
            signature=texts["signature"],
        )


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in order.

    Attributes:
        entries: number of entries of the audit log.
        rows: number of rows of the ledger.
        countersigned: how many entries hold heads that the coordinator signed.
        unfinished: what a crash or a step under way explains, in words; nothing of it was ever acknowledged.
        witnessed: the row and the entry that the witness names; None without one.
    """

    entries: int
    rows: int
    countersigned: int
    unfinished: tuple[str, ...]
    witnessed: tuple[int, int] | None


def audit(directory: Path, witness: Witness | None = None) -> Audit:
    """Check everything in the table above.

    Args:
        directory: a holder's directory.
        witness: what the coordinator says of it.

    Raises:
        BadInput: not a holder's directory, or files in it that others could read.
        Tampered: names the first row or entry that does not hold.
        Unavailable: a file cannot be read.
    """
    identity = Identity.load(directory / "keys" / "identity.key")
    joined = _joined(directory / "join.toml", identity)
    if witness is not None:
        _require_ours(witness, joined)
    ledger_file, log_file = directory / "ledger.sqlite", directory / "audit.log"
    # A holder that has not taken part in anything has no files yet.
    exists = ledger_file.exists()
    with Ledger.open(ledger_file if exists else ":memory:", identity, read_only=exists) as ledger:
        # The daemon may be writing: what the ledger held before the log is read must be in the log, and
        # what the log held then must be in the ledger read afterwards.
        rows, log_heads = ledger.landmarks(), ledger.log_heads()
        with AuditLog.open(log_file if log_file.exists() else None, identity, read_only=True) as log:
            ledger.verify()
            unfinished = _compare(rows, log_heads, ledger, log)
            _require_countersigned(ledger, log, joined)
            if witness is not None:
                _require_heads(ledger, log, witness.heads, by="the witness")
            return Audit(
                entries=log.size,
                rows=ledger.head()[0],
                countersigned=len(log.countersigned),
                unfinished=unfinished,
                witnessed=None if witness is None else (witness.heads.ledger_seq, witness.heads.log_size),
            )


def _joined(path: Path, identity: Identity) -> Join | None:
    """Return the federation the holder joined; None before it joined one."""
    if not path.exists():
        return None
    joined = Join.read(path)
    if joined.identity_public != identity.public:
        raise Tampered(f"{path}: it admits another key than that of {path.parent / 'keys' / 'identity.key'}")
    return joined


def _require_ours(witness: Witness, joined: Join | None) -> None:
    """Refuse a witness of another holder or federation: it would prove nothing about this directory."""
    if joined is None:
        raise BadInput("--witness", allowed="a directory that joined a federation; join.toml is missing")
    if (witness.holder, witness.federation) != (joined.holder, joined.federation_id):
        raise BadInput(
            "witness",
            value=f"{witness.holder} in federation {fingerprint(witness.coordinator_public)}",
            allowed=f"{joined.holder} in federation {joined.fingerprint}",
        )


def _compare(
    rows: Sequence[Landmark], log_heads: Sequence[tuple[int, str | None]], ledger: Ledger, log: AuditLog
) -> tuple[str, ...]:
    """Check rows and entries against each other; return what is unfinished at the end.

    Args:
        rows: the ledger's, before the log was read.
        log_heads: likewise.
        ledger: as it is now.
        log: the log.
    """
    now = {row.seq: row for row in ledger.landmarks()}
    for seq, entry in log.landmarks.items():
        if now.get(seq) != entry:
            raise Tampered(f"the ledger has no such row {seq} as the audit log names: {_words(entry)}")
    for seq, head in log_heads:
        if head is None:
            raise Tampered(f"ledger row {seq} was written without the audit log")
        log.require_head(head, by=f"ledger row {seq}")
    last = max(log.landmarks, default=0)
    for row in rows:
        if row.seq not in log.landmarks and row.seq < last:
            raise Tampered(f"ledger row {row.seq} has no entry in the audit log: {_words(row)}")
    missing = [f"ledger row {row.seq} has no entry yet: {_words(row)}" for row in rows if row.seq > last]
    return (*missing, *([_UNFINISHED_LINE] if log.unfinished else []))


def _words(row: Landmark) -> str:
    return f"{row.kind} of run {row.run}" + ("" if row.round is None else f", round {row.round}")


def _require_countersigned(ledger: Ledger, log: AuditLog, joined: Join | None) -> None:
    """Check the heads in the log that the coordinator signed, as it saw them before they were entered."""
    for entry in log.countersigned:
        what = f"audit log: entry {entry.index}"
        try:
            heads = Heads.parse(str(entry.data["heads"]))
        except BadInput:
            raise Tampered(f"{what} holds no heads") from None
        if joined is not None:
            verify_countersignature(
                joined.coordinator_public,
                federation=joined.federation_id,
                holder=joined.holder,
                heads=heads,
                signature=str(entry.data["signature"]),
            )
        if heads.log_size >= entry.index:
            raise Tampered(f"{what} holds heads of a later log than the one it stands in")
        _require_heads(ledger, log, heads, by=what)


def _require_heads(ledger: Ledger, log: AuditLog, heads: Heads, *, by: str) -> None:
    log.require_head(f"{heads.log_size}:{heads.log_root}", by=by)
    try:
        ledger.require_prefix(heads.ledger_seq, heads.ledger_hash)
    except Refused as error:
        raise Tampered(f"{by}: {error}") from None
