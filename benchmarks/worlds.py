"""The data that `models.py` compares models on: for every seed holders' records and held-out ones.

taiwan   the bundled records, real; split as in `accuracy.py`: 24,000 to train on, 6,000 held out
credit   Assay's own population generator, loans not paid back; 30,000 to train on, 30,000 held out
fraud    the same people, accounts used for fraud
towers   `towers.py`, which has another structure and was not looked at when defaults were chosen; as many

Persons are spread at random over ten holders. In the generated data the seed draws other people, and the true
risk of each is known. Labels of the population are partly wrong, as recorded ones are, and no model is told
a person's region, which its true risk depends on; so that the AUROC of the true risk is a bound out of reach.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from accuracy import HOLDERS, split_of
from numpy.typing import NDArray
from towers import draw_towers, towers_study

from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.schema import Study
from assay.models.study import parse_study, read_study
from assay.simulations.comparison import records_at
from assay.simulations.examples import example
from assay.simulations.partition import split
from assay.simulations.population import generate
from assay.simulations.population_read import read_parameters
from assay.simulations.population_study import study_text
from assay.simulations.simulate import source_of

__all__ = ["WORLDS", "Split", "World", "in_parts"]

TRAIN, TEST = 30_000, 30_000
A, B = "payment_history", "spending"
# Which parts each of the ten holders has: three A, three B, two both of them, two everything.
PARTS = ("A",) * 3 + ("B",) * 3 + ("AB",) * 2 + ("ABC",) * 2


@dataclass(frozen=True, kw_only=True)
class Split:
    """One seed's records.

    Attributes:
        holders: training records by holder.
        test: held-out records.
        risk: true risk of the held-out, float64 [N], or None where nobody knows it.
    """

    holders: dict[str, Records]
    test: Records
    risk: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """One data set.

    Attributes:
        name: as on the command line.
        text: the study file.
        draw: seed -> records.
    """

    name: str
    text: str
    draw: Callable[[int], Split]


def in_parts(study: Study, holders: dict[str, Records]) -> dict[str, Records]:
    """Take from holders the columns of what they do not have: A, B, or C, which is everything else."""
    return {
        name: _without(study, records, have)
        for (name, records), have in zip(sorted(holders.items()), PARTS, strict=True)
    }


def _without(study: Study, records: Records, have: str) -> Records:
    part = {A: "A", B: "B"}
    lacking = {f.column: f.name for f in study.features if part.get(f.component, "C") not in have}
    columns = {name: values for name, values in records.columns.items() if name not in lacking}
    return dataclasses.replace(records, columns=columns, absent=tuple(lacking.values()))


def _taiwan() -> World:
    text = read_study(example("taiwan") / "study.toml").text
    with open_source(source_of(example("taiwan") / "taiwan_credit.csv.gz")) as source:
        records = load_records(source, parse_study(text))

    def draw(seed: int) -> Split:
        holders, test = split_of(records, seed)
        return Split(holders=holders, test=test)

    return World(name="taiwan", text=text, draw=draw)


def _population(outcome: str) -> World:
    params = read_parameters()
    text = study_text(params, outcome)

    def draw(seed: int) -> Split:
        chunks = list(generate(params, people=TRAIN + TEST, seed=seed))
        table = pa.concat_tables([chunk.table for chunk in chunks])
        with tempfile.TemporaryDirectory(prefix="assay-benchmark-") as folder:
            path = Path(folder) / "people.parquet"
            pyarrow.parquet.write_table(table, path)
            with open_source(source_of(path)) as source:
                records = load_records(source, parse_study(text))
        return _spread(records, np.concatenate([chunk.true_risk[outcome] for chunk in chunks]), seed)

    return World(name=outcome, text=text, draw=draw)


def _towers() -> World:
    def draw(seed: int) -> Split:
        columns, labels, risk = draw_towers(TRAIN + TEST, seed)
        return _spread(Records(columns=columns, labels=labels), risk, seed)

    return World(name="towers", text=towers_study(), draw=draw)


def _spread(records: Records, risk: NDArray[np.float64], seed: int) -> Split:
    """Spread the first 30,000 over the holders; the others are held out."""
    kept = records_at(records, np.arange(TRAIN))
    parts = split("iid", holders=HOLDERS, labels=kept.labels, persons=kept.persons, seed=seed)
    return Split(
        holders={
            f"holder-{number:02d}": records_at(kept, part.rows) for number, part in enumerate(parts, start=1)
        },
        test=records_at(records, np.arange(TRAIN, TRAIN + TEST)),
        risk=risk[TRAIN:],
    )


WORLDS: dict[str, Callable[[], World]] = {
    "taiwan": _taiwan,
    "credit": functools.partial(_population, "credit"),
    "fraud": functools.partial(_population, "fraud"),
    "towers": _towers,
}
