"""One sum over all holders, the one thing that a round of a run needs, and how it is had with local trust.

:class:`PlainSums` here and :class:`assay.server.aggregation.SecureSums` are the two ways. Both add
integers, so the order of the answers does not matter, and both may be asked again for the same round
after a crash: holders repeat what they sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from assay.privacy.errors import AssayError
from assay.privacy.messages import (
    Consent,
    CountsRequest,
    Declined,
    GradientRequest,
    Keys,
    Masked,
    Message,
    Opened,
    Release,
    Shares,
)
from assay.server.courier import NoAnswer

__all__ = [
    "Aborted",
    "Answers",
    "Panel",
    "PlainSums",
    "Question",
    "SessionAnswer",
    "Summed",
    "Sums",
    "TooFewHolders",
    "why",
]

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Answers = dict[str, Message | NoAnswer]
SessionAnswer = TypeVar("SessionAnswer", Keys, Shares, Masked, Consent, Opened)


class Aborted(AssayError):
    """The run cannot go on; nothing more of it is asked for or opened."""


class TooFewHolders(Aborted):
    """Fewer holders than the federation or the study needs still answer."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The holders of a run, as those see them who collect its sums.

    Attributes:
        run: identifier of the run.
        ask: asks each named holder in a round; see :meth:`assay.server.courier.Courier.ask`.
        drop: reports that from a round on a holder, by name, is asked no more, and why.
    """

    run: str
    ask: Callable[[int, Mapping[str, Message]], Answers]
    drop: Callable[[int, str, str], None]

    def ask_for(
        self, kind: type[SessionAnswer], number: int, messages: Mapping[str, Message], *, session: int
    ) -> dict[str, SessionAnswer]:
        """Ask, and return the answers of one kind for one round, by name in order; drop everybody else."""
        found: dict[str, SessionAnswer] = {}
        for name, answer in sorted(self.ask(number, messages).items()):
            if isinstance(answer, kind) and _of(answer, session, number):
                found[name] = answer
            else:
                self.drop(number, name, f"{kind.kind}: {why(answer)}")
        return found

    def require(self, number: int, found: int, needed: int) -> None:
        """Refuse to go on with fewer than ``needed`` holders.

        Raises:
            TooFewHolders: as the name says.
        """
        if found < needed:
            raise TooFewHolders(
                f"round {number}: {found} holder(s) answered in time; allowed: at least {needed}."
                " The run is aborted; start the holders and train again"
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is summed in one round.

    Attributes:
        round: 0 for counts, 1.. for gradients.
        rounds: gradient rounds of the run; 0 in round 0.
        theta: float64, where gradients are taken; one 0.0 in round 0.
        size: number of values of the sum.
        unit: what one integer stands for.
        largest: most that the length of each holder's own answer can be, by name; empty in round 0. It is
            looked at where a holder's own answer is seen.
    """

    round: int
    rounds: int
    theta: Vector
    size: int
    unit: float
    largest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summed:
    """The sum of one round.

    Attributes:
        total: int64 ``[size]``, exact, in units of the question.
        shared: names of the holders that shared the noise of the sum: all that were asked.
        holders: names of the holders whose values are in it, sorted.
        active: names of those that are asked in the next round, sorted.
        own: each holder's own values by name; empty where only the sum is known.
    """

    total: Integers
    shared: tuple[str, ...]
    holders: tuple[str, ...]
    active: tuple[str, ...]
    own: Mapping[str, Integers] = field(default_factory=dict)


class Sums(Protocol):
    """Collects one sum per round."""

    def noises(self, holders: int) -> float:
        """Return how many times the noise variance of one release is in a sum of so many holders.

        Raises:
            TooFewHolders: the noise of so few would not do.
        """

    def collect(self, question: Question, active: tuple[str, ...]) -> Summed:
        """Collect the sum of one round; what is wrong with an answer is reported and not in the sum.

        Args:
            question: what is summed.
            active: names of the holders to ask, sorted.

        Raises:
            Aborted: too few answer, or what they answer gives no sum.
        """


class PlainSums:
    """Local trust: every holder's release carries its full noise, and the coordinator adds them up."""

    def __init__(self, panel: Panel, *, minimum: int) -> None:
        """Build it.

        Args:
            panel: the holders of the run.
            minimum: fewer answers than this end the run.
        """
        self._panel, self._minimum = panel, minimum

    def noises(self, holders: int) -> float:
        """See :class:`Sums`: each holder's own."""
        return float(holders)

    def collect(self, question: Question, active: tuple[str, ...]) -> Summed:
        """See :class:`Sums`."""
        request: Message = CountsRequest(run=self._panel.run)
        if question.round:
            request = GradientRequest(
                run=self._panel.run, round=question.round, rounds=question.rounds, theta=question.theta
            )
        own: dict[str, Integers] = {}
        for name, answer in sorted(self._panel.ask(question.round, dict.fromkeys(active, request)).items()):
            problem = _unfit(answer, question) or _too_long(name, answer, question)
            if problem is None and isinstance(answer, Release):
                own[name] = answer.values.astype(np.int64)
            else:
                self._panel.drop(question.round, name, problem or "")
        self._panel.require(question.round, len(own), self._minimum)
        # Exact: at most 1,000 of them, each below 2^53.
        total: Integers = np.stack(list(own.values())).sum(axis=0, dtype=np.int64)
        holders = tuple(own)
        return Summed(total=total, shared=active, holders=holders, active=holders, own=own)


def why(answer: Any) -> str:
    """Return why an answer is not the one that was asked for, in words for the operator."""
    if isinstance(answer, Declined):
        return f"declined ({answer.code})"
    return answer.reason if isinstance(answer, NoAnswer) else "an unexpected answer"


def _of(answer: Keys | Shares | Masked | Consent | Opened, session: int, number: int) -> bool:
    """Return whether an answer is of this session and, where it belongs to a round, of this one."""
    if answer.session != session:
        return False
    return isinstance(answer, (Keys, Shares)) or answer.round == number


def _unfit(answer: Message | NoAnswer, question: Question) -> str | None:
    if not isinstance(answer, Release):
        return why(answer)
    if answer.round != question.round or answer.values.size != question.size:
        return "the release is for another round or model"
    return None if answer.unit == question.unit else "the release uses another grid"


def _too_long(name: str, answer: Message | NoAnswer, question: Question) -> str | None:
    """Refuse a gradient that the holder's persons cannot have: it is broken, or made to drown the others."""
    if not isinstance(answer, Release) or name not in question.largest:
        return None
    length = float(np.linalg.norm(answer.values.astype(np.float64))) * answer.unit
    too_long = not length <= question.largest[name]
    return "the release is larger than its persons can make it" if too_long else None
