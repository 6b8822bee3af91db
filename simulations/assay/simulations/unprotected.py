"""The same model without privacy, and how both treat groups: what the noise costs, and whom.

Only a simulation can do this: it has all records. Privacy often costs small groups most, which an average
hides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.client.records import Records
from assay.models.additive import AdditiveClippedSum, ClippedCounts
from assay.models.audit import audit_of
from assay.models.encoding import Grid
from assay.models.fitting import Fit
from assay.models.schema import Study
from assay.models.scorecard import Scorecard
from assay.models.tally import AuditTally, ClippedTally

__all__ = ["GroupLine", "compared_groups", "group_lines", "train_unprotected"]

ROUNDS = 120  # without noise the fit has then long stopped moving in the third digit of AUROC
# No person's gradient is that long: nothing is clipped.
_UNBOUNDED = 1e9


def train_unprotected(study: Study, records: Records) -> Scorecard:
    """Fit the study's additive model to records in one place, without noise and without clipping."""
    grid = Grid.of(study)
    encoded = grid.encode(records.columns, records.patterns)
    gradients = AdditiveClippedSum(
        encoded,
        records.labels,
        records.persons,
        size=grid.size,
        patterns=grid.patterns,
        l2_clip_norm=_UNBOUNDED,
    )
    counts = ClippedCounts(gradients, l2_clip_norm=_UNBOUNDED)(np.zeros(grid.width))
    patterns = tuple(sorted({int(pattern) for pattern in np.unique(encoded.pattern)}))
    fit = Fit(grid, counts=counts, gradient_noise_std=0.0, rounds=ROUNDS, patterns=patterns)
    while fit.done < ROUNDS:
        fit.update(gradients(fit.theta))
    return Scorecard.of(study, grid, fit.result(study), counts)


@dataclass(frozen=True, kw_only=True)
class GroupLine:
    """One group on held-out records, under the private model and the same without privacy.

    Attributes:
        column: the fairness column.
        group: the group, in words.
        persons: records of the group.
        declared: False for "other" and "missing".
        private: rates of the private model by name, see :func:`assay.models.audit.audit_of`; empty where the
            group is too small to say anything.
        unprotected: the same of the model without privacy.
    """

    column: str
    group: str
    persons: int
    declared: bool
    private: dict[str, Any]
    unprotected: dict[str, Any]


def compared_groups(card: Scorecard, test: Records) -> list[dict[str, Any]]:
    """Return the groups of held-out records under a card, exact, as an audit gives them."""
    tally = AuditTally(study=card.study, grid=card.grid)
    encoded = card.grid.encode(test.columns, test.patterns)
    exact = ClippedTally(tally, encoded, test.labels, None, test.groups)(card.theta)
    found: list[dict[str, Any]] = audit_of(tally, card, exact, 0.0)["groups"]
    return found


def group_lines(private: Scorecard, unprotected: Scorecard, test: Records) -> tuple[GroupLine, ...]:
    """Put the groups under both models side by side; groups nobody is in are left out."""
    pairs = zip(compared_groups(private, test), compared_groups(unprotected, test), strict=True)
    return tuple(
        GroupLine(
            column=ours["column"],
            group=mine["group"],
            persons=round(mine["persons"]),
            declared=mine["declared"],
            private={} if mine["too_small"] else mine,
            unprotected={} if other["too_small"] else other,
        )
        for ours, theirs in pairs
        for mine, other in zip(ours["groups"], theirs["groups"], strict=True)
        if round(mine["persons"]) > 0
    )
