"""The true risk of a synthetic person: a known function of the columns as they are written.

One term per feature on its transformed scale, with shapes that saturate or have a threshold, a few products
of two terms, and what region and month add. No model can rank people better than this function does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit, logit

from assay.models.columns import typed_column
from assay.models.schema import transformed
from assay.privacy.errors import BadData
from assay.simulations.population_params import Parameters
from assay.simulations.population_trait import OUTCOMES, Term, Trait

__all__ = ["Ranking", "log_odds", "place", "true_risk"]

Columns = Mapping[str, NDArray[Any]]

_BEND = 3.0  # of "curve": 95 % of the exponential is inside the range
_STEEP = 10.0  # of "step": from 0.7 % to 99.3 % between its ends
_BINS = 1 << 16
_REACH = 16.0  # log-odds beyond which risks are not told apart


def true_risk(params: Parameters, table: pa.Table | pa.RecordBatch) -> dict[str, NDArray[np.float64]]:
    """Return the true probability of each outcome for every row of a table that the generator wrote.

    Args:
        params: the parameters it was written with.
        table: its features, ``region`` and ``month``; other columns are ignored.

    Returns:
        For ``"credit"`` and ``"fraud"`` float64 [N] in (0, 1): the risk before labels are mistaken.

    Raises:
        BadData: a column is missing or not what the generator writes.
    """
    columns = {
        name: _codes(table, name, trait.levels) if trait.levels else _typed(table, name, "number")
        for name, trait in params.features.items()
    }
    columns["region"] = _codes(table, "region", tuple(params.regions))
    columns["month"] = _typed(table, "month", "integer")
    return {outcome: expit(log_odds(params, outcome, columns)) for outcome in OUTCOMES}


def log_odds(params: Parameters, outcome: str, columns: Columns) -> NDArray[np.float64]:
    """Return the log-odds of one outcome, float64 [N].

    Args:
        params: the risk function.
        outcome: ``"credit"`` or ``"fraud"``.
        columns: features as float64 with NaN = missing, categorical ones as codes with -1 = missing;
            ``region`` as codes; ``month`` from 0.
    """
    own = params.outcomes[outcome]
    years = columns["month"] / 12.0
    regions = params.regions.values()
    base = np.array([region.credit if outcome == "credit" else region.fraud for region in regions])
    total = own.intercept + base[columns["region"]] + own.drift * years
    places: dict[str, NDArray[np.float64]] = {}
    for name, trait in params.features.items():
        term = trait.term(outcome)
        if term is None:
            continue
        if trait.levels:
            part = _level_weights(trait, term)[columns[name]]
        else:
            places[name] = place(trait, term, columns[name])
            part = np.where(np.isnan(places[name]), term.missing, term.weight * places[name])
        sign = np.array([-1.0 if name in region.reversed else 1.0 for region in regions])
        total += part * sign[columns["region"]] * (1.0 + term.drift * years)
    for pair in params.interactions.values():
        if pair.outcome == outcome:
            total += pair.weight * np.nan_to_num(places[pair.first] * places[pair.second])
    return total


def place(trait: Trait, term: Term, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where values stand between the ends of a term: 0 at the foot of its shape, 1 at the top.

    With r the position between ``low`` (0) and ``high`` (1) on the feature's transform:

    | shape    | place                                                              |
    |----------|--------------------------------------------------------------------|
    | line     | r, flat outside                                                    |
    | curve    | (1 - exp(-3r)) / (1 - exp(-3)), flat outside: steep, then saturating |
    | step     | logistic in 10 (r - 1/2): a smooth threshold half-way              |
    | valley   | distance from the middle, 0 there and 1 at both ends and outside   |

    Args:
        trait: an ordered feature.
        term: its term.
        values: float64 [N]; NaN stays NaN.
    """
    low, high = transformed(np.array([term.low, term.high], dtype=np.float64), trait.transform)
    # A log has no value at or below -1; limits keep values above.
    r = (transformed(values, trait.transform) - low) / (high - low)
    if term.shape == "step":
        return np.asarray(expit(_STEEP * (r - 0.5)))
    r = np.clip(r, 0.0, 1.0)
    if term.shape == "curve":
        r = np.expm1(-_BEND * r) / np.expm1(-_BEND)
    elif term.shape == "valley":
        r = np.abs(2.0 * r - 1.0)
    return np.asarray(r)


class Ranking:
    """The AUROC to expect of ranking people by their true risk, from a stream, in constant memory.

    A pair of people is one bad and one good with probability p (1 - q) + q (1 - p); the risk ranks it right
    where the riskier one is the bad one. Summed over a histogram of 65,536 bins of log-odds between -16 and
    16, pairs within a bin counting half: the error is below 0.0001.
    """

    def __init__(self) -> None:
        self._bad = np.zeros(_BINS)
        self._good = np.zeros(_BINS)

    def add(self, risk: NDArray[np.float64], bad: NDArray[np.float64] | None = None) -> None:
        """Count people.

        Args:
            risk: what they are ranked by, float64 [N] in (0, 1).
            bad: probability of being counted as bad, float64 [N]; None: the risk itself.
        """
        odds = np.clip(logit(risk), -_REACH, _REACH)
        cell = np.minimum(((odds + _REACH) * (_BINS / (2 * _REACH))).astype(np.int64), _BINS - 1)
        share = risk if bad is None else bad
        self._bad += np.bincount(cell, weights=share, minlength=_BINS)
        self._good += np.bincount(cell, weights=1.0 - share, minlength=_BINS)

    def auroc(self) -> float:
        """Return the expected AUROC, 0..1; 0.5 where nobody was counted."""
        pairs = float(self._bad.sum() * self._good.sum())
        if not pairs > 0:
            return 0.5
        below = np.cumsum(self._good) - self._good
        return float(np.sum(self._bad * (below + self._good / 2)) / pairs)


def _level_weights(trait: Trait, term: Term) -> NDArray[np.float64]:
    """Return the log-odds by code; the last entry, which code -1 finds, is that of a missing value."""
    return np.array([*(term.levels.get(level, 0.0) for level in trait.levels), term.missing])


def _typed(table: pa.Table | pa.RecordBatch, name: str, kind: str) -> NDArray[Any]:
    if name not in table.schema.names:
        raise BadData(f"column {name!r}", allowed="all columns that the generator writes")
    return typed_column(table.column(name), name, kind, where="table")


def _codes(table: pa.Table | pa.RecordBatch, name: str, levels: tuple[str, ...]) -> NDArray[np.int64]:
    code: dict[Any, int] = {level: number for number, level in enumerate(levels)} | {None: -1}
    texts = _typed(table, name, "text")
    if unknown := set(texts.tolist()) - code.keys():
        raise BadData(f"column {name!r}", value=sorted(unknown)[0], allowed=", ".join(levels))
    return np.array([code[text] for text in texts.tolist()], dtype=np.int64)
