"""A holder's books: the ledger of what it spent and the log of what it did, kept in step.

What the coordinator saw of them last comes back with every question. Books that do not contain it are an
older copy, or one of two that are kept side by side; with such books a release could be paid for once and
made twice, so nothing is answered from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from assay.privacy.auditlog import AuditLog
from assay.privacy.heads import Heads
from assay.privacy.ledger import Ledger

__all__ = ["Books"]


@dataclass(frozen=True, kw_only=True)
class Books:
    """The ledger and the audit log of one holder, both open for writing.

    Attributes:
        ledger: what was reserved, charged, released and opened.
        audit: every decision, and an entry for every release, opening and close of the ledger.
    """

    ledger: Ledger
    audit: AuditLog

    def heads(self) -> str:
        """Return where both stand now, as ``Heads.text``."""
        seq, digest = self.ledger.head()
        size, _, root = self.audit.head().partition(":")  # one look at each: another thread may append
        return Heads(ledger_seq=seq, ledger_hash=digest, log_size=int(size), log_root=root).text

    def require(self, seen: str) -> None:
        """Refuse to go on unless both contain what the coordinator saw last.

        Args:
            seen: ``Heads.text``; empty: it has seen nothing, or has forgotten it. That is accepted: whoever
                runs the coordinator could claim it, so refusing would protect nobody.

        Raises:
            Refused: code ``"ledger"``.
        """
        if seen:
            heads = Heads.parse(seen)
            self.ledger.require_prefix(heads.ledger_seq, heads.ledger_hash)
            self.audit.require_prefix(heads.log_size, heads.log_root)

    def witnessed(self, heads: str, signature: str) -> None:
        """Keep the coordinator's signature that it has seen these heads; the same heads are kept once."""
        kept = self.audit.countersigned
        if not kept or kept[-1].data["heads"] != heads:
            self.audit.append("countersigned", heads=heads, signature=signature)

    def settle(self) -> None:
        """Give every release, opening and close in the ledger its entry in the log; durable on return."""
        self.audit.follow(self.ledger)
