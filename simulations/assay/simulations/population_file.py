"""Writing a synthetic population: any number of people in constant memory, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from assay.privacy.errors import BadInput
from assay.privacy.files import write_durably
from assay.simulations.population import generate, population_schema
from assay.simulations.population_params import Parameters
from assay.simulations.population_risk import Ranking
from assay.simulations.population_study import HEADER, study_text
from assay.simulations.population_trait import OUTCOMES
from assay.simulations.population_truth import parameters_path, parameters_text

__all__ = ["write_population"]

_WRITERS = {".csv": pyarrow.csv.CSVWriter, ".parquet": pyarrow.parquet.ParquetWriter}


def write_population(
    params: Parameters,
    target: Path,
    *,
    people: int,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Write people to ``target``, and beside it a study for each outcome and the parameters.

    The true risk goes into no file; with the parameters it can be computed again from the columns.

    Args:
        params: see :func:`.population_read.read_parameters`.
        target: ``.parquet`` or ``.csv``; replaced if it is such a file already. The studies are
            ``<stem>-credit.toml`` and ``<stem>-fraud.toml``, the parameters ``<stem>-parameters.toml``.
        people: 1..100,000,000.
        seed: 0..2^63-1; the same seed and parameters give the same data.
        clock: seconds that only go forward.

    Returns:
        ``people``, ``rows``, ``months``, ``seed``, ``file``, ``studies`` (path of each), ``bayes_auroc`` (to
        expect of the true risk against what happened; no model is better), ``recorded_auroc`` (against the
        recorded labels, some of them wrong; no model can be expected to be measured better),
        ``base_rate`` and ``mislabelled`` (shares of rows) and ``seconds``.

    Raises:
        BadInput: a number is out of range, or a path is not one that can be written to.
    """
    start = clock()
    chunks = generate(params, people=people, seed=seed)
    studies = {outcome: target.with_name(f"{target.stem}-{outcome}.toml") for outcome in OUTCOMES}
    _check_target(target)
    for path in (target, *studies.values(), parameters_path(target)):
        _check_replaced(path)
    beside = {path: study_text(params, outcome).encode() for outcome, path in studies.items()}
    beside[parameters_path(target)] = parameters_text(params).encode()
    tally = _Tally(params)
    with _written(target, population_schema(params), beside) as write:
        for chunk in chunks:
            write(chunk.table)
            tally.add(chunk.table, chunk.true_risk, chunk.mislabelled)
    return {
        "people": people,
        "rows": people,
        "months": params.people.months,
        "seed": seed,
        "file": str(target),
        "studies": {outcome: str(path) for outcome, path in studies.items()},
        **tally.result(people),
        "seconds": round(clock() - start, 3),
    }


class _Tally:
    """What is told of the people, from a stream."""

    def __init__(self, params: Parameters) -> None:
        self.params = params
        self.happened = {outcome: Ranking() for outcome in OUTCOMES}
        self.recorded = {outcome: Ranking() for outcome in OUTCOMES}
        self.bad = dict.fromkeys(OUTCOMES, 0)
        self.wrong = dict.fromkeys(OUTCOMES, 0)

    def add(self, table: pa.Table, risk: dict[str, Any], wrong: dict[str, Any]) -> None:
        for outcome, column in OUTCOMES.items():
            own, true = self.params.outcomes[outcome], risk[outcome]
            self.happened[outcome].add(true)
            labelled = true * (1.0 - own.bad_as_good) + (1.0 - true) * own.good_as_bad
            self.recorded[outcome].add(true, labelled)
            self.bad[outcome] += int(np.sum(table.column(column).to_numpy()))
            self.wrong[outcome] += int(np.sum(wrong[outcome]))

    def result(self, rows: int) -> dict[str, dict[str, float]]:
        return {
            "bayes_auroc": {outcome: one.auroc() for outcome, one in self.happened.items()},
            "recorded_auroc": {outcome: one.auroc() for outcome, one in self.recorded.items()},
            "base_rate": {outcome: count / rows for outcome, count in self.bad.items()},
            "mislabelled": {outcome: count / rows for outcome, count in self.wrong.items()},
        }


def _check_target(target: Path) -> None:
    """Refuse a name without a format and a directory that does not exist.

    Raises:
        BadInput: see above.
    """
    if target.suffix not in _WRITERS:
        raise BadInput("--out", value=str(target), allowed="a name that ends in .parquet or .csv")
    if not target.parent.is_dir():
        raise BadInput(
            "--out",
            value=str(target),
            allowed="a file in an existing directory",
            remedy=f"Run: mkdir -p {target.parent}",
        )


def _check_replaced(path: Path) -> None:
    """Refuse to replace anything but an empty file or one that this command made.

    Raises:
        BadInput: see above.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_file() or not (path.stat().st_size == 0 or _is_own(path)):
        raise BadInput(
            "--out",
            where=path,
            allowed="a file that this command made, or none",
            remedy="It is left as it is; choose another name or remove it",
        )


def _is_own(path: Path) -> bool:
    if path.suffix == ".parquet":
        try:
            return bool(pyarrow.parquet.read_schema(path).names[:2] == ["person_id", "month"])
        except pa.ArrowInvalid:
            return False
    beginning = b'"person_id","month",' if path.suffix == ".csv" else HEADER.encode()
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


@contextlib.contextmanager
def _written(
    target: Path, schema: pa.Schema, beside: dict[Path, bytes]
) -> Iterator[Callable[[pa.Table], None]]:
    """Open a writer on a temporary file that becomes ``target`` only if nothing goes wrong.

    The small files ``beside`` it are written when all of the data are on the disk.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _WRITERS[target.suffix](str(temporary), schema) as writer:
            yield writer.write_table
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        for path, data in beside.items():
            write_durably(path, data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
