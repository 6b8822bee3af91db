"""How accurate Assay's scores are, against other models with and without privacy.

Run: python benchmarks/models.py [--seeds 5] [--epsilon 1] [--data taiwan ...] [--only dp-ebm ...] [--json]

Needs other people's models: python -m pip install '.[bench]'. Works offline, on one thread.

For every data set (`worlds.py`) and seed, all models get the same records, and the private ones the same
epsilon at delta 1e-6:

assay             ten holders, trust "distributed", one of them tolerated
assay-pooled      one holder with everything: what a trusted curator would get
assay-components  ten holders that have different components of their own people (three A, three B, two A and
                  B, two everything; A payment history, B spending, C the rest); measured on people of whom
                  everything is known
dp-ebm ...        the peers, see `peers.py`; they have all records in one place
true risk         where the data are generated: the best that anybody can expect

Claims are checked at epsilon 1 and marked where missed; the script then ends with exit code 1. Noise has no
seed: means and standard errors are over seeds, of people and noise together.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")

from accuracy import HOLDERS, error_of, tell
from numpy.typing import NDArray
from peers import DELTA, PEERS, lacking
from worlds import WORLDS, Split, World, in_parts

from assay.client.records import Records
from assay.models.encoding import Grid
from assay.models.metrics import auroc, expected_calibration_error, log_loss
from assay.models.study import parse_study
from assay.simulations.comparison import evaluate, pool, scorecard_of
from assay.simulations.engine import federate, with_epsilon, with_trust

ASSAY = ("assay", "assay-pooled", "assay-components")
MODELS = (*ASSAY, *PEERS)
# What is left out by default except on the Taiwan records, where it takes longest or says least.
ONLY_TAIWAN = ("assay-pooled", "ebm")
TRUTH = "true risk"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one model did with one seed's records."""

    auroc: float
    ece: float
    log_loss: float
    seconds: float

    @classmethod
    def of(cls, test: Records, chances: NDArray[Any], seconds: float) -> Found:
        """Measure probabilities of bad on held-out records; ece has ten bins of equal counts."""
        return cls(
            auroc=auroc(test.labels, chances),
            ece=expected_calibration_error(test.labels, chances),
            log_loss=log_loss(test.labels, chances),
            seconds=seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one data set, in its best setting."""

    data: str
    model: str
    setting: str
    private: bool
    by_seed: tuple[Found, ...]

    def mean(self, what: str) -> float:
        """Return the mean of one measure over seeds."""
        return statistics.mean(getattr(found, what) for found in self.by_seed)

    def error(self, what: str) -> float:
        """Return its standard error."""
        return error_of([getattr(found, what) for found in self.by_seed])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing that must hold: ``value``, a mean over seeds, is at least or at most ``bound``."""

    data: str
    words: str
    value: float
    bound: float
    at_least: bool
    error: float

    @property
    def holds(self) -> bool:
        """False for NaN too."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def settings_of(model: str, world: World, epsilon: float) -> dict[str, Callable[[Split], Any]]:
    """Return functions from a split to probabilities of the held-out, by setting."""
    study = parse_study(world.text)
    grid = Grid.of(study)
    if model in PEERS:
        return {
            words: lambda split, fit=fit: fit(
                study, pool(list(split.holders.values()), grid), split.test, epsilon
            )
            for words, fit in PEERS[model].settings.items()
        }
    text = with_trust(
        with_epsilon(world.text, epsilon), "local" if model == "assay-pooled" else "distributed"
    )

    def run(split: Split) -> Any:
        holders = split.holders
        if model == "assay-pooled":
            holders = {"pooled": pool(list(holders.values()), grid)}
        elif model == "assay-components":
            holders = in_parts(study, holders)
        return evaluate(scorecard_of(federate(text, holders, engine="fast")), split.test).scores.probability

    return {"defaults": run}


def measure(world: World, models: list[str], *, epsilon: float, seeds: int) -> list[Row]:
    """Train everything on one data set; one row per model, and one of the true risk where it is known."""
    chosen = {model: settings_of(model, world, epsilon) for model in models}
    found: dict[tuple[str, str], list[Found]] = {}
    for seed in range(seeds):
        split = world.draw(seed)
        for model, settings in chosen.items():
            for words, fit in settings.items():
                start = time.monotonic()
                result = Found.of(split.test, fit(split), time.monotonic() - start)
                found.setdefault((model, words), []).append(result)
            best = max(found[model, words][-1].auroc for words in settings)
            tell(f"{world.name}, seed {seed}, {model}: {best:.4f}")
        if split.risk is not None:
            found.setdefault((TRUTH, ""), []).append(Found.of(split.test, split.risk, 0.0))
    rows = [
        Row(
            data=world.name,
            model=model,
            setting=setting,
            private=model in ASSAY or (model in PEERS and PEERS[model].private),
            by_seed=tuple(results),
        )
        for (model, setting), results in found.items()
    ]
    return [
        best_of([row for row in rows if row.model == model]) for model in dict.fromkeys(r.model for r in rows)
    ]


def best_of(rows: list[Row]) -> Row:
    """Return the setting with the largest mean AUROC on held-out records."""
    return max(rows, key=lambda row: row.mean("auroc"))


def claims(rows: list[Row]) -> list[Claim]:
    """Return what must hold at epsilon 1 of the models that were run on one data set."""
    by_model = {row.model: row for row in rows}
    ours, made = by_model.get("assay"), []

    def lead(other: str, least: float, words: str) -> None:
        if ours is None or other not in by_model:
            return
        gaps = [a.auroc - b.auroc for a, b in zip(ours.by_seed, by_model[other].by_seed, strict=True)]
        made.append(
            Claim(
                data=ours.data,
                words=words,
                value=statistics.mean(gaps),
                bound=least,
                at_least=True,
                error=error_of(gaps),
            )
        )

    if ours is not None and ours.data == "taiwan":
        lead("dp-ebm", 0.015, "AUROC less that of DP-EBM as shipped")
        lead("dp-ebm-tuned", 0.0, "AUROC less that of DP-EBM tuned")
        lead("lightgbm", -0.005, "AUROC less that of LightGBM as shipped, without privacy")
        made.append(
            Claim(
                data=ours.data,
                words="expected calibration error",
                value=ours.mean("ece"),
                bound=0.02,
                at_least=False,
                error=ours.error("ece"),
            )
        )
    elif {"ebm-additive", "logistic"} <= by_model.keys():
        best = best_of([by_model["ebm-additive"], by_model["logistic"]]).model
        lead(best, -0.01, f"AUROC less that of {best}, the best additive model without privacy")
    if ours is not None and "assay-components" in by_model:
        parts = by_model["assay-components"]
        gaps = [a.auroc - b.auroc for a, b in zip(parts.by_seed, ours.by_seed, strict=True)]
        made.append(
            Claim(
                data=ours.data,
                words="AUROC with components at different holders, less with everything at all",
                value=statistics.mean(gaps),
                bound=-0.02,
                at_least=True,
                error=error_of(gaps),
            )
        )
    return made


def printed(rows: list[Row], checked: list[Claim], *, epsilon: float, seeds: int) -> str:
    """Return the tables for people."""
    lines = [
        f"epsilon {epsilon:g}, delta {DELTA:g}; {HOLDERS} holders; {seeds} seeds, mean ± standard error; "
        "* without privacy"
    ]
    for name in dict.fromkeys(row.data for row in rows):
        lines.append(f"{name:<18}{'AUROC':>16}{'ECE':>17}{'log loss':>18}{'s':>8}")
        for row in (row for row in rows if row.data == name):
            star = "" if row.private or row.model == TRUTH else " *"
            lines.append(
                f"  {row.model + star:<18}"
                f"{row.mean('auroc'):>7.4f} ± {row.error('auroc'):.4f}"
                f"{row.mean('ece'):>8.4f} ± {row.error('ece'):.4f}"
                f"{row.mean('log_loss'):>9.4f} ± {row.error('log_loss'):.4f}"
                f"{row.mean('seconds'):>8.1f}"
            )
        tuned = [row for row in rows if row.data == name and row.model.endswith("-tuned")]
        lines += [f"    {row.model}, best of its grid on held-out records: {row.setting}" for row in tuned]
    if checked:
        lines.append("must hold at epsilon 1")
    for claim in checked:
        sign = "at least" if claim.at_least else "at most"
        lines.append(
            f"  {claim.data:<8}{claim.value:>+8.4f} ± {claim.error:.4f}  {sign} {claim.bound:+.3f}  "
            f"{claim.words}{'' if claim.holds else '  MISSED'}"
        )
    return "\n".join(lines)


def as_json(rows: list[Row], checked: list[Claim]) -> dict[str, Any]:
    """Return the same for machines."""
    measures = ("auroc", "ece", "log_loss", "seconds")
    return {
        "results": [
            {
                "data": row.data,
                "model": row.model,
                "setting": row.setting,
                "private": row.private,
                **{what: row.mean(what) for what in measures},
                **{f"{what}_error": row.error(what) for what in measures},
                "by_seed": [asdict(found) for found in row.by_seed],
            }
            for row in rows
        ],
        "claims": [{**asdict(claim), "holds": claim.holds} for claim in checked],
    }


def main() -> None:
    """Read the arguments, run, print; ends with 1 where a claim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--data", nargs="+", choices=tuple(WORLDS), default=list(WORLDS))
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.seeds >= 2:
        parser.error("--seeds is 2 or more: there is no standard error of one")
    if missing := lacking(options.only or list(MODELS)):
        tell(f"not installed: {', '.join(missing)}; run: {sys.executable} -m pip install '.[bench]'")
        sys.exit(2)
    warnings.filterwarnings("ignore")  # Opacus and interpret say what the text above says
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    checked: list[Claim] = []
    for name in dict.fromkeys(options.data):
        default = [model for model in MODELS if name == "taiwan" or model not in ONLY_TAIWAN]
        found = measure(WORLDS[name](), options.only or default, epsilon=options.epsilon, seeds=options.seeds)
        rows += found
        checked += claims(found) if options.epsilon == 1 else []
    if options.json:
        facts = {"epsilon": options.epsilon, "delta": DELTA, "holders": HOLDERS, "seeds": options.seeds}
        print(json.dumps({**facts, **as_json(rows, checked)}))
    else:
        print(printed(rows, checked, epsilon=options.epsilon, seeds=options.seeds))
    sys.exit(0 if all(claim.holds for claim in checked) else 1)


if __name__ == "__main__":
    main()
