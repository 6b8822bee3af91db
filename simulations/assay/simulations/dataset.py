"""Everybody's records, read once, and how they lie at the holders of one cell of a simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.client.records import Records, load_records
from assay.client.sources import DataSource, Source, open_source
from assay.models.encoding import Grid
from assay.models.schema import Study
from assay.privacy.errors import BadInput
from assay.simulations.comparison import records_at
from assay.simulations.holding import describe, hold_all
from assay.simulations.partition import Part, Partition, hold_out, split
from assay.simulations.population_truth import risk_of

__all__ = ["Dataset", "Groups", "Layout", "holder_names", "source_of"]

_KIND_BY_SUFFIX = {".csv": "csv", ".gz": "csv", ".parquet": "parquet"}
_REGION = "region"  # of a synthetic population: results by region are told although no study audits it
_MOST_GROUPS = 64
_MISSING = "missing"

Rows = NDArray[np.int64]


def source_of(path: Path) -> DataSource:
    """Return the data source for a CSV or Parquet file.

    Raises:
        BadInput: the file's name ends otherwise.
    """
    kind = _KIND_BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise BadInput("data file", value=path.name, allowed="a name ending in .csv, .csv.gz or .parquet")
    return DataSource(kind=kind, path=str(path.resolve()), directory=path.resolve().parent)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which group each record is in, for results by group; never an input of a model.

    Attributes:
        labels: the groups in words.
        codes: int64 [N], index into ``labels``.
    """

    labels: tuple[str, ...]
    codes: Rows = field(repr=False)

    def at(self, rows: Rows) -> Groups:
        """Return the groups of some records."""
        return Groups(labels=self.labels, codes=self.codes[rows])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who holds what, and what the models are tested on.

    Attributes:
        holders: training records by holder, in the order of their numbers.
        kept: all training records in one place: every person once, with every column.
        test: held-out records.
        groups: groups of the held-out records, by column.
        risk: float64 [M], true risk of the held-out records; None where it is not known.
    """

    holders: dict[str, Records]
    kept: Records
    test: Records
    groups: dict[str, Groups]
    risk: NDArray[np.float64] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file: records, groups beside them, true risk if the generator's parameters lie beside it."""

    records: Records
    groups: dict[str, Groups]
    risk: NDArray[np.float64] | None
    column: NDArray[Any] | None


def holder_names(holders: int) -> list[str]:
    """Return the names of simulated holders, in order."""
    width = len(str(holders))
    return [f"holder-{number:0{width}d}" for number in range(1, holders + 1)]


class Dataset:
    """The records of a simulation.

    Args:
        study: names the columns.
        data: file of the records to spread over the holders.
        test: file of held-out records; None: a share of ``data``.
        test_fraction: that share.
        partition: how they are spread.

    Raises:
        BadInput: a file or a column is not there, or not what it must be.
    """

    def __init__(
        self, study: Study, data: Path, test: Path | None, test_fraction: float, partition: Partition
    ) -> None:
        self._grid, self._partition, self._fraction = Grid.of(study), partition, test_fraction
        self._data = _read(study, data, partition, spread=True)
        self._test = None if test is None else _read(study, test, partition, spread=False)

    @property
    def rows(self) -> int:
        """Number of records, held-out ones of the same file included."""
        return self._data.records.rows

    def training(self, seed: int) -> Records:
        """Return all records that are not held out, in one place and in the order of the file."""
        return self._held_out(seed)[0]

    def layout(self, holders: int, seed: int) -> Layout:
        """Hold records out and spread the others.

        Args:
            holders: how many holders.
            seed: decides who is held out and who holds whom, never noise.

        Raises:
            BadInput: more holders than people or values of the column, or only one outcome is held out.
        """
        kept, train, held = self._held_out(seed)
        parts = self._split(kept, train, holders, seed)
        return Layout(
            holders=dict(zip(holder_names(holders), hold_all(kept, parts, self._grid), strict=True)),
            kept=kept,
            test=held.records,
            groups=held.groups,
            risk=held.risk,
        )

    def check(self, holders: int, seed: int) -> None:
        """Refuse a layout that cannot be, without making it.

        Raises:
            BadInput: as :meth:`layout`.
        """
        kept, train, _ = self._held_out(seed)
        self._split(kept, train, holders, seed)

    def describe(self, holders: int, seed: int) -> list[dict[str, Any]]:
        """Say of every holder what it gets, see :func:`assay.simulations.holding.describe`.

        Raises:
            BadInput: as :meth:`layout`.
        """
        kept, train, _ = self._held_out(seed)
        parts = self._split(kept, train, holders, seed)
        return describe(parts, kept.labels, kept.persons, holder_names(holders))

    def _split(self, kept: Records, train: Rows, holders: int, seed: int) -> list[Part]:
        column = self._data.column
        return split(
            self._partition,
            holders=holders,
            labels=kept.labels,
            persons=kept.persons,
            column=None if column is None else column[train],
            components=self._grid.components_of(self._grid.pattern_of(kept.columns)),
            seed=seed,
        )

    def _held_out(self, seed: int) -> tuple[Records, Rows, _File]:
        """Return the training records, their rows in the file, and the held-out part."""
        records, held = self._data.records, self._test
        train = np.arange(records.rows)
        if held is None:
            train, out = hold_out(
                rows=records.rows, persons=records.persons, fraction=self._fraction, seed=seed
            )
            held = _at(self._data, out)
        _require_both_outcomes(held.records)
        return records_at(records, train), train, held


def _read(study: Study, path: Path, partition: Partition, *, spread: bool) -> _File:
    with open_source(source_of(path)) as source:
        records = load_records(source, study)
        column = partition.read(source, records.rows) if spread else None
        audited = [each for each in study.fairness.audited if each.column in records.groups]
        groups = {e.column: Groups(labels=e.labels, codes=records.groups[e.column]) for e in audited}
        # Where rows were left out for their age, the other columns of the file are of other rows.
        if not records.too_old:
            groups |= dict(_others(source, study, partition, set(groups)))
    risk = None if records.too_old else risk_of(path, study.outcome.column)
    return _File(records=records, groups=groups, risk=risk, column=column)


def _others(
    source: Source, study: Study, partition: Partition, known: set[str]
) -> Iterator[tuple[str, Groups]]:
    """Yield the groups of the region and of the column that decides who holds whom, where they are few."""
    for column in dict.fromkeys((_REGION, partition.name if partition.kind == "column" else _REGION)):
        if column in known or column not in source.columns:
            continue
        cells = [_MISSING if cell is None else str(cell) for cell in source.read({column: "text"})[column]]
        labels, codes = np.unique(np.array(cells), return_inverse=True)
        if len(labels) <= _MOST_GROUPS:
            yield column, Groups(labels=tuple(map(str, labels)), codes=codes.astype(np.int64))


def _at(file: _File, rows: Rows) -> _File:
    return _File(
        records=records_at(file.records, rows),
        groups={name: own.at(rows) for name, own in file.groups.items()},
        risk=None if file.risk is None else file.risk[rows],
        column=None,
    )


def _require_both_outcomes(test: Records) -> None:
    if test.labels.min() == test.labels.max():
        raise BadInput(
            "held-out records",
            allowed="both outcomes",
            remedy="Give more data, another --test or --test-fraction",
        )
