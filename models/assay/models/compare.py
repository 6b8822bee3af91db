"""Champion and challenger on the same labelled records: ranking, calibration, and whom each would approve.

The difference in AUROC has the interval of DeLong, DeLong and Clarke-Pearson (*Biometrics* 44, 1988), with
several rows of one person taken together as Obuchowski (*Biometrics* 53, 1997) does: both models score the
same people, so their errors go together, and the interval is narrower than those of the two models suggest.

Everything here is computed from records without noise. It is for whoever holds them, and nothing of it
leaves: lift and bad rates are business secrets between competitors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from assay.models import metrics
from assay.models.bundle import Bundle
from assay.models.columns import typed_column
from assay.models.drift import column_kinds
from assay.models.scorecard import BANDS, Scorecard, band_cuts
from assay.models.tabular import open_table
from assay.privacy.errors import BadData, BadInput
from assay.privacy.purpose import check_use

__all__ = ["Judged", "compare", "compared_in_words", "difference", "require_comparable", "score_labelled"]

Vector = NDArray[np.float64]
_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_SIDES = ("champion", "challenger")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one card says of N labelled rows.

    Attributes:
        card: the card.
        score: int [N].
        probability: float64 [N] of bad.
        band: int [N], index into BANDS.
    """

    card: Scorecard
    score: NDArray[Any] = field(repr=False)
    probability: Vector = field(repr=False)
    band: NDArray[Any] = field(repr=False)

    @classmethod
    def of(cls, card: Scorecard, columns: Mapping[str, NDArray[Any]]) -> Judged:
        """Score rows; ``columns`` as for ``Grid.encode``."""
        scores = card.score(card.grid.encode(columns))
        return cls(card=card, score=scores.score, probability=scores.probability, band=scores.band)

    @property
    def approved(self) -> NDArray[np.bool_]:
        """Who is at the cut-off of the card's study or above."""
        return np.asarray(self.score >= self.card.study.scale.threshold, dtype=np.bool_)


def require_comparable(champion: Bundle, challenger: Bundle, now: float) -> None:
    """Refuse two bundles that answer different questions, or that must not be used.

    Raises:
        Refused: one has expired or is held; the purposes differ (D03, or D08 between fraud and credit), or
            the outcome columns do (D03).
    """
    for bundle in (champion, challenger):
        bundle.require_current(now)
        bundle.require_promoted()
    ours, theirs = champion.study, challenger.study
    check_use(theirs.purpose, ours.purpose, ours.rules)
    if theirs.outcome.column != ours.outcome.column:
        raise ours.rules.refusal("D03").error(
            f"comparing outcome {theirs.outcome.column!r} with a model of outcome {ours.outcome.column!r}"
        )


def compare(
    champion: Judged, challenger: Judged, labels: Vector, persons: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Compare two cards on the same rows.

    Args:
        champion: N rows.
        challenger: the same rows.
        labels: float64 [N] of 0 and 1.
        persons: int64 [N], equal for rows of one person; None: every row is a person.

    Returns:
        A JSON object: ``rows``, ``bad_rate``, ``champion`` and ``challenger`` (``auroc``, ``gini``, ``ks``,
        ``brier``, ``log_loss``, ``calibration_error``, ``bands``, ``cut_off``), ``auroc_difference``,
        ``swaps``.

    Raises:
        BadInput: the rows differ in number, or only one outcome occurs.
    """
    if not len(champion.score) == len(challenger.score) == len(labels):
        raise BadInput("records", allowed="the same rows for both models")
    sides = {name: _side(side, labels) for name, side in zip(_SIDES, (champion, challenger), strict=True)}
    return {
        "rows": len(labels),
        "bad_rate": float(labels.mean()),
        **sides,
        "auroc_difference": difference(champion.probability, challenger.probability, labels, persons),
        "swaps": _swaps(champion, challenger, labels),
    }


def difference(
    first: Vector, second: Vector, labels: Vector, persons: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Return how much larger the AUROC of ``second`` is, with its 95 % interval.

    Args:
        first: float64 [N], larger means riskier.
        second: the same of the other model.
        labels: float64 [N] of 0 and 1.
        persons: int64 [N]; rows of one person are not independent. None: every row is a person.

    Returns:
        ``value``, ``low``, ``high``, ``std_error`` and ``differs``: whether the interval leaves 0 out.

    Raises:
        BadInput: see :func:`assay.models.metrics.auroc`.
    """
    value = metrics.auroc(labels, second) - metrics.auroc(labels, first)
    # What each row adds to the difference: its placement among those of the other outcome.
    own = _placements(second, labels) - _placements(first, labels)
    bad = labels == 1
    for outcome in (bad, ~bad):
        own[outcome] = (own[outcome] - own[outcome].mean()) / outcome.sum()
    if persons is not None:
        own = np.bincount(persons, own).astype(np.float64)
    clusters = len(own)
    error = math.sqrt(float((own**2).sum()) * clusters / max(clusters - 1, 1))
    low, high = value - _Z95 * error, value + _Z95 * error
    differs = bool(low > 0 or high < 0)
    return {"value": value, "low": low, "high": high, "std_error": error, "differs": differs}


def _placements(scores: Vector, labels: Vector) -> Vector:
    """Return for each bad row the share of good rows below it, for each good row of bad ones above it.

    By ranks (Sun and Xu, *IEEE Signal Processing Letters* 21, 2014); ties count half.
    """
    bad = labels == 1
    everywhere, out = rankdata(scores), np.empty(len(scores))
    out[bad] = (everywhere[bad] - rankdata(scores[bad])) / (~bad).sum()
    out[~bad] = 1 - (everywhere[~bad] - rankdata(scores[~bad])) / bad.sum()
    return out


def _side(judged: Judged, labels: Vector) -> dict[str, Any]:
    """Return what is known of one model."""
    p, scale = judged.probability, judged.card.study.scale
    starts = [*band_cuts(scale), scale.low]
    bands = [
        {"band": words, "from": start, **_part(judged.band == index, labels)}
        for index, ((words, _), start) in enumerate(zip(BANDS, starts, strict=True))
    ]
    approved = _part(judged.approved, labels)
    return {
        "study": judged.card.study.name,
        "auroc": metrics.auroc(labels, p),
        "gini": metrics.gini(labels, p),
        "ks": metrics.ks(labels, p),
        "brier": metrics.brier(labels, p),
        "log_loss": metrics.log_loss(labels, p),
        "calibration_error": metrics.expected_calibration_error(labels, p),
        "bands": bands,
        "cut_off": {
            "score": scale.threshold,
            "approval_rate": approved["rows"] / len(labels),
            "bad_rate": approved["bad_rate"],
        },
    }


def _part(chosen: NDArray[np.bool_], labels: Vector) -> dict[str, Any]:
    """Return how many rows were chosen and their bad rate; null where there are none."""
    rows = int(chosen.sum())
    return {"rows": rows, "bad_rate": float(labels[chosen].mean()) if rows else None}


def _swaps(champion: Judged, challenger: Judged, labels: Vector) -> dict[str, Any]:
    one, other = champion.approved, challenger.approved
    return {
        "both": _part(one & other, labels),
        "only_champion": _part(one & ~other, labels),
        "only_challenger": _part(other & ~one, labels),
        "neither": _part(~one & ~other, labels),
    }


def score_labelled(
    bundles: tuple[Bundle, Bundle], source: Path, platform: str | None = None
) -> tuple[Judged, Judged, Vector]:
    """Score a file that holds the outcome with both bundles, piece by piece.

    Args:
        bundles: champion and challenger, of one outcome column.
        source: ``.csv``, ``.csv.gz`` or ``.parquet``.
        platform: a compliance feature of another platform is left out.

    Returns:
        Both models' scores, and the labels, float64 [N].

    Raises:
        BadData: the file is not what its name says, is empty, lacks the outcome or all columns of a study, or
            a cell is not what a study says.
    """
    reader, outcome = open_table(source), bundles[0].study.outcome.column
    if outcome not in reader.columns:
        raise BadData(f"column {outcome!r}", where=source, allowed="the outcome, 0 or 1 in every row")
    kinds = [column_kinds(each.scorecard.grid, tuple(reader.columns), platform) for each in bundles]
    for each, own in zip(bundles, kinds, strict=True):
        if not own:
            raise BadData("columns", where=source, allowed=f"at least one of study {each.study.name}")
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    labels: list[Vector] = []
    rows = 0
    for batch in reader.batches(list(dict.fromkeys([*kinds[0], *kinds[1], outcome]))):
        for each, own, done in zip(bundles, kinds, parts, strict=True):
            columns = {
                name: typed_column(batch.column(name), name, kind, where=source, first_row=rows + 1)
                for name, kind in own.items()
            }
            done.append(Judged.of(each.scorecard, columns))
        labels.append(typed_column(batch.column(outcome), outcome, "label", where=source, first_row=rows + 1))
        rows += batch.num_rows
    if not rows:
        raise BadData("rows", where=source, allowed="at least one record")
    return _joined(parts[0]), _joined(parts[1]), np.concatenate(labels)


def _joined(parts: list[Judged]) -> Judged:
    return Judged(
        card=parts[0].card,
        score=np.concatenate([part.score for part in parts]),
        probability=np.concatenate([part.probability for part in parts]),
        band=np.concatenate([part.band for part in parts]),
    )


def compared_in_words(result: Mapping[str, Any]) -> str:
    """Return the tables of :func:`compare` for people."""
    one, other = (result[name] for name in _SIDES)
    names = ("auroc", "gini", "ks", "brier", "log_loss", "calibration_error")
    apart = result["auroc_difference"]
    lines = [
        f"{result['rows']:,} rows, {result['bad_rate']:.1%} bad",
        "",
        f"{'':18}  {'champion':>10}  {'challenger':>10}",
        *(f"{name.replace('_', ' '):18}  {one[name]:10.4f}  {other[name]:10.4f}" for name in names),
        f"{'cut-off':18}  {one['cut_off']['score']:10}  {other['cut_off']['score']:10}",
        *(
            f"{words:18}  {_percent(one['cut_off'][key]):>10}  {_percent(other['cut_off'][key]):>10}"
            for words, key in (("approved", "approval_rate"), ("bad among them", "bad_rate"))
        ),
        "",
        f"AUROC of the challenger less the champion's: {apart['value']:+.4f}, 95 % interval"
        f" {apart['low']:+.4f} to {apart['high']:+.4f}: {_better(apart)}",
        "",
        f"{'band':18}  {'rows':>10}  {'bad':>10}  {'rows':>10}  {'bad':>10}",
    ]
    for a, b in zip(one["bands"], other["bands"], strict=True):
        lines.append(
            f"{a['band']:18}  {a['rows']:10,}  {_percent(a['bad_rate']):>10}"
            f"  {b['rows']:10,}  {_percent(b['bad_rate']):>10}"
        )
    lines += ["", f"{'approved by':18}  {'rows':>10}  {'bad':>10}"]
    for words, part in result["swaps"].items():
        lines.append(f"{words.replace('_', ' '):18}  {part['rows']:10,}  {_percent(part['bad_rate']):>10}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _better(apart: Mapping[str, Any]) -> str:
    if not apart["differs"]:
        return "no difference that these records could show"
    return "the challenger ranks better" if apart["value"] > 0 else "the champion ranks better"
