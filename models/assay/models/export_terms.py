"""What every export of a scorecard says about itself, how it is computed in words, and for which columns.

An export is for programs that know nothing of bundles. It can therefore be used without the check of the
purpose: that it carries purpose, contexts and expiry tells whoever holds it, and stops nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from assay.models.bundle import Bundle
from assay.models.encoding import STEPS, FeatureGrid, Grid, Term
from assay.privacy.errors import BadInput

__all__ = ["RULES", "Source", "terms_of"]

RULES: tuple[str, ...] = (
    "A component is there if at least one column of its features is there. A feature that is about a platform"
    " counts on that platform only: elsewhere its column is not there.",
    "A feature whose component is not there gives 0 points.",
    "An empty value, and a column that is absent from a component that is there, give the points of"
    " 'missing'.",
    "A numeric feature: refuse infinity. x = the value, clamped to the domain. t(x) = x for transform linear,"
    " ln(1 + x) for log, sign(x) * ln(1 + |x|) for signed_log. The knots 0, 1, ..., n - 1 lie evenly between"
    " t(low) and t(high) of the domain: position = (t(x) - t(low)) * ((n - 1) / (t(high) - t(low))), clamped"
    " to 0 and n - 1, in 64-bit floating point.",
    f"Rounding: q = floor(position * {STEPS} + 0.5); k = min(floor(q / {STEPS}), n - 2);"
    f" u = q - {STEPS} * k; points = floor((points of knot k * ({STEPS} - u) + points of knot k + 1 * u"
    f" + {STEPS // 2}) / {STEPS}), in whole numbers; floor goes down, also below zero.",
    "An integer feature: refuse infinity and fractions. The points of the value, clamped to the first and"
    " last value listed.",
    "A categorical feature: the text without blanks around it; nothing left is missing; a whole number loses"
    " a fraction of zeros (3.0 is 3). The points of the level that it is, or of 'other'.",
    "A pair of features that have points together (interaction): each of the two is cut into groups. The"
    " place of a numeric value is its q of the rounding, of an integer feature the value, clamped, of a"
    " categorical one the place of the level in the list, from 0, and of 'other' the place after the last."
    " The group is the number of borders that are not above the place. The points are those of the two"
    " groups; where one of the two values is missing, those of 'missing'; without the component, 0.",
    "total = base points of the components that are there + points of all features and pairs. score = total,"
    " clamped"
    " to low and high. capped = score - total.",
    "probability of the outcome = 1 / (1 + exp((total - offset) / factor)).",
)


def terms_of(bundle: Bundle) -> dict[str, str]:
    """Return what an export is for, name -> one line of text."""
    study = bundle.study
    expires = datetime.fromtimestamp(bundle.expires, tz=UTC).isoformat(timespec="seconds")
    terms = {
        "format": "assay scorecard, version 1",
        "study": study.name,
        "predicts": study.outcome.meaning,
        "purpose": study.purpose,
        "contexts": ", ".join(study.contexts),
        "policy_pack": study.pack,
        "expires": expires,
        "bundle_sha256": bundle.digest,
        "signer": bundle.fingerprint,
        "notice": f"For {study.purpose} ({', '.join(study.contexts)}) only, and not after {expires}."
        " Nothing in this export enforces that, and it is not signed: the bundle it was made from is.",
    }
    return {name: " ".join(text.split()) for name, text in terms.items()}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The columns that an export is made for; for SQL and ONNX, where they do not change from row to row.

    Attributes:
        grid: the study's cells.
        given: names of the columns that are there and count.
        others: names of columns that are there and are no features, in the order given.
        pattern: the components that are there.
    """

    grid: Grid
    given: frozenset[str]
    others: tuple[str, ...]
    pattern: int

    @classmethod
    def of(cls, grid: Grid, columns: Collection[str] | None = None, platform: str | None = None) -> Source:
        """Sort columns into features and others.

        Args:
            grid: the study's cells.
            columns: what the table has; None: the columns of all features.
            platform: where the scores are used; features of other platforms do not count.

        Raises:
            BadInput: a column is named twice, or none is a feature that counts.
        """
        features = {feature.feature.column: feature.feature for feature in grid.features}
        named = tuple(features if columns is None else columns)
        if len(set(named)) < len(named):
            raise BadInput("columns", value=list(named), allowed="each name once")
        counts = [name for name in named if name in features and features[name].platform in (None, platform)]
        return cls(
            grid=grid,
            given=frozenset(counts),
            others=tuple(name for name in named if name not in features),
            pattern=grid.pattern_of(counts),
        )

    def has(self, feature: FeatureGrid) -> bool:
        """Is the column of ``feature`` there?"""
        return feature.feature.column in self.given

    def knows(self, term: Term) -> bool:
        """Is the component of ``term`` there?"""
        return term.component in self.grid.components_of(self.pattern)
