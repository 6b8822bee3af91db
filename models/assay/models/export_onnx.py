"""The scorecard as an ONNX model: doubles and texts in, score and probability out.

One input per feature whose column is there, named after the feature, of any one length: float64 with NaN =
missing, or for a categorical feature text with "" = missing, as :mod:`assay.models.columns` makes it of a
cell (no blanks around it, 3.0 is 3). Texts, not numbers of levels: whoever fills the model in cannot then
mistake one level for another. Outputs ``score`` (int64) and ``probability`` (float64).

A graph cannot refuse a record. Where a value is infinite, or a fraction where whole numbers are due, the
score is -2^63 and the probability NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.bundle import Bundle
from assay.models.encoding import STEPS, FeatureGrid, PairGrid, Term
from assay.models.export_terms import RULES, Source, terms_of
from assay.models.pairgrid import Groups
from assay.models.scorecard import MAX_POINTS
from assay.privacy.errors import BadInput, Unavailable

__all__ = ["REFUSED", "as_onnx"]

OPSET, ML_OPSET, IR = 17, 3, 8  # of 2022: what runs the model need not be new
REFUSED = -(1 << 63)
_OUTPUTS = ("score", "probability")
_LARGEST = float(np.finfo(np.float64).max)


def as_onnx(bundle: Bundle, source: Source) -> bytes:
    """Return the model, its terms in ``metadata_props``.

    Raises:
        Unavailable: the package ``onnx`` is not installed.
        BadInput: a column is no feature's, or a feature is named as an output is.
    """
    try:
        from onnx import checker, helper
    except ImportError:
        raise Unavailable(
            "ONNX export needs the package onnx, which is not installed: pip install 'assay[export]'"
        ) from None
    if source.others:
        raise BadInput("columns", value=list(source.others), allowed="columns of the study's features")
    graph = _Graph(bundle, source)
    graph.build()
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "scorecard", graph.inputs, graph.outputs, graph.constants, doc_string=RULES[-2]
        ),
        producer_name="assay",
        ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
    )
    columns = {feature.name: feature.feature.column for feature in graph.features}
    helper.set_model_props(
        model, {**terms_of(bundle), "columns": json.dumps(columns), "rules": "\n".join(RULES)}
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


class _Graph:
    """Collects nodes. Names inside have a slash, which no feature's name has."""

    def __init__(self, bundle: Bundle, source: Source) -> None:
        self.card, self.source = bundle.scorecard, source
        self.features = [feature for feature in self.card.grid.features if source.has(feature)]
        for feature in self.features:
            if feature.name in _OUTPUTS:
                raise BadInput("feature", value=feature.name, allowed="another name than an output's")
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: list[Any] = []
        # Of features that are half of a pair: place and "is missing" of each row.
        self.places: dict[str, tuple[str, str]] = {}

    def build(self) -> None:
        """Make inputs, nodes and outputs."""
        from onnx import TensorProto, helper

        for feature in self.features:
            kind = TensorProto.STRING if feature.feature.kind == "categorical" else TensorProto.DOUBLE
            words = f"{feature.feature.label} (column {feature.feature.column})"
            self.inputs.append(helper.make_tensor_value_info(feature.name, kind, ["rows"], words))
        for name, kind in zip(_OUTPUTS, (TensorProto.INT64, TensorProto.DOUBLE), strict=True):
            self.outputs.append(helper.make_tensor_value_info(name, kind, ["rows"]))
        base = int(self.card.bases[self.source.pattern - 1])
        for term in self.card.grid.terms:
            if self.source.knows(term) and not self._has(term):
                base += int(self.card.points[term.missing])
        total, wrong = self.whole(base), None
        for kind, points_of in (("numeric", self._numeric), ("integer", self._integer)):
            group = [feature for feature in self.features if feature.feature.kind == kind]
            if group:
                points, refused = points_of(group, self._joined(group))
                total = self.node("Add", total, self.node("ReduceSum", points, self.whole([1]), keepdims=0))
                wrong = refused if wrong is None else self.node("Or", wrong, refused)
        for feature in self.features:
            if feature.feature.kind == "categorical":
                total = self.node("Add", total, self._level(feature))
        for pair in self.card.grid.pairs:
            if self._has(pair):
                total = self.node("Add", total, self._pair(pair))
        self._finish(total, wrong)

    def _has(self, term: Term) -> bool:
        """Are all columns of ``term`` there?"""
        return set(term.columns) <= self.source.given

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = output or f"{operator}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def whole(self, value: Any) -> str:
        """Add an int64 constant and return its name."""
        return self._constant(np.array(value, dtype=np.int64))

    def real(self, value: Any) -> str:
        """Add a float64 constant and return its name."""
        return self._constant(np.array(value, dtype=np.float64))

    def _constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant/{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _joined(self, features: Sequence[FeatureGrid]) -> str:
        """[rows] of each feature, beside one another: [rows, features]."""
        single = [self.node("Unsqueeze", feature.name, self.whole([1])) for feature in features]
        return self.node("Concat", *single, axis=1)

    def _clamped(self, values: str, low: str, high: str) -> str:
        return self.node("Min", self.node("Max", values, low), high)

    def _known(self, values: str, low: str) -> tuple[str, str, str]:
        """Return which values are missing, the values with ``low`` in their place, which are infinite."""
        missing = self.node("IsNaN", values)
        known = self.node("Where", missing, low, values)
        return missing, known, self.node("Greater", self.node("Abs", known), self.real(_LARGEST))

    def _any(self, wrong: str) -> str:
        """Is one of a row wrong?"""
        from onnx import TensorProto

        count = self.node(
            "ReduceSum", self.node("Cast", wrong, to=TensorProto.INT64), self.whole([1]), keepdims=0
        )
        return self.node("Greater", count, self.whole(0))

    def _numeric(self, features: Sequence[FeatureGrid], values: str) -> tuple[str, str]:
        """Points [rows, features] and which rows are refused; the steps of ``FeatureGrid.encode``."""
        from onnx import TensorProto

        low, high = self._ends(features)
        missing, known, wrong = self._known(values, low)
        first = np.array([feature.knots[0] for feature in features])
        last = np.array([len(feature.knots) - 1 for feature in features])
        slope = last / (np.array([feature.knots[-1] for feature in features]) - first)
        inside = self._transformed(features, self._clamped(known, low, high))
        position = self.node("Mul", self.node("Sub", inside, self.real(first)), self.real(slope))
        position = self._clamped(position, self.real(0.0), self.real(last))
        scaled = self.node("Add", self.node("Mul", position, self.real(STEPS)), self.real(0.5))
        step = self.node("Cast", self.node("Floor", scaled), to=TensorProto.INT64)
        self._keep_places(features, step, missing)
        cell = self.node("Min", self.node("Div", step, self.whole(STEPS)), self.whole(last - 1))
        upper = self.node("Sub", step, self.node("Mul", cell, self.whole(STEPS)))
        cell = self.node("Add", cell, self.whole([feature.offset for feature in features]))
        card = self.card.points
        lower = self.node("Gather", self.whole(card), cell)
        rise = self.node("Gather", self.whole(np.diff(card, append=card[-1:])), cell)
        # The division of whole numbers goes towards zero; what is added keeps it above.
        added = 4 * MAX_POINTS
        rise = self.node("Add", self.node("Mul", rise, upper), self.whole(STEPS // 2 + STEPS * added))
        rise = self.node("Sub", self.node("Div", rise, self.whole(STEPS)), self.whole(added))
        points = self.node("Add", lower, rise)
        absent = self.whole([card[feature.missing] for feature in features])
        return self.node("Where", missing, absent, points), self._any(wrong)

    def _transformed(self, features: Sequence[FeatureGrid], inside: str) -> str:
        kinds = [feature.feature.transform for feature in features]
        if set(kinds) == {"linear"}:
            return inside
        log, linear = (self._constant(np.array([k == kind for k in kinds])) for kind in ("log", "linear"))
        magnitude = self.node("Abs", inside)
        grown = self.node("Add", self.node("Where", log, inside, magnitude), self.real(1.0))
        logarithm = self.node("Log", grown)
        signed = self.node("Mul", self.node("Sign", inside), logarithm)
        return self.node("Where", linear, inside, self.node("Where", log, logarithm, signed))

    def _integer(self, features: Sequence[FeatureGrid], values: str) -> tuple[str, str]:
        """Points [rows, features] and which rows are refused."""
        from onnx import TensorProto

        low, high = self._ends(features)
        missing, known, infinite = self._known(values, low)
        fraction = self.node("Not", self.node("Equal", self.node("Floor", known), known))
        above = self.node("Sub", self._clamped(known, low, high), low)
        cell = self.node("Cast", above, to=TensorProto.INT64)
        self._keep_places(features, cell, missing)
        cell = self.node("Add", cell, self.whole([feature.offset for feature in features]))
        absent = self.whole([feature.missing for feature in features])
        points = self.node("Gather", self.whole(self.card.points), self.node("Where", missing, absent, cell))
        return points, self._any(self.node("Or", infinite, fraction))

    def _level(self, feature: FeatureGrid) -> str:
        points = {text: int(self.card.points[cell]) for text, cell in feature.texts.items()}
        points[""] = int(self.card.points[feature.missing])
        return self._encoded(feature, points, int(self.card.points[feature.missing - 1]))

    def _encoded(self, feature: FeatureGrid, values: Mapping[str, int], other: int) -> str:
        """Return a whole number for each text, [rows]."""
        return self.node(
            "LabelEncoder",
            feature.name,
            domain="ai.onnx.ml",
            keys_strings=list(values),
            values_int64s=list(values.values()),
            default_int64=other,
        )

    def _keep_places(self, features: Sequence[FeatureGrid], places: str, missing: str) -> None:
        """Take apart again what pairs need of [rows, features]."""
        paired = {name for pair in self.card.grid.pairs for name in pair.pair}
        for at, feature in enumerate(features):
            if feature.name in paired:
                place, gone = (
                    self.node("Gather", each, self.whole(at), axis=1) for each in (places, missing)
                )
                self.places[feature.name] = place, gone

    def _pair(self, pair: PairGrid) -> str:
        """Points [rows] of a pair whose columns are there."""
        first, second = self._group(pair.first), self._group(pair.second)
        points = np.full([len(each.labels) + 1 for each in (pair.first, pair.second)], pair.missing)
        points[:-1, :-1] = np.arange(pair.offset, pair.missing).reshape(points.shape[0] - 1, -1)
        cell = self.node("Add", self.node("Mul", first, self.whole(points.shape[1])), second)
        return self.node("Gather", self.whole(self.card.points[points.ravel()]), cell)

    def _group(self, groups: Groups) -> str:
        """Group of each row, [rows]; behind the last one where the value is missing."""
        from onnx import TensorProto

        feature, missing = groups.feature, len(groups.labels)
        if feature.feature.kind == "categorical":
            texts = {text: groups.group(cell - feature.offset) for text, cell in feature.texts.items()}
            return self._encoded(feature, {**texts, "": missing}, missing - 1)
        place, gone = self.places[feature.name]
        group = self.whole(0)
        for border in groups.borders:
            above = self.node("GreaterOrEqual", place, self.whole(border))
            group = self.node("Add", group, self.node("Cast", above, to=TensorProto.INT64))
        return self.node("Where", gone, self.whole(missing), group)

    def _ends(self, features: Sequence[FeatureGrid]) -> tuple[str, str]:
        domains = [feature.feature.domain or (0.0, 0.0) for feature in features]
        return self.real([low for low, _ in domains]), self.real([high for _, high in domains])

    def _finish(self, total: str, wrong: str | None) -> None:
        from onnx import TensorProto

        scale = self.card.study.scale
        score = self._clamped(total, self.whole(scale.low), self.whole(scale.high))
        above = self.node("Sub", self.node("Cast", total, to=TensorProto.DOUBLE), self.real(scale.offset))
        odds = self.node("Exp", self.node("Div", above, self.real(scale.factor)))
        chance = self.node("Div", self.real(1.0), self.node("Add", odds, self.real(1.0)))
        if wrong is None:
            self.node("Identity", score, output="score")
            self.node("Identity", chance, output="probability")
            return
        self.node("Where", wrong, self.whole(REFUSED), score, output="score")
        self.node("Where", wrong, self.real(np.nan), chance, output="probability")
