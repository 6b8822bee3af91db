"""The study: one scoring question with its purpose, public schema, privacy target and scale.

Every type checks itself on construction, so a study made in code is as strict as one read from a
file. :mod:`assay.models.study` reads ``study.toml`` and adds file and line to the messages.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field

from assay.models.fairness import Fairness
from assay.models.feature import COMPONENTS, MAX_CELLS, Feature, transformed
from assay.models.interaction import Interaction, check_interactions
from assay.models.settings import choice, is_number, positive, whole, words
from assay.privacy.errors import BadInput, Refused
from assay.privacy.packfile import load_pack
from assay.privacy.policypack import PolicyPack
from assay.privacy.purpose import PACK, check_context, check_input, check_purpose

__all__ = [
    "COMPONENTS",
    "MAX_CELLS",
    "Contact",
    "Feature",
    "Interaction",
    "Outcome",
    "Privacy",
    "Scale",
    "Study",
    "Training",
    "transformed",
]

MAX_FEATURES = 500  # interactions counted with them
MAX_TEXT_BYTES = 1 << 19  # what an offer to a holder can carry
MAX_DELTA = 1e-6
# Columns that `assay model score` writes beside the person column.
_RESERVED = re.compile(r"score|probability|band|base_points|capped|reason_[1-4]|points_.*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is predicted.

    Attributes:
        column: column that holds 0 (good) or 1 (bad).
        meaning: what 1 means, in words.
        observed: column that holds the ISO date of the record's outcome; records older than the policy pack
            keeps them are left out. None: nothing says how old a record is.
    """

    column: str
    meaning: str
    observed: str | None = None

    def __post_init__(self) -> None:
        words("column", self.column)
        words("meaning", self.meaning)
        if self.observed is not None:
            words("observed", self.observed)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model is fitted.

    Attributes:
        model: ``"additive"``, or ``"neural"``: a simulation then trains a small network beside the scorecard,
            at the same epsilon, and compares the two.
        rounds: 1..1000, or None: chosen from public numbers.
    """

    model: str = "additive"
    rounds: int | None = None

    def __post_init__(self) -> None:
        choice("model", self.model, ("additive", "neural"))
        if self.rounds is not None:
            whole("rounds", self.rounds, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The privacy promise, for one person over the whole run.

    Attributes:
        epsilon: positive and finite.
        delta: above 0, at most 1e-6.
        trust: ``"distributed"`` (each holder adds a share of the noise, and only sums are seen) or
            ``"local"`` (every holder adds all of it).
        tolerated: holders that may be curious, colluding or gone, taken together, before the noise of a
            distributed sum falls short; at least 1, because every holder knows its own share.
        holders_per_person: how many holders may know the same person.
    """

    epsilon: float
    delta: float = MAX_DELTA
    trust: str = "distributed"
    tolerated: int = 1
    holders_per_person: int = 1

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon, "Smaller is more private; 1 is a common choice")
        if not is_number(self.delta) or not 0 < self.delta <= MAX_DELTA:
            raise BadInput("delta", value=self.delta, allowed=f"above 0, at most {MAX_DELTA:g}")
        choice("trust", self.trust, ("local", "distributed"))
        whole("tolerated", self.tolerated, 1, 1000)
        whole("holders_per_person", self.holders_per_person, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How log-odds become points.

    Attributes:
        low: smallest score shown.
        high: largest score shown.
        anchor_score: the score at ``anchor_odds``.
        anchor_odds: good:bad odds at the anchor.
        pdo: points that double the odds.
        cut_off: the score from which a person is approved, for audits and reasons; None: see
            :attr:`threshold`.
    """

    low: int = 350
    high: int = 950
    anchor_score: int = 650
    anchor_odds: float = 30
    pdo: float = 40
    cut_off: int | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "anchor_score"):
            whole(name, getattr(self, name), -1_000_000, 1_000_000)
        if not self.low < self.anchor_score < self.high:
            raise BadInput(
                "anchor_score",
                value=self.anchor_score,
                allowed=f"between low ({self.low}) and high ({self.high})",
            )
        for name in ("anchor_odds", "pdo"):
            positive(name, getattr(self, name))
            if not 1e-6 <= getattr(self, name) <= 1e6:
                raise BadInput(name, value=getattr(self, name), allowed="1e-6 to 1e6")
        if self.cut_off is not None:
            whole("cut_off", self.cut_off, self.low, self.high)

    @property
    def threshold(self) -> int:
        """The score from which a person is approved: ``cut_off``, or 1.25 PDO below the anchor."""
        return math.ceil(self.anchor_score - 1.25 * self.pdo) if self.cut_off is None else self.cut_off

    @property
    def factor(self) -> float:
        """Points per unit of log-odds."""
        return self.pdo / math.log(2)

    @property
    def offset(self) -> float:
        """Score at even odds."""
        return self.anchor_score - self.factor * math.log(self.anchor_odds)


@dataclass(frozen=True, kw_only=True)
class Contact:
    """What a person is told about whom to turn to.

    Attributes:
        ask: who answers questions about a score and how to reach them, in words; None: it is not said.
        contest: how to have a score looked at by a human being and corrected, in words; likewise.
    """

    ask: str | None = None
    contest: str | None = None

    def __post_init__(self) -> None:
        for name in ("ask", "contest"):
            if getattr(self, name) is not None:
                words(name, getattr(self, name), longest=500)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, checked: purpose allowed, names unique, no protected input.

    Attributes:
        name: word that files and runs are named after.
        purpose: exactly one allowed purpose.
        contexts: where the score may be used; at least one.
        outcome: what is predicted.
        person: column that names the person, or None: every row is a person.
        features: the inputs, in study order.
        fairness: what is audited; never inputs.
        training: how the model is fitted.
        privacy: the promise.
        scale: how log-odds become points.
        text: the source text, as it is offered to holders.
        pack: name of the policy pack that the study is checked against, and its scores later.
        contact: whom a person can ask and how to contest a score.
        interactions: pairs of features that have points together, in study order.
    """

    name: str
    purpose: str
    contexts: tuple[str, ...]
    outcome: Outcome
    features: tuple[Feature, ...]
    privacy: Privacy
    text: str = field(repr=False)
    person: str | None = None
    fairness: Fairness = field(default_factory=Fairness)
    training: Training = field(default_factory=Training)
    scale: Scale = field(default_factory=Scale)
    pack: str = PACK.name
    contact: Contact = field(default_factory=Contact)
    interactions: tuple[Interaction, ...] = ()

    def __post_init__(self) -> None:
        rules = self.rules
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise BadInput("study.name", value=self.name, allowed="letters, digits, - and _, at most 64")
        check_purpose(self.purpose, rules)
        for context in self.contexts:
            check_context(context, rules)
        if not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise BadInput("study.contexts", value=list(self.contexts), allowed="at least one, each once")
        if self.person is not None:
            words("person.column", self.person)
            if _RESERVED.fullmatch(self.person):
                raise BadInput(
                    "person.column", value=self.person, allowed="no name of a column that scoring writes"
                )
        self._check_inputs(rules)  # first: a protected input is a refusal, whatever else is wrong with it
        self._check_columns()
        check_interactions(self.interactions, self.features, self.fairness.columns)

    @property
    def rules(self) -> PolicyPack:
        """The policy pack."""
        return load_pack(self.pack)

    def _check_inputs(self, rules: PolicyPack) -> None:
        # Nobody's health or faith is predicted either, and no record left out by its date of birth.
        check_input(self.outcome.column, *filter(None, [self.outcome.observed]), pack=rules)
        for feature in self.features:
            check_input(feature.name, feature.column, feature.label, pack=rules)

    def _check_columns(self) -> None:
        lines = len(self.features) + len(self.interactions)
        if not self.features or not lines <= MAX_FEATURES:
            raise BadInput("features", value=lines, allowed=f"1 to {MAX_FEATURES} features and interactions")
        taken: dict[str, str] = {self.outcome.column: "the outcome"}
        if self.outcome.observed is not None:
            _once("outcome.observed", self.outcome.observed, taken, "the date of the outcome")
        if self.person is not None:
            _once("person.column", self.person, taken, "the person")
        for position, column in enumerate(self.fairness.columns):
            words("fairness.columns", column)
            _once("fairness.columns", column, taken, f"entry {position + 1} of fairness.columns")
        names: dict[str, str] = {}
        for position, feature in enumerate(self.features):
            _once(f"features[{position}].name", feature.name, names, f"feature {position + 1}")
            _once(f"features[{position}].column", feature.column, taken, f"feature {feature.name!r}")

    @property
    def question(self) -> str:
        """Which of the two questions the score answers: ``"authenticity"`` or ``"credit"``; never both."""
        return "authenticity" if self.purpose == "fraud_detection" else "credit"

    @property
    def digest(self) -> str:
        """SHA-256 of the source text, 64 hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def require_trainable(self) -> None:
        """Refuse what this version cannot train, with what to change.

        Raises:
            Refused: the model is ``"neural"`` (code ``"model"``): a challenger without points, which is only
                compared, in a simulation.
        """
        if self.training.model != "additive":
            raise Refused(
                f"training.model {self.training.model!r} has no points that could be explained, so nobody is"
                ' scored with it; allowed: additive. Set model = "additive", or compare: assay simulate',
                code="model",
            )

    def require_holders(self, holders: int, most: int | None = None) -> None:
        """Refuse a number of holders that the study's trust cannot work with, with what to change.

        A sum hides a holder among the others only if those that may collude are few enough of them; see
        :func:`assay.privacy.cohort.fewest_holders`.

        Args:
            holders: how many there are.
            most: how many can be added up; None: as many as secure aggregation can.

        Raises:
            Refused: the trust is ``"distributed"`` and the holders are too few, or too many to be added up
                (code ``"holders"``).
        """
        # Late: most commands that read a study need no cryptography.
        from assay.privacy.cohort import MAX_HOLDERS, fewest_holders

        tolerated = self.privacy.tolerated
        fewest, most = fewest_holders(tolerated), MAX_HOLDERS if most is None else most
        if self.privacy.trust != "distributed" or fewest <= holders <= most:
            return
        raise Refused(
            f"holders is {holders}; allowed: {fewest} to {most} where privacy.trust is 'distributed'"
            f" and privacy.tolerated is {tolerated}. Start or enrol more holders, lower privacy.tolerated,"
            ' or set trust = "local" in the study',
            code="holders",
        )


def _once(setting: str, value: str, taken: dict[str, str], owner: str) -> None:
    if value in taken:
        raise BadInput(setting, value=value, allowed="each only once", remedy=f"It is used by {taken[value]}")
    taken[value] = owner
