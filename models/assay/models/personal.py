"""What a person is told about a score, in plain words: what it is about, what it means, privacy, and rights.

Facts and short sentences, no terms of the trade. The rights are a reading for people, not legal advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.models.digits import count, odds_factor, short
from assay.models.schema import Study

__all__ = [
    "COMPONENT_WORDS",
    "NOT_KEPT",
    "about",
    "chance",
    "contact_lines",
    "frequency",
    "privacy_words",
    "rights",
    "spaced",
]

COMPONENT_WORDS = {
    "identity": "who you are, for example your education or work",
    "spending": "what you spend and owe",
    "compliance": "how you keep the rules of the platform",
    "payment_history": "how you paid in the past",
    "third_party": "what others report about you, for example a bank",
}
NOT_KEPT = (
    "Nothing of this is stored, and it changes nothing about you. It is no promise: a later score is computed"
    " from what is known then."
)
_LENDING = ("consumer_credit", "bnpl_limit", "microloan", "account_review")
_WEAK_EPSILON = 5.0  # the odds of a guess may change by a factor of about 150
_PROMISES = (
    "Does a person like this keep a promise to pay?",
    "It does not say whether you are who you say you are, and it does not judge your character.",
)
_QUESTIONS = {
    "fraud_detection": (
        "Is this application or payment genuine?",
        "It does not say whether you keep your promises, and not how well you pay.",
    ),
    "merchant_protection": (
        "Does a customer like this keep the rules of the platform?",
        "It does not say how well you pay elsewhere, and it does not judge your character.",
    ),
    "attestation": (
        "Is a threshold met, yes or no?",
        "You alone decide whether to show the answer. Not showing it must not count against you.",
    ),
}


def spaced(name: str) -> str:
    """Return a name such as ``credit_card_limit`` as people write it."""
    return name.replace("_", " ")


def about(study: Study, until: str) -> list[str]:
    """Say in sentences which question the score answers, for what it may be used, and until when.

    Args:
        study: the study.
        until: the last day, as people write it.
    """
    question, limits = _QUESTIONS.get(study.purpose, _PROMISES)
    words = next(each.words for each in study.rules.purposes if each.name == study.purpose)
    contexts = ", ".join(map(spaced, study.contexts))
    return [
        f"The score answers one question: {question} {limits}",
        f"It estimates one thing: “{study.outcome.meaning}”. It learned this from people for whom the outcome"
        " is known.",
        f"It may be used for one purpose: {spaced(study.purpose)} ({words}).",
        f"It may be used only here: {contexts}. Any other use is refused.",
        f"It is valid until {until}.",
    ]


def frequency(probability: float) -> tuple[int, int]:
    """Return a probability as "n of m people", m the smallest of 100, 1,000 and 10,000 that shows it."""
    rarer = min(probability, 1 - probability)
    of = next((size for size in (100, 1000) if rarer * size >= 2), 10_000)
    return int(probability * of + 0.5), of


def chance(probability: float, meaning: str) -> str:
    """Say how many of many people with this score have the outcome."""
    number, of = frequency(probability)
    many = "fewer than 1" if number == 0 else "nearly all" if number == of else f"about {number:,}"
    rest = f" The other {of - number:,} do not." if 0 < number < of else ""
    return f"Of {of:,} people with the same points, {many} have this outcome: “{meaning}”.{rest}"


def contact_lines(contact: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Say whom to ask and how to contest a score, as headings and words, also where the study does not."""
    ask = contact["ask"] or (
        "The institution that gave you this page must name a person whom you can ask. Ask it for that name."
    )
    contest = contact["contest"] or (
        "Write to the institution that gave you this page. Say what is wrong, and ask that a human being"
        " looks at your case."
    )
    return [("Whom to ask", ask), ("How to contest", contest)]


def rights(purpose: str) -> list[str]:
    """Return what a person may ask for where the law of the European Union applies."""
    listed = [
        "You can ask which data about you are used, and for an explanation of the logic: why this result"
        " came about and what it means for you (GDPR, Article 15).",
        "You can have wrong data corrected and missing data completed (GDPR, Article 16).",
        "Where a decision with serious effects on you is made by a computer alone, you can ask that a human"
        " being looks at it, say your own point of view, and contest it (GDPR, Article 22(3)).",
    ]
    if purpose in _LENDING:
        listed.append(
            "Where a lender uses your data in this way to decide about consumer credit, you can ask it for a"
            " clear explanation by a human being, say your own point of view, and have the assessment and the"
            " decision reviewed (Consumer Credit Directive (EU) 2023/2225, Article 18(8))."
        )
    return listed


def privacy_words(label: Mapping[str, Any]) -> str:
    """Say the privacy label of a bundle in one paragraph of plain sentences."""
    epsilon, delta = label.get("epsilon"), label.get("delta")
    if epsilon is None or delta is None:
        return "The file of this score does not say how privacy was kept while it was learned."
    alone = label["trust"] == "local"
    sent = (
        "Each of them sent only sums, and added random noise to them first."
        if alone
        else "They sent only masked sums with random noise. Nobody saw the sums of a single institution."
    )
    held = "" if alone else f", and as long as no more than {_are(label['tolerated'])} curious or absent"
    weak = " That is a weak promise." if epsilon > _WEAK_EPSILON else ""
    return (
        f"{count(label['holders'], 'institution')} taught this score together. The records of people"
        f" stayed where they were. {sent} The noise hides whether your own records were among them. Whatever"
        " somebody guesses about that, what was published changes the odds of the guess by a factor of at"
        f" most {odds_factor(epsilon)} (epsilon {short(epsilon)}), but for a chance of about 1 in"
        f" {1 / delta:,.0f}.{weak} This holds if no more than"
        f" {count(label['holders_per_person'], 'institution')} had records of you{held}."
    )


def _are(number: int) -> str:
    return "1 of the institutions is" if number == 1 else f"{number:,} of the institutions are"
