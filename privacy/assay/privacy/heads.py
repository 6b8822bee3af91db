"""Where a holder's ledger and audit log stand, and the coordinator's word that it has seen them there.

A ledger cannot notice that the whole directory it lies in is an older copy, or one of two that go on side
by side. Somebody else has to remember where it stood. So offers, closes and the questions that spend (counts,
gradient, mask) carry the heads that the coordinator saw last, and their answers the heads as they are then; a
holder whose ledger or log does not contain what such a question names refuses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import Identity, canonical_json, verify

__all__ = ["Heads", "countersign", "verify_countersignature"]

_TEXT = re.compile(r"(0|[1-9][0-9]{0,15}):([0-9a-f]{64}):(0|[1-9][0-9]{0,15}):([0-9a-f]{64})")
_CONTEXT = "heads"


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How far a holder's ledger and audit log have come.

    Attributes:
        ledger_seq: number of the ledger's last row, 0 where there is none.
        ledger_hash: its SHA-256, 64 hexadecimal digits.
        log_size: number of entries of the audit log.
        log_root: root of its Merkle tree (RFC 6962), 64 hexadecimal digits.

    Raises:
        BadInput: a field is not as described.
    """

    ledger_seq: int
    ledger_hash: str
    log_size: int
    log_root: str

    def __post_init__(self) -> None:
        if not _TEXT.fullmatch(self.text):
            raise BadInput("heads", allowed="number:64 hex digits:number:64 hex digits")

    @property
    def text(self) -> str:
        """The one spelling that is sent and signed: ``seq:hash:size:root``."""
        return f"{self.ledger_seq}:{self.ledger_hash}:{self.log_size}:{self.log_root}"

    @classmethod
    def parse(cls, text: str) -> Heads:
        """Read what :attr:`text` gave.

        Raises:
            BadInput: ``text`` is nothing of the kind.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise BadInput("heads", allowed="number:64 hex digits:number:64 hex digits")
        seq, digest, size, root = found.groups()
        return cls(ledger_seq=int(seq), ledger_hash=digest, log_size=int(size), log_root=root)


def countersign(identity: Identity, *, federation: str, holder: str, heads: Heads) -> str:
    """Sign, as the coordinator, that ``holder`` has shown ``heads``; 128 hexadecimal digits."""
    return identity.sign(_CONTEXT, _body(federation, holder, heads)).hex()


def verify_countersignature(
    public_key: bytes, *, federation: str, holder: str, heads: Heads, signature: str
) -> None:
    """Check what :func:`countersign` gave.

    Args:
        public_key: the federation's signing key, 32 bytes.
        federation: its identifier, 64 hexadecimal digits.
        holder: name of the holder.
        heads: what was signed.
        signature: 128 hexadecimal digits.

    Raises:
        Tampered: it is not the federation's signature of these heads.
    """
    what = f"countersignature of the heads of {holder}"
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise Tampered(f"{what}: not hexadecimal") from None
    verify(public_key, _CONTEXT, _body(federation, holder, heads), raw, what=what)


def _body(federation: str, holder: str, heads: Heads) -> bytes:
    return canonical_json({"federation": federation, "heads": heads.text, "holder": holder})
