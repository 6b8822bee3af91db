"""One input of a model, as a study describes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.models.settings import choice, is_int, is_number, words
from assay.privacy.errors import BadInput

__all__ = ["COMPONENTS", "MAX_CELLS", "Feature", "transformed"]

COMPONENTS = ("identity", "spending", "compliance", "payment_history", "third_party")
KINDS = ("numeric", "integer", "categorical")
TRANSFORMS = ("linear", "log", "signed_log")
TRENDS = ("falls", "rises")
MAX_CELLS = 256  # values of an integer feature, levels of a categorical one
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\.0+")  # a cell 3.0 is read as the text 3
_FEATURE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def transformed(values: NDArray[np.float64], transform: str) -> NDArray[np.float64]:
    """Return ``values`` on the scale their knots are uniform on.

    Args:
        values: float64, any shape; above -1 for ``"log"``. NaN stays NaN.
        transform: ``"linear"``, ``"log"`` (log(1+x)) or ``"signed_log"`` (sign(x) log(1+|x|)).
    """
    if transform == "log":
        return np.log1p(values)
    if transform == "signed_log":
        return np.copysign(np.log1p(np.abs(values)), values)
    return values


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model. Everything in it is public.

    Attributes:
        name: lower-case identifier, unique in the study.
        column: column of the record files.
        component: one of :data:`COMPONENTS`.
        kind: ``"numeric"``, ``"integer"`` (one bin per value) or ``"categorical"``.
        label: words for people.
        domain: public range of an ordered feature; values outside are clamped. None for categorical.
        levels: values of a categorical feature that have a bin of their own; anything else is "other".
        transform: scale on which the knots of a numeric feature are uniform.
        risk_trend: ``"falls"`` or ``"rises"`` as the value grows, or None.
        changeable: may a what-if vary it?
        platform: for component compliance, the platform whose rules it is about; it counts there only.
        description: a sentence for people: what it is and why it counts; None: the label says enough.
    """

    name: str
    column: str
    component: str
    kind: str
    label: str
    domain: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()
    transform: str = "linear"
    risk_trend: str | None = None
    changeable: bool = False
    platform: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _FEATURE.fullmatch(self.name):
            raise BadInput("name", value=self.name, allowed="lower-case letters, digits and _, at most 64")
        words("column", self.column)
        words("label", self.label)
        if self.description is not None:
            words("description", self.description, longest=500)
        choice("component", self.component, COMPONENTS)
        choice("kind", self.kind, KINDS)
        choice("transform", self.transform, TRANSFORMS)
        if not isinstance(self.changeable, bool):
            raise BadInput("changeable", value=self.changeable, allowed="true or false")
        self._check_platform()
        if self.kind == "categorical":
            self._check_levels()
        else:
            self._check_domain()

    def _check_platform(self) -> None:
        if self.platform is None:
            return
        words("platform", self.platform)
        if self.component != "compliance":
            raise BadInput("platform", value=self.platform, allowed="nothing unless component is compliance")

    def _check_levels(self) -> None:
        for setting, value in (("domain", self.domain), ("risk_trend", self.risk_trend)):
            if value is not None:
                raise BadInput(
                    setting, value=value, allowed="nothing for kind categorical", remedy="Remove it"
                )
        if self.transform != "linear":
            raise BadInput("transform", value=self.transform, allowed="nothing for kind categorical")
        for level in self.levels:
            words("levels", level)
            if _WHOLE.fullmatch(level):
                plain = level.split(".")[0]
                raise BadInput("levels", value=level, allowed=f"{plain!r}: cells are read so")
            if level != level.strip():
                raise BadInput("levels", value=level, allowed="no spaces around a level")
        if not 0 < len(self.levels) <= MAX_CELLS or len(set(self.levels)) < len(self.levels):
            raise BadInput("levels", value=list(self.levels), allowed=f"1 to {MAX_CELLS} different strings")

    def _check_domain(self) -> None:
        if self.levels:
            raise BadInput("levels", value=list(self.levels), allowed="nothing unless kind is categorical")
        if self.risk_trend is not None:
            choice("risk_trend", self.risk_trend, TRENDS)
        pair = self.domain
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not all(map(is_number, pair))
            or not pair[0] < pair[1]
        ):
            given = list(pair) if isinstance(pair, tuple) else pair
            raise BadInput("domain", value=given, allowed="[low, high], finite, low below high")
        if self.kind == "integer":
            self._check_bins(*pair)
        else:
            self._check_range(*pair)

    def _check_bins(self, low: float, high: float) -> None:
        if self.transform != "linear":
            raise BadInput(
                "transform", value=self.transform, allowed="linear for kind integer (bins have no scale)"
            )
        if not (is_int(low) and is_int(high)):
            raise BadInput("domain", value=[low, high], allowed="two whole numbers for kind integer")
        if high - low + 1 > MAX_CELLS:
            raise BadInput(
                "domain",
                value=[low, high],
                allowed=f"at most {MAX_CELLS} values for kind integer",
                remedy='Use kind = "numeric" for a wider range',
            )

    def _check_range(self, low: float, high: float) -> None:
        if self.transform == "log" and not low > -1:
            raise BadInput(
                "domain",
                value=[low, high],
                allowed="low above -1 for transform log, which is log(1+x)",
                remedy='Use transform = "signed_log" for values of both signs',
            )
        ends = transformed(np.array([low, high], dtype=np.float64), self.transform)
        width = ends[1] - ends[0] if np.isfinite(ends).all() else math.nan
        # Knots are placed in float64: the range must be wide enough for them to differ.
        if not math.isfinite(width) or not width > 1e-9 * np.abs(ends).max():
            raise BadInput("domain", value=[low, high], allowed="a range that float64 can divide into knots")

    @property
    def column_kind(self) -> str:
        """How its column is read, a kind of :func:`assay.models.columns.typed_column`."""
        return {"numeric": "number", "integer": "integer", "categorical": "text"}[self.kind]

    @property
    def ordered(self) -> bool:
        """True where larger and smaller mean something."""
        return self.kind != "categorical"
