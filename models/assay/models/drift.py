"""How a population moved since a bundle's training: its features on the public cells, and its scores.

Then: the noisy counts that the bundle carries (``baseline.json``). Now: the counts of a holder's records, of
a file, or the sum of several holders' noisy reports. Both count over the same cells.

No torch here: a relying party's machine needs none to look at its own file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.bundle import Bundle
from assay.models.columns import typed_column
from assay.models.encoding import Encoded, Grid
from assay.models.schema import Scale
from assay.models.scorecard import Scorecard, score_edges
from assay.models.stability import LOOK, MOVED, Histogram, stability
from assay.models.tabular import open_table
from assay.privacy.errors import BadData, BadInput

__all__ = [
    "Baseline",
    "Population",
    "column_kinds",
    "count_file",
    "counted",
    "drift_in_words",
    "drift_of",
    "score_bins",
]

Vector = NDArray[np.float64]


def score_bins(scale: Scale, bins: int) -> tuple[str, ...]:
    """Return the bins in words, e.g. ``"350-380"``."""
    edges = [math.ceil(edge) for edge in score_edges(scale, bins)]
    return tuple(f"{low}-{high - 1}" for low, high in itertools.pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class Population:
    """Where the persons of a population lie.

    Attributes:
        counts: float64 [grid.width], by cell and by pattern of components.
        scores: float64 [bins], by score.
        counts_noise_std: standard deviation of the noise in one of ``counts``; 0: exact.
        scores_noise_std: the same of ``scores``.
    """

    counts: Vector = field(repr=False)
    scores: Vector = field(repr=False)
    counts_noise_std: float = 0.0
    scores_noise_std: float = 0.0

    def term(self, grid: Grid, index: int) -> Histogram:
        """Return the cells of one feature or pair."""
        own = self.counts[grid.offsets[index] : grid.offsets[index + 1]]
        return Histogram(counts=own, noise_std=self.counts_noise_std)

    def score(self) -> Histogram:
        """Return the score bins."""
        return Histogram(counts=self.scores, noise_std=self.scores_noise_std)


class Baseline(Population):
    """The population at training, as a bundle knows it."""

    @classmethod
    def of(cls, bundle: Bundle) -> Baseline:
        """Read a bundle's baseline.

        Raises:
            BadInput: it has none, or one that does not fit its cells.
        """
        grid, value = bundle.scorecard.grid, bundle.baseline
        if not value:
            raise BadInput(
                "baseline",
                where=bundle.study.name,
                allowed="a bundle that says what the population was at training; this one does not",
                remedy="Train the study again",
            )
        try:
            found = cls(
                counts=np.array(value["counts"], dtype=np.float64),
                scores=np.array(value["scores"], dtype=np.float64),
                counts_noise_std=float(value["counts_noise_std"]),
                scores_noise_std=float(value["scores_noise_std"]),
            )
            fits = found.counts.shape == (grid.width,) and found.scores.ndim == 1 and found.scores.size > 1
            fits = fits and bool(np.isfinite([*found.counts, *found.scores]).all())
            fits = fits and all(
                0 <= each < math.inf for each in (found.counts_noise_std, found.scores_noise_std)
            )
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            allowed = f"{grid.width} counts by cell, at least 2 by score, and their noise"
            raise BadInput("baseline", where=bundle.study.name, allowed=allowed)
        return found


def counted(card: Scorecard, encoded: Encoded, bins: int) -> Population:
    """Return where rows lie, exactly; every row counts once.

    Args:
        card: gives cells and scores.
        encoded: N rows on the card's grid.
        bins: how many score bins.
    """
    grid = card.grid
    there = encoded.low >= 0
    low, upper = encoded.low[there], encoded.upper[there].astype(np.float64)
    own = np.bincount(low, 1 - upper, minlength=grid.size + 1)
    own += np.bincount(low + 1, upper, minlength=grid.size + 1)
    patterns = np.bincount(encoded.pattern - 1, minlength=grid.patterns)
    place = np.searchsorted(score_edges(card.study.scale, bins), card.score(encoded).score, side="right") - 1
    return Population(
        counts=np.concatenate([own[: grid.size], patterns]),
        scores=np.bincount(place, minlength=bins).astype(np.float64),
    )


def column_kinds(grid: Grid, columns: tuple[str, ...], platform: str | None = None) -> dict[str, str]:
    """Return the features' columns that a source has, and how each is read.

    Args:
        grid: names them.
        columns: what the source has.
        platform: a compliance feature of another platform is left out.
    """
    return {
        each.feature.column: each.feature.column_kind
        for each in grid.features
        if each.feature.column in columns and each.feature.platform in (None, platform)
    }


def count_file(
    bundle: Bundle, source: Path, *, bins: int, platform: str | None = None
) -> tuple[Population, tuple[str, ...], int]:
    """Count a file, piece by piece, in constant memory.

    Args:
        bundle: gives cells and scores.
        source: ``.csv``, ``.csv.gz`` or ``.parquet``.
        bins: how many score bins.
        platform: see :func:`column_kinds`.

    Returns:
        The population, the columns of the study that the file has, and its rows.

    Raises:
        BadData: the file is not what its name says, is empty, has no column of the study, or a cell is not
            what the study says.
    """
    card, reader = bundle.scorecard, open_table(source)
    kinds = column_kinds(card.grid, tuple(reader.columns), platform)
    if not kinds:
        wanted = ", ".join([each.feature.column for each in card.grid.features][:5])
        raise BadData("columns", where=source, allowed=f"at least one of the study's: {wanted}, ...")
    counts, scores, rows = np.zeros(card.grid.width), np.zeros(bins), 0
    for batch in reader.batches(list(kinds)):
        columns = {
            name: typed_column(batch.column(name), name, kind, where=source, first_row=rows + 1)
            for name, kind in kinds.items()
        }
        found = counted(card, card.grid.encode(columns), bins)
        counts, scores = counts + found.counts, scores + found.scores
        rows += batch.num_rows
    if not rows:
        raise BadData("rows", where=source, allowed="at least one record")
    return Population(counts=counts, scores=scores), tuple(kinds), rows


def drift_of(bundle: Bundle, now: Population, columns: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Compare a population with the one at training.

    Args:
        bundle: with a baseline.
        now: over the bundle's cells, with as many score bins as the baseline has.
        columns: the study's columns that the source has; a feature without one is skipped. None: not known,
            as in a sum over holders.

    Returns:
        A JSON object: ``score``, ``features`` and behind them the pairs of the study, ``skipped``,
        ``verdict`` (the worst of all), ``thresholds``.

    Raises:
        BadInput: the bundle has no baseline.
    """
    grid, then = bundle.scorecard.grid, Baseline.of(bundle)
    features: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    there = grid.components if columns is None else grid.components_of(grid.pattern_of(columns))
    for index, each in enumerate(grid.terms):
        facts = {"name": each.name, "label": each.label, "component": each.component}
        gone = [name for name in each.columns if columns is not None and name not in columns]
        if each.component not in there:
            skipped.append({**facts, "why": "its component is not here"})
        elif gone:
            skipped.append({**facts, "why": f"there is no column {gone[0]} that counts here"})
        else:
            found = stability(then.term(grid, index), now.term(grid, index), ordered=each.ordered)
            missing = {"then": _missing(then, grid, index), "now": _missing(now, grid, index)}
            features.append({**facts, "missing": missing, **found.to_json(each.labels)})
    bins = len(then.scores)
    scores = stability(then.score(), now.score(), ordered=bins)
    score = scores.to_json(score_bins(bundle.study.scale, bins))
    return {
        "study": bundle.study.name,
        "bundle": bundle.digest,
        "verdict": _worst([score, *features]),
        "score": score,
        "features": features,
        "skipped": skipped,
        "components": list(there),
        "thresholds": {"look": LOOK, "moved": MOVED},
        "baseline_noise_std": {"counts": then.counts_noise_std, "scores": then.scores_noise_std},
        "noise_std": {"counts": now.counts_noise_std, "scores": now.scores_noise_std},
    }


def _missing(population: Population, grid: Grid, index: int) -> float | None:
    """Return the share of the "missing" cell, None where the term is noise altogether."""
    own = population.term(grid, index)
    return min(max(float(own.counts[-1]) / own.total, 0.0), 1.0) if own.known else None


def _worst(found: list[dict[str, Any]]) -> str:
    order = ("moved", "look", "too noisy to say", "stable")
    return next(verdict for verdict in order if any(each["verdict"] == verdict for each in found))


def drift_in_words(result: Mapping[str, Any]) -> str:
    """Return a table of :func:`drift_of` for people; the features that moved most come first."""
    order = sorted(result["features"], key=lambda each: -(each["psi_corrected"] or 0.0))
    rows = [("score", result["score"]), *((each["label"], each) for each in order)]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{'':{width}}  {'index':>6}  {'error':>6}  {'noise to':>8}  verdict",
        *(_line(name.ljust(width), each) for name, each in rows),
    ]
    for name, each in rows:
        if each["verdict"] in ("look", "moved"):
            lines += ["", *_moves(name, each)]
    if result["skipped"]:
        lines.append("")
    lines += [f"skipped: {each['label']} ({each['component']}): {each['why']}" for each in result["skipped"]]
    return "\n".join([*lines, "", _LEGEND])


_LEGEND = (
    f"index: stability index less what noise and chance add; from {LOOK:.2f} look, from {MOVED:.2f} moved."
    " noise to: what an unchanged population stays below 999 times in 1,000"
)


def _line(name: str, each: Mapping[str, Any]) -> str:
    if each["psi"] is None:
        return f"{name}  {'-':>6}  {'-':>6}  {'-':>8}  {each['verdict']}"
    return (
        f"{name}  {each['psi_corrected']:6.3f}  {each['std_error']:6.3f}  {each['noise_limit']:8.3f}"
        f"  {each['verdict']}"
    )


def _moves(name: str, each: Mapping[str, Any]) -> Iterator[str]:
    """Say where a feature moved: the merged cells, share then and now."""
    yield f"{name}: share then, now"
    for cell in each["cells"]:
        yield f"  {cell['then']:6.1%}  {cell['now']:6.1%}  {_cells(cell['cells'])}"


def _cells(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= 4 else f"{labels[0]}, {labels[1]} ... {labels[-1]}"
