"""The scorecard as JSON and as a CSV table of points: all that is needed to score, for any language."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from assay.models.bundle import Bundle
from assay.models.encoding import FeatureGrid, PairGrid, Term
from assay.models.export_terms import RULES, terms_of
from assay.models.pairgrid import Groups
from assay.models.scorecard import BANDS, Scorecard, band_cuts

__all__ = ["COLUMNS", "as_csv", "as_json"]

COLUMNS = (
    "kind",
    "feature",
    "label",
    "component",
    "column",
    "platform",
    "transform",
    "cell",
    "from",
    "to",
    "value",
    "points",
    "meaning",
)


def as_json(bundle: Bundle) -> str:
    """Return one JSON object: terms, rules in words, scale, bases, features and pairs with points, bands."""
    card, scale = bundle.scorecard, bundle.study.scale
    value = {
        **terms_of(bundle),
        "contexts": list(bundle.study.contexts),
        "rules": list(RULES),
        "scale": {"low": scale.low, "high": scale.high, "offset": scale.offset, "factor": scale.factor},
        "components": list(card.grid.components),
        "bases": [
            {"components": list(card.grid.components_of(pattern)), "points": points}
            for pattern, points in enumerate(card.bases.tolist(), start=1)
        ],
        "features": [
            _feature(card, feature, float(mean))
            for feature, mean in zip(card.grid.features, card.means, strict=False)
        ],
        "interactions": [
            _interaction(card, pair, float(mean))
            for pair, mean in zip(card.grid.pairs, card.means[len(card.grid.features) :], strict=True)
        ],
        "bands": _bands(card),
    }
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def as_csv(bundle: Bundle) -> str:
    """Return the points table, one row per cell and per base.

    Rows by ``kind``: ``about`` (terms and rules; ``cell`` names the term, ``meaning`` is its text), ``scale``
    (``value``), ``base`` (``points`` of the components in ``component``), ``knot`` (``points`` at ``value``,
    on to the next knot), ``integer``, ``level``, ``other`` and ``missing``. Of a pair of features: ``group``
    (group ``cell`` of the feature in ``value``: places from ``from`` to below ``to``), ``pair`` (``points``
    of group ``from`` of the first feature and ``to`` of the second) and ``missing``.
    """
    card, scale = bundle.scorecard, bundle.study.scale
    about = {**terms_of(bundle), **{f"rule_{i}": rule for i, rule in enumerate(RULES, start=1)}}
    rows: list[dict[str, object]] = [
        {"kind": "about", "cell": name, "meaning": text} for name, text in about.items()
    ]
    numbers = {"low": scale.low, "high": scale.high, "offset": scale.offset, "factor": scale.factor}
    rows += [{"kind": "scale", "cell": name, "value": value} for name, value in numbers.items()]
    rows += [
        {"kind": "base", "component": " ".join(card.grid.components_of(pattern)), "points": points}
        for pattern, points in enumerate(card.bases.tolist(), start=1)
    ]
    for feature in card.grid.features:
        rows += _rows(feature, _own(card, feature))
    for pair in card.grid.pairs:
        rows += _pair_rows(pair, _own(card, pair))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _own(card: Scorecard, term: Term) -> list[int]:
    """Points of the term's cells, the last one "missing"."""
    return [int(points) for points in card.points[term.offset : term.offset + term.cells]]


def _feature(card: Scorecard, feature: FeatureGrid, mean: float) -> dict[str, Any]:
    own, described = _own(card, feature), feature.feature
    facts: dict[str, Any] = {
        "name": feature.name,
        "label": described.label,
        "description": described.description,
        "column": described.column,
        "component": described.component,
        "platform": described.platform,
        "kind": described.kind,
    }
    if described.kind == "categorical":
        cells = [{"level": level, "points": p} for level, p in zip(described.levels, own, strict=False)]
        facts |= {"points": cells, "other": own[-2]}
    elif described.kind == "integer":
        facts["points"] = [
            {"value": value, "points": p} for value, p in zip(_integers(feature), own, strict=False)
        ]
    else:
        knots = feature.knot_values.tolist()
        facts |= {"transform": described.transform, "domain": [knots[0], knots[-1]]}
        facts["points"] = [{"knot": knot, "points": p} for knot, p in zip(knots, own, strict=False)]
    return {**facts, "missing": own[-1], "mean_points": mean}


def _rows(feature: FeatureGrid, own: list[int]) -> list[dict[str, object]]:
    described = feature.feature
    same = {
        "feature": feature.name,
        "label": described.label,
        "component": described.component,
        "column": described.column,
        "platform": described.platform or "",
        "transform": described.transform if described.kind == "numeric" else "",
    }
    places: list[dict[str, object]]
    if described.kind == "categorical":
        places = [{"kind": "level", "value": level} for level in described.levels]
        places.append({"kind": "other"})
    elif described.kind == "integer":
        places = [{"kind": "integer", "value": value} for value in _integers(feature)]
    else:
        knots: list[object] = feature.knot_values.tolist()
        places = [
            {"kind": "knot", "value": knot, "from": knot, "to": after}
            for knot, after in zip(knots, [*knots[1:], ""], strict=True)
        ]
    places.append({"kind": "missing"})
    return [
        {**same, **place, "cell": cell, "points": points, "meaning": feature.labels[cell]}
        for cell, (place, points) in enumerate(zip(places, own, strict=True))
    ]


def _interaction(card: Scorecard, pair: PairGrid, mean: float) -> dict[str, Any]:
    own, across = _own(card, pair), len(pair.second.labels)
    return {
        "name": pair.name,
        "label": pair.label,
        "description": pair.description,
        "component": pair.component,
        "features": [each.feature.name for each in (pair.first, pair.second)],
        "borders": [_borders(each) for each in (pair.first, pair.second)],
        "groups": [list(each.labels) for each in (pair.first, pair.second)],
        "points": [own[start : start + across] for start in range(0, len(own) - 1, across)],
        "missing": own[-1],
        "mean_points": mean,
    }


def _pair_rows(pair: PairGrid, own: list[int]) -> list[dict[str, object]]:
    same = {"feature": pair.name, "label": pair.label, "component": pair.component}
    rows: list[dict[str, object]] = []
    for each in (pair.first, pair.second):
        borders = _borders(each)
        named = {**same, "kind": "group", "column": each.feature.feature.column, "value": each.feature.name}
        rows += [
            {**named, "cell": cell, "from": start, "to": end, "meaning": words}
            for cell, (start, end, words) in enumerate(
                zip(["", *borders], [*borders, ""], each.labels, strict=True)
            )
        ]
    across = len(pair.second.labels)
    cells: list[dict[str, object]] = [
        {"kind": "pair", "from": cell // across, "to": cell % across} for cell in range(len(own) - 1)
    ]
    cells.append({"kind": "missing"})
    return rows + [
        {**same, **place, "cell": cell, "points": points, "meaning": pair.labels[cell]}
        for cell, (place, points) in enumerate(zip(cells, own, strict=True))
    ]


def _borders(groups: Groups) -> list[int]:
    """Where groups begin, as the rules count places: of an integer feature in its values."""
    feature = groups.feature
    first = _integers(feature)[0] if feature.feature.kind == "integer" else 0
    return [first + border for border in groups.borders]


def _integers(feature: FeatureGrid) -> list[int]:
    low, high = feature.feature.domain or (0, 0)
    return list(range(int(low), int(high) + 1))


def _bands(card: Scorecard) -> list[dict[str, Any]]:
    cuts = [*band_cuts(card.study.scale), card.study.scale.low]
    return [{"band": words, "from": cut} for (words, _), cut in zip(BANDS, cuts, strict=True)]
