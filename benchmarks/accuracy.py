"""How much accuracy distributed training costs against pooling all records in one place, on real data.

Run: python benchmarks/accuracy.py [--seeds 10] [--epsilon 0.5 --epsilon 1 ...] [--json]

The bundled Taiwan records: 30,000 persons, one row each. For every seed, 6,000 of them are held out and the
rest is spread at random over 10 holders; on this split, for every epsilon and at delta 1e-6, two trainings:

federated  as `assay simulate` does it, trust "distributed", one tolerated holder: every holder adds its share
           of the noise, and the masked numbers are added up
pooled     one holder with all 24,000 records and its full noise: differential privacy with a trusted curator

Both train the same study by the same code, so what differs is the noise: each of 10 holders adds 1/9 of its
variance, because one of them may not count, so their sum has 10/9 of what pooling adds. The noise has no
seed; standard errors are over seeds, of splits and noise together. Works offline.
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
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")

from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.encoding import Grid
from assay.models.study import parse_study, read_study
from assay.simulations.comparison import evaluate, pool, records_at, scorecard_of
from assay.simulations.engine import federate, with_epsilon, with_trust
from assay.simulations.examples import example
from assay.simulations.partition import hold_out, split
from assay.simulations.simulate import source_of

HOLDERS, TEST_FRACTION = 10, 0.2
EPSILONS = (0.5, 1.0, 2.0, 4.0)
# What the model must reach at these epsilons, and how far the means may lie apart.
LEAST = {0.5: 0.770, 1.0: 0.775, 2.0: 0.778, 4.0: 0.780}
MOST_APART = 0.002

Holders = dict[str, Records]


def tell(words: str) -> None:
    """Say on stderr what is being done."""
    print(words, file=sys.stderr, flush=True)


def split_of(records: Records, seed: int) -> tuple[Holders, Records]:
    """Return the holders' records and the held-out ones; both trainings of a seed are given these."""
    train, held = hold_out(rows=records.rows, persons=records.persons, fraction=TEST_FRACTION, seed=seed)
    kept = records_at(records, train)
    parts = split("iid", holders=HOLDERS, labels=kept.labels, persons=kept.persons, seed=seed)
    holders = {f"holder-{n:02d}": records_at(kept, part.rows) for n, part in enumerate(parts, start=1)}
    return holders, records_at(records, held)


def auroc_of(text: str, holders: Holders, test: Records) -> float:
    """Train once and measure on the held-out records."""
    return evaluate(scorecard_of(federate(text, holders)), test).metrics.auroc


def measure(text: str, epsilons: list[float], seeds: int) -> list[dict[str, Any]]:
    """Train everything; one row per epsilon."""
    with open_source(source_of(example("taiwan") / "taiwan_credit.csv.gz")) as source:
        records = load_records(source, parse_study(text))
    found: dict[float, dict[str, list[float]]] = {e: {"federated": [], "pooled": []} for e in epsilons}
    for seed in range(seeds):
        holders, test = split_of(records, seed)
        everything = {"pooled": pool(list(holders.values()), Grid.of(parse_study(text)))}
        for epsilon in epsilons:
            start, private = time.monotonic(), with_epsilon(text, epsilon)
            federated = auroc_of(with_trust(private, "distributed"), holders, test)
            pooled = auroc_of(with_trust(private, "local"), everything, test)
            found[epsilon]["federated"].append(federated)
            found[epsilon]["pooled"].append(pooled)
            tell(
                f"seed {seed}, epsilon {epsilon:g}: federated {federated:.4f}, pooled {pooled:.4f}"
                f"  ({time.monotonic() - start:.0f} s)"
            )
    return [summary(epsilon, **aurocs) for epsilon, aurocs in found.items()]


def summary(epsilon: float, *, federated: list[float], pooled: list[float]) -> dict[str, Any]:
    """Return means, standard errors, and whether they are what they must be."""
    difference = statistics.mean(federated) - statistics.mean(pooled)
    return {
        "epsilon": epsilon,
        "federated": statistics.mean(federated),
        "federated_error": error_of(federated),
        "pooled": statistics.mean(pooled),
        "pooled_error": error_of(pooled),
        "difference": difference,
        "difference_error": error_of([a - b for a, b in zip(federated, pooled, strict=True)]),
        "least": LEAST.get(epsilon),
        "holds": abs(difference) <= MOST_APART and statistics.mean(federated) >= LEAST.get(epsilon, 0.0),
        "by_seed": {"federated": federated, "pooled": pooled},
    }


def error_of(values: list[float]) -> float:
    """Return the standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def printed(rows: list[dict[str, Any]], seeds: int) -> str:
    """Return the table for people."""
    lines = [
        f"AUROC on held-out records, mean and standard error of {seeds} splits; {HOLDERS} holders",
        f"{'epsilon':>8}{'distributed':>19}{'pooled':>19}{'difference':>20}{'at least':>10}",
    ]
    for row in rows:
        least = "" if row["least"] is None else f"{row['least']:.3f}"
        lines.append(
            f"{row['epsilon']:>8g}"
            f"{row['federated']:>10.4f} ± {row['federated_error']:.4f}"
            f"{row['pooled']:>10.4f} ± {row['pooled_error']:.4f}"
            f"{row['difference']:>+11.4f} ± {row['difference_error']:.4f}"
            f"{least:>10}{'' if row['holds'] else '  MISSED'}"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, run, print; ends with 1 where a number is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epsilon", type=float, action="append", help="default: 0.5, 1, 2 and 4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.seeds >= 2:
        parser.error("--seeds is 2 or more: there is no standard error of one")
    warnings.filterwarnings("ignore")  # Opacus warns that it is not in secure mode
    logging.disable(logging.WARNING)
    text = read_study(example("taiwan") / "study.toml").text
    rows = measure(text, list(dict.fromkeys(options.epsilon or EPSILONS)), options.seeds)
    if options.json:
        facts = {"holders": HOLDERS, "seeds": options.seeds, "delta": 1e-6}
        print(json.dumps({**facts, "results": rows}))
    else:
        print(printed(rows, options.seeds))
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
