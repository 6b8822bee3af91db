"""The privacy label: what a model's privacy guarantee says, for whom, and what it does not cover.

Computed from the study and the number of rounds alone, both public.
"""

from __future__ import annotations

from typing import Any

from assay.models.schema import Study
from assay.privacy.accounting import PrivacyTarget, RunCost, epsilon_of

__all__ = ["label_in_words", "privacy_label", "privacy_target"]

NOT_COVERED = (
    "How many rounds a holder answered, when, and whether it took part at all.",
    "Anything a holder or the requesting party publishes by other means.",
    "What a score itself tells about the person it belongs to.",
    "A person known to more holders than holders_per_person says.",
    "Runs of other federations on the same records: a holder's ledger belongs to one federation.",
)


def privacy_target(study: Study) -> PrivacyTarget:
    """Return the study's privacy target in the form that prices releases."""
    privacy = study.privacy
    return PrivacyTarget(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        holders_per_person=privacy.holders_per_person,
        trust=privacy.trust,
    )


def privacy_label(study: Study, *, rounds: int) -> dict[str, Any]:
    """Describe what a run of ``rounds`` gradient rounds costs one person.

    Returns:
        A JSON object; ``releases`` lists each kind of release of one holder with its noise and cost.
    """
    target = privacy_target(study)
    cost = RunCost.of(target)
    counts, gradient = cost.counts, cost.gradient(rounds)
    per_holder = epsilon_of(cost.total(rounds), target.delta)
    return {
        "unit": "one person: all rows of that person at a holder" if study.person else "one person: one row",
        "adjacency": "one person more or less, with all rows; the exact number of persons is never used",
        "epsilon": target.epsilon,
        "delta": target.delta,
        "holders_per_person": target.holders_per_person,
        "epsilon_per_holder": per_holder,
        "trust": target.trust,
        "trust_in_words": "every holder adds its full noise, so nobody outside it needs to be trusted",
        "accountant": "exact Gaussian composition (Dong, Roth, Su 2019, cor. 3.3; Balle, Wang 2018, thm 8)",
        "noise": "Gaussian from the operating system's entropy, rounded to a public grid of std / 2^20",
        "releases": [
            {
                "what": "noisy counts of the public cells",
                "times": 1,
                "noise_multiplier": counts.noise_multiplier,
                "epsilon_alone": epsilon_of((counts,), target.delta),
            },
            {
                "what": "noisy clipped gradient sum, one full pass over the records",
                "times": rounds,
                "noise_multiplier": gradient.noise_multiplier,
                "epsilon_alone": epsilon_of((gradient,), target.delta),
            },
        ],
        "not_covered": list(NOT_COVERED),
    }


def label_in_words(label: dict[str, Any]) -> str:
    """Say the label in sentences a privacy officer can check."""
    releases = "\n".join(
        f"  - {r['what']}, {r['times']} time(s), noise {r['noise_multiplier']:.4g} x sensitivity"
        for r in label["releases"]
    )
    uncovered = "\n".join(f"  - {line}" for line in label["not_covered"])
    return (
        f"Privacy: epsilon {label['epsilon']:g}, delta {label['delta']:g} for {label['unit']}, over the whole"
        f" run, known to at most {label['holders_per_person']} holder(s).\n"
        f"Trust: {label['trust']} - {label['trust_in_words']}.\n"
        f"Accountant: {label['accountant']}.\nReleased by each holder:\n{releases}\n"
        f"Not covered:\n{uncovered}"
    )
