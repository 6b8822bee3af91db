"""How good is the accuracy that `assay privacy plan` foretells? Trains, measures and compares.

Run: python benchmarks/planner.py [--quick] [--save FILE] [--from FILE] [--json]

The data are those of `planner_data.py`: four families. From each data set persons are drawn at random, many
and few, and models are trained on them at epsilon .25 to 8 by the rounds of a live run (one holder, trust
"local", which is a pooled run; some also by ten holders), and one without privacy
(`assay.simulations.unprotected`). The loss is what AUROC on held-out records falls by from the second to the
first; where the private model is the better one, because the other has followed chance, the loss is 0. What
is foretold comes from public numbers alone: study, persons, holders and the base rate.

shipped    by the constants in `assay.models.forecast`, which were fitted to all families
left out   for each family by constants fitted to the other three, and the width of the range too: only this
           says how good a plan is for data that nobody has seen

The noise has no seed: numbers differ from run to run, single runs with few persons by half of themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")

import numpy as np
from numpy.typing import NDArray
from planner_data import Data, datasets
from scipy.optimize import least_squares

from assay.client.records import Records
from assay.models.forecast import CONSTANTS, Constants, Forecast
from assay.models.plan import forecast_of
from assay.models.study import parse_study
from assay.simulations.comparison import evaluate, records_at, scorecard_of
from assay.simulations.engine import federate, with_epsilon, with_trust
from assay.simulations.unprotected import train_unprotected

EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DRAWS = {1_000: 3, 3_000: 3, 10_000: 2, 30_000: 1, 100_000: 1}
"""Persons -> how often they are drawn and trained on."""
QUICK = {1_000: 1, 10_000: 1}
LAYOUTS = ((10, "distributed"), (10, "local"))  # beside one holder, at _SPREAD persons of whole data sets
_SPREAD = 10_000
# Share of single runs in the range: of other families where a width is fitted, and the least that must be.
NOMINAL, MUST_HOLD = 0.95, 0.85
# Losses differ by factors, and of small ones only noise is left.
_FLOOR = 0.003

Row = dict[str, Any]


def measure(draws: dict[int, int], epsilons: Sequence[float]) -> Iterator[Row]:
    """Train everything; one row per private model."""
    for data in datasets(max(draws)):
        start = time.monotonic()
        for persons, times in draws.items():
            for draw in range(times):
                yield from _drawn(data, persons, draw, epsilons)
            if persons >= data.train.rows:
                break
        print(f"{data.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def kept(rows: Iterator[Row], path: Path | None) -> list[Row]:
    """Write rows to a file as they come, one JSON object a line, and return them all."""
    if path is None:
        return list(rows)
    found = []
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            found.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    return found


def _drawn(data: Data, persons: int, draw: int, epsilons: Sequence[float]) -> Iterator[Row]:
    """Draw persons, and train on them without privacy and at every epsilon."""
    persons = min(persons, data.train.rows)
    chosen = np.random.default_rng([persons, draw]).permutation(data.train.rows)[:persons]
    records = records_at(data.train, chosen)
    unprotected = evaluate(train_unprotected(parse_study(data.text), records), data.test).metrics.auroc
    spread = persons == _SPREAD and draw == 0 and "-" not in data.name
    for holders, trust in ((1, "local"), *(LAYOUTS if spread else ())):
        parts = {
            f"h{place}": records_at(records, np.arange(place, persons, holders)) for place in range(holders)
        }
        for epsilon in epsilons:
            text = with_trust(with_epsilon(data.text, epsilon), trust)
            yield {
                "data": data.name,
                "family": data.family,
                "persons": persons,
                "draw": draw,
                "holders": holders,
                "trust": trust,
                "epsilon": epsilon,
                **_public(text, holders, float(data.train.labels.mean())),
                "unprotected": unprotected,
                "private": _auroc(text, parts, data.test),
            }


def _auroc(text: str, parts: dict[str, Records], test: Records) -> float:
    return evaluate(scorecard_of(federate(text, parts, engine="fast")), test).metrics.auroc


def _public(text: str, holders: int, base_rate: float) -> Row:
    """Return what a forecast is made of, as the planner reads it from the study."""
    forecast = forecast_of(parse_study(text), holders=holders, base_rate=base_rate)
    return {name: getattr(forecast, name) for name in ("noise", "cells", "base_rate")}


def forecast_in(row: Row, constants: Constants) -> Forecast:
    """Return the forecast of a row by other constants."""
    public = {name: row[name] for name in ("noise", "cells", "base_rate")}
    return Forecast(**public, constants=constants)


def foretell(row: Row, constants: Constants) -> tuple[float, float, float]:
    """Return the expected loss and the ends of the range."""
    forecast = forecast_in(row, constants)
    return forecast.loss(row["persons"]), *forecast.loss_range(row["persons"])


def loss_of(row: Row) -> float:
    """Return what was lost, at least 0."""
    return max(0.0, float(row["unprotected"] - row["private"]))


def cases_of(rows: list[Row]) -> list[Row]:
    """Put together what differs in the draw alone: means of AUROC, and how many runs they are of."""
    runs: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data", "persons", "holders", "trust", "epsilon"))
        runs.setdefault(key, []).append(row)
    means = ("unprotected", "private")
    return [
        {**same[0], **{name: float(np.mean([row[name] for row in same])) for name in means}, "runs": same}
        for same in runs.values()
    ]


def shares_of(cases: list[Row]) -> NDArray[np.float64]:
    """Return weights by which families count alike, and in each its cases, however often they were drawn."""
    families = [case["family"] for case in cases]
    weights = np.array([1 / families.count(family) for family in families])
    return weights / weights.sum()


def fitted(cases: list[Row]) -> Constants:
    """Fit the constants of noise and chance, on roots of losses and with little weight for outliers."""
    most = {case["data"]: case for case in sorted(cases, key=lambda case: case["persons"])}
    chance = [max(0.0, most[case["data"]]["unprotected"] - case["unprotected"]) for case in cases]
    weights = np.sqrt(shares_of(cases) * len(cases))

    def fit(truth: list[float], name: str) -> float:
        roots = np.sqrt(np.array(truth) + _FLOOR)

        def apart(logarithm: NDArray[np.float64]) -> NDArray[np.float64]:
            constants = dataclasses.replace(CONSTANTS, **{name: math.exp(logarithm[0])})
            forecasts = [(forecast_in(case, constants), case["persons"]) for case in cases]
            losses = [
                forecast.loss(persons) if name == "noise" else forecast.lost_to_chance(persons)
                for forecast, persons in forecasts
            ]
            return weights * (np.sqrt(np.array(losses) + _FLOOR) - roots)

        return math.exp(least_squares(apart, [-1.0], loss="soft_l1", f_scale=0.05).x[0])

    noise = fit([loss_of(case) for case in cases], "noise")
    return dataclasses.replace(CONSTANTS, noise=noise, chance=fit(chance, "chance"))


def left_out(cases: list[Row]) -> dict[str, Constants]:
    """Return for each family constants that were fitted to the others."""
    families = dict.fromkeys(case["family"] for case in cases)
    return {family: fitted([case for case in cases if case["family"] != family]) for family in families}


def held(case: Row, constants: Constants) -> float:
    """Return the share of single runs whose loss is in the range."""
    _, low, high = foretell(case, constants)
    return float(np.mean([low <= loss_of(run) <= high for run in case["runs"]]))


def widened(cases: list[Row], constants: dict[str, Constants]) -> float:
    """Return the least width with which constants of other families hold nearly all single runs."""
    shares = shares_of(cases)
    for width in np.arange(1.5, 12.0, 0.25):
        wide = {family: dataclasses.replace(each, width=float(width)) for family, each in constants.items()}
        if shares @ [held(case, wide[case["family"]]) for case in cases] >= NOMINAL:
            break
    return float(width)


def unseen(cases: list[Row]) -> dict[str, Constants]:
    """Return for each family constants, the width too, from the others alone."""
    found = {}
    for family, constants in left_out(cases).items():
        others = [case for case in cases if case["family"] != family]
        found[family] = dataclasses.replace(constants, width=widened(others, left_out(others)))
    return found


def compared(cases: list[Row], constants: dict[str, Constants]) -> dict[str, Any]:
    """Return how far what is foretold is from what was measured: means over families alike."""
    shares = shares_of(cases)
    errors = np.array([foretell(case, constants[case["family"]])[0] - loss_of(case) for case in cases])
    inside = np.array([held(case, constants[case["family"]]) for case in cases])
    many = shares * [case["persons"] >= _SPREAD for case in cases]
    return {
        "mean_absolute_error": float(shares @ np.abs(errors)),
        "mean_absolute_error_from_10000_persons": float(many @ np.abs(errors) / many.sum()),
        "bias": float(shares @ errors),
        "within_001": float(shares @ (np.abs(errors) <= 0.01)),
        "runs_in_range": float(shares @ inside),
        "runs": sum(len(case["runs"]) for case in cases),
        "cases": len(cases),
    }


def report(rows: list[Row]) -> dict[str, Any]:
    """Compare in both ways, over all and by family."""
    cases = cases_of(rows)
    shipped = dict.fromkeys((case["family"] for case in cases), CONSTANTS)
    found: dict[str, Any] = {"cases": [], "refit": {}}
    for way, constants in (("shipped", shipped), ("left_out", unseen(cases))):
        found[way] = {"all": compared(cases, constants)}
        for family, own in constants.items():
            of = [case for case in cases if case["family"] == family]
            found[way][family] = {**compared(of, constants), "constants": dataclasses.asdict(own)}
    refit = fitted(cases)
    width = widened(cases, left_out(cases))
    found["refit"] = dataclasses.asdict(dataclasses.replace(refit, width=width))
    for case in cases:
        expected, low, high = foretell(case, CONSTANTS)
        own = {name: value for name, value in case.items() if name != "runs"}
        found["cases"].append({**own, "loss": loss_of(case), "expected": expected, "range": [low, high]})
    found["holds"] = found["left_out"]["all"]["runs_in_range"] >= MUST_HOLD
    return found


def printed(found: dict[str, Any]) -> str:
    """Return the tables for people."""
    lines = ["AUROC lost to privacy, measured (mean of draws) / foretold by the shipped constants"]
    lines.append(f"{'':>23}{'persons':>8}" + "".join(f"{f'epsilon {e:g}':>15}" for e in EPSILONS))
    lines_of: dict[tuple[Any, ...], dict[float, str]] = {}
    for case in found["cases"]:
        layout = "" if case["holders"] == 1 else f" x{case['holders']} {case['trust'][:5]}"
        cells = lines_of.setdefault((case["data"] + layout, case["persons"]), {})
        cells[case["epsilon"]] = f"{case['loss']:.3f} / {case['expected']:.3f}"
    for (name, persons), cells in lines_of.items():
        lines.append(f"{name:>23}{persons:>8}" + "".join(f"{cells.get(e, ''):>15}" for e in EPSILONS))
    lines.append("")
    lines.append(
        f"{'mean absolute error':>42}{'from 10,000':>13}{'bias':>9}{'within .01':>12}{'in range':>10}"
    )
    for way in ("shipped", "left_out"):
        for family, row in found[way].items():
            lines.append(
                f"{way.replace('_', ' '):>10} {family:>12}{row['mean_absolute_error']:>19.4f}"
                f"{row['mean_absolute_error_from_10000_persons']:>13.4f}{row['bias']:>+9.4f}"
                f"{row['within_001']:>12.0%}{row['runs_in_range']:>10.0%}"
            )
    lines.append(f"fitted to all families: {json.dumps(found['refit'])}")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, run, print; ends with 1 where too few runs are in the range left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few persons, three epsilons, one draw")
    parser.add_argument("--save", type=Path, help="write what was measured, one JSON object a line")
    parser.add_argument("--from", dest="saved", type=Path, nargs="+", help="compare what was saved")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # Opacus warns that it is not in secure mode
    logging.disable(logging.WARNING)
    if options.saved:
        rows = [json.loads(line) for path in options.saved for line in path.read_text().splitlines()]
    else:
        rows = kept(
            measure(QUICK, EPSILONS[::2]) if options.quick else measure(DRAWS, EPSILONS), options.save
        )
    found = report(rows)
    print(json.dumps(found) if options.json else printed(found))
    sys.exit(0 if found["holds"] else 1)


if __name__ == "__main__":
    main()
