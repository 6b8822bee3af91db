"""Signed questions to holders and their checked answers, over any Flower grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from assay.privacy.errors import AssayError
from assay.privacy.keys import Identity
from assay.privacy.wire import CountsRequest, Frame, GradientRequest, Message, open_frame, seal
from assay.server.fleet import exchange

__all__ = ["COORDINATOR", "Courier", "NoAnswer"]

COORDINATOR = "coordinator"


@dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """A holder's answer is missing or unusable.

    Attributes:
        reason: one line for the operator.
    """

    reason: str


class Courier:
    """Seals messages with the coordinator's key and opens answers with each holder's admitted key.

    Attributes:
        federation: identifier of the federation, 64 hexadecimal digits.
        roster: admitted holders by name, each with its Ed25519 public key (32 bytes).
    """

    def __init__(
        self, grid: Grid, *, identity: Identity, federation: str, roster: Mapping[str, bytes]
    ) -> None:
        self.federation, self.roster = federation, dict(roster)
        self._grid, self._identity = grid, identity

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | NoAnswer]:
        """Send one message to each named holder and wait for all answers.

        Args:
            messages: message by holder name.
            timeout: seconds until a missing answer counts as :class:`NoAnswer`.

        Returns:
            One entry for each holder asked. An answer that is forged, garbled, for another run or from
            another sender is a :class:`NoAnswer`; it never disturbs the other holders' answers.
        """
        sealed = {
            name: seal(message, self._frame(sender=COORDINATOR, receiver=name), self._identity)
            for name, message in messages.items()
        }
        spends = any(isinstance(message, (CountsRequest, GradientRequest)) for message in messages.values())
        replies = exchange(self._grid, sealed, "train" if spends else "query", timeout)
        return {name: self._open(name, replies.get(name), message.run) for name, message in messages.items()}

    def _frame(self, *, sender: str, receiver: str) -> Frame:
        return Frame(federation=self.federation, sender=sender, receiver=receiver)

    def _open(self, name: str, reply: bytes | str | None, run: str) -> Message | NoAnswer:
        if not isinstance(reply, bytes):
            return NoAnswer(reason=reply or "no answer in time")
        try:
            frame = self._frame(sender=name, receiver=COORDINATOR)
            message = open_frame(reply, frame, self.roster[name])
        except AssayError as error:
            return NoAnswer(reason=str(error))
        if message.run != run:
            return NoAnswer(reason="the answer belongs to another run")
        return message
