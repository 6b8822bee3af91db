"""Policy packs: the rules about purposes, inputs and retention as of one day, each one a data file.

:mod:`assay.privacy.packfile` reads them. What a pack may say is bounded here: it names all eight refusals,
and it forbids at least the inputs of :data:`FLOOR`. So no pack, and no study that picks one, switches a
refusal off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from assay.privacy.errors import BadInput, Refused

__all__ = [
    "CODES",
    "FLOOR",
    "KINDS",
    "PolicyPack",
    "Protected",
    "Purpose",
    "Refusal",
    "Retention",
    "words_of",
]

CODES = tuple(f"D0{number}" for number in range(1, 9))
KINDS = ("records", "bundles", "statements", "refusals")
FLOOR = (
    *("sex", "gender", "race", "ethnic", "nationality", "religion", "marital", "age", "birth", "political"),
    *("health", "medical", "disability", "pregnancy", "biometric", "genetic", "contacts", "friends"),
    *("social", "browsing", "orientation"),
)
"""Words that every pack forbids as inputs."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """A purpose that a study may have.

    Attributes:
        name: the word in ``study.toml``.
        words: which question such a score answers, for people.
        contexts: typical contexts; a study may declare others.
    """

    name: str
    words: str
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A use that is refused.

    Attributes:
        code: ``D01`` to ``D08``.
        text: why, in one sentence.
        article: the rule it rests on.
        phrases: names such a use goes by, words separated by ``_``.
        pack: the pack it stands in.
    """

    code: str
    text: str
    article: str
    phrases: tuple[str, ...]
    pack: str = ""

    def error(self, subject: str, article: str = "") -> Refused:
        """Return the exception that says so about ``subject``.

        Args:
            subject: what was asked for, e.g. ``"purpose 'voting'"``; never anything from records.
            article: the rule for this subject, where it is another than the refusal's.
        """
        rule = article or self.article
        return Refused(
            f"{subject} is refused ({self.code}): {self.text} [{rule}]",
            code=self.code,
            article=rule,
            subject=subject,
            pack=self.pack,
        )


@dataclass(frozen=True, kw_only=True)
class Protected:
    """Words that name something which is no input of a model.

    Attributes:
        words: lower-case words, any one of which names it.
        unless: words beside it that make it harmless, e.g. the age of an *account*.
        refusal: code of the refusal.
        article: the rule it rests on.
    """

    words: tuple[str, ...]
    unless: tuple[str, ...] = ()
    refusal: str
    article: str


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long something is kept at most.

    Attributes:
        days: a whole number of at least 1.
        article: the rule it rests on.
    """

    days: int
    article: str


@dataclass(frozen=True, kw_only=True)
class PolicyPack:
    """The rules as of one day.

    Attributes:
        name: which rules these are; ends in the date.
        as_of: ISO date the table describes.
        summary: which rules it is a reading of.
        purposes: purposes a study may have; everything else is refused.
        refusals: named refusals in the order of :data:`CODES`, each with code and article.
        protected: what may be declared for fairness audits, if at all, and is never a model input.
        retention: by ``"records"``, ``"bundles"``, ``"statements"``, ``"refusals"``.

    Raises:
        BadInput: a refusal is missing, an input of :data:`FLOOR` is not forbidden, or a refused use is
            allowed.
    """

    name: str
    as_of: str
    summary: str
    purposes: tuple[Purpose, ...]
    refusals: tuple[Refusal, ...]
    protected: tuple[Protected, ...]
    retention: Mapping[str, Retention]

    def __post_init__(self) -> None:
        if tuple(refusal.code for refusal in self.refusals) != CODES:
            raise BadInput("refusals", allowed=f"all of {', '.join(CODES)}; no pack switches a refusal off")
        for purpose in self.allowed:
            if (refusal := self.named(purpose)) is not None:
                raise BadInput(
                    f"purposes.{purpose}", allowed=f"no purpose that goes by a phrase of {refusal.code}"
                )
        for word in FLOOR:
            if self.protects(word) is None:
                raise BadInput("inputs", allowed=f"an entry that forbids {word!r}, as every pack does")

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names of the purposes that a study may have."""
        return tuple(purpose.name for purpose in self.purposes)

    def refusal(self, code: str) -> Refusal:
        """Return the refusal with this code."""
        return self.refusals[CODES.index(code)]

    def named(self, use: str) -> Refusal | None:
        """Return the refusal that a use goes by, or None.

        The longest phrase wins: ``predictive_policing`` is D04 although ``policing`` alone is D02.
        """
        words = set(words_of(use))
        found = [
            (len(phrase), refusal)
            for refusal in self.refusals
            for phrase in refusal.phrases
            if set(phrase.split("_")) <= words
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def protects(self, name: str) -> Protected | None:
        """Return what forbids an input of this name, or None; names are looked at word by word."""
        words = set(words_of(name))
        for protected in self.protected:
            if not words.isdisjoint(protected.words) and words.isdisjoint(protected.unless):
                return protected
        return None


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: ``ApplicantAge`` and ``applicant_age`` have the same two."""
    return [word.lower() for word in _WORD.findall(name)]
