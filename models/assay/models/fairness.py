"""Groups for fairness audits: declared in the study, never inputs of the model.

What the groups of a column are is public and stands in the study; a value that is in none of them is "other",
an empty cell is "missing". Nothing here is computed from records but the group of each single one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.privacy.errors import BadInput

__all__ = ["Fairness", "Gate", "GroupColumn"]

MAX_GROUPS = 32
Declared = tuple[str, ...] | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What every group must reach before a model is promoted; None: not asked for.

    Approved means a score at the cut-off or above. TPR is the share of the good that is approved, FPR the
    share of the bad that is approved.

    Attributes:
        min_approval_ratio: lowest approval rate of a group over the highest of its column, 0..1.
        max_tpr_gap: largest difference in TPR between two groups of a column, 0..1.
        max_fpr_gap: the same of FPR.
        max_calibration_gap: largest distance between a group's mean predicted and its observed bad rate.
    """

    min_approval_ratio: float | None = None
    max_tpr_gap: float | None = None
    max_fpr_gap: float | None = None
    max_calibration_gap: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise BadInput(f"gate.{each.name}", value=value, allowed="a number from 0 to 1")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GroupColumn:
    """The groups of one column.

    Attributes:
        column: column of the record files.
        levels: values with a group of their own; empty for a numeric column.
        edges: ascending; groups are below the first, from each to below the next, and from the last on.
        labels: one per group, in words; for levels "other" comes before "missing", which is always last.
        judged: how many leading groups are declared: "other" and "missing" are shown and not judged.
    """

    column: str
    levels: tuple[str, ...]
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    judged: int

    @classmethod
    def of(cls, column: str, declared: Declared) -> GroupColumn:
        """Lay out the groups of a column.

        Args:
            column: its name.
            declared: strings (levels) or ascending finite numbers (edges), 1 to 32 of them.

        Raises:
            BadInput: it is neither.
        """
        setting = f"groups.{column}"
        allowed = f'1 to {MAX_GROUPS} different strings such as ["0", "1"], or ascending numbers'
        if not isinstance(declared, tuple) or not 0 < len(declared) <= MAX_GROUPS:
            raise BadInput(setting, value=declared, allowed=allowed)
        if all(isinstance(value, str) and value.strip() == value != "" for value in declared):
            levels = tuple(str(value) for value in declared)
            if len(set(levels)) < len(levels):
                raise BadInput(setting, value=list(levels), allowed=allowed)
            labels = (*levels, "other", "missing")
            return cls(column=column, levels=levels, edges=(), labels=labels, judged=len(levels))
        edges = tuple(_number(value) for value in declared)
        if any(not low < high for low, high in itertools.pairwise(edges)) or not math.isfinite(sum(edges)):
            raise BadInput(setting, value=list(declared), allowed=allowed)
        words = [f"{edge:,.10g}" for edge in edges]
        inner = [f"{low} to below {high}" for low, high in itertools.pairwise(words)]
        labels = (f"below {words[0]}", *inner, f"{words[-1]} or more", "missing")
        return cls(column=column, levels=(), edges=edges, labels=labels, judged=len(edges) + 1)

    @property
    def kind(self) -> str:
        """How the column is read: ``"text"`` or ``"number"``."""
        return "text" if self.levels else "number"

    def codes(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the group of each value, 0..len(labels)-1, int64 [N].

        Args:
            values: [N]; strings with None = missing for levels, float64 with NaN = missing for edges.
        """
        missing = len(self.labels) - 1
        if self.levels:
            known: dict[object, int] = {level: i for i, level in enumerate(self.levels)}
            known[None] = missing
            return np.fromiter(
                (known.get(v, len(self.levels)) for v in values), dtype=np.int64, count=len(values)
            )
        numbers = np.asarray(values, dtype=np.float64)
        found = np.searchsorted(np.array(self.edges), numbers, side="right")
        return np.where(np.isnan(numbers), missing, found).astype(np.int64)


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return math.nan
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """What is audited.

    Attributes:
        columns: declared for audits, never inputs.
        groups: by column, what its groups are; a column without groups cannot be audited, because they may
            not be taken from records.
        gate: limits that stop the promotion of a model.
        smallest_group: a declared group with fewer persons is named and counts as not passed; at least 1.
    """

    columns: tuple[str, ...] = ()
    groups: Mapping[str, Declared] = field(default_factory=dict)
    gate: Gate = field(default_factory=Gate)
    smallest_group: int = 200

    def __post_init__(self) -> None:
        for column in self.groups:
            if column not in self.columns:
                raise BadInput(
                    f"groups.{column}",
                    allowed=f"columns of fairness.columns: {', '.join(self.columns)}",
                    remedy=f"Add {column!r} to fairness.columns",
                )
        whole = isinstance(self.smallest_group, int) and not isinstance(self.smallest_group, bool)
        if not whole or not 1 <= self.smallest_group <= 1_000_000_000:
            raise BadInput("smallest_group", value=self.smallest_group, allowed="a whole number, 1 or more")
        _ = self.audited
        if self.gate.limits and not self.groups:
            raise BadInput(
                "gate", allowed="nothing without fairness.groups", remedy="Say which groups are compared"
            )

    @property
    def audited(self) -> tuple[GroupColumn, ...]:
        """The columns with groups, in the order of :attr:`columns`."""
        return tuple(GroupColumn.of(c, self.groups[c]) for c in self.columns if c in self.groups)
