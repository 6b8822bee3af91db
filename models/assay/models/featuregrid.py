"""The cells of one feature, and where a value lies in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.feature import Feature, transformed
from assay.privacy.errors import BadData

__all__ = ["ABSENT", "KNOTS", "STEPS", "FeatureGrid", "readable"]

ABSENT = -1  # the cell of what belongs to a component that is not there
KNOTS = 8
STEPS = 1024
"""Places between two knots that are told apart: with whole steps, points are exact in every language."""


@dataclass(frozen=True, kw_only=True)
class FeatureGrid:
    """The cells of one feature.

    Attributes:
        feature: the study's description.
        kind: ``"hat"`` (numeric) or ``"bins"``.
        knots: float64, uniform on the transformed domain; empty for bins.
        cells: number of cells, "other" and "missing" included.
        ordered: number of leading cells whose order means something.
        offset: absolute index of the first cell.
        labels: one per cell, in words.
    """

    feature: Feature
    kind: str
    knots: NDArray[np.float64]
    cells: int
    ordered: int
    offset: int
    labels: tuple[str, ...]

    @classmethod
    def of(cls, feature: Feature, offset: int, knots: int = KNOTS) -> FeatureGrid:
        """Lay out the cells of ``feature`` from absolute index ``offset`` on."""
        labels, grid, ordered = _layout(feature, knots)
        return cls(
            feature=feature,
            kind="hat" if feature.kind == "numeric" else "bins",
            knots=grid,
            cells=len(labels),
            ordered=ordered,
            offset=offset,
            labels=labels,
        )

    @property
    def name(self) -> str:
        """Name of the feature."""
        return self.feature.name

    @property
    def label(self) -> str:
        """Words for people."""
        return self.feature.label

    @property
    def description(self) -> str | None:
        """A sentence for people, or None."""
        return self.feature.description

    @property
    def component(self) -> str:
        """The component it belongs to."""
        return self.feature.component

    @property
    def pair(self) -> None:
        """It is no pair."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is read from."""
        return (self.feature.column,)

    @property
    def missing(self) -> int:
        """Absolute index of the "missing" cell."""
        return self.offset + self.cells - 1

    @property
    def knot_values(self) -> NDArray[np.float64]:
        """The knots in the units of the column, float64; first and last are exactly the domain's ends."""
        return _undone(self.knots, self.feature)

    def value_at(self, step: int) -> float:
        """Return the value of a numeric feature at so many steps from its first knot."""
        if step % STEPS == 0:
            return float(self.knot_values[step // STEPS])
        width = float(self.knots[-1] - self.knots[0])
        return self.value_between(float(self.knots[0]) + width * step / ((len(self.knots) - 1) * STEPS))

    def value_between(self, place: float) -> float:
        """Return the value of a numeric feature at a place on the scale of its knots."""
        return float(_inverse(np.array([place]), self.feature)[0])

    @property
    def texts(self) -> dict[str, int]:
        """The texts that are a level of a categorical feature, and the absolute index of the level's cell."""
        index = {level: self.offset + i for i, level in enumerate(self.feature.levels)}
        for level, cell in tuple(index.items()):
            # A tool that saw a missing value in a column of codes writes 3 as 3.0.
            if level.lstrip("-").isdecimal():
                index.setdefault(f"{level}.0", cell)
        return index

    def encode(self, values: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Encode one column.

        Args:
            values: [N]; float64 with NaN = missing, or for a categorical feature strings with None = missing.

        Returns:
            ``low`` int32 [N] and ``upper`` float32 [N], see :class:`Encoded`.

        Raises:
            BadData: an ordered feature holds infinity, or an integer feature a fraction.
        """
        if self.feature.kind == "categorical":
            return self._levels(values), np.zeros(len(values), dtype=np.float32)
        numbers = np.asarray(values, dtype=np.float64)
        if np.isinf(numbers).any():
            raise BadData(f"column {self.feature.column!r}", allowed="finite numbers")
        if self.kind == "hat":
            return self._hat(numbers)
        return self._bins(numbers), np.zeros(len(numbers), dtype=np.float32)

    def _hat(self, values: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        domain = self.feature.domain or (0.0, 0.0)
        # Clamp before the transform: log(1+x) has no value below the domain.
        inside = transformed(np.clip(values, *domain), self.feature.transform)
        absent = np.isnan(values)
        last = len(self.knots) - 1
        position = inside - self.knots[0]
        position *= last / (self.knots[-1] - self.knots[0])
        position[absent] = 0.0
        np.clip(position, 0.0, last, out=position)
        # To the nearest step: knots and the ends of the domain, where values pile up, are far from the places
        # where the last bit of a logarithm, which languages differ in, could decide.
        position *= STEPS
        position += 0.5
        step = position.astype(np.int32)
        low = step // STEPS
        np.minimum(low, last - 1, out=low)
        step -= low * STEPS
        upper = step.astype(np.float32)
        upper /= STEPS
        low += np.int32(self.offset)
        low[absent], upper[absent] = self.missing, 0.0
        return low, upper

    def _bins(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        low, high = self.feature.domain or (0.0, 0.0)
        absent = np.isnan(values)
        known = np.where(absent, low, values)
        if (known != np.rint(known)).any():
            raise BadData(f"column {self.feature.column!r}", allowed="whole numbers")
        cell = (np.clip(known, low, high) - low).astype(np.int32) + np.int32(self.offset)
        cell[absent] = self.missing
        return cell

    def _levels(self, values: NDArray[Any]) -> NDArray[np.int32]:
        index: dict[Any, int] = dict(self.texts)
        other = self.offset + len(self.feature.levels)
        index[None] = self.missing
        return np.fromiter((index.get(text, other) for text in values), dtype=np.int32, count=len(values))


def _layout(feature: Feature, knots: int) -> tuple[tuple[str, ...], NDArray[np.float64], int]:
    """Return labels of all cells, knots, and how many leading cells are ordered."""
    none = np.empty(0, dtype=np.float64)
    if feature.kind == "categorical":
        return (*feature.levels, "other", "missing"), none, 0
    low, high = feature.domain or (0.0, 0.0)
    if feature.kind == "integer":
        values = range(int(low), int(high) + 1)
        return (*_ends([str(value) for value in values]), "missing"), none, len(values)
    ends = transformed(np.array([low, high], dtype=np.float64), feature.transform)
    grid = np.linspace(ends[0], ends[1], knots)
    return (*_ends([readable(x) for x in _undone(grid, feature)]), "missing"), grid, knots


def _ends(labels: list[str]) -> list[str]:
    """Mark the first and last label: values outside the domain are clamped to them."""
    return [f"{labels[0]} or less", *labels[1:-1], f"{labels[-1]} or more"]


def _undone(grid: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    """Knots in the units of the column; the ends are exact."""
    values = _inverse(grid, feature)
    if feature.domain is not None:
        values[0], values[-1] = feature.domain
    return values


def _inverse(places: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    """Return the values whose transform ``places`` are, a new array."""
    if feature.transform == "linear":
        return places.copy()
    if feature.transform == "signed_log":
        return np.copysign(np.expm1(np.abs(places)), places)
    return np.expm1(places)


def readable(value: float) -> str:
    """Return a number for people: three significant digits, thousands separated, e.g. ``0.0457``."""
    if abs(value) < 1e-9:
        return "0"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
