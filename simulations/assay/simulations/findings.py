"""What a report says: the facts of one finished run, checked before anything is drawn.

Everything here is computed by a demo or a simulation, which holds all records because it plays every
holder. A live coordinator has none of it except the run's public settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models import metrics
from assay.models.schema import Scale
from assay.privacy.errors import BadInput
from assay.simulations.unprotected import GroupLine

__all__ = ["Comparison", "HolderLine", "LocalSpread", "Metrics", "PersonLine", "Report", "Trust"]

_AGREE = 1e-6  # metrics and arrays of one report come from the same records: only rounding may differ


@dataclass(frozen=True, kw_only=True)
class HolderLine:
    """One holder.

    Attributes:
        name: shown as it is.
        rows: records it trained on.
        epsilon_spent: what its ledger says one person has spent, this run included.
        epsilon_limit: the cap its policy sets on that, or None.
        local_auroc: AUROC on the held-out records of a model trained on this holder's records alone, or None.
    """

    name: str
    rows: int
    epsilon_spent: float
    epsilon_limit: float | None = None
    local_auroc: float | None = None

    def __post_init__(self) -> None:
        _at_least("rows", self.rows, 0)
        _at_least("epsilon_spent", self.epsilon_spent, 0)
        if self.epsilon_limit is not None:
            _above("epsilon_limit", self.epsilon_limit, 0)
        if self.local_auroc is not None:
            _share("local_auroc", self.local_auroc)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How good one model is on the held-out records; see :mod:`assay.models.metrics` for each."""

    auroc: float
    ks: float
    gini: float
    log_loss: float
    brier: float

    def __post_init__(self) -> None:
        for name in ("auroc", "ks", "brier"):
            _share(name, getattr(self, name))
        if not -1 <= self.gini <= 1:
            raise BadInput("gini", allowed="-1 to 1")
        _at_least("log_loss", self.log_loss, 0)

    @classmethod
    def of(cls, y: NDArray[np.float64], p: NDArray[np.float64]) -> Metrics:
        """Measure probabilities ``p`` [N] of bad against outcomes ``y`` [N] of 0 and 1.

        Raises:
            BadInput: they do not fit each other, or only one outcome occurs.
        """
        return cls(
            auroc=metrics.auroc(y, p),
            ks=metrics.ks(y, p),
            gini=metrics.gini(y, p),
            log_loss=metrics.log_loss(y, p),
            brier=metrics.brier(y, p),
        )


@dataclass(frozen=True, kw_only=True)
class LocalSpread:
    """AUROC of the holders' own models on the held-out records: mean, smallest and largest over holders."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("mean", "low", "high"):
            _share(name, getattr(self, name))
        if not self.low - _AGREE <= self.mean <= self.high + _AGREE:
            raise BadInput("local-only AUROC", allowed="low <= mean <= high")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What each holder gets alone, together, and what pooling at the same epsilon would give.

    Attributes:
        local: over holders; None where no holder's own model was trained.
        federated: the model this report is about.
        pooled: trained on all records in one place, at the same epsilon; None where it was not.
        unprotected: the same without privacy.
        neural: a network trained together at the same epsilon; None where the study asks for none.
    """

    local: LocalSpread | None
    federated: Metrics
    pooled: Metrics | None
    unprotected: Metrics | None = None
    neural: Metrics | None = None


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the promise relies on, as the bundle's privacy label states it.

    Attributes:
        mode: ``"distributed"`` or ``"local"``.
        tolerated: holders that may be curious, collude or be gone, counted together; None under local
            trust, which relies on nobody outside a holder.
        fallback_epsilon: what a holder's own share of the noise still keeps if secure aggregation fails
            completely; None under local trust, where nothing of the kind can fail.
    """

    mode: str
    tolerated: int | None
    fallback_epsilon: float | None

    def __post_init__(self) -> None:
        if self.mode not in ("distributed", "local"):
            raise BadInput("trust", value=self.mode, allowed="distributed or local")
        for name in ("tolerated", "fallback_epsilon"):
            value = getattr(self, name)
            if (value is None) != (self.mode == "local"):
                raise BadInput(name, value=value, allowed="a number under distributed trust, else none")
            if value is not None:
                _above(name, value, 0)

    @classmethod
    def of(cls, label: Mapping[str, Any]) -> Trust:
        """Read it out of a bundle's label."""
        return cls(
            mode=label["trust"],
            tolerated=label["tolerated"],
            fallback_epsilon=label["epsilon_if_aggregation_fails"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the keys it has in the JSON of ``assay demo`` and ``assay simulate``, as in the label."""
        return {
            "trust": self.mode,
            "tolerated": self.tolerated,
            "epsilon_if_aggregation_fails": self.fallback_epsilon,
        }


@dataclass(frozen=True, kw_only=True)
class PersonLine:
    """One person's score, explained.

    Attributes:
        title: e.g. "Record 17", never a name.
        score: after clipping to the scale.
        band: words.
        probability: of the bad outcome, 0..1.
        points: (label, value in words, points), one per feature.
        base_points: what everybody starts from.
        capped: what clipping added or took: base + points + capped = score.
        reasons: labels or sentences, the most important first; may be empty.
    """

    title: str
    score: int
    band: str
    probability: float
    points: tuple[tuple[str, str, int], ...]
    base_points: int
    capped: int
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        _share("probability", self.probability)
        if self.base_points + sum(points for _, _, points in self.points) + self.capped != self.score:
            raise BadInput("points of a person", allowed="base + points + capped = score")


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All that a report shows. Texts are plain text; whatever they hold is escaped.

    Attributes:
        title: headline of the page.
        study_name: name of the study.
        purpose: its purpose, e.g. ``consumer_credit``.
        outcome_meaning: the bad outcome in words, e.g. "missed the next month's payment".
        holders: at least one.
        epsilon: privacy target for one person over the whole run.
        delta: its delta.
        trust: what that relies on.
        rounds: gradient rounds.
        seconds: wall time of the training.
        label_words: the privacy label in sentences, several lines (``models.label.label_in_words``).
        comparison: local-only, federated, pooled.
        y_true: float64 [N] of 0 and 1, outcomes of the held-out records; both occur.
        probability: float64 [N], the federated model's.
        score: integers [N], the federated model's, within ``scale``.
        scale: range and bands of the score.
        pooled_probability: float64 [N] of the pooled model, or None.
        local_probability: float64 [N] of the best local-only model, or None.
        people: a few records with points and reasons; may be empty.
        cut_off: the score from which a person is approved, in the section on groups.
        groups: fairness groups on the held-out records; may be empty.
        bundle_name: file name of the signed model.
        fingerprint: of the bundle, as ``assay model show`` prints it.
        notes: where the held-out rows come from, what the numbers do not say.
    """

    title: str
    study_name: str
    purpose: str
    outcome_meaning: str
    holders: tuple[HolderLine, ...]
    epsilon: float
    delta: float
    trust: Trust
    rounds: int
    seconds: float
    label_words: str
    comparison: Comparison
    y_true: NDArray[np.float64] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)
    score: NDArray[np.integer] = field(repr=False)
    scale: Scale = field(default_factory=Scale)
    pooled_probability: NDArray[np.float64] | None = field(default=None, repr=False)
    local_probability: NDArray[np.float64] | None = field(default=None, repr=False)
    people: tuple[PersonLine, ...] = ()
    cut_off: int = 0
    groups: tuple[GroupLine, ...] = ()
    bundle_name: str
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.holders:
            raise BadInput("holders", allowed="at least one")
        _above("epsilon", self.epsilon, 0)
        _above("delta", self.delta, 0)
        _share("delta", self.delta)
        _at_least("rounds", self.rounds, 0)
        _at_least("seconds", self.seconds, 0)
        _agrees("federated", self.comparison.federated, self.y_true, self.probability)
        if self.pooled_probability is not None:
            _agrees("pooled", self.comparison.pooled, self.y_true, self.pooled_probability)
        if self.local_probability is not None:
            metrics.auroc(self.y_true, self.local_probability)
        whole = np.issubdtype(self.score.dtype, np.integer) and self.score.shape == self.y_true.shape
        if not whole or not ((self.score >= self.scale.low) & (self.score <= self.scale.high)).all():
            allowed = f"one whole number from {self.scale.low} to {self.scale.high} per held-out record"
            raise BadInput("score", allowed=allowed)


def _agrees(name: str, stated: Metrics | None, y: NDArray[np.float64], p: NDArray[np.float64]) -> None:
    """Refuse metrics that are not those of the arrays beside them: the page would contradict itself."""
    measured = Metrics.of(y, p)
    same = stated is not None and all(
        math.isclose(getattr(stated, key), value, rel_tol=_AGREE, abs_tol=_AGREE)
        for key, value in vars(measured).items()
    )
    if not same:
        raise BadInput(f"{name} metrics", allowed="those of the probabilities given with them")


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise BadInput(name, allowed=f"a finite number of at least {low:g}")


def _above(name: str, value: float, low: float) -> None:
    if not low < value < math.inf:
        raise BadInput(name, allowed=f"a finite number above {low:g}")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput(name, allowed="0 to 1")
