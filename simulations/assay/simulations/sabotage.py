"""What a simulation puts in a federation's way: a bad network, and holders that are malicious or unlucky.

Each part speaks to the live code as the real thing would: lost and late answers between the two sides
(:class:`BadNetwork`), a holder of another make (:class:`ScalingHolder`), one whose answers are rubbish
(:func:`garbling`), one that is set back to a copy of its files (:class:`Restored`).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from assay.client.holder import Holder
from assay.client.policy import require_persons
from assay.client.records import Records
from assay.client.release import Integers
from assay.client.training import LocalTraining
from assay.models.schema import Study
from assay.privacy.auditlog import AuditLog
from assay.privacy.files import make_private_dir
from assay.privacy.keys import SIGNATURE_BYTES, Identity
from assay.privacy.ledger import Ledger
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.optimizer import ClippedSum
from assay.privacy.secagg import VALUE_BOUND
from assay.simulations.faults import Faults
from assay.simulations.grid import LocalGrid

__all__ = ["App", "BadNetwork", "RememberingLog", "Restored", "ScalingHolder", "Start", "drawn", "garbling"]

App = Callable[[Message, Context], Message]
Start = Callable[[Ledger, AuditLog], App]


def drawn(seed: int, *what: str) -> np.random.Generator:
    """Return a generator for one decision of a simulation's layout; another for every other ``what``."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in what)])


class RememberingLog(AuditLog):
    """A holder's audit log that a simulation can read back: a log in memory has no file to look at.

    Attributes:
        told: kind and fields of every entry, in order.
    """

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.told: list[tuple[str, dict[str, str | int]]] = []

    def append(self, kind: str, **data: str | int) -> None:
        """See :class:`AuditLog`."""
        super().append(kind, **data)
        self.told.append((kind, data))


class _Asked(NamedTuple):
    """What a frame asks, by its header; nothing of it is trusted."""

    kind: str
    number: int
    phases: tuple[str, ...]


def _read(message: Message) -> _Asked:
    frame = bytes(message.content["assay"]["frame"])
    header = json.loads(frame[10 : 10 + int.from_bytes(frame[6:10], "big")])
    kind, fields = header["kind"], header["fields"]
    number, rounds = fields.get("round", 0), fields.get("rounds", 0)
    if kind in ("counts", "gradient", "mask"):
        which = "counts" if number == 0 else "gradients" if number <= rounds else "tallies"
        return _Asked(kind, number, (which, "mask"))
    return _Asked(kind, number, (_PHASE_OF[kind],) if kind in _PHASE_OF else ())


_PHASE_OF = {
    "offer": "accept",
    "keys-request": "keys",
    "shares-request": "shares",
    "survivors": "consent",
    "open": "open",
}


class BadNetwork(LocalGrid):
    """The network of one machine, in which answers get lost and some take long.

    Attributes:
        waited_s: seconds that the coordinator would have waited: for each exchange the slowest answer, or the
            time-out where one is missing. No time passes for them.
    """

    def __init__(
        self, apps: Mapping[str, App], faults: Faults, slow: tuple[str, ...], note: Callable[[str, str], None]
    ) -> None:
        super().__init__(apps)
        self._named = {node: name for name, node in self.nodes().items()}
        self._faults, self._slow, self._note_fault = faults, frozenset(slow), note
        self._asked = Counter[tuple[str, str, int]]()
        self.waited_s = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask one after another; a question, or its answer, may be lost, and an answer may be too late."""
        limit = self._faults.timeout_s if timeout is None else timeout
        replies, longest = [], 0.0
        for message in messages:
            name, asked = self._named[message.metadata.dst_node_id], _try_read(message)
            before, after = self._fate(name, asked)
            took = self._faults.slow_s if name in self._slow and "mask" in asked.phases else 0.0
            if took:
                self._note_fault("slow", name)
            pushed = self.push_messages([message])
            # An answer that is lost or late was given all the same: the holder has paid for it.
            answered = [] if before else self.pull_messages(pushed)
            if before or after or took > limit:
                longest = limit
            else:
                longest = max(longest, took)
                replies += answered
        self.waited_s += longest
        return replies

    def _fate(self, name: str, asked: _Asked) -> tuple[bool, bool]:
        """Return whether the question is lost, and whether the answer is: drawn for this one exchange."""
        before = after = False
        for phase in asked.phases:
            self._asked[phase, name, asked.number] += 1  # again, where a coordinator asks twice
            where = (phase, name, str(asked.number), str(self._asked[phase, name, asked.number]))
            draw, half = drawn(self._faults.seed, *where).random(2)
            if draw < self._faults.drop.get(phase, 0.0):
                self._note_fault(f"drop-{phase}", name)
                before, after = before or half < 0.5, after or half >= 0.5
        return before, after


def _try_read(message: Message) -> _Asked:
    try:
        return _read(message)
    except (KeyError, TypeError, ValueError):  # a lying coordinator's bytes
        return _Asked("", 0, ())


# Malicious and unlucky holders ----------------------------------------------------------------------------


class _ScaledSum:
    """A clipped sum times a factor that still claims the bound of the clipped sum: that is the attack."""

    def __init__(self, honest: ClippedSum, factor: float) -> None:
        self._honest, self._factor = honest, factor
        self.l2_clip_norm = honest.l2_clip_norm

    def __call__(self, theta: Any) -> Any:
        return self._factor * self._honest(theta)


class _ScaledTraining(LocalTraining):
    """Training whose gradient sums are multiplied before noise and masks."""

    def __init__(self, study: Study, records: Records, factor: float, scaled: Callable[[bool], None]) -> None:
        super().__init__(study, records)
        self._factor, self._scaled = factor, scaled

    def summed(self, number: int, rounds: int) -> ClippedSum:
        """See :class:`LocalTraining`; counts and tallies are as they are."""
        honest = super().summed(number, rounds)
        return _ScaledSum(honest, self._factor) if 0 < number <= rounds else honest

    def noisy(self, *, number: int, rounds: int, mechanism: IntegerMechanism, **rest: Any) -> Integers:
        """See :class:`LocalTraining`; notes what it has scaled, and what the grid then cut."""
        integers = super().noisy(number=number, rounds=rounds, mechanism=mechanism, **rest)
        if 0 < number <= rounds:
            edge = VALUE_BOUND - 1 - 30 * np.sqrt(mechanism.share_variance)
            self._scaled(bool(np.abs(integers).max() > edge))
        return integers


class ScalingHolder(Holder):
    """A holder that multiplies its gradient sums.

    Attributes:
        factor: by what.
        scaled: called for each such sum, with whether the grid cut it.
    """

    factor: float = 1.0
    scaled: Callable[[bool], None]

    def _open(self, study: Study) -> LocalTraining:
        records = self._load(study)
        require_persons(records, self._policy)
        return _ScaledTraining(study, records, self.factor, self.scaled)


def garbling(app: App, draw: np.random.Generator, note: Callable[[], None]) -> App:
    """Return an app that answers offers honestly and everything else with three kinds of rubbish in turn."""
    stranger, turns = Identity.generate(), itertools.count(int(draw.integers(3)))

    def garbled(message: Message, context: Context) -> Message:
        honest = app(message, context)
        if _try_read(message).kind in ("offer", "close"):
            return honest
        note()
        frame = bytes(honest.content["assay"]["frame"])
        signed, half = frame[:-SIGNATURE_BYTES], len(frame) // 2
        rubbish = (
            os.urandom(len(frame)),
            signed + stranger.sign("frame", signed),
            frame[:half] + bytes([frame[half] ^ 1]) + frame[half + 1 :],
        )[next(turns) % 3]
        return Message(RecordDict({"assay": ConfigRecord({"frame": rubbish})}), reply_to=message)

    return garbled


class Restored:
    """A holder that is set back to a copy of its directory, taken after round 0, when round 2 is asked.

    Attributes:
        ledger: the one in use; likewise ``log``, whose ``told`` goes on over restarts.
        moved: called when they have changed.
    """

    def __init__(self, directory: Path, identity: Identity, start: Start, note: Callable[[], None]) -> None:
        self._directory, self._copy = directory, directory.with_name(f"{directory.name}-copy")
        self._identity, self._start, self._note_fault = identity, start, note
        self._state = "new"
        self._told: list[tuple[str, dict[str, str | int]]] = []
        self.moved: Callable[[], None] = lambda: None
        self._run()

    def _run(self) -> None:
        books = make_private_dir(make_private_dir(self._directory) / "books")
        self.log = RememberingLog.open(books / "audit.log", self._identity)
        self.log.told = self._told
        self.ledger = Ledger.open(books / "ledger.sqlite", self._identity, log_head=self.log.head)
        self._app = self._start(self.ledger, self.log)

    def stop(self) -> None:
        """Close both books."""
        self.ledger.close()
        self.log.close()

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer, from an older copy where it is time for that."""
        asked = _try_read(message)
        if "mask" in asked.phases and asked.number >= 1 and self._state == "new":
            self._swap(self._directory, self._copy, "copied")
        elif "mask" in asked.phases and asked.number >= 2 and self._state == "copied":
            self._swap(self._copy, self._directory, "restored")
            self._note_fault()
        return self._app(message, context)

    def _swap(self, source: Path, target: Path, state: str) -> None:
        self.stop()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self._state = state
        self._run()
        self.moved()
