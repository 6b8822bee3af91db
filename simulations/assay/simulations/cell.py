"""One cell of a simulation: one number of holders, one epsilon and one seed, trained and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.models import metrics
from assay.models.label import label_in_words
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.server.publish import publish
from assay.simulations.baselines import train_alone
from assay.simulations.canaries import audit_by_canaries
from assay.simulations.comparison import Baselines, Evaluation, evaluate, network_metrics, scorecard_of
from assay.simulations.dataset import Layout
from assay.simulations.engine import Federated, federate, with_model
from assay.simulations.faults import Faults
from assay.simulations.findings import HolderLine, Trust
from assay.simulations.grouping import group_rows
from assay.simulations.injection import effect_of
from assay.simulations.summary import summarise
from assay.simulations.tallies import wilson

__all__ = ["Cell", "How", "simulate_cell"]

Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """Which run of a sweep.

    Attributes:
        holders: number of holders.
        epsilon: privacy target of one person over the run.
        seed: decides hold-out and layout, never noise.
    """

    holders: int
    epsilon: float
    seed: int

    @property
    def key(self) -> str:
        """What its files are named after."""
        return f"h{self.holders}-e{self.epsilon:g}-s{self.seed}"

    @property
    def words(self) -> str:
        """The cell in words."""
        people = f"{self.holders:,} holder{'s' if self.holders > 1 else ''}"
        return f"{people}, epsilon {self.epsilon:g}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class How:
    """What is the same in all cells.

    Attributes:
        engine: see :func:`assay.simulations.engine.federate`.
        partition: who holds whom, as the option says it.
        partition_words: the same in words.
        faults: what goes wrong; None: nothing.
        canaries: made-up persons for an attack on a second run; 0: no attack.
        tested_on: where the held-out records come from, in words.
    """

    engine: str
    partition: str
    partition_words: str
    faults: Faults | None
    canaries: int
    tested_on: str


def simulate_cell(
    text: str,
    cell: Cell,
    layout: Layout,
    how: How,
    *,
    pooled: Scorecard,
    unprotected: Scorecard,
    bundle: Path,
    report: Path,
    step: Step = lambda _: None,
) -> dict[str, Any]:
    """Train and measure one cell, and write its bundle and its report.

    Args:
        text: the study at the cell's epsilon.
        cell: which cell.
        layout: who holds what, and the held-out records.
        how: what is the same in all cells.
        pooled: trained in one place at the same epsilon.
        unprotected: trained in one place without privacy.
        bundle: where the signed model goes.
        report: where the HTML report goes.
        step: called with words as the work goes on.

    Returns:
        The cell as JSON, see ``docs/simulations.md``.

    Raises:
        EndedByFaults: the faults that were asked for ended the run without a model.
    """
    start = time.monotonic()
    done = federate(
        with_model(text, "additive"),
        layout.holders,
        engine=how.engine,
        report=lambda p: step(f"federated, {f'round {p.round}/{p.rounds}' if p.kind == 'round' else p.kind}"),
        faults=how.faults,
    )
    seconds = time.monotonic() - start
    federated = evaluate(scorecard_of(done), layout.test)
    baselines = _baselines(text, cell, layout, pooled, unprotected, step)
    label = publish(
        bundle,
        study=done.study,
        trained=done.trained,
        identity=done.identity,
        created=time.time(),
        metrics=asdict(federated.metrics),
    )
    _report(report, text, cell, layout, how, done, federated, baselines, bundle, seconds)
    return {
        **asdict(federated.metrics),
        **_setting(cell, layout, how, done),
        **Trust.of(label).to_json(),
        "seconds": seconds,
        "spent_epsilon": max(done.spent.values()),
        "held": label.pop("held"),
        "audit": {**done.trained.audit, "calibration_step": done.trained.platt.to_json()},
        "ece": metrics.expected_calibration_error(layout.test.labels, federated.scores.probability),
        "baselines": {**baselines.to_json(), "bayes_auroc": _bayes(layout)},
        "local": _local(layout, baselines),
        "groups": group_rows(
            layout.groups,
            layout.test.labels,
            private=federated.scores,
            unprotected=baselines.unprotected.scores,
            threshold=done.study.scale.threshold,
        ),
        "calibration": _calibration(federated, layout),
        "label": label_in_words(label),
        "label_epsilon": label["epsilon"],
        "canaries": _canaries(text, cell, layout, how, step),
        "faults": _faults(text, layout, done, federated, step),
        "bundle": str(bundle),
        "report": str(report),
    }


def _baselines(
    text: str, cell: Cell, layout: Layout, pooled: Scorecard, unprotected: Scorecard, step: Step
) -> Baselines:
    neural = None
    if parse_study(text).training.model == "neural":
        step("neural network, together")
        neural = network_metrics(text, layout.holders, layout.test)
    return Baselines(
        local=train_alone(text, layout.holders, layout.test, seed=cell.seed, step=step),
        pooled=evaluate(pooled, layout.test),
        unprotected=evaluate(unprotected, layout.test),
        neural=neural,
    )


def _setting(cell: Cell, layout: Layout, how: How, done: Federated) -> dict[str, Any]:
    return {
        "study": done.study.name,
        "outcome": done.study.outcome.meaning,
        "holders": cell.holders,
        "epsilon": cell.epsilon,
        "seed": cell.seed,
        "delta": done.study.privacy.delta,
        "engine": how.engine,
        "partition": how.partition,
        "partition_words": how.partition_words,
        "rounds": done.trained.rounds,
        "rows": sum(own.rows for own in layout.holders.values()),
        "test_rows": layout.test.rows,
    }


def _local(layout: Layout, baselines: Baselines) -> list[dict[str, Any]]:
    """Every holder with the AUROC of its own model, None where it was not trained alone."""
    alone = baselines.local
    return [
        {
            "name": name,
            "rows": own.rows,
            "auroc": alone[name].metrics.auroc if name in alone else None,
        }
        for name, own in layout.holders.items()
    ]


def _calibration(federated: Evaluation, layout: Layout) -> list[dict[str, Any]]:
    rows = metrics.calibration(layout.test.labels, federated.scores.probability)
    ends = [wilson(row["observed"], row["rows"]) for row in rows]
    return [{**row, "low": low, "high": high} for row, (low, high) in zip(rows, ends, strict=True)]


def _bayes(layout: Layout) -> float | None:
    """AUROC of the true risk on the held-out records, mislabelled ones included: what no model can beat."""
    return None if layout.risk is None else metrics.auroc(layout.test.labels, layout.risk)


def _canaries(text: str, cell: Cell, layout: Layout, how: How, step: Step) -> dict[str, Any] | None:
    if not how.canaries:
        return None
    step(f"a second run with {how.canaries} made-up persons, attacked")
    return audit_by_canaries(
        with_model(text, "additive"),
        layout.holders,
        canaries=how.canaries,
        seed=cell.seed,
        engine=how.engine,
    )


def _faults(
    text: str, layout: Layout, done: Federated, federated: Evaluation, step: Step
) -> dict[str, Any] | None:
    """What was injected and what came of it, beside a run with other noise and without faults."""
    if done.faults is None:
        return None
    step("the same without faults")
    # The engines give the same model; this one is the quickest.
    clean = evaluate(
        scorecard_of(federate(with_model(text, "additive"), layout.holders, engine="fast")), layout.test
    )
    return effect_of(done.faults, auroc=federated.metrics.auroc, clean_auroc=clean.metrics.auroc)


def _report(
    path: Path,
    text: str,
    cell: Cell,
    layout: Layout,
    how: How,
    done: Federated,
    federated: Evaluation,
    baselines: Baselines,
    bundle: Path,
    seconds: float,
) -> None:
    study, alone = parse_study(text), baselines.local
    lines = tuple(
        HolderLine(
            name=name,
            rows=own.rows,
            epsilon_spent=done.spent[name],
            epsilon_limit=cell.epsilon,
            local_auroc=alone[name].metrics.auroc if name in alone else None,
        )
        for name, own in layout.holders.items()
    )
    notes = [
        f"{layout.test.rows:,} held-out records: {how.tested_on}.",
        f"Records are spread over the holders {how.partition_words}; seed {cell.seed}.",
        "The noise has no seed: a second run gives slightly different numbers.",
    ]
    if len(alone) < len(layout.holders):
        notes.append(
            f"{len(alone):,} of {len(layout.holders):,} holders were trained alone: at most 30, spread over"
            " the sizes, and none with a single outcome."
        )
    summarise(
        path,
        title=f"Simulation of {study.name} with {len(layout.holders)} holders",
        study=study,
        bundle=bundle,
        holders=lines,
        federated=federated,
        baselines=baselines,
        test=layout.test,
        rounds=done.trained.rounds,
        seconds=seconds,
        notes=tuple(notes),
    )
