"""What pairs gain that a study declares, through the product's own training; part of `interactions.py`.

The bundled Taiwan records in one place, 6,000 of them held out for every seed. With each declaration the
study is trained as `assay simulate` does it (encoded, clipped, noised, charged, fitted, made into points) and
measured. The noise has no seed; standard errors are over seeds, of splits and noise together.

real     the labels as they are: whether next month's payment was missed
planted  labels drawn from a known risk over the same columns: the log-odds of the scorecard without privacy
         plus half the product of two features, each in standard deviations of its place between the knots.
         What the two do together is as strong as a good feature, and no sum of features has it
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy import auroc_of, error_of
from numpy.typing import NDArray
from scipy.special import expit

from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.encoding import Encoded, Grid
from assay.models.study import parse_study, read_study
from assay.models.tally import log_odds
from assay.simulations.comparison import records_at
from assay.simulations.engine import with_epsilon, with_trust
from assay.simulations.examples import example
from assay.simulations.partition import hold_out
from assay.simulations.simulate import source_of
from assay.simulations.unprotected import train_unprotected

__all__ = ["measure_declared", "printed_declared"]

TEST_FRACTION = 0.2
STRENGTH = 0.5  # log-odds per product of standard deviations


@dataclass(frozen=True, kw_only=True)
class Case:
    """A declaration and the labels it meets.

    Attributes:
        words: what is declared.
        planted: the two features whose product is in the labels; None: the labels as they are.
        pair: the two features that are declared.
        cuts: their cuts, as TOML; empty: even groups.
    """

    words: str
    planted: tuple[str, str] | None
    pair: tuple[str, str]
    cuts: str = ""

    @property
    def toml(self) -> str:
        """What is added to the study."""
        return f'\n[[interactions]]\nfeatures = ["{self.pair[0]}", "{self.pair[1]}"]\n{self.cuts}\n'


_LATE = "cuts = { status_1 = [1, 2, 3], status_2 = [1, 2, 3] }"
CASES = (
    Case(
        words="late now and before, cut at 1, 2, 3", planted=None, pair=("status_1", "status_2"), cuts=_LATE
    ),
    Case(words="nothing known: bill_3, bill_6", planted=None, pair=("bill_3", "bill_6")),
    Case(words="nothing known: paid_3, status_6", planted=None, pair=("paid_3", "status_6")),
    Case(words="bill_1, bill_6, which matter", planted=("bill_1", "bill_6"), pair=("bill_1", "bill_6")),
    Case(words="paid_1, paid_2, which matter", planted=("paid_1", "paid_2"), pair=("paid_1", "paid_2")),
    Case(words="bill_2, bill_3, another pair", planted=("bill_1", "bill_6"), pair=("bill_2", "bill_3")),
)


def measure_declared(seeds: int, epsilons: list[float], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train every case with and without its declaration; one row per case and epsilon."""
    text = read_study(example("taiwan") / "study.toml").text
    with open_source(source_of(example("taiwan") / "taiwan_credit.csv.gz")) as source:
        records = load_records(source, parse_study(text))
    worlds = _worlds(text, records)
    without: dict[Any, list[float]] = {}
    found = []
    for epsilon in epsilons:
        for case in CASES:
            start, world = time.monotonic(), worlds[case.planted]
            if (case.planted, epsilon) not in without:
                without[case.planted, epsilon] = [_auroc(text, world, epsilon, seed) for seed in range(seeds)]
            declared = [_auroc(text + case.toml, world, epsilon, seed) for seed in range(seeds)]
            found.append(_row(case, epsilon, without[case.planted, epsilon], declared))
            tell(f"epsilon {epsilon:g}, {case.words}  ({time.monotonic() - start:.0f} s)")
    return found


def _worlds(text: str, records: Records) -> dict[tuple[str, str] | None, Records]:
    """Return the records by what is planted in their labels."""
    study = parse_study(text)
    grid = Grid.of(study)
    encoded = grid.encode(records.columns)
    base = log_odds(train_unprotected(study, records).theta, encoded, grid)
    worlds: dict[tuple[str, str] | None, Records] = {None: records}
    for number, pair in enumerate(dict.fromkeys(case.planted for case in CASES if case.planted)):
        first, second = (_standardised(grid, encoded, name) for name in pair)
        risk = expit(base + STRENGTH * first * second)
        labels = np.random.default_rng(number).random(len(risk)) < risk
        worlds[pair] = dataclasses.replace(records, labels=labels.astype(np.float64))
    return worlds


def _standardised(grid: Grid, encoded: Encoded, name: str) -> NDArray[np.float64]:
    """Return where values of a feature lie between its knots, float64 [N]; no value is missing here."""
    index = [feature.name for feature in grid.features].index(name)
    place = encoded.low[:, index] + encoded.upper[:, index].astype(np.float64)
    scaled: NDArray[np.float64] = (place - place.mean()) / place.std()
    return scaled


def _auroc(text: str, records: Records, epsilon: float, seed: int) -> float:
    train, held = hold_out(rows=records.rows, persons=None, fraction=TEST_FRACTION, seed=seed)
    private = with_trust(with_epsilon(text, epsilon), "local")
    return float(auroc_of(private, {"pooled": records_at(records, train)}, records_at(records, held)))


def _row(case: Case, epsilon: float, without: list[float], declared: list[float]) -> dict[str, Any]:
    gains = [b - a for a, b in zip(without, declared, strict=True)]
    return {
        "labels": "planted" if case.planted else "real",
        "declared": case.words,
        "epsilon": epsilon,
        "auroc": statistics.mean(without),
        "gain": statistics.mean(gains),
        "error": error_of(gains),
        "by_seed": gains,
    }


def printed_declared(rows: list[dict[str, Any]], seeds: int) -> str:
    """Return the table for people."""
    width = max(len(row["declared"]) for row in rows)
    lines = [
        f"AUROC on held-out records without a pair, and what declaring one adds; {seeds} splits",
        f"{'labels':<9}{'declared':<{width}}{'epsilon':>9}{'without':>10}{'gain':>19}",
    ]
    lines += [
        f"{row['labels']:<9}{row['declared']:<{width}}{row['epsilon']:>9g}{row['auroc']:>10.4f}"
        f"{row['gain']:>+10.4f} ± {row['error']:.4f}"
        for row in rows
    ]
    return "\n".join(lines)
