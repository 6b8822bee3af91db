"""What a score may be used for. The rules are one dated table, not code; this module only looks things up.

Anything the table does not allow is refused, and no setting turns that off. The table is a reading of
the law for engineers, not legal advice; replace :data:`PACK` by a newer one when the rules change.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from assay.privacy.errors import BadInput, Refused

__all__ = [
    "PACK",
    "PolicyPack",
    "Protected",
    "Refusal",
    "check_context",
    "check_input",
    "check_purpose",
    "check_use",
]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A use that is refused.

    Attributes:
        code: ``D01`` to ``D08``.
        text: why, in one sentence.
        article: the rule it rests on.
        phrases: names such a use goes by, words separated by ``_``.
    """

    code: str
    text: str
    article: str
    phrases: tuple[str, ...]

    def error(self, subject: str) -> Refused:
        """Return the exception that says so about ``subject``."""
        return Refused(f"{subject} is refused ({self.code}): {self.text} [{self.article}]", code=self.code)


@dataclass(frozen=True, kw_only=True)
class Protected:
    """Words that name a protected attribute.

    Attributes:
        words: lower-case words, any one of which names it.
        unless: words beside it that make it harmless, e.g. the age of an *account*.
    """

    words: tuple[str, ...]
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PolicyPack:
    """The rules as of one day.

    Attributes:
        name: which rules these are.
        as_of: ISO date the table describes.
        allowed: purposes a study may have; everything else is refused.
        refusals: named refusals, each with code and article.
        protected: attributes that may be declared for fairness audits and are never model inputs.
    """

    name: str
    as_of: str
    allowed: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    protected: tuple[Protected, ...]

    def refusal(self, code: str) -> Refusal:
        """Return the refusal with this code."""
        return next(refusal for refusal in self.refusals if refusal.code == code)


PACK = PolicyPack(
    name="eu-default",
    as_of="2026-11-20",  # the day from which the Consumer Credit Directive 2023/2225 applies
    allowed=(
        "consumer_credit",
        "bnpl_limit",
        "rental_screening",
        "utility_contract",
        "microloan",
        "fraud_detection",
        "account_review",
        "merchant_protection",
        "attestation",
    ),
    refusals=(
        Refusal(
            code="D01",
            text="a score answers one question; a score of general trustworthiness, or for several purposes "
            "at once, is social scoring",
            article="AI Act, Regulation (EU) 2024/1689, Art. 5(1)(c)",
            phrases=(
                "general_trustworthiness",
                "trustworthiness",
                "general_trust",
                "citizen",
                "social_score",
                "social_scoring",
                "social_credit",
                "reputation",
                "character",
                "general",
                "any",
                "all",
            ),
        ),
        Refusal(
            code="D02",
            text="public authorities do not decide about benefits, permits, travel, education, voting or "
            "policing with this score",
            article="project policy; AI Act Art. 5(1)(c), Annex III 5(a)",
            phrases=(
                "benefits",
                "welfare",
                "public_benefits",
                "permit",
                "permits",
                "licence",
                "travel",
                "visa",
                "travel_visa",
                "border",
                "border_control",
                "immigration",
                "asylum",
                "education",
                "school_admission",
                "university_admission",
                "voting",
                "vote",
                "election",
                "elections",
                "policing",
                "police",
                "law_enforcement",
                "surveillance",
                "public_authority",
            ),
        ),
        Refusal(
            code="D03",
            text="a score is used only in the contexts that were declared when it was made",
            article="AI Act Art. 5(1)(c)(i)",
            phrases=("unrelated_context", "other_context", "reuse"),
        ),
        Refusal(
            code="D04",
            text="the risk that a person commits a crime is not predicted from a profile",
            article="AI Act Art. 5(1)(d)",
            phrases=("crime", "crime_prediction", "predictive_policing", "criminal_risk", "recidivism"),
        ),
        Refusal(
            code="D05",
            text="the social graph, contacts, social media, health, religion, politics, biometrics, browsing "
            "and protected attributes are no inputs of a score",
            article="Consumer Credit Directive (EU) 2023/2225 Art. 18; GDPR Art. 9",
            phrases=(
                "social_graph",
                "social_media",
                "social_network",
                "health",
                "religion",
                "political_opinion",
            ),
        ),
        Refusal(
            code="D06",
            text="labels about single persons are not exported to others",
            article="project policy; GDPR Art. 5(1)(b)",
            phrases=("blacklist", "watchlist", "label_export", "naming_and_shaming", "public_list"),
        ),
        Refusal(
            code="D07",
            text="the same product does not get a different price by profile without reason",
            article="PIPL Art. 24",
            phrases=(
                "price_discrimination",
                "personalised_pricing",
                "personalized_pricing",
                "dynamic_pricing",
                "pricing",
            ),
        ),
        Refusal(
            code="D08",
            text="a fraud score is not a credit score, nor the reverse; they are two studies with two models",
            article="AI Act Annex III 5(b)",
            phrases=("fraud_and_credit", "credit_and_fraud", "fraud_as_credit", "credit_as_fraud"),
        ),
    ),
    protected=(
        Protected(words=("sex", "gender")),
        Protected(words=("race", "racial", "ethnic", "ethnicity", "nationality", "citizenship", "caste")),
        Protected(words=("religion", "religious", "faith", "belief")),
        Protected(words=("marriage", "married", "marital", "maritalstatus", "spouse", "divorced")),
        Protected(
            words=("age", "birth", "birthday", "birthdate", "birthyear", "dob", "dateofbirth"),
            unless=(
                "account",
                "accounts",
                "card",
                "loan",
                "contract",
                "credit",
                "relationship",
                "device",
                "history",
            ),
        ),
        Protected(words=("politics", "political", "party", "union"), unless=("third", "credit")),
        Protected(words=("health", "medical", "disease", "disability", "pregnant", "pregnancy")),
        Protected(words=("biometric", "biometrics", "face", "genetic", "fingerprint"), unless=("device",)),
        Protected(words=("contact", "contacts", "friend", "friends", "follower", "followers", "social")),
        Protected(words=("browsing", "orientation")),
    ),
)


def check_purpose(purpose: object, pack: PolicyPack = PACK) -> str:
    """Return ``purpose`` if a study may have it.

    Edge cases: a list of several purposes is refused (D01); a name the table does not know is refused
    with code ``"purpose"`` and the nearest allowed one.

    Raises:
        Refused: the purpose is not allowed.
        BadInput: it is not a word at all.
    """
    if isinstance(purpose, (list, tuple)) and len(purpose) > 1:
        raise pack.refusal("D01").error("more than one purpose")
    if not isinstance(purpose, str) or not purpose.strip():
        raise BadInput("purpose", value=purpose, allowed=f"one of {', '.join(pack.allowed)}")
    if purpose in pack.allowed:
        return purpose
    words = _words(purpose)
    # The longest phrase wins: "predictive_policing" is D04 although "policing" alone is D02.
    found = [
        (len(phrase), refusal)
        for refusal in pack.refusals
        for phrase in refusal.phrases
        if set(phrase.split("_")) <= set(words)
    ]
    if found:
        raise max(found, key=lambda pair: pair[0])[1].error(f"purpose {purpose!r}")
    raise _not_allowed(purpose, pack.allowed)


def check_context(context: object, pack: PolicyPack = PACK) -> str:
    """Return ``context`` if a study may declare it: any words, except the name of a refused use.

    Raises:
        Refused: the context is a refused use under another heading.
        BadInput: it is not a non-empty string.
    """
    if not isinstance(context, str) or not context.strip():
        raise BadInput("contexts", value=context, allowed="non-empty strings such as credit_card_application")
    phrase = "_".join(_words(context))
    for refusal in pack.refusals:
        if phrase in refusal.phrases:
            raise refusal.error(f"context {context!r}")
    return context


def check_input(*names: str, pack: PolicyPack = PACK) -> None:
    """Refuse a model input that is named after a protected attribute.

    Names are looked at word by word (``usage`` is not ``age``). What hides behind a neutral name is not
    found; nothing here measures that.

    Args:
        names: the feature's name, its column and its label.
        pack: the rules.

    Raises:
        Refused: code D05.
    """
    for name in names:
        words = _words(name)
        for protected in pack.protected:
            if not set(words).isdisjoint(protected.words) and set(words).isdisjoint(protected.unless):
                raise pack.refusal("D05").error(f"input {name!r}")


def check_use(requested: object, declared: str, pack: PolicyPack = PACK) -> str:
    """Return ``requested`` if a model made for ``declared`` may be used for it.

    Raises:
        Refused: it is another purpose (D03, or D08 between fraud and credit) or no allowed one.
        BadInput: it is not a word at all.
    """
    purpose = check_purpose(requested, pack)
    if purpose == declared:
        return purpose
    crossed = "fraud_detection" in (purpose, declared)
    refusal = pack.refusal("D08" if crossed else "D03")
    raise refusal.error(f"purpose {purpose!r} for a model made for {declared!r}")


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _not_allowed(purpose: str, allowed: tuple[str, ...]) -> Refused:
    nearest = difflib.get_close_matches(purpose, allowed, n=1, cutoff=0.0)[0]
    return Refused(
        f"purpose {purpose!r} is refused: only {', '.join(allowed)} are allowed; the nearest is {nearest!r}",
        code="purpose",
    )
