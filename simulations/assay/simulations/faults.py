"""What may go wrong in a simulated federation, as options: ``assay simulate --fault KIND=VALUE``.

    faults = Faults.parse(["drop-mask=0.05", "flip=10%", "coordinator=two-lists"], seed=3)
    federate(text, holders, faults=faults).faults          # what was injected, caught, and not caught

This module says which faults there are and checks them; :mod:`assay.simulations.injection` makes them happen
and writes down what came of it, :mod:`assay.simulations.liar` is the coordinator that lies. A seed decides
who is hit, never noise. What stands against them is the live code: nothing of it is simulated.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assay.models.schema import Study
from assay.privacy.errors import AssayError, BadInput
from assay.server.settings import FederationSettings

__all__ = ["HELP", "LIES", "PHASES", "EndedByFaults", "Faults", "Who"]

PHASES: Mapping[str, str] = {
    "accept": "the offer of the study",
    "keys": "the keys of a session",
    "shares": "the shares of a session",
    "counts": "the sum of round 0",
    "gradients": "the sum of a round of training",
    "tallies": "the sums for calibration and audit",
    "mask": "any of these three sums",
    "consent": "the list of survivors",
    "open": "the opening of a round",
}
"""Exchanges in which an answer may be missing; keys, shares, consent and open exist under masks only."""

LIES: Mapping[str, str] = {
    "changed-theta": "one holder is asked at other parameters than the rest",
    "two-lists": "a round is opened for everybody, then for everybody but one: the difference is that one's",
    "asks-again": "a round is asked again at other parameters, to average its noise away",
    "more-rounds": "a round is asked beyond those that were reserved",
    "other-study": "another study is put under a running run, then a model that is not the study's",
    "another-run": "the study is offered again when its budget is spent",
    "unsigned": "questions with a stranger's signature, with a changed byte, or meant for another holder",
    "fake-holder": "a holder is to mask with holders that the coordinator invented; its peers are pinned",
    "fake-holder-unpinned": "the same, with no peers pinned and no floor under a holder's own share of noise",
}
"""What a coordinator may try, once in a run."""

HELP = (
    "What goes wrong; may be given several times. drop-PHASE=P: with probability P a holder's answer is lost;"
    f" PHASE is {', '.join(PHASES)}. slow=SHARE:SECONDS: a share of the holders takes so long for every sum;"
    f" later than timeout=SECONDS ({FederationSettings.round_timeout_s}) it is missing. flip=WHO[:SHARE]:"
    " wrong labels, in a share of the rows. scale=WHO:FACTOR: gradient sums multiplied. garbage=WHO:"
    " unreadable and forged answers. replay=WHO: set back to an older copy. WHO is a number of holders, a"
    f" percentage such as 10%, or names with commas. coordinator=LIE: {', '.join(LIES)}."
)
SETTING = "--fault"

_MASKED_PHASES = ("keys", "shares", "consent", "open")
_MASKED_LIES = ("two-lists", "fake-holder", "fake-holder-unpinned")
_MAX_SECONDS = 86400.0
_MAX_FACTOR = 1e9
_COUNT, _PERCENT = re.compile(r"[0-9]{1,9}"), re.compile(r"([0-9.]+)%")


class EndedByFaults(AssayError):
    """A simulated run with faults that did not end in a model.

    Attributes:
        faults: what a finished run has in ``Federated.faults``.
        exit_code: of the error that ended it, as in :mod:`assay.privacy.errors`.
    """

    def __init__(self, error: AssayError, faults: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.faults, self.exit_code = dict(faults), error.exit_code


@dataclass(frozen=True, kw_only=True)
class Who:
    """Some of a federation's holders.

    Attributes:
        text: as it was written: a number, a percentage, or names with commas.
        count: how many, drawn by a seed; None where it is not a number.
        share: which share, above 0 to 1, rounded and at least one; None likewise.
        names: their names, sorted; empty likewise.
    """

    text: str
    count: int | None = None
    share: float | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, setting: str) -> Who:
        """Read it.

        Raises:
            BadInput: it is none of the three.
        """
        if _COUNT.fullmatch(text):
            _need(int(text) >= 1, setting, text, "a number of holders, 1 or more")
            return cls(text=text, count=int(text))
        if percent := _PERCENT.fullmatch(text):
            share = _number(percent[1], setting, "a percentage above 0%, at most 100%") / 100
            _need(0 < share <= 1, setting, text, "a percentage above 0%, at most 100%")
            return cls(text=text, share=share)
        names = text.split(",")
        allowed = "a number of holders, a percentage such as 10%, or different names with commas"
        _need(all(names) and len(set(names)) == len(names), setting, text, allowed)
        return cls(text=text, names=tuple(sorted(names)))

    def require(self, holders: Sequence[str], setting: str) -> None:
        """Refuse names that no holder has, and more holders than there are.

        Raises:
            BadInput: names the first one.
        """
        for name in self.names:
            known = ", ".join(holders[:5]) + (", ..." if len(holders) > 5 else "")
            _need(name in holders, setting, name, f"names of this simulation's holders: {known}")
        at_most = f"at most {len(holders)}, the number of holders"
        _need((self.count or 0) <= len(holders), setting, self.count, at_most)

    def choose(self, holders: Sequence[str], seed: int, what: str) -> tuple[str, ...]:
        """Return the names, sorted: a number or share is drawn by the seed, apart for each ``what``."""
        if self.names:
            return self.names
        count = self.count or max(1, round((self.share or 0) * len(holders)))
        drawn = np.random.default_rng([seed, zlib.crc32(what.encode())]).permutation(len(holders))
        return tuple(sorted(holders[place] for place in drawn[:count]))


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of one simulated run; none unless said otherwise.

    Attributes:
        drop: by key of :data:`PHASES`, probability 0 to 1 that a holder's answer is lost: for each holder and
            exchange, half the time with the question and half the time after the holder has answered.
        slow: who is slow.
        slow_s: seconds that a slow holder takes for a sum, above 0 to 86400; no time passes for them.
        timeout_s: seconds until the coordinator goes on without an answer, above 0 to 86400.
        flip: whose labels are wrong.
        flip_share: in which share of the rows, above 0 to 1.
        scale: who multiplies its clipped gradient sums before noise and masks.
        factor: by what, -1e9 to 1e9.
        garbage: who answers everything after the offer with bytes that are not its answer.
        replay: who goes back, after round 1, to a copy of its books and files as they were after round 0.
        coordinator: a key of :data:`LIES`, or empty.
        seed: decides who is hit; 0 or more.
    """

    drop: Mapping[str, float] = field(default_factory=dict)
    slow: Who | None = None
    slow_s: float = 0.0
    timeout_s: float = float(FederationSettings.round_timeout_s)
    flip: Who | None = None
    flip_share: float = 1.0
    scale: Who | None = None
    factor: float = 1.0
    garbage: Who | None = None
    replay: Who | None = None
    coordinator: str = ""
    seed: int = 0

    @classmethod
    def parse(cls, options: Sequence[str], *, seed: int = 0) -> Faults:
        """Read ``KIND=VALUE`` options; see :data:`HELP`.

        Raises:
            BadInput: another kind, one given twice, or a value out of range: NaN, a probability above 1.
        """
        fields: dict[str, Any] = {"drop": {}, "seed": seed}
        seen: set[str] = set()
        for option in options:
            kind, sign, value = option.partition("=")
            _need(
                bool(sign) and kind in _READ, SETTING, option, f"KIND=VALUE with KIND of {', '.join(_READ)}"
            )
            _need(kind not in seen, f"{SETTING} {kind}", value, "each kind once")
            seen.add(kind)
            read = _READ[kind](f"{SETTING} {kind}", value)
            if kind.startswith("drop-"):
                fields["drop"][kind.removeprefix("drop-")] = read["drop"]
            else:
                fields |= read
        return cls(**fields)

    def __post_init__(self) -> None:
        for phase, share in self.drop.items():
            _need(phase in PHASES, f"{SETTING} drop-{phase}", share, f"phases {', '.join(PHASES)}")
            _need(0 <= share <= 1, f"{SETTING} drop-{phase}", share, "a probability, 0 to 1")
        if self.slow is not None:
            _need(0 < self.slow_s <= _MAX_SECONDS, f"{SETTING} slow", self.slow_s, _SECONDS)
        _need(0 < self.timeout_s <= _MAX_SECONDS, f"{SETTING} timeout", self.timeout_s, _SECONDS)
        _need(0 < self.flip_share <= 1, f"{SETTING} flip", self.flip_share, _ROWS)
        _need(abs(self.factor) <= _MAX_FACTOR, f"{SETTING} scale", self.factor, _FACTOR)
        known = not self.coordinator or self.coordinator in LIES
        _need(known, f"{SETTING} coordinator", self.coordinator, ", ".join(LIES))
        _need(self.seed >= 0, "seed", self.seed, "0 or more")

    @property
    def options(self) -> tuple[str, ...]:
        """The same as :meth:`parse` reads it, in one order and spelling."""
        said = [f"drop-{phase}={self.drop[phase]:g}" for phase in PHASES if phase in self.drop]
        if self.slow is not None:
            said.append(f"slow={self.slow.text}:{self.slow_s:g}")
        if self.timeout_s != Faults.timeout_s:
            said.append(f"timeout={self.timeout_s:g}")
        if self.flip is not None:
            said.append(f"flip={self.flip.text}:{self.flip_share:g}")
        if self.scale is not None:
            said.append(f"scale={self.scale.text}:{self.factor:g}")
        said += [
            f"{kind}={who.text}" for kind, who in (("garbage", self.garbage), ("replay", self.replay)) if who
        ]
        return (*said, *([f"coordinator={self.coordinator}"] if self.coordinator else []))

    def to_json(self) -> dict[str, Any]:
        """Return what says which faults these are; equal where the faults are."""
        return {"options": list(self.options), "seed": self.seed}

    def require(self, study: Study, holders: Sequence[str], *, engine: str = "full") -> None:
        """Refuse faults that this simulation cannot have, before anything runs.

        Args:
            study: what is trained.
            holders: names of all holders, sorted.
            engine: of ``federate``.

        Raises:
            BadInput: a holder that does not exist, more of them than there are; a fault of the protocol in an
                engine without it; a fault of masks in a study without them.
        """
        for kind in ("slow", "flip", "scale", "garbage", "replay"):
            who: Who | None = getattr(self, kind)
            if who is not None:
                who.require(holders, f"{SETTING} {kind}")
        of_protocol = [option for option in self.options if not option.startswith("flip=")]
        if engine != "full" and of_protocol:
            raise BadInput(
                SETTING,
                value=of_protocol[0],
                allowed=f"flip with --engine {engine}, which sends no messages that could be lost or forged",
                remedy="Choose --engine full",
            )
        masked = [f"drop-{phase}" for phase in _MASKED_PHASES if phase in self.drop]
        masked += [f"coordinator={self.coordinator}"] if self.coordinator in _MASKED_LIES else []
        if masked and study.privacy.trust != "distributed":
            needs = ", ".join([*(f"drop-{phase}" for phase in _MASKED_PHASES), *_MASKED_LIES])
            raise BadInput(
                SETTING,
                value=masked[0],
                allowed=f'faults that need no masks in a study of trust = "local": not {needs}',
                remedy='Set trust = "distributed" in the study, or leave it out',
            )


_SECONDS = f"seconds above 0, at most {_MAX_SECONDS:g}"
_ROWS = "a share of the rows, above 0, at most 1"
_FACTOR = f"a factor, -{_MAX_FACTOR:g} to {_MAX_FACTOR:g}"
_PROBABILITY = "a probability, 0 to 1"


def _need(ok: bool, setting: str, value: object, allowed: str) -> None:
    if not ok:
        raise BadInput(setting, value=value, allowed=allowed, remedy="Correct it or leave it out")


def _number(text: str, setting: str, allowed: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    _need(math.isfinite(number), setting, text, allowed)
    return number


def _read_drop(setting: str, value: str) -> dict[str, Any]:
    return {"drop": _number(value, setting, _PROBABILITY)}


def _read_slow(setting: str, value: str) -> dict[str, Any]:
    share, _, seconds = value.partition(":")
    allowed = f"SHARE:SECONDS, a share of the holders, above 0 to 1, and {_SECONDS}"
    part = _number(share, setting, allowed)
    _need(0 < part <= 1, setting, value, allowed)
    return {"slow": Who(text=share, share=part), "slow_s": _number(seconds, setting, allowed)}


def _read_flip(setting: str, value: str) -> dict[str, Any]:
    who, colon, share = value.partition(":")
    rows = _number(share, setting, _ROWS) if colon else 1.0
    return {"flip": Who.parse(who, setting), "flip_share": rows}


def _read_scale(setting: str, value: str) -> dict[str, Any]:
    who, _, factor = value.partition(":")
    return {"scale": Who.parse(who, setting), "factor": _number(factor, setting, f"WHO:FACTOR, {_FACTOR}")}


def _read_coordinator(setting: str, value: str) -> dict[str, Any]:
    _need(value in LIES, setting, value, ", ".join(LIES))
    return {"coordinator": value}


_READ: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    **{f"drop-{phase}": _read_drop for phase in PHASES},
    "slow": _read_slow,
    "timeout": lambda setting, value: {"timeout_s": _number(value, setting, _SECONDS)},
    "flip": _read_flip,
    "scale": _read_scale,
    "garbage": lambda setting, value: {"garbage": Who.parse(value, setting)},
    "replay": lambda setting, value: {"replay": Who.parse(value, setting)},
    "coordinator": _read_coordinator,
}
