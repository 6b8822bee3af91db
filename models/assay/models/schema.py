"""The study: one scoring question with its purpose, public schema, privacy target and scale.

Every type checks itself on construction, so a study made in code is as strict as one read from a
file. :mod:`assay.models.study` reads ``study.toml`` and adds file and line to the messages.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from assay.models.fairness import Fairness
from assay.privacy.errors import BadInput, Refused
from assay.privacy.packfile import load_pack
from assay.privacy.policypack import PolicyPack
from assay.privacy.purpose import PACK, check_context, check_input, check_purpose

__all__ = [
    "COMPONENTS",
    "MAX_CELLS",
    "Contact",
    "Feature",
    "Outcome",
    "Privacy",
    "Scale",
    "Study",
    "Training",
    "transformed",
]

COMPONENTS = ("identity", "spending", "compliance", "payment_history", "third_party")
KINDS = ("numeric", "integer", "categorical")
TRANSFORMS = ("linear", "log", "signed_log")
TRENDS = ("falls", "rises")
MAX_CELLS = 256  # values of an integer feature, levels of a categorical one
MAX_FEATURES = 500
MAX_TEXT_BYTES = 1 << 19  # what an offer to a holder can carry
MAX_DELTA = 1e-6
# Columns that `assay model score` writes beside the person column.
_RESERVED = re.compile(r"score|probability|band|base_points|capped|reason_[1-4]|points_.*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\.0+")  # a cell 3.0 is read as the text 3
_FEATURE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def transformed(values: NDArray[np.float64], transform: str) -> NDArray[np.float64]:
    """Return ``values`` on the scale their knots are uniform on.

    Args:
        values: float64, any shape; above -1 for ``"log"``. NaN stays NaN.
        transform: ``"linear"``, ``"log"`` (log(1+x)) or ``"signed_log"`` (sign(x) log(1+|x|)).
    """
    if transform == "log":
        return np.log1p(values)
    if transform == "signed_log":
        return np.copysign(np.log1p(np.abs(values)), values)
    return values


def _words(setting: str, value: object, longest: int = 200) -> None:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= longest or not value.isprintable():
        raise BadInput(setting, value=value, allowed=f"one line of text, 1 to {longest} characters")


def _choice(setting: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise BadInput(setting, value=value, allowed=f"one of {', '.join(choices)}")


def _whole(setting: str, value: object, low: int, high: int) -> None:
    if not _is_int(value) or not low <= value <= high:  # type: ignore[operator]
        raise BadInput(setting, value=value, allowed=f"a whole number from {low} to {high}")


def _positive(setting: str, value: object, remedy: str = "") -> None:
    if not _is_number(value) or not value > 0:  # type: ignore[operator]
        raise BadInput(setting, value=value, allowed="a positive finite number", remedy=remedy)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """True for a finite number that float64 can hold; TOML whole numbers have no upper end."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


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
        _words("column", self.column)
        _words("meaning", self.meaning)
        if self.observed is not None:
            _words("observed", self.observed)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model. Everything in it is public.

    Attributes:
        name: lower-case identifier, unique in the study.
        column: column of the record files.
        component: one of :data:`COMPONENTS`.
        kind: ``"numeric"``, ``"integer"`` (one bin per value) or ``"categorical"``.
        label: words for people.
        domain: public range of an ordered feature; values outside are clamped. None for categorical.
        levels: values of a categorical feature that have a bin of their own; anything else is "other".
        transform: scale on which the knots of a numeric feature are uniform.
        risk_trend: ``"falls"`` or ``"rises"`` as the value grows, or None.
        changeable: may a what-if vary it?
        platform: for component compliance, the platform whose rules it is about; it counts there only.
        description: a sentence for people: what it is and why it counts; None: the label says enough.
    """

    name: str
    column: str
    component: str
    kind: str
    label: str
    domain: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()
    transform: str = "linear"
    risk_trend: str | None = None
    changeable: bool = False
    platform: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _FEATURE.fullmatch(self.name):
            raise BadInput("name", value=self.name, allowed="lower-case letters, digits and _, at most 64")
        _words("column", self.column)
        _words("label", self.label)
        if self.description is not None:
            _words("description", self.description, longest=500)
        _choice("component", self.component, COMPONENTS)
        _choice("kind", self.kind, KINDS)
        _choice("transform", self.transform, TRANSFORMS)
        if not isinstance(self.changeable, bool):
            raise BadInput("changeable", value=self.changeable, allowed="true or false")
        self._check_platform()
        if self.kind == "categorical":
            self._check_levels()
        else:
            self._check_domain()

    def _check_platform(self) -> None:
        if self.platform is None:
            return
        _words("platform", self.platform)
        if self.component != "compliance":
            raise BadInput("platform", value=self.platform, allowed="nothing unless component is compliance")

    def _check_levels(self) -> None:
        for setting, value in (("domain", self.domain), ("risk_trend", self.risk_trend)):
            if value is not None:
                raise BadInput(
                    setting, value=value, allowed="nothing for kind categorical", remedy="Remove it"
                )
        if self.transform != "linear":
            raise BadInput("transform", value=self.transform, allowed="nothing for kind categorical")
        for level in self.levels:
            _words("levels", level)
            if _WHOLE.fullmatch(level):
                plain = level.split(".")[0]
                raise BadInput("levels", value=level, allowed=f"{plain!r}: cells are read so")
            if level != level.strip():
                raise BadInput("levels", value=level, allowed="no spaces around a level")
        if not 0 < len(self.levels) <= MAX_CELLS or len(set(self.levels)) < len(self.levels):
            raise BadInput("levels", value=list(self.levels), allowed=f"1 to {MAX_CELLS} different strings")

    def _check_domain(self) -> None:
        if self.levels:
            raise BadInput("levels", value=list(self.levels), allowed="nothing unless kind is categorical")
        if self.risk_trend is not None:
            _choice("risk_trend", self.risk_trend, TRENDS)
        pair = self.domain
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not all(map(_is_number, pair))
            or not pair[0] < pair[1]
        ):
            given = list(pair) if isinstance(pair, tuple) else pair
            raise BadInput("domain", value=given, allowed="[low, high], finite, low below high")
        if self.kind == "integer":
            self._check_bins(*pair)
        else:
            self._check_range(*pair)

    def _check_bins(self, low: float, high: float) -> None:
        if self.transform != "linear":
            raise BadInput(
                "transform", value=self.transform, allowed="linear for kind integer (bins have no scale)"
            )
        if not (_is_int(low) and _is_int(high)):
            raise BadInput("domain", value=[low, high], allowed="two whole numbers for kind integer")
        if high - low + 1 > MAX_CELLS:
            raise BadInput(
                "domain",
                value=[low, high],
                allowed=f"at most {MAX_CELLS} values for kind integer",
                remedy='Use kind = "numeric" for a wider range',
            )

    def _check_range(self, low: float, high: float) -> None:
        if self.transform == "log" and not low > -1:
            raise BadInput(
                "domain",
                value=[low, high],
                allowed="low above -1 for transform log, which is log(1+x)",
                remedy='Use transform = "signed_log" for values of both signs',
            )
        ends = transformed(np.array([low, high], dtype=np.float64), self.transform)
        width = ends[1] - ends[0] if np.isfinite(ends).all() else math.nan
        # Knots are placed in float64: the range must be wide enough for them to differ.
        if not math.isfinite(width) or not width > 1e-9 * np.abs(ends).max():
            raise BadInput("domain", value=[low, high], allowed="a range that float64 can divide into knots")

    @property
    def column_kind(self) -> str:
        """How its column is read, a kind of :func:`assay.models.columns.typed_column`."""
        return {"numeric": "number", "integer": "integer", "categorical": "text"}[self.kind]

    @property
    def ordered(self) -> bool:
        """True where larger and smaller mean something."""
        return self.kind != "categorical"


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
        _choice("model", self.model, ("additive", "neural"))
        if self.rounds is not None:
            _whole("rounds", self.rounds, 1, 1000)


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
        _positive("epsilon", self.epsilon, "Smaller is more private; 1 is a common choice")
        if not _is_number(self.delta) or not 0 < self.delta <= MAX_DELTA:
            raise BadInput("delta", value=self.delta, allowed=f"above 0, at most {MAX_DELTA:g}")
        _choice("trust", self.trust, ("local", "distributed"))
        _whole("tolerated", self.tolerated, 1, 1000)
        _whole("holders_per_person", self.holders_per_person, 1, 1000)


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
            _whole(name, getattr(self, name), -1_000_000, 1_000_000)
        if not self.low < self.anchor_score < self.high:
            raise BadInput(
                "anchor_score",
                value=self.anchor_score,
                allowed=f"between low ({self.low}) and high ({self.high})",
            )
        for name in ("anchor_odds", "pdo"):
            _positive(name, getattr(self, name))
            if not 1e-6 <= getattr(self, name) <= 1e6:
                raise BadInput(name, value=getattr(self, name), allowed="1e-6 to 1e6")
        if self.cut_off is not None:
            _whole("cut_off", self.cut_off, self.low, self.high)

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
                _words(name, getattr(self, name), longest=500)


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
            _words("person.column", self.person)
            if _RESERVED.fullmatch(self.person):
                raise BadInput(
                    "person.column", value=self.person, allowed="no name of a column that scoring writes"
                )
        self._check_inputs(rules)  # first: a protected input is a refusal, whatever else is wrong with it
        self._check_columns()

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
        if not 0 < len(self.features) <= MAX_FEATURES:
            raise BadInput("features", value=len(self.features), allowed=f"1 to {MAX_FEATURES} features")
        taken: dict[str, str] = {self.outcome.column: "the outcome"}
        if self.outcome.observed is not None:
            _once("outcome.observed", self.outcome.observed, taken, "the date of the outcome")
        if self.person is not None:
            _once("person.column", self.person, taken, "the person")
        for position, column in enumerate(self.fairness.columns):
            _words("fairness.columns", column)
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
