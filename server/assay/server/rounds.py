"""One training run, from the offer to the fitted scorecard; it can be stopped anywhere and goes on.

Released integers are added up as integers, so the order of the holders' answers does not matter, and a run
that is resumed from its checkpoint ends in the same model as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from assay.models.encoding import Grid
from assay.models.fitting import Fit, default_rounds, estimate_persons
from assay.models.label import privacy_target
from assay.models.study import parse_study
from assay.privacy.accounting import RunCost, epsilon_of
from assay.privacy.errors import AssayError, Refused
from assay.privacy.noise import grid_unit
from assay.privacy.wire import (
    Accepted,
    Close,
    CountsRequest,
    Declined,
    GradientRequest,
    Message,
    Offer,
    Release,
)
from assay.server.courier import NoAnswer

__all__ = ["Interrupted", "Progress", "Run", "TooFewHolders", "Trained"]

# The bundle is out by then; nobody waits long for a holder that has gone.
CLOSE_S = 10.0

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Answers = dict[str, Message | NoAnswer]


class Interrupted(AssayError):
    """The coordinator is stopping; the run goes on from its checkpoint after the next start."""


class TooFewHolders(AssayError):
    """Fewer holders than the federation's minimum still answer."""


class Asks(Protocol):
    """What a run needs of the world: questions to holders by name, and their answers."""

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> Answers:
        """Ask each named holder; see :class:`assay.server.courier.Courier`."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run, for logs and progress displays; everything in it is public.

    Attributes:
        kind: ``"offer"``, ``"counts"``, ``"round"``, ``"dropped"`` or ``"resumed"``.
        round: 0 for offer and counts, then 1..rounds.
        rounds: gradient rounds of the run, 0 while not known.
        holders: names of the holders that take part.
        epsilon: spent so far, for one person.
        detail: words for the operator.
    """

    kind: str
    round: int
    rounds: int
    holders: tuple[str, ...]
    epsilon: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a finished run gives.

    Attributes:
        theta: float64 ``[cells + 1]``, fitted log-odds and intercept.
        counts: float64 ``[cells]``, summed noisy counts.
        rounds: gradient rounds taken.
        holders: names of the holders that answered the last round.
    """

    theta: Vector
    counts: Vector
    rounds: int
    holders: tuple[str, ...]


@dataclass
class _State:
    """What a checkpoint holds."""

    accepted: list[str] = field(default_factory=list)
    persons: dict[str, float] = field(default_factory=dict)  # estimate at round 0, by holder
    active: list[str] = field(default_factory=list)  # holders that still answer
    counts: Vector = field(default_factory=lambda: np.zeros(0))
    rounds: int = 0
    fit: dict[str, Vector] = field(default_factory=dict)

    def pack(self) -> bytes:
        names = self.accepted
        arrays: dict[str, NDArray[Any]] = {f"fit.{name}": value for name, value in self.fit.items()}
        arrays |= {
            "counts": self.counts,
            "rounds": np.array([self.rounds]),
            "persons": np.array([self.persons.get(name, np.nan) for name in names]),
            "names": np.frombuffer("\n".join(names).encode(), dtype=np.uint8).copy(),
            "active": np.array([name in self.active for name in names]),
        }
        return bytes(save_arrays(arrays))

    @classmethod
    def unpack(cls, data: bytes) -> _State:
        arrays = load_arrays(data)
        names = arrays["names"].tobytes().decode().split("\n")
        return cls(
            accepted=names,
            persons={n: p for n, p in zip(names, arrays["persons"].tolist(), strict=True) if p == p},
            active=[name for name, on in zip(names, arrays["active"], strict=True) if on],
            counts=arrays["counts"],
            rounds=int(arrays["rounds"][0]),
            fit={key[4:]: value for key, value in arrays.items() if key.startswith("fit.")},
        )


class Run:
    """Trains one study with the holders that accept it.

    Args:
        run: identifier, 32 hexadecimal digits.
        study_text: text of the study file.
        courier: asks the holders.
        minimum_holders: fewer than this many answers end the run.
        timeout_s: seconds to wait for a holder's answer, also while it restarts.
        save: called with ``(round, checkpoint bytes)`` after each aggregation; durable on return.
        report: called with each :class:`Progress`.
        stopping: asked before each exchange; true ends the run with :class:`Interrupted`.
    """

    def __init__(
        self,
        *,
        run: str,
        study_text: str,
        courier: Asks,
        minimum_holders: int,
        timeout_s: float,
        save: Callable[[int, bytes], None],
        report: Callable[[Progress], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run, self.study = run, parse_study(study_text)
        self._text, self._courier = study_text, courier
        self._minimum, self._timeout = minimum_holders, timeout_s
        self._save, self._report, self._stopping = save, report, stopping
        self._grid = Grid.of(self.study)
        self._cost = RunCost.of(privacy_target(self.study))
        self._state = _State()

    def train(self, holders: list[str], checkpoint: bytes | None = None) -> Trained:
        """Run to the end.

        Args:
            holders: names of the holders to offer the study to; ignored when resuming.
            checkpoint: the last bytes given to ``save``, to go on from there.

        Raises:
            Refused: too few holders accept; nothing was spent.
            TooFewHolders: too few holders still answer; those that do are told that the run is over.
            Interrupted: the coordinator is stopping.
        """
        try:
            if checkpoint is None:
                self._offer(holders)
                self._count()
            else:
                self._state = _State.unpack(checkpoint)
                self._tell("resumed", int(self._state.fit["done"][0]), tuple(self._state.active))
            fit = self._descend()
        except (Refused, TooFewHolders):
            # Anything else, a full disk for instance, leaves the run to be taken up again.
            self.close("aborted")
            raise
        return Trained(
            theta=fit.result(self.study),
            counts=self._state.counts,
            rounds=fit.rounds,
            holders=tuple(self._state.active),
        )

    def close(self, outcome: str) -> None:
        """Tell every holder that accepted that the run is over, also those dropped on the way.

        One that does not answer keeps its reservation until the next offer, which ends abandoned runs.
        """
        message = Close(run=self.run, outcome=outcome)
        self._courier.ask(dict.fromkeys(self._state.accepted, message), timeout=min(self._timeout, CLOSE_S))

    def _ask(self, message: Message, names: list[str]) -> Answers:
        if self._stopping():
            raise Interrupted("the coordinator is stopping; the run goes on after the next start")
        answers = self._courier.ask(dict.fromkeys(names, message), timeout=self._timeout)
        if self._stopping() and any(isinstance(answer, NoAnswer) for answer in answers.values()):
            raise Interrupted("the coordinator is stopping; the run goes on after the next start")
        return answers

    def _offer(self, names: list[str]) -> None:
        answers = self._ask(Offer(run=self.run, study=self._text), names)
        accepted = sorted(name for name, answer in answers.items() if isinstance(answer, Accepted))
        self._state.accepted = accepted
        refusals = [f"{name}: {_why(answers[name])}" for name in sorted(answers) if name not in accepted]
        self._tell("offer", 0, tuple(accepted), detail="; ".join(refusals))
        if len(accepted) < self._minimum:
            detail = f" ({'; '.join(refusals)})" if refusals else ""
            raise Refused(
                f"{len(accepted)} holder(s) accept the study; allowed: at least {self._minimum}{detail}."
                " Start more holders, or change the study or their policies",
                code="holders",
            )

    def _count(self) -> None:
        unit = grid_unit(self._counts_std())
        sums = self._collect(CountsRequest(run=self.run), self._state.accepted, 0, unit)
        self._state.persons = {
            n: estimate_persons(self._grid, _total({n: v}) * unit) for n, v in sums.items()
        }
        self._state.active = sorted(sums)
        self._state.counts = _total(sums) * unit
        persons = sum(self._state.persons.values())
        epsilon = self.study.privacy.epsilon
        self._state.rounds = self.study.training.rounds or default_rounds(
            epsilon=epsilon, persons=persons, holders=len(sums)
        )
        self._checkpoint(self._new_fit(), 0)
        self._tell("counts", 0, tuple(sums))

    def _counts_std(self) -> float:
        return self._cost.counts.noise_multiplier * self._grid.counts_sensitivity

    def _gradient_std(self) -> float:
        return self._cost.gradient(self._state.rounds).noise_multiplier * self._grid.gradient_sensitivity

    def _new_fit(self) -> Fit:
        noise = self._gradient_std() * len(self._state.persons) ** 0.5
        return Fit(self._grid, counts=self._state.counts, gradient_noise_std=noise, rounds=self._state.rounds)

    def _descend(self) -> Fit:
        fit = self._new_fit()
        if self._state.fit:
            fit.restore(self._state.fit)
        total = sum(self._state.persons.values())
        unit = grid_unit(self._gradient_std())
        while fit.done < fit.rounds:
            request = GradientRequest(run=self.run, round=fit.done + 1, rounds=fit.rounds, theta=fit.theta)
            sums = self._collect(request, self._state.active, request.round, unit)
            # A holder that is gone takes its (publicly estimated) persons out of the sum; the rest stands
            # for all, so that the step keeps its size.
            answered = sum(self._state.persons[name] for name in sums)
            self._state.active = sorted(sums)
            fit.update(_total(sums) * unit * (total / answered))
            self._checkpoint(fit, request.round)
            self._tell("round", request.round, tuple(sums))
        return fit

    def _collect(self, request: Message, names: list[str], number: int, unit: float) -> dict[str, Integers]:
        """Ask for one release, refuse what does not fit, and return each holder's integers."""
        size = self._grid.size if number == 0 else self._grid.size + 1
        sums: dict[str, Integers] = {}
        for name, answer in sorted(self._ask(request, names).items()):
            problem = _unfit(answer, number, size, unit) or self._too_large(name, answer)
            if problem is None and isinstance(answer, Release):
                sums[name] = answer.values.astype(np.int64)
            else:
                self._tell("dropped", number, (name,), detail=problem or "")
        if len(sums) < self._minimum:
            raise TooFewHolders(
                f"round {number}: {len(sums)} holder(s) answered within {self._timeout:g} s; allowed: at"
                f" least {self._minimum}. The run is aborted; start the holders and train again"
            )
        return sums

    def _too_large(self, name: str, answer: Message | NoAnswer) -> str | None:
        """Refuse a gradient that the holder's persons cannot have: it is broken, or made to drown the others.

        Every person adds at most the clip norm, and ten times the noise's own length never happens.
        """
        if not isinstance(answer, Release) or answer.round == 0:
            return None
        most = self._state.persons[name] * self._grid.gradient_sensitivity
        noise = self._gradient_std() * math.sqrt(answer.values.size)
        length = float(np.linalg.norm(answer.values.astype(np.float64))) * answer.unit
        return None if length <= most + 10 * noise else "the release is larger than its persons can make it"

    def _checkpoint(self, fit: Fit, number: int) -> None:
        self._state.fit = fit.state()
        self._save(number, self._state.pack())

    def _tell(self, kind: str, number: int, holders: tuple[str, ...], detail: str = "") -> None:
        rounds = self._state.rounds
        events = [] if kind == "offer" else [self._cost.counts] + [self._cost.gradient(rounds or 1)] * number
        spent = epsilon_of(events, self.study.privacy.delta)
        self._report(
            Progress(kind=kind, round=number, rounds=rounds, holders=holders, epsilon=spent, detail=detail)
        )


def _total(sums: Mapping[str, Integers]) -> Vector:
    """Add the holders' integers exactly: at most 1,000 of them, each below 2^53."""
    total: Integers = np.stack(list(sums.values())).sum(axis=0, dtype=np.int64)
    return total.astype(np.float64)


def _why(answer: Any) -> str:
    if isinstance(answer, Declined):
        return f"declined ({answer.code})"
    return answer.reason if isinstance(answer, NoAnswer) else "an unexpected answer"


def _unfit(answer: Message | NoAnswer, number: int, size: int, unit: float) -> str | None:
    if not isinstance(answer, Release):
        return _why(answer)
    if answer.round != number or answer.values.size != size:
        return "the release is for another round or model"
    return None if answer.unit == unit else "the release uses another grid"
