"""The faults of one simulated run, on their way into it and out of it again as a report.

Everything bad sits outside the live code and speaks to it as a real fault would: network and holders in
:mod:`assay.simulations.sabotage`, a coordinator that lies in :mod:`assay.simulations.liar`. Every check that
stops one of them is the one that a live federation runs.

What brings Flower is imported where it is needed: the fast engine does without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.client.holder import Holder
from assay.client.policy import Policy
from assay.client.records import Records
from assay.models.schema import Study
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import AssayError
from assay.privacy.keys import Identity, fingerprint
from assay.privacy.ledger import Ledger
from assay.server.courier import Courier
from assay.server.rounds import Progress, Trained
from assay.server.settings import FederationSettings
from assay.simulations.faults import EndedByFaults, Faults

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from assay.simulations.liar import Liar
    from assay.simulations.sabotage import App, BadNetwork, RememberingLog

__all__ = ["Injection", "effect_of"]

_NO_FAULT_TIMEOUT_S = 3600.0  # in process, an answer is a function call: only a defect takes this long


class Injection:
    """The faults of one run, on their way into it.

    With no faults it changes nothing: the run is then the live system's own.

    Attributes:
        faults: which.
        names: of all holders, sorted.
        ledgers: the holders' ledgers by name, the one that is in use.
    """

    def __init__(
        self, faults: Faults | None, study: Study, names: Iterable[str], *, engine: str = "full"
    ) -> None:
        """Choose who is hit.

        Raises:
            BadInput: these faults do not go with this study, these holders or this engine.
        """
        self._asked = faults is not None
        self.faults, self.names = faults or Faults(), tuple(sorted(names))
        self.faults.require(study, self.names, engine=engine)
        self.ledgers: dict[str, Ledger] = {}
        self._study = study
        self._logs: dict[str, RememberingLog] = {}
        self._times: dict[str, Counter[str]] = {}
        self._cut: Counter[str] = Counter()
        self._steps: list[Progress] = []
        self._grid: BadNetwork | None = None
        self._liar: Liar | None = None
        chosen = {}
        for kind in ("slow", "flip", "scale", "garbage", "replay"):
            who = getattr(self.faults, kind)
            chosen[kind] = () if who is None else who.choose(self.names, self.faults.seed, kind)
        self._chosen: Mapping[str, tuple[str, ...]] = chosen

    # What the engine asks --------------------------------------------------------------------------

    @property
    def timeout_s(self) -> float:
        """Seconds that the coordinator waits for an answer."""
        return self.faults.timeout_s if self._asked else _NO_FAULT_TIMEOUT_S

    @property
    def minimum_holders(self) -> int:
        """Fewer answers than this end the run: with faults as at a live coordinator, otherwise all."""
        return min(FederationSettings.minimum_holders, len(self.names)) if self._asked else len(self.names)

    def records(self, holders: Mapping[str, Records]) -> dict[str, Records]:
        """Return the records with the labels of some holders turned round."""
        held = dict(holders)
        if not self._chosen["flip"]:
            return held
        from assay.simulations.sabotage import drawn

        for name in self._chosen["flip"]:
            labels, draw = held[name].labels.copy(), drawn(self.faults.seed, "flip", name)
            wrong = draw.permutation(labels.size)[: max(1, round(self.faults.flip_share * labels.size))]
            labels[wrong] = 1 - labels[wrong]
            held[name] = replace(held[name], labels=labels)
            self._note("flip", name, wrong.size)
        return held

    def policy(self, policy: Policy, name: str, roster: Mapping[str, bytes]) -> Policy:
        """Return a holder's policy: with its peers pinned where that is what the lie is told against."""
        if self.faults.coordinator != "fake-holder":
            return policy
        return replace(policy, peers={peer: fingerprint(key) for peer, key in roster.items() if peer != name})

    def holder(self, *, name: str, **settings: Any) -> Holder:
        """Build a holder, a malicious one where it is to be."""
        if name not in self._chosen["scale"]:
            return Holder(name=name, **settings)

        def scaled(cut: bool) -> None:
            self._note("scale", name)
            self._cut.update([name] if cut else [])

        from assay.simulations.sabotage import ScalingHolder

        holder = ScalingHolder(name=name, **settings)
        holder.factor, holder.scaled = self.faults.factor, scaled
        return holder

    def app(
        self,
        name: str,
        start: Callable[[str, Ledger, AuditLog], App],
        *,
        identity: Identity,
        directory: Path,
        opened: ExitStack,
    ) -> App:
        """Open a holder's books and start its app.

        Args:
            name: of the holder.
            start: builds the app of a name, for a ledger and an audit log.
            identity: of the holder.
            directory: of the holder; what is in it is what a restored copy has.
            opened: closes what is opened here.
        """
        from assay.simulations.sabotage import RememberingLog, Restored, drawn, garbling

        if name in self._chosen["replay"]:
            restored = Restored(directory, identity, partial(start, name), lambda: self._note("replay", name))
            opened.callback(restored.stop)
            app: App = restored
            self.ledgers[name], self._logs[name] = restored.ledger, restored.log
            restored.moved = lambda: self.ledgers.update({name: restored.ledger})
        else:
            log = self._logs[name] = opened.enter_context(RememberingLog.open(None, identity))
            ledger = opened.enter_context(Ledger.open(":memory:", identity, log_head=log.head))
            self.ledgers[name], app = ledger, start(name, ledger, log)
        if name in self._chosen["garbage"]:
            draw = drawn(self.faults.seed, "garbage", name)
            app = garbling(app, draw, lambda: self._note("garbage", name))
        return app

    def grid(self, apps: Mapping[str, App]) -> Grid:
        """Build the network between the coordinator and the holders."""
        from assay.simulations.grid import LocalGrid
        from assay.simulations.sabotage import BadNetwork

        if not self._asked:
            return LocalGrid(apps)
        self._grid = BadNetwork(apps, self.faults, self._chosen["slow"], self._note)
        return self._grid

    def courier(self, grid: Grid, **settings: Any) -> Courier:
        """Build the coordinator's courier, one that lies where it is to."""
        if not self.faults.coordinator:
            return Courier(grid, **settings)
        from assay.simulations.lies import LIARS

        self._liar = LIARS[self.faults.coordinator](grid, **settings)
        self._liar.study = self._study
        return self._liar

    def hears(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return ``report`` with an ear of its own."""

        def heard(step: Progress) -> None:
            self._steps.append(step)
            report(step)

        return heard

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Turn an error that ends a run with faults into :class:`EndedByFaults`, which says what happened."""
        try:
            yield
        except AssayError as error:
            if not self._asked:
                raise
            raise EndedByFaults(error, self._told(None, error)) from None

    # What came of it ----------------------------------------------------------------------------------

    def _note(self, kind: str, name: str, times: int = 1) -> None:
        self._times.setdefault(kind, Counter())[name] += int(times)

    def told(self, trained: Trained) -> dict[str, Any] | None:
        """Return what was injected into a run and what came of it; None where nothing was to be.

        ``docs/simulations.md`` describes it.
        """
        return self._told(trained, None) if self._asked else None

    def _told(self, trained: Trained | None, error: AssayError | None) -> dict[str, Any]:
        gone = {name for step in self._steps if step.kind in ("dropped", "ledger") for name in step.holders}
        accepted = next((set(step.holders) for step in self._steps if step.kind == "offer"), set())
        return {
            **self.faults.to_json(),
            "timeout_s": self.timeout_s,
            "injected": {kind: _counted(self._times[kind]) for kind in sorted(self._times)},
            "waited_s": self._grid.waited_s if self._grid else 0.0,
            "caught": {
                "not_accepted": sorted(set(self.names) - accepted) if self._steps else [],
                "dropped": [_step(step) for step in self._steps if step.kind == "dropped"],
                "ledger": [_step(step) for step in self._steps if step.kind == "ledger"],
                "refused": self._refused(),
                "cut": _counted(self._cut),
            },
            "lie": self._liar.told() if self._liar else None,
            "not_caught": self._not_caught(trained, accepted - gone),
            "ended": _ended(error),
            "effect": None,
        }

    def _refused(self) -> list[dict[str, Any]]:
        """Return what the holders' own audit logs say they refused, by question and code."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for name, log in sorted(self._logs.items()):
            for kind, data in log.told:
                if kind in ("declined", "refused"):
                    question = str(data.get("question", "offer"))
                    found.setdefault((question, str(data["code"])), Counter())[name] += 1
        return [
            {"question": question, "code": code, "times": by.total(), "holders": sorted(by)}
            for (question, code), by in sorted(found.items())
        ]

    def _not_caught(self, trained: Trained | None, kept: set[str]) -> list[dict[str, Any]]:
        """Return the malicious holders whose numbers are in the model, and a lie that was believed."""
        found: list[dict[str, Any]] = []
        if self._liar is not None and self._liar.learned:
            found.append({"kind": self.faults.coordinator, "holders": [], "what": self._liar.learned})
        if trained is None:
            return found
        for kind, what in _BELIEVED.items():
            holders = sorted(set(self._times.get(kind, ())) & kept)
            if holders:
                found.append({"kind": kind, "holders": holders, "what": what})
        return found


_BELIEVED = {
    "flip": "their labels are wrong and their sums are in the model: nothing looks at what a holder holds",
    "scale": "their sums are in the model: within what all persons together can do, nobody sees whose it is",
    "garbage": "answers that are not theirs were taken",
    "replay": "they went on from an older copy of their books: what was spent since is forgotten",
}


def effect_of(block: Mapping[str, Any], *, auroc: float, clean_auroc: float) -> dict[str, Any]:
    """Return a run's ``faults`` with the measured effect on the model.

    Args:
        block: ``Federated.faults``.
        auroc: of the model, on held-out records.
        clean_auroc: of a model of the same study and holders without faults, on the same records.
    """
    change = auroc - clean_auroc
    return {**block, "effect": {"auroc": auroc, "clean_auroc": clean_auroc, "auroc_change": change}}


def _counted(times: Counter[str]) -> dict[str, Any]:
    return {"times": times.total(), "holders": {name: times[name] for name in sorted(times)}}


def _step(step: Progress) -> dict[str, Any]:
    return {"holder": ", ".join(step.holders), "round": step.round, "reason": step.detail}


def _ended(error: AssayError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
