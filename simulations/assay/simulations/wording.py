"""The words of a report: fixed texts, and sentences made of its numbers."""

from __future__ import annotations

from assay.models.digits import short
from assay.simulations.findings import Trust

__all__ = ["GLOSSARY", "SIMULATED", "duration", "moved", "trusted"]

SIMULATED = (
    "These results come from a demo or simulation. It plays every holder and therefore has all records, so "
    "it can score held-out ones, train on one holder alone and pool everything. A live coordinator cannot: "
    "it sees noisy sums, and none of the outcomes, scores and metrics on this page."
)
GLOSSARY = (
    (
        "AUROC",
        "How well a score ranks: the chance that a random record with the bad outcome is ranked as riskier "
        "than a random one without. 0.5 is a coin toss, 1 is perfect. Gini is the same on another scale: "
        "2 × AUROC − 1.",
    ),
    (
        "KS",
        "The largest distance between the share of bad outcomes found and the share of good ones wrongly "
        "flagged, over all cut-offs. 0 is useless, 1 is perfect.",
    ),
    (
        "Log loss and Brier",
        "How far the probabilities are from what happened; smaller is better. They notice probabilities that "
        "are wrong although the ranking is right.",
    ),
    (
        "Epsilon (ε) and delta (δ)",
        "How much a single person can change what leaves a holder. Whatever somebody suspects about a "
        "person, the odds of it grow by at most the factor e^ε through what was released, except with a "
        "chance of about δ. Smaller is more private; 0 would reveal nothing.",
    ),
    (
        "Trust: distributed or local",
        "Who adds the noise that ε stands for. Local: every holder adds all of it to its own numbers. "
        "Distributed: each holder adds a share, and the numbers are added up under masks that cancel in the "
        "sum, so that only the sum can be read. It has the noise once instead of once per holder.",
    ),
    (
        "Points",
        "What each piece of information adds to or takes from the score. Base points, the points of all "
        "features and the capping to the range add up to the score exactly.",
    ),
    (
        "Held-out records",
        "Records that no model was trained on. Only on these does a comparison of models mean anything.",
    ),
)


def duration(seconds: float) -> str:
    """Return a time span with sensible digits."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def trusted(trust: Trust) -> str:
    """Say in two sentences whom the promise relies on, and what is left without them."""
    if trust.tolerated is None or trust.fallback_epsilon is None:
        return (
            "Trust local: every holder adds its full noise itself. Nobody outside a holder is relied on, and "
            "the coordinator sees each holder's noisy sums."
        )
    others = "holder is" if trust.tolerated == 1 else "holders are"
    return (
        "Trust distributed: nobody, the coordinator included, sees a single holder's numbers, only their "
        f"noisy sum. The promise holds while at most {trust.tolerated} {others} curious, colluding or gone; "
        f"if secure aggregation failed completely, ε\u00a0{short(trust.fallback_epsilon)} would be left."
    )


def moved(change: float) -> str:
    """Say what a change of AUROC is."""
    if abs(change) < 0.0005:
        return "changes AUROC by less than 0.001"
    return f"{'gains' if change > 0 else 'loses'} {abs(change):.3f} of AUROC"
