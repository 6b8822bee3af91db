"""The one function that builds a message which depends on records.

Charge, compute, record, hand out: the ledger is written (and on disk) before the computation starts, and
the integers that leave, and their entry in the audit log, are written (and on disk) before they leave. Asked
again for the same round, also after a crash, it hands out the same bytes and charges nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from assay.client.books import Books
from assay.models.encoding import Grid
from assay.models.label import mechanism_of
from assay.models.schema import Study
from assay.privacy.accounting import Event
from assay.privacy.errors import Refused
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.messages import Masked, Release

if TYPE_CHECKING:
    from assay.models.driftreport import DriftReport  # brings Arrow, which no release needs

__all__ = ["Integers", "NoisySum", "release", "require_released"]

Integers = NDArray[np.int64]
_TALLIES = ("outcomes by log-odds", "audit counts")
Answer = TypeVar("Answer", Release, Masked, "DriftReport")


@dataclass(frozen=True, kw_only=True)
class NoisySum:
    """What one release is, before it is computed.

    Attributes:
        run: identifier of the run.
        round: 0 for counts, 1.. for gradients.
        what: words for the ledger.
        question: what was asked, as the ledger keeps it: the context of a masked round, empty otherwise.
        mechanism: bound, grid and noise; the charge is read off it, so that the two cannot differ.
    """

    run: str
    round: int
    what: str
    question: str
    mechanism: IntegerMechanism

    @property
    def event(self) -> Event:
        """What the release costs: the noise of the whole sum."""
        return Event(noise_multiplier=self.mechanism.noise_multiplier)

    @classmethod
    def of(
        cls, study: Study, run: str, number: int, rounds: int, *, contributors: int = 1, question: str = ""
    ) -> NoisySum:
        """Return what a round's release is.

        Args:
            study: what is trained.
            run: identifier of the run.
            number: the round, from 0.
            rounds: gradient rounds of the run; not looked at in round 0.
            contributors: holders whose shares make up the whole noise.
            question: see the class.
        """
        mechanism = mechanism_of(
            study, Grid.of(study), number=number, rounds=rounds, contributors=contributors
        )
        after = max(0, number - rounds) if number else 0
        what = _TALLIES[after - 1] if after else "clipped gradient sum" if number else "cell counts"
        return cls(run=run, round=number, what=what, question=question, mechanism=mechanism)

    def charge(self, books: Books) -> bytes | None:
        """Charge it, once; return the bytes that were released for it before, if any."""
        return books.ledger.charge(
            run=self.run,
            round=self.round,
            mechanism=self.what,
            sensitivity=self.mechanism.l2_clip_norm,
            event=self.event,
            question=self.question,
            noise_share=1 / self.mechanism.contributors,
        )


def release(
    books: Books, wanted: NoisySum, *, compute: Callable[[], Integers], build: Callable[[Integers], Answer]
) -> Answer:
    """Release one noisy sum, or under masks a part of one.

    Guarantee: the integers are the output of ``wanted.mechanism``: the holder's clipped sum on a grid, with
    its share of a discrete Gaussian. Run and round are charged exactly once, with the cost of the sum over
    all contributors, and answer one question only.

    Args:
        books: the holder's; its ledger holds a reservation for the run.
        wanted: what to release.
        compute: computes the integers with their noise; called at most once.
        build: makes the message, or the report that the operator hands out; called when everything it shows
            is on disk.

    Raises:
        Refused: the run is unknown or closed, the round is not covered by its reservation, or it was asked
            another question. Nothing is computed then.
    """
    payload = wanted.charge(books)
    if payload is None:
        integers = compute().astype("<i8")
        payload = books.ledger.release(run=wanted.run, round=wanted.round, payload=integers.tobytes())
    books.settle()
    return build(np.frombuffer(payload, dtype="<i8"))


def require_released(books: Books, wanted: NoisySum) -> None:
    """Refuse unless exactly this was released before.

    Raises:
        Refused: nothing was released for the round (``"unknown"``), or something else (``"changed"``).
    """
    if not books.audit.has("release", run=wanted.run, round=wanted.round):
        raise Refused(f"round {wanted.round} was not answered here; nothing is opened", code="unknown")
    wanted.charge(books)  # a round that was released is compared and never charged again
