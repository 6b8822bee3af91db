"""Signed questions to holders and their checked answers, over any Flower grid.

An offer, a close and every question that spends tell a holder where the coordinator last saw its ledger and
audit log, and their answers say where they stand now. An answer of a ledger that has gone back, or that is
another one of the same length, is not used: it comes from a restored copy or from one of two machines that
share an identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from assay.privacy.errors import AssayError
from assay.privacy.heads import Heads, countersign
from assay.privacy.keys import Identity
from assay.privacy.messages import (
    Accepted,
    Close,
    Closed,
    CountsRequest,
    Declined,
    GradientRequest,
    Masked,
    MaskRequest,
    Message,
    Offer,
    Release,
)
from assay.privacy.wire import Frame, open_frame, seal
from assay.server.exchange import exchange

if TYPE_CHECKING:
    from flwr.serverapp import Grid

__all__ = ["COORDINATOR", "Courier", "NoAnswer"]

COORDINATOR = "coordinator"


@dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """A holder's answer is missing or unusable.

    Attributes:
        reason: one line for the operator.
        ledger: whether it is unusable because the holder's ledger or audit log is an older copy or a clone.
    """

    reason: str
    ledger: bool = False


class Courier:
    """Seals messages with the coordinator's key and opens answers with each holder's admitted key.

    Attributes:
        federation: identifier of the federation, 64 hexadecimal digits.
        roster: admitted holders by name, each with its Ed25519 public key (32 bytes).
        heads: where each holder's ledger and log were last seen, as ``Heads.text`` by name.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        identity: Identity,
        federation: str,
        roster: Mapping[str, bytes],
        heads: Mapping[str, str],
        keep: Callable[[Mapping[str, str]], None],
    ) -> None:
        """Build a courier.

        Args:
            grid: where the holders are reached.
            identity: the coordinator's signing key.
            federation: see the class.
            roster: likewise.
            heads: likewise, from earlier runs; a holder that was never seen is missing.
            keep: called with the heads that an exchange has changed, by name; durable on return.
        """
        self.federation, self.roster, self.heads = federation, dict(roster), dict(heads)
        self._grid, self._identity, self._keep = grid, identity, keep

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | NoAnswer]:
        """Send one message to each named holder and wait for all answers.

        Args:
            messages: message by holder name; their heads are filled in here.
            timeout: seconds until a missing answer counts as :class:`NoAnswer`.

        Returns:
            One entry for each holder asked. An answer that is forged, garbled, for another run, from
            another sender or from an older ledger is a :class:`NoAnswer`; it never disturbs the other
            holders' answers.
        """
        sealed = {
            name: seal(
                self._with_heads(name, message),
                self._frame(sender=COORDINATOR, receiver=name),
                self._identity,
            )
            for name, message in messages.items()
        }
        spends = (CountsRequest, GradientRequest, MaskRequest)
        kind = "train" if any(isinstance(message, spends) for message in messages.values()) else "query"
        replies = exchange(self._grid, sealed, kind, timeout)
        answers = {name: self._open(name, replies.get(name), each.run) for name, each in messages.items()}
        self._remember(answers)
        return answers

    def _with_heads(self, name: str, message: Message) -> Message:
        """Say where the holder was last seen, in offers and closes with the coordinator's signature."""
        known = self.heads.get(name, "")
        if not known:
            return message
        if isinstance(message, (Offer, Close)):
            heads = Heads.parse(known)
            signed = countersign(self._identity, federation=self.federation, holder=name, heads=heads)
            return replace(message, heads=known, countersignature=signed)
        if isinstance(message, (CountsRequest, GradientRequest, MaskRequest)):
            return replace(message, heads=known)
        return message

    def _frame(self, *, sender: str, receiver: str) -> Frame:
        return Frame(federation=self.federation, sender=sender, receiver=receiver)

    def _open(self, name: str, reply: bytes | str | None, run: str) -> Message | NoAnswer:
        if not isinstance(reply, bytes):
            return NoAnswer(reason=reply or "no answer in time")
        public = self.roster.get(name)
        if public is None:
            return NoAnswer(reason="the holder is no longer admitted")
        try:
            frame = self._frame(sender=name, receiver=COORDINATOR)
            message = open_frame(reply, frame, public)
        except AssayError as error:
            return NoAnswer(reason=str(error))
        if message.run != run:
            return NoAnswer(reason="the answer belongs to another run")
        if isinstance(message, Declined) and message.code == "ledger":
            return NoAnswer(
                reason=_CLONED.format("its own ledger or log lacks what it showed here"), ledger=True
            )
        if isinstance(message, _SAY_HEADS):
            problem = _older(self.heads.get(name, ""), message.heads)
            if problem:
                return NoAnswer(reason=_CLONED.format(problem), ledger=True)
        return message

    def _remember(self, answers: Mapping[str, Message | NoAnswer]) -> None:
        """Keep the heads of the answers that are used."""
        said = {name: each.heads for name, each in answers.items() if isinstance(each, _SAY_HEADS)}
        new = {name: heads for name, heads in said.items() if self.heads.get(name) != heads}
        if new:
            self._keep(new)
            self.heads.update(new)


_SAY_HEADS = (Accepted, Release, Masked, Closed)
_CLONED = (
    "LEDGER ROLLED BACK OR CLONED: {}. Nothing it says is used. Find out whether this holder was restored"
    " from a backup or runs twice; see: assay server witness DIR NAME"
)


def _older(known: str, said: str) -> str | None:
    """Return why heads cannot follow the known ones, or None.

    Both counters only grow, and one length has one content; whether the longer one continues the known
    one is for the holder to check, which is told what is known.
    """
    if not said:
        return "the answer does not say where its ledger and log stand"
    if not known:
        return None
    before, now = Heads.parse(known), Heads.parse(said)
    for what, old, new in (
        ("ledger", (before.ledger_seq, before.ledger_hash), (now.ledger_seq, now.ledger_hash)),
        ("audit log", (before.log_size, before.log_root), (now.log_size, now.log_root)),
    ):
        if new[0] < old[0]:
            return f"its {what} has {new[0]} entries and had {old[0]}"
        if new[0] == old[0] and new[1] != old[1]:
            return f"its {what} has another entry {new[0]} than before"
    return None
