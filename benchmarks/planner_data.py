"""The data that `planner.py` foretells: seventeen data sets of four families, each a study and records.

taiwan      the bundled records; also with 8 of 20 features, and with one outcome in twenty bad
population  loans and fraud of `assay population`; also without declared trends, with 7 of 21 features, and
            with other base rates
towers      `towers.py`; also with declared trends, with one tower of three, and with rarer outcomes
made        normal, correlated features and log-odds that are a line in each: 5, 12 and 40 of them

Where the true risk is known, another base rate is a shift of its log-odds and a new draw of outcomes.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from scipy.special import expit, logit
from towers import draw_towers, towers_study, towers_trends
from worlds import WORLDS

from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.encoding import Grid
from assay.models.study import parse_study
from assay.simulations.comparison import pool, records_at
from assay.simulations.population import generate
from assay.simulations.population_read import read_parameters
from assay.simulations.population_study import study_text
from assay.simulations.simulate import source_of

__all__ = ["Data", "datasets"]

SEED, TEST = 1, 30_000
TAIWAN_FEW = ("limit", "education", *(f"status_{month}" for month in range(1, 7)))
RARE = 19  # good records for each bad one
STRENGTHS = {5: (2.0, -2.0), 12: (1.0, 0.0), 40: (0.7, -2.5)}
"""Features of made data -> standard deviation and mean of the log-odds."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """One data set.

    Attributes:
        name: of the data set.
        family: what is like it; what is foretold is never calibrated on its own family.
        text: the study file.
        train: records to draw from.
        test: held-out records.
        risk: true risk of both, where it is known.
    """

    name: str
    family: str
    text: str
    train: Records
    test: Records
    risk: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def only(self, name: str, keep: Callable[[str], bool]) -> Data:
        """Return the same with the features whose name is to be kept."""
        blocks = re.split(r"^(?=\[)", self.text, flags=re.MULTILINE)
        names = [re.search(r'^name = "(.*)"', block, re.MULTILINE) for block in blocks]
        text = "".join(
            block
            for block, found in zip(blocks, names, strict=True)
            if not block.startswith("[[features]]") or (found is not None and keep(found[1]))
        )
        return dataclasses.replace(self, name=name, text=text)

    def trended(self, name: str, trends: dict[str, str]) -> Data:
        """Return the same where the study declares these trends of features by name, and no others."""
        blocks = re.split(r"^(?=\[)", self.text, flags=re.MULTILINE)
        for place, block in enumerate(blocks):
            bare = re.sub(r"^risk_trend = .*\n", "", block, flags=re.MULTILINE)
            found = re.search(r'^name = "(.*)"\n', bare, re.MULTILINE)
            trend = trends.get(found[1]) if found and block.startswith("[[features]]") else None
            line = f'risk_trend = "{trend}"\n'
            blocks[place] = bare[: found.end()] + line + bare[found.end() :] if found and trend else bare
        return dataclasses.replace(self, name=name, text="".join(blocks))

    def shifted(self, name: str, shift: float) -> Data:
        """Return the same people with other log-odds and outcomes drawn anew."""
        if self.risk is None:
            raise ValueError("nobody knows the true risk")
        rng = np.random.default_rng([SEED, 3])
        train, test = (expit(logit(risk) + shift) for risk in self.risk)
        return dataclasses.replace(
            self,
            name=name,
            train=dataclasses.replace(self.train, labels=_outcomes(train, rng)),
            test=dataclasses.replace(self.test, labels=_outcomes(test, rng)),
            risk=(train, test),
        )


def _outcomes(risk: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return (rng.random(len(risk)) < risk).astype(np.float64)


def datasets(people: int) -> Iterator[Data]:
    """Yield all data sets, with ``people`` to train on where they are generated."""
    yield from _taiwan()
    credit, fraud = (_population(outcome, people) for outcome in ("credit", "fraud"))
    few = parse_study(credit.text).features[::3]
    yield credit
    yield credit.shifted("credit-common", 1.9)
    yield credit.trended("credit-untrended", {})
    yield credit.only("credit-few", {feature.name for feature in few}.__contains__)
    yield fraud
    yield fraud.trended("fraud-untrended", {})
    yield fraud.shifted("fraud-common", 2.0)
    towers = _towers(people)
    yield towers
    yield towers.only("towers-few", lambda name: name.startswith("a"))
    yield towers.trended("towers-trended", towers_trends())
    yield towers.shifted("towers-rare", -1.8)
    for features in STRENGTHS:
        yield _made(features, people)


def _taiwan() -> Iterator[Data]:
    world = WORLDS["taiwan"]()
    drawn = world.draw(SEED)
    train = pool(list(drawn.holders.values()), Grid.of(parse_study(world.text)))
    train = dataclasses.replace(train, patterns=None)  # everybody has everything, whatever features are kept
    whole = Data(name="taiwan", family="taiwan", text=world.text, train=train, test=drawn.test)
    yield whole
    yield whole.only("taiwan-few", TAIWAN_FEW.__contains__)
    good, bad = np.flatnonzero(train.labels == 0), np.flatnonzero(train.labels == 1)
    rare = records_at(train, np.sort(np.concatenate([good, bad[: len(good) // RARE]])))
    yield dataclasses.replace(whole, name="taiwan-rare", train=rare)


def _population(outcome: str, people: int) -> Data:
    params = read_parameters()
    text = study_text(params, outcome)
    chunks = list(generate(params, people=people + TEST, seed=SEED))
    with tempfile.TemporaryDirectory(prefix="assay-benchmark-") as folder:
        path = Path(folder) / "people.parquet"
        pyarrow.parquet.write_table(pa.concat_tables([chunk.table for chunk in chunks]), path)
        with open_source(source_of(path)) as source:
            records = load_records(source, parse_study(text))
    risk = np.concatenate([chunk.true_risk[outcome] for chunk in chunks])
    return _split(outcome, "population", text, records, risk)


def _towers(people: int) -> Data:
    columns, labels, risk = draw_towers(people + TEST, SEED)
    return _split("towers", "towers", towers_study(), Records(columns=columns, labels=labels), risk)


def _made(features: int, people: int) -> Data:
    """Draw normal features that share one factor; a third of them do nothing."""
    rng = np.random.default_rng([SEED, features])
    shared = rng.normal(size=(people + TEST, 1))
    values = 0.6 * shared + 0.8 * rng.normal(size=(people + TEST, features))
    weights = rng.normal(size=features) * (np.arange(features) % 3 < 2)
    line, (strength, middle) = values @ weights, STRENGTHS[features]
    risk = expit(middle + strength * line / line.std())
    names = [f"x{number}" for number in range(1, features + 1)]
    records = Records(columns=dict(zip(names, values.T.copy(), strict=True)), labels=_outcomes(risk, rng))
    head, tail = re.split(r"^\[\[features\]\].*?(?=^\[training\])", towers_study(), flags=re.M | re.S)
    text = head.replace('"towers"', '"made"') + "".join(_FEATURE.format(name=name) for name in names) + tail
    return _split(f"made-{features}", "made", text, records, risk)


_FEATURE = """\
[[features]]
name = "{name}"
column = "{name}"
component = "spending"
kind = "numeric"
domain = [-3, 3]

"""


def _split(name: str, family: str, text: str, records: Records, risk: NDArray[np.float64]) -> Data:
    people = records.rows - TEST
    train, test = np.arange(people), np.arange(people, records.rows)
    return Data(
        name=name,
        family=family,
        text=text,
        train=records_at(records, train),
        test=records_at(records, test),
        risk=(risk[train], risk[test]),
    )
