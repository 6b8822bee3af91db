"""Whether pairwise interactions pay for themselves under privacy, on real data.

Run: python benchmarks/interactions.py [--seeds 10] [--epsilon 1 4] [--pairs 0 1 3 5] [--json]
     python benchmarks/interactions.py --declared [--seeds 20] [--epsilon 1] [--json]

The second one measures pairs that a study declares, see `declared.py`. The first one:

The bundled Taiwan records, 6,000 of them held out for every seed. The additive model is trained with and
without pairs by the product's own fit: one place with all records, full-batch gradients, central Gaussian
noise at the cost that a run of the study has. A pair of features is one more feature whose 16 cells are
products of 4 coarse hat functions of each, and a 17th for values that are missing: it adds 1 to the squared
norm of every row, and with it noise to all cells. Which pairs, is decided in two ways:

oracle   without privacy, on the training records, by what each adds to the likelihood. Nobody could do this:
         it says what pairs would gain if the choice were free. (Chosen one after the other, each given those
         before, pairs gain less on held-out records)
private  by the noisy sum, over all pairs, of residual times product of the centred values; a fifth of the
         budget goes there. Still flattered: residuals, means and clip norm come from the records without
         privacy

Gains are against no pair with the same split and, where both have it, the same noise; standard errors are
over seeds. The noise has a seed, so that it can be shared: no model that is trained here may leave.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

import numpy as np
from declared import measure_declared, printed_declared
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from assay.client.records import load_records
from assay.client.sources import open_source
from assay.models.encoding import Encoded, Grid
from assay.models.fitting import Fit, default_rounds
from assay.models.metrics import auroc
from assay.models.schema import Feature, Study
from assay.models.study import read_study
from assay.privacy.accounting import PrivacyTarget, RunCost
from assay.simulations.examples import example
from assay.simulations.partition import hold_out
from assay.simulations.simulate import source_of

TEST_FRACTION, DELTA = 0.2, 1e-6
COARSE = 4  # hat functions per feature of a pair
DRAWS = 3  # of the noise, for every seed
FREE_ROUNDS = 120  # without noise, as assay.simulations.unprotected has them
RIDGE = 5.0  # persons; of the Newton step that says what a pair would add
# Of the private choice: share of mu^2, and clip norm (one person in a hundred has more). Of five clip norms
# with raw, centred or standardised products, none finds pairs that add more (epsilon 1, first split).
CHOICE_SHARE, CHOICE_CLIP = 0.2, 4.2

Vector = NDArray[np.float64]
Pair = tuple[int, int]
Noise = Callable[[int], Vector]
Key = tuple[str, int, float | None]  # choice, number of pairs, epsilon; None: without privacy


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a split: design [N, grid.width], labels [N], places in the domain [N, F], NaN = missing."""

    design: Any
    labels: Vector
    places: Vector


def tell(words: str) -> None:
    """Say on stderr what is being done."""
    print(words, file=sys.stderr, flush=True)


def side_of(grid: Grid, encoded: Encoded, labels: Vector) -> Side:
    """Lay the records out; every row has all components."""
    rows, features = encoded.low.shape
    row = np.arange(rows)
    each = np.repeat(row, features)
    low, upper = encoded.low.ravel(), encoded.upper.ravel().astype(np.float64)
    intercept = grid.size + encoded.pattern - 1
    weights = np.concatenate([1 - upper, upper, np.ones(rows)])
    cells = np.concatenate([low, np.minimum(low + 1, grid.size - 1), intercept])
    design = sparse.csr_matrix((weights, (np.concatenate([each, each, row]), cells)), (rows, grid.width))
    design.eliminate_zeros()
    # Levels of a categorical feature are taken in the order in which the study lists them, "other" last.
    last = np.array([(feature.ordered or feature.cells - 1) - 1 for feature in grid.features])
    places = (encoded.low - grid.offsets[:-1] + encoded.upper) / last
    places[encoded.low == [feature.missing for feature in grid.features]] = np.nan
    return Side(design=design, labels=labels, places=places)


def crossed(side: Side, pair: Pair) -> Vector:
    """Return the cells of a pair, [N, COARSE^2]: none for a row in which a feature is missing."""
    knots = np.arange(COARSE)
    first, second = (
        np.nan_to_num(np.maximum(0.0, 1 - np.abs(side.places[:, [j]] * (COARSE - 1) - knots))) for j in pair
    )
    cells: Vector = (first[:, :, None] * second[:, None, :]).reshape(len(first), -1)
    return cells


def with_pairs(study: Study, side: Side, pairs: list[Pair]) -> tuple[Study, Side]:
    """Return study and records with one more feature for each pair."""
    levels = tuple(str(cell) for cell in range(COARSE**2 - 1))  # "other" and "missing" come on top
    more = [
        Feature(
            name=f"pair_{n}",
            column=f"pair {n}",
            label="Pair",
            component=study.features[0].component,
            kind="categorical",
            levels=levels,
        )
        for n in range(len(pairs))
    ]
    cells = [crossed(side, pair) for pair in pairs]
    blocks = [np.column_stack([each, np.maximum(0.0, 1 - each.sum(axis=1))]) for each in cells]
    size = Grid.of(study).size
    design = sparse.hstack([side.design[:, :size], *map(sparse.csr_matrix, blocks), side.design[:, size:]])
    return replace(study, features=(*study.features, *more)), replace(side, design=design.tocsr())


def paired_noise(seed: int, draw: int, grid: Grid) -> Noise:
    """Return standard normal noise of which models with pairs share all that ``grid`` without them has."""
    shared, own = (np.random.default_rng([seed, draw, which]) for which in range(2))

    def noise(width: int) -> Vector:
        common, more = shared.normal(size=grid.width), own.normal(size=width - grid.width)
        return np.concatenate([common[: grid.size], more, common[grid.size :]])

    return noise


def cost_of(epsilon: float, share: float) -> RunCost:
    """Return the cost of a run that has a share of the budget of ``epsilon``."""
    target = PrivacyTarget(epsilon=epsilon, delta=DELTA, trust="local")
    return RunCost(target=target, mu2=target.mu**2 * share)


def train(study: Study, side: Side, cost: RunCost | None = None, noise: Noise = np.zeros) -> Vector:
    """Fit as a run does, with clipping and noise; without both where ``cost`` is None."""
    grid, persons, rounds, clip, noise_std = Grid.of(study), len(side.labels), FREE_ROUNDS, math.inf, 0.0
    counts = np.asarray(side.design.sum(axis=0)).ravel()
    if cost is not None:
        rounds = default_rounds(epsilon=cost.target.epsilon, persons=persons, holders=1)
        counts += cost.counts.noise_multiplier * grid.sensitivity * noise(grid.width)
        clip = grid.gradient_clip_norm
        noise_std = cost.gradient(rounds).noise_multiplier * clip
    norms = np.sqrt(np.asarray(side.design.multiply(side.design).sum(axis=1)).ravel())
    backward = side.design.T.tocsr()
    fit = Fit(grid, counts=counts, gradient_noise_std=noise_std, rounds=rounds, patterns=(grid.patterns,))
    while fit.done < rounds:
        residuals = expit(side.design @ fit.theta) - side.labels
        residuals *= np.minimum(1.0, clip / np.maximum(np.abs(residuals) * norms, 1e-9))
        fit.update(backward @ residuals + noise_std * noise(grid.width))
    return fit.result(study)


def gain_of(cells: Vector, residuals: Vector, variances: Vector) -> float:
    """Return what one Newton step on the cells of a pair adds to the log-likelihood, doubled."""
    gradient = cells.T @ residuals
    curvature = (cells * variances[:, None]).T @ cells + RIDGE * np.eye(cells.shape[1])
    return float(gradient @ np.linalg.solve(curvature, gradient))


def oracle_pairs(side: Side, risks: Vector) -> list[Pair]:
    """Rank all pairs without privacy, by what each adds to the model that has none."""
    residuals, variances = side.labels - risks, risks * (1 - risks)
    pairs = combinations(range(side.places.shape[1]), 2)
    gains = {pair: gain_of(crossed(side, pair), residuals, variances) for pair in pairs}
    return sorted(gains, key=gains.__getitem__, reverse=True)


def private_pairs(side: Side, residuals: Vector, epsilon: float, rng: np.random.Generator) -> list[Pair]:
    """Rank all pairs by one noisy sum of residual times product, each person's part clipped."""
    pairs = list(combinations(range(side.places.shape[1]), 2))
    centred = np.nan_to_num(2 * (side.places - np.nanmean(side.places, axis=0)))
    parts = residuals[:, None] * np.stack([centred[:, a] * centred[:, b] for a, b in pairs], axis=1)
    parts *= np.minimum(1.0, CHOICE_CLIP / np.maximum(np.linalg.norm(parts, axis=1), 1e-9))[:, None]
    noise_std = CHOICE_CLIP / math.sqrt(cost_of(epsilon, CHOICE_SHARE).mu2)
    sums = parts.sum(axis=0) + rng.normal(scale=noise_std, size=len(pairs))
    return [pairs[n] for n in np.argsort(-np.abs(sums))]


def measure_seed(
    study: Study, sides: tuple[Side, Side], seed: int, options: argparse.Namespace
) -> dict[Key, float]:
    """Return the AUROC of every choice, number of pairs and epsilon, mean over draws of the noise."""
    (learn, test), grid = sides, Grid.of(study)
    risks = expit(learn.design @ train(study, learn))
    best = oracle_pairs(learn, risks)

    def score(pairs: list[Pair], cost: RunCost | None, noise: Noise = np.zeros) -> float:
        wider, laid = with_pairs(study, learn, pairs)
        theta = train(wider, laid, cost, noise)
        return auroc(test.labels, expit(with_pairs(study, test, pairs)[1].design @ theta))

    found: dict[Key, list[float]] = {}
    for k in options.pairs:
        found["oracle", k, None] = [score(best[:k], None)]
        for epsilon, draw in product(options.epsilon, range(DRAWS)):
            whole, rest = cost_of(epsilon, 1.0), cost_of(epsilon, 1.0 - CHOICE_SHARE)
            noise = paired_noise(seed, draw, grid)
            found.setdefault(("oracle", k, epsilon), []).append(score(best[:k], whole, noise))
            if k:
                rng = np.random.default_rng([seed, draw, 2])
                ranked = private_pairs(learn, risks - learn.labels, epsilon, rng)
                noise = paired_noise(seed, draw, grid)
                found.setdefault(("private", k, epsilon), []).append(score(ranked[:k], rest, noise))
    return {key: statistics.mean(values) for key, values in found.items()}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train everything; one row per choice and number of pairs."""
    study = read_study(example("taiwan") / "study.toml")
    with open_source(source_of(example("taiwan") / "taiwan_credit.csv.gz")) as source:
        records = load_records(source, study)
    grid = Grid.of(study)
    encoded = grid.encode(records.columns)
    found = []
    for seed in range(options.seeds):
        start = time.monotonic()
        split = hold_out(rows=records.rows, persons=records.persons, fraction=TEST_FRACTION, seed=seed)
        learn, test = (side_of(grid, encoded.rows(rows), records.labels[rows]) for rows in split)
        found.append(measure_seed(study, (learn, test), seed, options))
        tell(f"seed {seed}  ({time.monotonic() - start:.0f} s)")
    return [
        summary(way, k, [*options.epsilon, None], found)
        for way in ("oracle", "private")
        for k in options.pairs
        if k or way == "oracle"
    ]


def summary(way: str, k: int, epsilons: list[float | None], found: list[Any]) -> dict[str, Any]:
    """Return one row: AUROC without pairs, or what they add to it."""
    results = []
    for epsilon in epsilons:
        if (way, k, epsilon) not in found[0]:
            continue
        values = [each[way, k, epsilon] - (each["oracle", 0, epsilon] if k else 0.0) for each in found]
        error = statistics.stdev(values) / math.sqrt(len(values))
        name = "gain" if k else "auroc"
        results.append({"epsilon": epsilon, name: statistics.mean(values), "error": error, "by_seed": values})
    return {"choice": way if k else None, "pairs": k, "results": results}


def printed(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the table for people."""
    heads = "".join(f"{f'epsilon {epsilon:g}':>19}" for epsilon in options.epsilon)
    lines = [
        f"AUROC on held-out records, and what pairs add to it; {options.seeds} splits x {DRAWS} noises",
        f"{'choice':<8}{'pairs':>6}{heads}{'without privacy':>19}",
    ]
    for row in rows:
        values = [
            f"{each['gain']:>+10.4f} ± {each['error']:.4f}"
            if "gain" in each
            else f"{each['auroc']:>10.4f} ± {each['error']:.4f}"
            for each in row["results"]
        ]
        lines.append(f"{row['choice'] or '':<8}{row['pairs']:>6}{''.join(values)}")
    return "\n".join(lines)


def declared(options: argparse.Namespace) -> None:
    """Measure pairs that a study declares, and print."""
    warnings.filterwarnings("ignore")  # Opacus warns that it is not in secure mode
    logging.disable(logging.WARNING)
    rows = measure_declared(options.seeds, options.epsilon, tell)
    if options.json:
        print(json.dumps({"seeds": options.seeds, "delta": DELTA, "results": rows}))
    else:
        print(printed_declared(rows, options.seeds))


def chosen(options: argparse.Namespace) -> None:
    """Measure pairs that the records choose, and print."""
    rows = measure(options)
    if options.json:
        print(json.dumps({"seeds": options.seeds, "draws": DRAWS, "delta": DELTA, "results": rows}))
    else:
        print(printed(rows, options))


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[0, 1, 3, 5], help="0 is always measured")
    parser.add_argument(
        "--declared", action="store_true", help="pairs that a study declares, as it is trained"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.seeds >= 2:
        parser.error("--seeds is 2 or more: there is no standard error of one")
    if not min(options.pairs) >= 0:
        parser.error("--pairs are 0 or more")
    options.pairs = sorted({0, *options.pairs})
    (declared if options.declared else chosen)(options)


if __name__ == "__main__":
    main()
