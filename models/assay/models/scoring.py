"""Scoring a file: any number of rows in constant memory, the same numbers for one row as for a million."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from assay.models.bundle import Bundle
from assay.models.columns import typed_column
from assay.models.encoding import Grid
from assay.models.explain import reason_words
from assay.models.scorecard import BANDS, REASONS, Scorecard
from assay.models.tabular import CsvReader, ParquetReader, open_table
from assay.privacy.errors import BadData, BadInput
from assay.privacy.purpose import check_use

__all__ = ["Scored", "read_record", "score_file"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What was done.

    Attributes:
        rows: number of records scored.
        absent: feature columns the input does not have; those features counted as missing, or as not there
            with their whole component.
        missing_components: components without any column: they counted neither for nor against.
        other_platform: compliance columns that the input has and that do not count here.
        output: the file written.
    """

    rows: int
    absent: tuple[str, ...]
    missing_components: tuple[str, ...]
    other_platform: tuple[str, ...]
    output: Path


def score_file(
    bundle: Bundle,
    source: Path,
    target: Path,
    *,
    purpose: str,
    context: str | None = None,
    platform: str | None = None,
    clock: Callable[[], float] = time.time,
    step: Callable[[int], None] = lambda _: None,
) -> Scored:
    """Score every record of ``source`` and write ``target``, whole or not at all.

    Written per record, in order: the person column if the study names one and the file has it,
    ``score``, ``probability`` (of bad), ``band``, ``points_<feature>`` and, of pairs of features that have
    points together, ``points_<feature>_x_<feature>``, ``base_points``, ``capped``, ``reason_1`` to
    ``reason_4``; base + points + capped = score. A study with fewer than four features
    leaves the other reasons empty.

    Args:
        bundle: a verified bundle.
        source: ``.csv``, ``.csv.gz`` or ``.parquet``.
        target: ``.csv`` or ``.parquet``; replaced if it exists.
        purpose: what the scores are for; must be the bundle's purpose.
        context: where they are to be used; one of those that the bundle declares. None: it is not said.
        platform: where they are to be used, if that is a platform. A compliance feature of another one is
            treated as if the input did not have its column.
        clock: seconds since 1970.
        step: called now and then with the number of records scored so far.

    Raises:
        Refused: the purpose is not the bundle's, the context is none of the bundle's, the bundle has
            expired, or its model is held back.
        BadInput: ``target`` is ``source``, or its name says no format.
        BadData: ``source`` is not what its name says, is empty, has none of the features' columns, or a cell
            is not what the study says.
    """
    study = bundle.study
    check_use(purpose, study.purpose, study.rules, context=context, contexts=study.contexts)
    bundle.require_current(clock())
    bundle.require_promoted()
    if target.resolve() == source.resolve():
        raise BadInput("output", value=str(target), allowed="another file than the input")
    reader = open_table(source)
    card = bundle.scorecard
    present = _present(card.grid, reader, source, platform)
    person = study.person if study.person in reader.columns else None
    rows = 0
    with _written(target, _schema(card, reader, person)) as write:
        for batch in reader.batches([*present, *([person] if person else [])]):
            columns = _typed(batch, present, source, first_row=rows + 1)
            people = _typed(batch, {person: "text"} if person else {}, source, first_row=rows + 1)
            write([*(pa.array(names, pa.string()) for names in people.values()), *_result(card, columns)])
            rows += batch.num_rows
            step(rows)
        if rows == 0:
            raise BadData("rows", where=source, allowed="at least one record")
    unused = [f.feature.column for f in card.grid.features if f.feature.column not in present]
    there = card.grid.components_of(card.grid.pattern_of(present))
    return Scored(
        rows=rows,
        missing_components=tuple(name for name in card.grid.components if name not in there),
        absent=tuple(name for name in unused if name not in reader.columns),
        other_platform=tuple(name for name in unused if name in reader.columns),
        output=target,
    )


def read_record(grid: Grid, source: Path, row: int, platform: str | None = None) -> dict[str, object]:
    """Return the study's columns of one record, for :func:`assay.models.explain.explain`.

    Args:
        grid: names the columns.
        source: as for :func:`score_file`.
        row: 1 is the first record.
        platform: as for :func:`score_file`.

    Raises:
        BadData: there is no such row, or a cell of it is not what the study says.
    """
    reader = open_table(source)
    present = _present(grid, reader, source, platform)
    before = 0
    for batch in reader.batches(list(present)):
        if before < row <= before + batch.num_rows:
            columns = _typed(batch.slice(row - 1 - before, 1), present, source, first_row=row)
            return {name: _plain(values[0]) for name, values in columns.items()}
        before += batch.num_rows
    raise BadData("row", where=source, value=row, allowed=f"1 to {before}, the records of the file")


def _plain(value: Any) -> object:
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else value


def _present(
    grid: Grid, reader: CsvReader | ParquetReader, source: Path, platform: str | None
) -> dict[str, str]:
    """Return the features' columns that the file has and that count on ``platform``, and how each is read."""
    wanted = {
        f.feature.column: f.feature.column_kind
        for f in grid.features
        if f.feature.platform in (None, platform)
    }
    present = {name: kind for name, kind in wanted.items() if name in reader.columns}
    if not present:
        raise BadData(
            "columns",
            where=source,
            allowed=f"the columns of the study, at least one of {', '.join(list(wanted)[:5])}, ..."
            if wanted
            else "a column that counts here; every feature is about another platform (--platform)",
        )
    return present


def _typed(
    batch: pa.RecordBatch, kinds: Mapping[str, str], source: Path, *, first_row: int
) -> dict[str, NDArray[Any]]:
    return {
        name: typed_column(batch.column(name), name, kind, where=source, first_row=first_row)
        for name, kind in kinds.items()
    }


def _schema(card: Scorecard, reader: CsvReader | ParquetReader, person: str | None) -> pa.Schema:
    fields = [] if person is None else [(person, pa.string())]
    fields += [("score", pa.int32()), ("probability", pa.float64()), ("band", pa.string())]
    fields += [(f"points_{term.name}", pa.int32()) for term in card.grid.terms]
    fields += [("base_points", pa.int32()), ("capped", pa.int32())]
    fields += [(f"reason_{place}", pa.string()) for place in range(1, REASONS + 1)]
    return pa.schema(fields)


def _result(card: Scorecard, columns: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Return the output columns but the person, in the order of :func:`_schema`."""
    scores = card.score(card.grid.encode(columns))
    rows = len(scores.score)
    words = pa.array([words for words, _ in BANDS])
    out = [pa.array(scores.score), pa.array(scores.probability), words.take(pa.array(scores.band))]
    out += [pa.array(np.ascontiguousarray(scores.points[:, j])) for j in range(scores.points.shape[1])]
    out += [pa.array(scores.base), pa.array(scores.capped)]
    for place in range(REASONS):
        if place < scores.reasons.shape[1]:
            out.append(_reason_column(card, scores.points, scores.reasons[:, place]))
        else:
            out.append(pa.nulls(rows, pa.string()))
    return out


def _reason_column(card: Scorecard, points: NDArray[np.int32], term: NDArray[np.int16]) -> pa.Array:
    """Words for one reason per row, null where there is none; each distinct sentence is made once."""
    chosen = np.maximum(term, 0).astype(np.int64)
    own = np.take_along_axis(points, chosen[:, None], axis=1)[:, 0]
    difference = np.floor(own - card.means[chosen] + 0.5).astype(np.int64)
    lowest = int(difference.min())
    span = int(difference.max()) - lowest + 1
    codes, place = np.unique(chosen * span + (difference - lowest), return_inverse=True)
    sentences = [
        reason_words(card.grid.terms[code // span].label, code % span + lowest) for code in codes.tolist()
    ]
    return pa.array(sentences, pa.string()).take(pa.array(place, mask=term < 0))


@contextlib.contextmanager
def _written(target: Path, schema: pa.Schema) -> Iterator[Callable[[list[Any]], None]]:
    """Open a writer on a temporary file that becomes ``target`` only if nothing goes wrong."""
    if target.suffix not in (".csv", ".parquet"):
        raise BadInput("output", value=str(target), allowed="a name that ends in .csv or .parquet")
    if not target.parent.is_dir():
        raise BadInput("output", value=str(target), allowed="a file in an existing directory")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    kind = pyarrow.csv.CSVWriter if target.suffix == ".csv" else pyarrow.parquet.ParquetWriter
    try:
        with kind(str(temporary), schema) as writer:
            yield lambda columns: writer.write(pa.Table.from_arrays(columns, schema=schema))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
