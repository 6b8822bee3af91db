"""The scorecard as one SQL query over a table: score, base, capped, points per feature and pair, probability.

Runs on SQLite 3.35 with its mathematical functions, and on PostgreSQL 12, in a database in UTF-8. Each step
is a materialised common table, or both would write its expressions out wherever the next step names them.

NULL is missing, and so is an empty text, which SQLite's import leaves in number columns. A value that a
record file could not have either (in a number column: infinity, NaN, text; in an integer one a fraction)
makes the points of its feature and its pairs, the score and the probability NULL: no query can refuse a row,
but none gets a number it should not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from assay.models.bundle import Bundle
from assay.models.encoding import STEPS, FeatureGrid, PairGrid
from assay.models.export_terms import RULES, Source, terms_of
from assay.models.pairgrid import Groups
from assay.privacy.errors import BadInput

__all__ = ["DIALECTS", "as_sql"]

# What counts as blank around a text, as Arrow has it when a file is read.
_BLANKS = (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))
_BLANKS = (*_BLANKS, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_LARGEST = 1.7e308  # beyond it is only infinity; no reader rounds this one up
_EXACT = float(1 << 53)


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    """How two databases write the same.

    Attributes:
        least: the smaller of two numbers; both databases' functions return NULL or the other for a NULL.
        most: the larger one.
        number: a literal of a double from its shortest text.
        whole: the largest whole number in a double that is not negative, as an integer.
        fraction: is a double no whole number?
        value: a number column as a double, infinity where it holds none.
        text: a column as text, without blanks around it.
    """

    least: str
    most: str
    number: str
    whole: str
    fraction: str
    value: str
    text: str


DIALECTS = {
    "sqlite": _Dialect(
        least="MIN",
        most="MAX",
        number="{}",
        whole="CAST({} AS INTEGER)",
        fraction="{0} <> CAST({0} AS INTEGER)",
        value="CASE WHEN typeof({0}) IN ('integer', 'real') THEN CAST({0} AS REAL)"
        " WHEN TRIM({0}) <> '' THEN 9e999 END",
        text="CASE WHEN typeof({0}) = 'real' AND {0} = CAST({0} AS INTEGER)"
        " THEN CAST(CAST({0} AS INTEGER) AS TEXT) ELSE TRIM(CAST({0} AS TEXT), char("
        + ", ".join(map(str, _BLANKS))
        + ")) END",
    ),
    "postgresql": _Dialect(
        least="LEAST",
        most="GREATEST",
        number="FLOAT8 '{}'",
        whole="CAST(FLOOR({}) AS BIGINT)",
        fraction="{0} <> FLOOR({0})",
        value="CAST({} AS FLOAT8)",
        text="BTRIM(CAST({} AS TEXT), U&'" + "".join(f"\\{code:04X}" for code in _BLANKS) + "')",
    ),
}


def as_sql(bundle: Bundle, source: Source, *, table: str = "records", dialect: str = "sqlite") -> str:
    """Return the query, its terms in comments before it.

    The result has the columns of the table that are named in ``source`` and are no features, then ``score``,
    ``probability``, ``points_<feature>`` and of pairs ``points_<feature>_x_<feature>``, ``base_points`` and
    ``capped``.

    Args:
        bundle: what is exported.
        source: the columns that the table has.
        table: its name, with a schema before a dot where it has one.
        dialect: ``"sqlite"`` or ``"postgresql"``.

    Raises:
        BadInput: there is no such dialect, ``table`` is no name, or a column that is no feature is named as
            one of the result.
    """
    if dialect not in DIALECTS:
        raise BadInput("dialect", value=dialect, allowed=f"one of {', '.join(DIALECTS)}")
    if not all(table.split(".")) or not table.isprintable():
        raise BadInput("table", value=table, allowed="a name such as records or bank.records")
    made = {"score", "probability", "base_points", "capped"}
    made |= {f"points_{term.name}" for term in source.grid.terms}
    for name in source.others:
        if name in made:
            raise BadInput("columns", value=name, allowed="no name of a column that scoring writes")
    return _Query(bundle, source, DIALECTS[dialect], table).text()


class _Query:
    """Writes one query; names inside are numbered, so that no column's name can meet another."""

    def __init__(self, bundle: Bundle, source: Source, dialect: _Dialect, table: str) -> None:
        self.bundle, self.source, self.dialect, self.table = bundle, source, dialect, table
        self.card = bundle.scorecard
        self.features = list(enumerate(self.card.grid.features, start=1))
        self.pairs = list(enumerate(self.card.grid.pairs, start=len(self.features) + 1))

    def text(self) -> str:
        numbered = [(i, feature) for i, feature in self.features if self.source.has(feature)]
        keys = [f"key_{i}" for i in range(1, len(self.source.others) + 1)]
        given = [
            f"records.{_name(column)} AS {key}" for key, column in zip(keys, self.source.others, strict=True)
        ]
        given += [f"{self._given(feature)} AS x_{i}" for i, feature in numbered]
        placed = [*keys, *(f"x_{i}" for i, _ in numbered)]
        placed += [
            f"{self._step(feature, f'x_{i}')} AS q_{i}" for i, feature in numbered if feature.kind == "hat"
        ]
        pointed = [*keys, *(f"{self._points(feature, i)} AS p_{i}" for i, feature in self.features)]
        pointed += [f"{self._pair_points(pair)} AS p_{i}" for i, pair in self.pairs]
        base = int(self.card.bases[self.source.pattern - 1])
        points = [f"p_{i}" for i, _ in (*self.features, *self.pairs)]
        summed = [*keys, *points, f"{base} + {' + '.join(points)} AS total"]
        table = ".".join(map(_name, self.table.split(".")))
        steps = [
            ("assay_given", given, f"{table} AS records"),
            ("assay_placed", placed, "assay_given"),
            ("assay_pointed", pointed, "assay_placed"),
            ("assay_summed", summed, "assay_pointed"),
        ]
        common = ",\n".join(
            f"{name} AS MATERIALIZED (\nSELECT\n  {_lines(columns)}\nFROM {before}\n)"
            for name, columns, before in steps
        )
        return (
            f"{self._head()}WITH {common}\nSELECT\n  {_lines(self._result(keys, base))}\nFROM assay_summed\n"
        )

    def _head(self) -> str:
        terms = {**terms_of(self.bundle), "columns": ", ".join(sorted(self.source.given))}
        lines = [f"-- {name}: {text}" for name, text in terms.items()]
        return "\n".join([*lines, *(f"-- rule: {rule}" for rule in RULES)]) + "\n"

    def _given(self, feature: FeatureGrid) -> str:
        # Qualified: SQLite takes a quoted name that is no column for a text.
        column = f"records.{_name(feature.feature.column)}"
        if feature.feature.kind == "categorical":
            return f"NULLIF({self.dialect.text.format(column)}, '')"
        return self.dialect.value.format(column)

    def _number(self, value: float) -> str:
        literal = self.dialect.number.format(repr(float(value)))
        return f"({literal})" if value < 0 else literal

    def _clamp(self, value: str, low: str, high: str) -> str:
        return f"{self.dialect.least}({self.dialect.most}({value}, {low}), {high})"

    def _step(self, feature: FeatureGrid, x: str) -> str:
        """The whole number of steps from the first knot; anything where ``x`` is NULL."""
        low, high = feature.feature.domain or (0.0, 0.0)
        inside = self._clamp(x, self._number(low), self._number(high))
        one = self._number(1)
        if feature.feature.transform == "log":
            inside = f"LN({one} + {inside})"
        elif feature.feature.transform == "signed_log":
            inside = f"SIGN({inside}) * LN({one} + ABS({inside}))"
        first, end = self._number(feature.knots[0]), self._number(feature.knots[-1])
        last = self._number(len(feature.knots) - 1)
        position = f"({inside} - {first}) * ({last} / ({end} - {first}))"
        steps = (
            f"{self._clamp(position, self._number(0), last)} * {self._number(STEPS)} + {self._number(0.5)}"
        )
        return self.dialect.whole.format(steps)

    def _points(self, feature: FeatureGrid, i: int) -> str:
        if not self.source.knows(feature):
            return "0"
        own = [int(p) for p in self.card.points[feature.offset : feature.offset + feature.cells]]
        if not self.source.has(feature):
            return str(own[-1])
        x, missing = f"x_{i}", f"WHEN x_{i} IS NULL THEN {own[-1]}"
        if feature.feature.kind == "categorical":
            points = {
                cell - feature.offset: str(own[cell - feature.offset]) for cell in feature.texts.values()
            }
            return f"CASE {missing} {_levels(feature, x, points)} ELSE {own[-2]} END"
        wrong = f"WHEN {self._wrong(feature, x)} THEN NULL"
        if feature.feature.kind == "integer":
            low = int((feature.feature.domain or (0, 0))[0])
            cases = [f"WHEN {x} <= {value} THEN {p}" for value, p in enumerate(own[:-2], start=low)]
            return f"CASE {missing} {wrong} {' '.join(cases)} ELSE {own[-2]} END"
        cases = [_between(f"q_{i}", k, own) for k in range(len(own) - 2)]
        return f"CASE {missing} {wrong} {' '.join(cases)} END"

    def _wrong(self, feature: FeatureGrid, x: str) -> str:
        """Is ``x``, which is a number, one that a record file could not have?"""
        if feature.feature.kind == "integer":
            return f"ABS({x}) > {self._number(_EXACT)} OR {self.dialect.fraction.format(x)}"
        return f"ABS({x}) > {self._number(_LARGEST)}"

    def _pair_points(self, pair: PairGrid) -> str:
        if not self.source.knows(pair):
            return "0"
        own = [int(p) for p in self.card.points[pair.offset : pair.offset + pair.cells]]
        both = (pair.first, pair.second)
        if not all(self.source.has(each.feature) for each in both):
            return str(own[-1])
        numbers = [each for each in both if each.feature.feature.kind != "categorical"]
        wrong = [f"WHEN {self._wrong(each.feature, f'x_{each.index + 1}')} THEN NULL" for each in numbers]
        missing = " OR ".join(f"x_{each.index + 1} IS NULL" for each in both)
        across = len(pair.second.labels)
        rows = [
            self._by_group(pair.second, [str(p) for p in own[start : start + across]])
            for start in range(0, len(own) - 1, across)
        ]
        # What is wrong comes first: it is refused even where the other value is missing.
        cases = [*wrong, f"WHEN {missing} THEN {own[-1]}"]
        return f"CASE {' '.join(cases)} ELSE {self._by_group(pair.first, rows)} END"

    def _by_group(self, groups: Groups, outcomes: list[str]) -> str:
        """Choose one of ``outcomes`` by the group of a value that is there."""
        feature, i = groups.feature, groups.index + 1
        if feature.feature.kind == "categorical":
            cases = _levels(feature, f"x_{i}", dict(enumerate(outcomes[:-1])))
            return f"CASE {cases} ELSE {outcomes[-1]} END"
        low = int((feature.feature.domain or (0, 0))[0])
        place, first = (f"q_{i}", 0) if feature.kind == "hat" else (f"x_{i}", low)
        ends = zip(groups.borders, outcomes, strict=False)
        cases = " ".join(f"WHEN {place} < {first + border} THEN {outcome}" for border, outcome in ends)
        return f"CASE {cases} ELSE {outcomes[-1]} END"

    def _result(self, keys: list[str], base: int) -> list[str]:
        scale = self.card.study.scale
        clamped = self._clamp("total", str(scale.low), str(scale.high))
        # LEAST and GREATEST of PostgreSQL pass NULL over; beyond 700 its EXP overflows.
        score = f"CASE WHEN total IS NOT NULL THEN {clamped} END"
        odds = f"(total - {self._number(scale.offset)}) / {self._number(scale.factor)}"
        one, limit = self._number(1), 700
        logistic = f"{one} / ({one} + EXP({self._clamp(odds, self._number(-limit), self._number(limit))}))"
        columns = [f"{key} AS {_name(column)}" for key, column in zip(keys, self.source.others, strict=True)]
        columns += [f"{score} AS score", f"CASE WHEN total IS NOT NULL THEN {logistic} END AS probability"]
        names = enumerate((term.name for term in self.card.grid.terms), start=1)
        columns += [f"p_{i} AS {_name(f'points_{name}')}" for i, name in names]
        return [*columns, f"{base} AS base_points", f"{score} - total AS capped"]


def _between(q: str, k: int, own: list[int]) -> str:
    """Points between knots k and k + 1; the shift is a division that goes down, also below zero."""
    slope, last = own[k + 1] - own[k], len(own) - 3
    points = f"{own[k]} + (({slope} * ({q} - {k * STEPS}) + {STEPS // 2}) >> {STEPS.bit_length() - 1})"
    return f"ELSE {points}" if k == last else f"WHEN {q} < {(k + 1) * STEPS} THEN {points}"


def _levels(feature: FeatureGrid, x: str, outcomes: Mapping[int, str]) -> str:
    """Return a case per level; a whole number that another program wrote as 3.0 is the level 3."""
    return " ".join(
        f"WHEN {_is(x, text)} THEN {outcomes[cell - feature.offset]}"
        for text, cell in feature.texts.items()
        if not _WHOLE.fullmatch(text.removesuffix(".0")) or _WHOLE.fullmatch(text)
    )


def _is(x: str, text: str) -> str:
    """Is ``x`` this level? Of a whole number any fraction of zeros is left out, as in a record file."""
    if not _WHOLE.fullmatch(text):
        return f"{x} = {_quoted(text)}"
    spelled = ["0", "-0"] if text == "0" else [text]
    whole, dotted = (", ".join(_quoted(f"{each}{dot}") for each in spelled) for dot in ("", "."))
    return f"{x} IN ({whole}) OR ({x} NOT IN ({dotted}) AND RTRIM({x}, '0') IN ({dotted}))"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _lines(columns: list[str]) -> str:
    return ",\n  ".join(columns)
