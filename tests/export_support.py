"""Bundles and records for tests of exports, and a reader that knows of a card only what an export says."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from assay.models.bundle import read_bundle, write_bundle
from assay.models.columns import typed_column
from assay.models.encoding import Grid
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.keys import Identity

EXAMPLES = Path(__file__).parent.parent / "examples" / "taiwan"
CREATED, EXPIRES, NOW = 1_000.0, 4_000_000_000.0, 2_000.0
PURPOSE = "consumer_credit"
HEAD = """\
[study]
name = "everything"
purpose = "consumer_credit"
contexts = ["here", "there"]

[outcome]
column = "bad"
meaning = "missed a payment"

[person]
column = "who"

[privacy]
epsilon = 1.0

"""
# name, component, rest; columns have what SQL, CSV and graphs could trip over.
FEATURES = (
    ("amount", "A mount", "spending", 'kind = "numeric"\ndomain = [0, 700]'),
    (
        "balance",
        'bal\\"ance',
        "spending",
        'kind = "numeric"\ndomain = [-1000, 3000.5]\ntransform = "signed_log"',
    ),
    ("status", "select", "payment_history", 'kind = "integer"\ndomain = [-2, 8]'),
    (
        "house",
        "hou'se",
        "identity",
        'kind = "categorical"\nlevels = ["own", "3", "0", "-1", "10", "007", "3.5", "a\'b"]',
    ),
    ("income", "INCOME, net", "third_party", 'kind = "numeric"\ndomain = [-0.5, 1000]\ntransform = "log"'),
    ("rated", "rated", "compliance", 'kind = "integer"\ndomain = [0, 3]\nplatform = "shop"'),
    ("region", "región", "third_party", 'kind = "categorical"\nlevels = ["nord", "süd", "3"]'),
)
COLUMNS = ("A mount", 'bal"ance', "select", "hou'se", "INCOME, net", "rated", "región")
AMOUNT, BALANCE, STATUS, HOUSE, INCOME, RATED, REGION = COLUMNS
PLAIN = HEAD + "\n".join(
    f'[[features]]\nname = "{name}"\ncolumn = "{column}"\ncomponent = "{component}"\n{rest}\n'
    for name, column, component, rest in FEATURES
)
# A number twice, once with cuts, and texts, some of them numbers, with a logarithm.
TEXT = (
    PLAIN
    + """
[[interactions]]
features = ["balance", "amount"]
cuts = { amount = [70.5, 350] }

[[interactions]]
features = ["region", "income"]
description = "What somebody earns buys more in one region than in another."
"""
)
# Pairs for the real records: whole numbers with cuts and without, numbers, and both.
PAIRS = """
[[interactions]]
features = ["status_1", "status_2"]
cuts = { status_1 = [1, 2], status_2 = [-1, 1, 2, 3] }

[[interactions]]
features = ["paid_1", "status_3"]

[[interactions]]
features = ["bill_1", "bill_2"]
cuts = { bill_2 = [-500, 0, 50_000] }
"""


def bundle_of(text, path, *, seed=0):
    """A signed bundle with a random card, of so many points that scores are capped at both ends."""
    study = parse_study(text)
    grid, rng = Grid.of(study), np.random.default_rng(seed)
    theta = np.append(rng.normal(size=grid.size), rng.normal(-3, 2, grid.patterns))
    card = Scorecard.of(study, grid, theta, rng.uniform(-5, 100, grid.width))
    write_bundle(
        path,
        study=study,
        theta=theta,
        scorecard=card,
        label={},
        identity=Identity.generate(),
        created=CREATED,
        expires=EXPIRES,
    )
    return read_bundle(path)


def taiwan(rows=10_000):
    """Real records of the example, column -> float64 or texts."""
    with gzip.open(EXAMPLES / "taiwan_credit.csv.gz", "rt") as file:
        reader = csv.reader(file)
        names = next(reader)
        table = list(zip(*(row for row, _ in zip(reader, range(rows), strict=False)), strict=True))
    study = parse_study((EXAMPLES / "study.toml").read_text())
    kinds = {"numeric": "number", "integer": "integer", "categorical": "text"}
    return {
        f.column: typed_column(pa.array(table[names.index(f.column)]), f.column, kinds[f.kind], where="here")
        for f in study.features
    }


def synthetic(rows=3000, seed=3):
    """Records with missing and extreme values, other levels and every spelling of a level, as cells."""
    rng = np.random.default_rng(seed)
    houses = ["own", " own ", "OWN", "3", "3.0", "3.00", "3.", "03", " 3.0\t", "0", "-0", "-0.0", "0.", "-1"]
    houses += [
        "-1.0",
        "-1.",
        "10",
        "10.0",
        "1",
        "100",
        "007",
        "007.0",
        "7",
        "3.5",
        "3.50",
        "a'b",
        "",
        " ",
        None,
    ]
    cells = {
        AMOUNT: rng.choice([0, 700, 0.1, 350, -5, 9e9, -1e300, 1e300], rows),
        BALANCE: rng.choice([0.0, -0.0, -1000, 3000.5, -1e9, 1e9, 1e-12, -1e-12], rows),
        STATUS: rng.integers(-6, 14, rows).astype(float),
        HOUSE: rng.choice(np.array([*houses, "\u00a0own\u3000"], dtype=object), rows),
        INCOME: rng.choice([-0.5, -7, 1000, 5000, 0, 1e-9], rows),
        RATED: rng.integers(-1, 6, rows).astype(float),
        REGION: rng.choice(
            np.array(["nord", "süd", "sud", "3", "3.0", " 3.00", "03", "", None], object), rows
        ),
    }
    for name, low, high in ((AMOUNT, -50, 800), (BALANCE, -1200, 3300), (INCOME, -1, 1100)):
        cells[name] = np.where(rng.random(rows) < 0.7, rng.uniform(low, high, rows), cells[name])
        cells[name] = np.where(rng.random(rows) < 0.3, np.round(cells[name]), cells[name])
    for values in cells.values():
        values[rng.random(rows) < 0.08] = None if values.dtype == object else np.nan
    return cells


def read_as_a_file(cells):
    """What ``assay model score`` makes of the cells."""
    return {
        name: typed_column(pa.array(values.tolist(), pa.string()), name, "text", where="here")
        if values.dtype == object
        else values
        for name, values in cells.items()
    }


def record(columns, row):
    """One row as plain values, None where missing."""
    values = {name: column[row] for name, column in columns.items()}
    return {k: None if v is None or v != v else v for k, v in values.items()}


class FromJson:
    """Scores with the JSON export alone, by its rules."""

    def __init__(self, text):
        self.card = json.loads(text)

    def __call__(self, values, platform=None):
        features = self.card["features"]
        have = {f["name"] for f in features if f["column"] in values and f["platform"] in (None, platform)}
        there = [
            c
            for c in self.card["components"]
            if any(f["component"] == c for f in features if f["name"] in have)
        ]
        points = {
            f["name"]: (self.points(f, values[f["column"]] if f["name"] in have else None))
            if f["component"] in there
            else 0
            for f in features
        }
        given = {f["name"]: values[f["column"]] if f["name"] in have else None for f in features}
        for pair in self.card["interactions"]:
            points[pair["name"]] = self.pair(pair, given) if pair["component"] in there else 0
        base = next(b["points"] for b in self.card["bases"] if b["components"] == there)
        return finish(self.card["scale"], base, points)

    def pair(self, pair, given):
        features = {f["name"]: f for f in self.card["features"]}
        if any(given[name] is None for name in pair["features"]):
            return pair["missing"]
        row, column = (
            sum(border <= self.place(features[name], given[name]) for border in borders)
            for name, borders in zip(pair["features"], pair["borders"], strict=True)
        )
        return pair["points"][row][column]

    def place(self, feature, value):
        listed = feature["points"]
        if feature["kind"] == "categorical":
            return level_at([level["level"] for level in listed], value)
        if feature["kind"] == "integer":
            return min(max(int(value), listed[0]["value"]), listed[-1]["value"])
        return steps(value, feature["transform"], *feature["domain"], len(listed) - 1)

    def points(self, feature, value):
        if value is None:
            return feature["missing"]
        if feature["kind"] == "categorical":
            text = without_zeros(str(value))
            levels = {level["level"]: level["points"] for level in feature["points"]}
            return levels.get(text, levels.get(text.removesuffix(".0"), feature["other"]))
        if feature["kind"] == "integer":
            listed = {p["value"]: p["points"] for p in feature["points"]}
            return listed[min(max(int(value), min(listed)), max(listed))]
        points = [p["points"] for p in feature["points"]]
        return between(value, feature["transform"], *feature["domain"], points)


class FromCsv:
    """Scores with the CSV export alone."""

    def __init__(self, text):
        self.rows = list(csv.DictReader(io.StringIO(text)))
        self.scale = {r["cell"]: float(r["value"]) for r in self.rows if r["kind"] == "scale"}
        self.bases = {
            frozenset(r["component"].split()): int(r["points"]) for r in self.rows if r["kind"] == "base"
        }
        terms = {}
        for row in self.rows:
            if row["feature"]:
                terms.setdefault(row["feature"], []).append(row)
        self.pairs = {name: rows for name, rows in terms.items() if rows[0]["kind"] == "group"}
        self.features = {name: rows for name, rows in terms.items() if name not in self.pairs}

    def __call__(self, values, platform=None):
        have = {
            name for name, rows in self.features.items()
            if rows[0]["column"] in values and rows[0]["platform"] in ("", platform)
        }  # fmt: skip
        there = {self.features[name][0]["component"] for name in have}
        points = {
            name: self.points(rows, values[rows[0]["column"]] if name in have else None)
            if rows[0]["component"] in there
            else 0
            for name, rows in self.features.items()
        }
        given = {
            name: values[rows[0]["column"]] if name in have else None for name, rows in self.features.items()
        }
        for name, rows in self.pairs.items():
            points[name] = self.pair(rows, given) if rows[0]["component"] in there else 0
        return finish(self.scale, self.bases[frozenset(there)], points)

    def pair(self, rows, given):
        names = dict.fromkeys(row["value"] for row in rows if row["kind"] == "group")
        if any(given[name] is None for name in names):
            return next(int(row["points"]) for row in rows if row["kind"] == "missing")
        found = []
        for name in names:
            place = self.place(self.features[name], given[name])
            groups = [row for row in rows if row["kind"] == "group" and row["value"] == name]
            found += [
                row["cell"]
                for row in groups
                if (not row["from"] or int(row["from"]) <= place)
                and (not row["to"] or place < int(row["to"]))
            ]
        cells = {(row["from"], row["to"]): int(row["points"]) for row in rows if row["kind"] == "pair"}
        return cells[tuple(found)]

    def place(self, rows, value):
        listed = [row["value"] for row in rows if row["kind"] in ("knot", "integer", "level")]
        if rows[0]["kind"] == "level":
            return level_at(listed, value)
        if rows[0]["kind"] == "integer":
            return min(max(int(value), int(listed[0])), int(listed[-1]))
        ends = float(listed[0]), float(listed[-1])
        return steps(value, rows[0]["transform"], *ends, len(listed) - 1)

    def points(self, rows, value):
        one = {row["kind"]: int(row["points"]) for row in rows}
        if value is None:
            return one["missing"]
        listed = [
            (row["value"], int(row["points"])) for row in rows if row["kind"] in ("knot", "integer", "level")
        ]
        if "level" in one:
            text, levels = without_zeros(str(value)), dict(listed)
            return levels.get(text, levels.get(text.removesuffix(".0"), one["other"]))
        if "integer" in one:
            whole = {int(v): p for v, p in listed}
            return whole[min(max(int(value), min(whole)), max(whole))]
        ends = float(listed[0][0]), float(listed[-1][0])
        return between(value, rows[0]["transform"], *ends, [p for _, p in listed])


def without_zeros(text):
    whole, dot, fraction = text.strip().partition(".")
    zeros = dot and fraction and not fraction.strip("0")
    return (
        whole
        if zeros and (whole.lstrip("-") == "0" or not whole.lstrip("-").startswith("0"))
        else text.strip()
    )


def level_at(levels, value):
    """Place of a text among the levels, behind them for another one."""
    text = without_zeros(str(value))
    found = [level for level in (text, text.removesuffix(".0")) if level in levels]
    return levels.index(found[0]) if found else len(levels)


def steps(value, transform, low, high, last):
    def t(x):
        if transform == "linear":
            return x
        return math.log1p(x) if transform == "log" else math.copysign(math.log1p(abs(x)), x)

    position = (t(min(max(value, low), high)) - t(low)) * (last / (t(high) - t(low)))
    return math.floor(min(max(position, 0), last) * 1024 + 0.5)


def between(value, transform, low, high, points):
    last = len(points) - 1
    q = steps(value, transform, low, high, last)
    k = min(q // 1024, last - 1)
    u = q - 1024 * k
    return (points[k] * (1024 - u) + points[k + 1] * u + 512) // 1024


def finish(scale, base, points):
    total = base + sum(points.values())
    score = min(max(total, int(scale["low"])), int(scale["high"]))
    exponent = min(max((total - scale["offset"]) / scale["factor"], -700), 700)
    return {
        "score": score,
        "base": base,
        "capped": score - total,
        "points": list(points.values()),
        "probability": 1 / (1 + math.exp(exponent)),
    }
