"""Results by group on held-out records, exact: only a simulation has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models import metrics
from assay.models.scorecard import Scores
from assay.simulations.dataset import Groups

__all__ = ["group_rows"]


def group_rows(
    columns: Mapping[str, Groups],
    labels: NDArray[np.float64],
    *,
    private: Scores,
    unprotected: Scores,
    threshold: int,
) -> list[dict[str, Any]]:
    """Return how every group that somebody is in fares under the model, and under the one without privacy.

    Args:
        columns: group of each held-out record, by column.
        labels: float64 [N], 0 or 1.
        private: scores of the model.
        unprotected: scores of the same without privacy.
        threshold: the score from which a person is approved.

    Returns:
        For each group ``column``, ``group``, ``persons`` (held-out records), ``auroc`` (None where only one
        outcome occurs), ``approval_rate``, ``observed`` (bad rate), ``predicted`` (mean probability of bad),
        and ``auroc`` and ``approval_rate`` of the other model under ``non_private``.
    """
    rows = []
    for column, groups in columns.items():
        for code, group in enumerate(groups.labels):
            inside = groups.codes == code
            persons = int(inside.sum())
            if not persons:
                continue
            rows.append(
                {
                    "column": column,
                    "group": group,
                    "persons": persons,
                    **_fares(labels[inside], private, inside, threshold),
                    "observed": float(labels[inside].mean()),
                    "predicted": float(private.probability[inside].mean()),
                    "non_private": _fares(labels[inside], unprotected, inside, threshold),
                }
            )
    return rows


def _fares(
    labels: NDArray[np.float64], scores: Scores, inside: NDArray[np.bool_], threshold: int
) -> dict[str, float | None]:
    both = labels.min() < labels.max()
    return {
        "auroc": metrics.auroc(labels, scores.probability[inside]) if both else None,
        "approval_rate": float((scores.score[inside] >= threshold).mean()),
    }
