"""A sweep as CSV files: exact numbers, one row per run, per holder's own model, and per group."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from assay.simulations.sweep_cells import Cell, Results, gain_of

__all__ = ["groups_csv", "holders_csv", "results_csv"]

_KEY = ("study", "holders", "epsilon", "seed")
_COLUMNS = (
    *_KEY,
    "delta",
    "trust",
    "engine",
    "partition",
    "rounds",
    "rows",
    "test_rows",
    "seconds",
    "spent_epsilon",
    "auroc",
    "ks",
    "gini",
    "log_loss",
    "brier",
    "ece",
    "baselines.local_only_auroc",
    "baselines.pooled_auroc",
    "baselines.non_private_auroc",
    "baselines.bayes_auroc",
    "label_epsilon",
    "canaries.claimed_epsilon",
    "canaries.lower_bound",
    "canaries.confidence",
    "canaries.canaries",
    "canaries.guessed",
    "canaries.right",
)


def results_csv(sweep: Results) -> bytes:
    """Return one row per run; a nested value's column is its path, e.g. ``baselines.pooled_auroc``.

    ``gain`` is the AUROC minus ``baselines.local_only_auroc``. Reading a number gives the very float of the
    cell; what a run does not have is empty.
    """
    return _written(
        (*_COLUMNS, "gain"),
        ({**{path: _find(cell, path) for path in _COLUMNS}, "gain": gain_of(cell)} for cell in sweep.cells),
    )


def holders_csv(sweep: Results) -> bytes:
    """Return one row per holder's own model that was trained; ``gain`` is the joint AUROC minus its own."""
    return _written(
        (*_KEY, "name", "rows", "auroc", "gain"),
        (
            {**_key(cell), **own, "gain": cell["auroc"] - own["auroc"]}
            for cell in sweep.cells
            for own in cell["local"]
            if own["auroc"] is not None
        ),
    )


def groups_csv(sweep: Results) -> bytes:
    """Return one row per run and group."""
    rates = ("auroc", "approval_rate", "observed", "predicted")
    paths = ("column", "group", "persons", *rates, "non_private.auroc", "non_private.approval_rate")
    return _written(
        (*_KEY, *paths),
        (
            {**_key(cell), **{path: _find(group, path) for path in paths}}
            for cell in sweep.cells
            for group in cell["groups"]
        ),
    )


def _key(cell: Cell) -> dict[str, Any]:
    return {key: cell[key] for key in _KEY}


def _find(value: Mapping[str, Any], path: str) -> Any:
    """Return what a dotted path leads to, or None where it ends at a null."""
    found: Any = value
    for key in path.split("."):
        found = None if found is None else found[key]
    return found


def _written(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8")
