"""A holder's present records beside a bundle: how its population moved, which of two models serves it better.

Two results, for two places:

===========  ==============================================================================================
exact        counted from the records without noise, for the holder's own terminal; nothing is spent
to release   the same counts with exact discrete Gaussian noise of the holder's own, so that nobody need be
             trusted. Reserved and charged in the ledger before a record is read; one person changes the
             vector by at most ``sqrt(terms + 2)`` in Euclidean norm, and persons of several rows are cut
             to that (:class:`assay.models.tally.ClippedTally`)
===========  ==============================================================================================
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from assay.client.config import HolderConfig
from assay.client.enrol import JOIN_FILE, HolderKeys, load_join
from assay.client.policy import admit, require_persons, require_same_person
from assay.client.records import Records
from assay.models.bundle import Bundle
from assay.models.compare import Judged
from assay.models.drift import Baseline, Population, counted
from assay.models.driftreport import DriftReport, write_report
from assay.models.encoding import Encoded
from assay.models.fairness import Fairness
from assay.models.schema import Feature, Study
from assay.models.scorecard import Scorecard, score_edges
from assay.privacy.accounting import Event, PrivacyTarget, epsilon_of
from assay.privacy.errors import AssayError, BadInput, Refused

if TYPE_CHECKING:
    from assay.client.books import Books
    from assay.privacy.mechanism import IntegerMechanism

__all__ = ["PopulationTally", "both_scored", "population_at", "release_population", "require_current"]

Vector = NDArray[np.float64]
_WHAT = "population counts"


@dataclass(frozen=True, kw_only=True)
class PopulationTally:
    """Cells, pattern and score bin of each row: what is summed over persons; an ``assay.models.tally.Tally``.

    Attributes:
        card: gives cells and scores.
        bins: how many score bins.
    """

    card: Scorecard
    bins: int

    @property
    def size(self) -> int:
        """Length of the vector: cells, patterns, score bins."""
        return self.card.grid.width + self.bins

    @property
    def sensitivity(self) -> float:
        """Largest length of one row: weights of a term sum to 1, pattern and score count 1 each."""
        return math.sqrt(len(self.card.grid.terms) + 2)

    def rows(
        self, theta: Vector, encoded: Encoded, labels: Vector, groups: Mapping[str, NDArray[np.int64]]
    ) -> Any:
        """Return the rows' vectors, sparse float64 [N, size]; only ``encoded`` is looked at."""
        from scipy import sparse

        from assay.models.additive import design_of
        from assay.models.tally import one_hot

        grid, scores = self.card.grid, self.card.score(encoded).score
        place = np.searchsorted(score_edges(self.card.study.scale, self.bins), scores, side="right") - 1
        cells = design_of(encoded, grid.size, grid.patterns)
        return sparse.hstack([cells, one_hot(place, self.bins)], format="csr")


def require_current(bundle: Bundle, now: float) -> None:
    """Refuse a bundle that has expired, is held, or has nothing to compare with.

    Raises:
        Refused: code ``"expired"`` or ``"held"``.
        BadInput: it has no baseline.
    """
    bundle.require_current(now)
    bundle.require_promoted()
    Baseline.of(bundle)


def population_at(bundle: Bundle, records: Records) -> Population:
    """Count a holder's records exactly, each person once; for the holder's own terminal only."""
    tally = _tally(bundle)
    encoded = bundle.scorecard.grid.encode(records.columns, records.patterns)
    if records.persons is None:
        return counted(bundle.scorecard, encoded, tally.bins)
    total = _clipped(tally, encoded, records)(bundle.scorecard.theta)
    return _population(bundle, total, 0.0)


def release_population(
    config: HolderConfig,
    keys: HolderKeys,
    bundle: Bundle,
    *,
    epsilon: float,
    output: Path,
    load: Callable[[Study], Records],
    clock: Callable[[], float],
) -> DriftReport:
    """Charge, count, add noise, sign and write what may leave, in this order.

    Args:
        config: the holder's settings.
        keys: its keys.
        bundle: what to compare with.
        epsilon: for one person over all holders that know it, at the policy's delta.
        output: a file that does not exist yet, in a directory that does.
        load: reads the records; called when the release is paid for.
        clock: seconds since 1970.

    Returns:
        What was written. The run it was charged under is closed.

    Raises:
        Refused: the policy or the budget forbids it: nothing was read or spent.
        BadInput: an argument or the records are not what they must be: nothing was spent.
        Unavailable: the daemon holds the books.
    """
    if output.exists() or not output.parent.is_dir():
        raise BadInput("--output", value=str(output), allowed="a new file in an existing directory")
    target = _target(config, bundle, epsilon)
    require_current(bundle, clock())
    with _books(config.directory, keys) as books:
        run = secrets.token_hex(16)
        noise = _mechanism(bundle, target)
        event = Event(noise_multiplier=noise.noise_multiplier)
        books.ledger.reserve(study=bundle.study.name, run=run, planned=(event,), limits=config.policy.limits)
        books.audit.append("accepted", run=run, study=bundle.study.digest)
        outcome = "aborted"
        try:
            records = load(bundle.study)
            require_persons(records, config.policy)
            report = _released(books, run, noise, bundle, records, target, keys, clock())
            write_report(output, report, keys.identity)
            outcome = "done"
        finally:
            books.ledger.close_run(run=run, outcome=outcome)
            books.settle()
    return report


def _released(
    books: Books,
    run: str,
    noise: IntegerMechanism,
    bundle: Bundle,
    records: Records,
    target: PrivacyTarget,
    keys: HolderKeys,
    now: float,
) -> DriftReport:
    """Pass the counts through the one function that builds what depends on records."""
    from assay.client.release import NoisySum, release
    from assay.privacy.optimizer import ExactAccountant, PrivateStep

    tally, card = _tally(bundle), bundle.scorecard
    accountant = ExactAccountant()

    def compute() -> NDArray[np.int64]:
        summed = _clipped(tally, card.grid.encode(records.columns, records.patterns), records)
        noisy = PrivateStep(noise, accountant).release(summed, card.theta)
        if accountant.events != books.ledger.charged(run):
            raise AssayError("Opacus counted another cost than was charged; nothing is released")
        return noisy

    def build(values: NDArray[np.int64]) -> DriftReport:
        found = values.astype(np.float64) * noise.unit  # exact: the unit is a power of two
        return DriftReport(
            holder=keys.name,
            key=keys.identity.public.hex(),
            study=bundle.study.name,
            bundle=bundle.digest,
            run=run,
            created=now,
            epsilon=target.epsilon,
            delta=target.delta,
            noise_std=noise.std,
            counts=tuple(found[: card.grid.width].tolist()),
            scores=tuple(found[card.grid.width :].tolist()),
        )

    wanted = NoisySum(run=run, round=0, what=_WHAT, question=f"bundle {bundle.digest}", mechanism=noise)
    return release(books, wanted, compute=compute, build=build)


def _target(config: HolderConfig, bundle: Bundle, epsilon: float) -> PrivacyTarget:
    """Return the promise, if the policy allows it for this bundle.

    Raises:
        Refused: the study is not one that this holder takes part in, the bundle is another federation's, the
            holder does not let its own sums leave, or epsilon is more than it gives in one run.
        BadInput: ``epsilon`` is out of range.
    """
    study, policy = bundle.study, config.policy
    admit(study, policy)
    require_same_person(study, config.person)
    if "local" not in policy.trust:
        raise Refused(
            'this holder does not let sums of its own leave; allowed: policy.trust with "local"', code="trust"
        )
    target = PrivacyTarget(
        epsilon=epsilon,
        delta=policy.delta,
        holders_per_person=study.privacy.holders_per_person,
        trust="local",
    )
    if not epsilon <= policy.epsilon_per_run:
        raise Refused(
            f"epsilon {epsilon:g} is more than this holder gives at once; allowed: at most"
            f" {policy.epsilon_per_run:g} (policy.epsilon_per_run)",
            code="epsilon",
        )
    if (config.directory / JOIN_FILE).exists():
        joined = load_join(config.directory)
        if joined.coordinator_public != bundle.signer:
            raise Refused(
                f"the bundle is signed by {bundle.fingerprint}; allowed: one of the federation that was"
                f" joined, {joined.fingerprint}",
                code="federation",
            )
    return target


def _mechanism(bundle: Bundle, target: PrivacyTarget) -> IntegerMechanism:
    from assay.privacy.mechanism import IntegerMechanism

    tally = _tally(bundle)
    multiplier = math.nextafter((1 + 1e-12) / target.mu, math.inf)  # rounded toward more noise
    if not epsilon_of((Event(noise_multiplier=multiplier),), target.delta) <= target.epsilon:
        raise BadInput("epsilon", value=target.epsilon, allowed="a number that noise can be made for")
    return IntegerMechanism(
        l2_clip_norm=tally.sensitivity, noise_multiplier=multiplier, size=tally.size, contributors=1
    )


def _tally(bundle: Bundle) -> PopulationTally:
    return PopulationTally(card=bundle.scorecard, bins=len(Baseline.of(bundle).scores))


def _clipped(tally: PopulationTally, encoded: Encoded, records: Records) -> Any:
    from assay.models.tally import ClippedTally

    return ClippedTally(tally, encoded, records.labels, records.persons, {})


def _population(bundle: Bundle, total: Vector, noise_std: float) -> Population:
    width = bundle.scorecard.grid.width
    return Population(
        counts=total[:width],
        scores=total[width:],
        counts_noise_std=noise_std,
        scores_noise_std=noise_std,
    )


@contextlib.contextmanager
def _books(directory: Path, keys: HolderKeys) -> Iterator[Books]:
    """Open the holder's books as the daemon does, which must not run meanwhile."""
    from assay.client.books import Books
    from assay.client.daemon import daemon_books

    with daemon_books(directory, keys.identity, threading.Event()) as (ledger, audit):
        books = Books(ledger=ledger, audit=audit)
        books.settle()
        yield books


def both_scored(
    champion: Bundle, challenger: Bundle, load: Callable[[Study], Records]
) -> tuple[Judged, Judged, Records]:
    """Score a holder's records with two bundles; the source is read once, so that rows are the same.

    Args:
        champion: the bundle in use.
        challenger: another one with the same outcome column.
        load: reads the records of a study.

    Raises:
        BadInput: the studies differ in who a person is or in which records are too old, or the records are
            not what a study says.
    """
    ours, theirs = champion.study, challenger.study
    for setting, one, other in (
        ("person.column", ours.person, theirs.person),
        ("outcome.observed", ours.outcome.observed, theirs.outcome.observed),
    ):
        if one != other:
            raise BadInput(setting, value=other, allowed=f"{one}, as in the champion's study")
    records = load(_both(ours, theirs))
    judged = []
    for bundle in (champion, challenger):
        features = [each.feature for each in bundle.scorecard.grid.features]
        columns = {
            each.column: _as_kind(records.columns[each.column], each)
            for each in features
            if each.column in records.columns
        }
        judged.append(Judged.of(bundle.scorecard, columns))
    return judged[0], judged[1], records


def _both(ours: Study, theirs: Study) -> Study:
    """Return a study that reads the columns of both; as text where kinds differ: it holds every number."""
    mine, features = {each.column for each in ours.features}, []
    for each in ours.features:
        other = next((f for f in theirs.features if f.column == each.column), each)
        features.append(each if each.kind == other.kind else _as_text(each))
    taken = {each.name for each in ours.features}
    for each in theirs.features:
        if each.column not in mine:
            name = each.name if each.name not in taken else f"challenger_{len(features)}"
            taken.add(name)
            features.append(replace(each, name=name))
    return replace(ours, features=tuple(features), interactions=(), fairness=Fairness())


def _as_text(feature: Feature) -> Feature:
    return replace(
        feature, kind="categorical", domain=None, levels=("0",), transform="linear", risk_trend=None
    )


def _as_kind(values: NDArray[Any], feature: Feature) -> NDArray[Any]:
    """Return a column as a feature reads it; text that was read for another study is parsed."""
    if feature.kind == "categorical" or values.dtype != object:
        return values
    import pyarrow as pa

    from assay.models.columns import typed_column

    kind = "integer" if feature.kind == "integer" else "number"
    return typed_column(pa.array(values, pa.string()), feature.column, kind, where="records")
