"""Many holders on one machine, by the live system's own coordinator and holder code.

Three engines give the same model:

========  =============================================================================================
"full"    every holder is a Flower ClientApp on an in-process grid, with its own keys, ledger and audit
          log; what a live run sends is sent
"fast"    the holders' integers are added up without masks, thousands of holders at once; see
          :mod:`assay.simulations.crowd`
"flower"  every holder is a node of Flower's own simulation engine, which spreads them over processes with
          Ray; see :mod:`assay.simulations.flower`
========  =============================================================================================
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from assay.client.books import Books
from assay.client.policy import Policy
from assay.client.records import Records
from assay.models.schema import Study
from assay.models.study import parse_study
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import BadInput
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.mechanism import MAX_CONTRIBUTORS
from assay.privacy.names import federation_id
from assay.server.courier import Courier
from assay.server.records import Collected, Session
from assay.server.rounds import Asks, Progress, Run, Trained
from assay.server.sums import Question, Summed, Sums
from assay.simulations.crowd import Crowd
from assay.simulations.faults import Faults
from assay.simulations.injection import Injection

if TYPE_CHECKING:
    from assay.simulations.sabotage import App

__all__ = ["ENGINES", "Federated", "challenge", "federate", "with_epsilon", "with_model", "with_trust"]

ENGINES = ("fast", "full", "flower")

_TIMEOUT_S = 3600.0  # in process, an answer is a function call: only a defect takes this long

_Opened = AbstractContextManager[tuple[Run, Mapping[str, Ledger], Identity]]


@dataclass(frozen=True, kw_only=True)
class Federated:
    """One simulated run.

    Attributes:
        study: what was trained.
        trained: the result, as at a live coordinator.
        identity: the simulated coordinator's signing key.
        spent: epsilon in each holder's ledger afterwards, by name.
        faults: what was injected and what came of it (``docs/simulations.md``); None without faults.
    """

    study: Study
    trained: Trained
    identity: Identity
    spent: dict[str, float]
    faults: dict[str, Any] | None = None


def _within(section: str) -> str:
    """A section's header and what follows up to the next one, as a pattern."""
    # A bracket in a comment is no header.
    return rf"^\[{section}\](?:(?!^\s*\[).)*?"


def with_epsilon(text: str, epsilon: float) -> str:
    """Return a study file's text with another ``epsilon`` in its ``[privacy]`` section.

    Raises:
        BadInput: the section has no such line.
    """
    pattern = re.compile(rf"({_within('privacy')}^\s*epsilon\s*=\s*)[^\s#]+", re.MULTILINE | re.DOTALL)
    changed, count = pattern.subn(rf"\g<1>{epsilon!r}", text)
    if count != 1:
        raise BadInput("privacy.epsilon", where="study", allowed="one line `epsilon = ...` under [privacy]")
    return changed


def with_trust(text: str, trust: str) -> str:
    """Return a study file's text with ``trust`` in its ``[privacy]`` section, whatever it said before.

    Raises:
        BadInput: there is no such section, or the result says something else all the same.
    """
    changed = _with_word(text, "privacy", "trust", trust)
    if parse_study(changed).privacy.trust != trust:
        raise BadInput(
            "privacy.trust", where="study", allowed="at most one line `trust = ...` under [privacy]"
        )
    return changed


def with_model(text: str, model: str) -> str:
    """Return a study file's text with another ``model`` in its ``[training]`` section.

    Raises:
        BadInput: there is no such section, or the result says something else all the same.
    """
    changed = _with_word(text, "training", "model", model)
    if parse_study(changed).training.model != model:
        raise BadInput(
            "training.model", where="study", allowed="at most one line `model = ...` under [training]"
        )
    return changed


def _with_word(text: str, section: str, key: str, word: str) -> str:
    """Put ``key = "word"`` in a section, in place of what it says or as its first line."""
    pattern = re.compile(
        rf"({_within(section)}^\s*{key}\s*=\s*)(?:\"[^\"\n]*\"|'[^'\n]*')", re.MULTILINE | re.DOTALL
    )
    changed, count = pattern.subn(rf'\g<1>"{word}"', text)
    if count:
        return changed
    return re.sub(rf"^\[{section}\][^\n]*\n", rf'\g<0>{key} = "{word}"\n', text, flags=re.MULTILINE)


def federate(
    text: str,
    holders: Mapping[str, Records],
    *,
    engine: str = "full",
    report: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    watch: Callable[[Question, Summed], None] | None = None,
    faults: Faults | None = None,
) -> Federated:
    """Train a study over simulated holders.

    Args:
        text: the study file.
        holders: each holder's records, by name.
        engine: one of :data:`ENGINES`, see above.
        report: called with each step of the run.
        log: where the holders' log lines go; the fast engine has none.
        watch: called with every question and the sum that answers it: what the coordinator sees.
        faults: what goes wrong; None: nothing.

    Returns:
        What a live run with these holders gives; noise included, so two calls differ.

    Raises:
        BadInput: there is no such engine, or the faults do not go with it, the study or the holders.
        Refused: too few holders accept the study.
        EndedByFaults: with faults, in place of whatever ended the run.
    """
    if engine not in ENGINES:
        raise BadInput("engine", value=engine, allowed=", ".join(ENGINES))
    study = parse_study(text)
    policy, injected = _policy_for(study), Injection(faults, study, holders, engine=engine)
    engines: Mapping[str, Callable[..., _Opened]] = {
        "fast": _crowd,
        "full": partial(_simulated, injected=injected),
        "flower": _flower,
    }
    held, open_with = injected.records(holders), engines[engine]
    with (
        injected.ending(),
        open_with(study, held, policy, report=injected.hears(report), log=log) as (run, ledgers, identity),
    ):
        if watch is not None:
            run._sums = _Watched(run._sums, watch)
        trained = run.train(sorted(holders))
        run.close("done")
        each = {ledger: ledger.summary(policy.limits).spent_epsilon for ledger in set(ledgers.values())}
        spent = {name: each[ledger] for name, ledger in ledgers.items()}
    return Federated(
        study=study, trained=trained, identity=identity, spent=spent, faults=injected.told(trained)
    )


def challenge(
    text: str, holders: Mapping[str, Records], *, report: Callable[[Progress], None] = lambda _: None
) -> NDArray[np.float64]:
    """Train the network of a neural study over simulated holders, by the same rounds, noise and ledgers.

    Returns:
        Its parameters, see :class:`assay.models.neural.NeuralLayout`.
    """
    study = parse_study(text)
    injected = Injection(None, study, holders)
    with _simulated(study, holders, _policy_for(study), report=report, injected=injected) as (run, _, _):
        theta = run.challenge(sorted(holders))
        run.close("done")
    return theta


@contextmanager
def _simulated(
    study: Study,
    holders: Mapping[str, Records],
    policy: Policy,
    *,
    report: Callable[[Progress], None],
    injected: Injection,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Run, Mapping[str, Ledger], Identity]]:
    """Set up a coordinator and holders in this process, and everything they keep in memory."""
    from assay.client.app import make_app  # here: brings flwr, which the fast engine does without

    coordinator = Identity.generate()
    federation = federation_id(coordinator.public)
    identities = {name: Identity.generate() for name in holders}
    roster = {name: identity.public for name, identity in identities.items()}
    with tempfile.TemporaryDirectory(prefix="assay-simulation-") as scratch, ExitStack() as opened:

        def start(name: str, ledger: Ledger, audit: AuditLog) -> App:
            holder = injected.holder(
                name=name,
                identity=identities[name],
                federation=federation,
                coordinator_key=coordinator.public,
                policy=injected.policy(policy, name, roster),
                ledger=ledger,
                audit=audit,
                load=lambda _: holders[name],
                person=study.person,
                directory=Path(scratch) / name,
            )
            app: App = make_app(
                holder,
                identity=identities[name],
                federation=federation,
                coordinator_key=coordinator.public,
                log=log,
            )
            return app

        apps = {
            name: injected.app(name, start, identity=identity, directory=Path(scratch) / name, opened=opened)
            for name, identity in identities.items()
        }
        courier = injected.courier(
            injected.grid(apps),
            identity=coordinator,
            federation=federation,
            roster=roster,
            heads={},
            keep=lambda _: None,
        )
        run = _run(
            study,
            courier,
            minimum_holders=injected.minimum_holders,
            timeout_s=injected.timeout_s,
            report=report,
        )
        yield run, injected.ledgers, coordinator


@contextmanager
def _crowd(
    study: Study,
    holders: Mapping[str, Records],
    policy: Policy,
    *,
    report: Callable[[Progress], None],
    log: Callable[[str], None],
) -> Iterator[tuple[Run, Mapping[str, Ledger], Identity]]:
    """Set up a coordinator and a crowd of holders; one ledger stands for every holder's."""
    coordinator = Identity.generate()
    with ExitStack() as opened:
        audit = opened.enter_context(AuditLog.open(None, coordinator))
        ledger = opened.enter_context(Ledger.open(":memory:", coordinator, log_head=audit.head))
        crowd = Crowd(study, holders, books=Books(ledger=ledger, audit=audit), policy=policy)
        run = _run(
            study,
            crowd,
            minimum_holders=len(holders),
            report=report,
            sums=lambda _: crowd,
            most_holders=MAX_CONTRIBUTORS,
        )
        yield run, dict.fromkeys(holders, ledger), coordinator


@contextmanager
def _flower(
    study: Study,
    holders: Mapping[str, Records],
    policy: Policy,
    *,
    report: Callable[[Progress], None],
    log: Callable[[str], None],
) -> Iterator[tuple[Run, Any, Identity]]:
    """Set up a coordinator in this process and holders on Flower's simulation engine."""
    from assay.simulations.flower import FlowerHolders  # late: needs Ray, which is an extra

    coordinator = Identity.generate()
    with FlowerHolders(study, holders, policy, coordinator=coordinator, log=log) as nodes:
        courier = Courier(
            nodes.grid,
            identity=coordinator,
            federation=federation_id(coordinator.public),
            roster=nodes.roster,
            heads={},
            keep=lambda _: None,
        )
        run = _run(study, courier, minimum_holders=len(holders), report=report)
        yield run, nodes.ledgers, coordinator


def _run(study: Study, courier: Asks, *, timeout_s: float = _TIMEOUT_S, **how: Any) -> Run:
    """Return a run that nobody takes up again; ``how`` as for :class:`assay.server.rounds.Run`."""
    return Run(
        run=secrets.token_hex(16),
        study_text=study.text,
        courier=courier,
        timeout_s=timeout_s,
        store=_Forgetful(),
        **how,
    )


def _policy_for(study: Study) -> Policy:
    """Return the narrowest policy that allows this one study: a simulation asks nobody's consent."""
    epsilon = study.privacy.epsilon
    return Policy(
        purposes=(study.purpose,),
        components=tuple(dict.fromkeys(feature.component for feature in study.features)),
        epsilon_per_run=epsilon,
        epsilon_per_study=epsilon,
        epsilon_per_year=epsilon,
        delta=study.privacy.delta,
        minimum_persons=1,
        epsilon_if_aggregation_fails=None,
        models=(study.training.model,),
    )


class _Watched:
    """Collects sums as another does, and shows each to somebody."""

    def __init__(self, sums: Sums, watch: Callable[[Question, Summed], None]) -> None:
        self._sums, self._watch = sums, watch

    def noises(self, holders: int) -> float:
        return self._sums.noises(holders)

    def collect(self, question: Question, active: tuple[str, ...]) -> Summed:
        summed = self._sums.collect(question, active)
        self._watch(question, summed)
        return summed


class _Forgetful:
    """Keeps nothing: a simulated coordinator that ends is not taken up again."""

    def save(self, number: int, state: bytes) -> None:
        pass

    def session(self, number: int) -> Session | None:
        return None

    def save_session(self, session: Session) -> None:
        pass

    def collected(self, number: int) -> Collected | None:
        return None

    def save_collected(self, collected: Collected) -> None:
        pass
