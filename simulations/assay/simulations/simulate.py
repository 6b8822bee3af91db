"""``assay simulate``: one study with N holders in one process, at one or several epsilons."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.client.records import Records, load_records
from assay.client.sources import DataSource, open_source
from assay.models.encoding import Grid
from assay.models.schema import Study
from assay.models.study import parse_study, read_study
from assay.privacy.errors import BadInput
from assay.privacy.files import make_private_dir
from assay.server.publish import publish
from assay.simulations.comparison import evaluate, records_at, scorecard_of, train_baselines
from assay.simulations.engine import federate, with_epsilon, with_model
from assay.simulations.findings import HolderLine, Trust
from assay.simulations.holding import hold_all
from assay.simulations.partition import Partition, hold_out, split
from assay.simulations.summary import summarise

__all__ = ["Simulation", "require_new", "source_of"]

_KIND_BY_SUFFIX = {".csv": "csv", ".gz": "csv", ".parquet": "parquet"}
Step = Callable[[str], None]


def source_of(path: Path) -> DataSource:
    """Return the data source for a CSV or Parquet file.

    Raises:
        BadInput: the file's name ends otherwise.
    """
    kind = _KIND_BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise BadInput("data file", value=path.name, allowed="a name ending in .csv, .csv.gz or .parquet")
    return DataSource(kind=kind, path=str(path.resolve()), directory=path.resolve().parent)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate.

    Attributes:
        study: path of the study file.
        data: records to spread over the holders.
        test: held-out records, or None: a share of ``data``.
        test_fraction: that share.
        holders: number of holders.
        partition: see :func:`assay.simulations.partition.split`.
        epsilons: privacy targets to run, or empty: the study's own.
        seed: decides hold-out and partition, never noise.
        out: directory for bundles and reports; new or empty.
    """

    study: Path
    data: Path
    test: Path | None
    test_fraction: float
    holders: int
    partition: str
    epsilons: tuple[float, ...]
    seed: int
    out: Path

    def run(self, step: Step) -> dict[str, Any]:
        """Simulate and write bundles and reports.

        Args:
            step: called with words as the work goes on.

        Returns:
            The JSON of ``assay simulate``.

        Raises:
            BadInput: study, data, partition or an epsilon is not what it must be; nothing is written.
            Refused: the study's trust needs more holders (code ``"holders"``); nothing is read or written.
        """
        text = read_study(self.study).text
        texts = [with_epsilon(text, e) for e in self.epsilons] or [text]
        for each in texts:
            checked = parse_study(each, where=str(self.study))
            Partition.parse(self.partition).require(checked, self.holders)
            checked.require_holders(self.holders)
        require_new(self.out)
        step("reading records")
        holders, test = self._records(parse_study(text))
        make_private_dir(self.out)
        results = [self._one(each, holders, test, step) for each in texts]
        return results[0] if len(results) == 1 else {"results": results}

    def _records(self, study: Study) -> tuple[dict[str, Records], Records]:
        with open_source(source_of(self.data)) as source:
            records = load_records(source, study)
            column = Partition.parse(self.partition).read(source, records.rows)
        train = np.arange(records.rows)
        if self.test is not None:
            with open_source(source_of(self.test)) as source:
                test = load_records(source, study)
        else:
            train, held = hold_out(
                rows=records.rows, persons=records.persons, fraction=self.test_fraction, seed=self.seed
            )
            test = records_at(records, held)
        _require_both_outcomes(test)
        grid = Grid.of(study)
        kept = records_at(records, train)
        parts = split(
            self.partition,
            holders=self.holders,
            labels=kept.labels,
            persons=kept.persons,
            column=None if column is None else column[train],
            components=grid.components_of(grid.pattern_of(kept.columns)),
            seed=self.seed,
        )
        width = len(str(self.holders))
        held = hold_all(kept, parts, grid)
        return {f"holder-{i:0{width}d}": own for i, own in enumerate(held, start=1)}, test

    def _one(self, text: str, holders: dict[str, Records], test: Records, step: Step) -> dict[str, Any]:
        study = parse_study(text)
        epsilon = study.privacy.epsilon
        start = time.monotonic()
        done = federate(
            with_model(text, "additive"),
            holders,
            report=lambda p: step(f"epsilon {epsilon:g}: federated, round {p.round}/{p.rounds}"),
        )
        seconds = time.monotonic() - start
        federated = evaluate(scorecard_of(done), test)
        baselines = train_baselines(
            text, holders, test, step=lambda what: step(f"epsilon {epsilon:g}: {what}")
        )
        stem = f"{study.name}-epsilon-{epsilon:g}" if self.epsilons else study.name
        bundle, report = self.out / f"{stem}.bundle", self.out / f"{stem}.html"
        label = publish(
            bundle,
            study=done.study,
            trained=done.trained,
            identity=done.identity,
            created=time.time(),
            metrics=asdict(federated.metrics),
        )
        lines = tuple(
            HolderLine(
                name=name,
                rows=holders[name].rows,
                epsilon_spent=done.spent[name],
                epsilon_limit=epsilon,
                local_auroc=baselines.local[name].metrics.auroc,
            )
            for name in holders
        )
        summarise(
            report,
            title=f"Simulation of {study.name} with {len(holders)} holders",
            study=study,
            bundle=bundle,
            holders=lines,
            federated=federated,
            baselines=baselines,
            test=test,
            rounds=done.trained.rounds,
            seconds=seconds,
            notes=(
                f"{test.rows:,} held-out records: "
                + (
                    f"{self.test.name}."
                    if self.test
                    else f"a random {self.test_fraction:.0%} of {self.data.name}."
                ),
                f"Records are spread over the holders by: {self.partition}; seed {self.seed}.",
                "The noise has no seed: a second run gives slightly different numbers.",
            ),
        )
        return {
            **asdict(federated.metrics),
            "epsilon": epsilon,
            "delta": study.privacy.delta,
            **Trust.of(label).to_json(),
            "rounds": done.trained.rounds,
            "holders": len(holders),
            "rows": sum(part.rows for part in holders.values()),
            "test_rows": test.rows,
            "seconds": seconds,
            "held": label["held"],
            "audit": {**done.trained.audit, "calibration_step": done.trained.platt.to_json()},
            "bundle": str(bundle),
            "report": str(report),
            "baselines": baselines.to_json(),
        }


def require_new(out: Path) -> None:
    """Refuse a directory that holds anything: results are never overwritten or mixed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(
            "--out", value=str(out), allowed="a new or empty directory", remedy="Choose another one"
        )


def _require_both_outcomes(test: Records) -> None:
    if test.labels.min() == test.labels.max():
        raise BadInput(
            "held-out records",
            allowed="both outcomes",
            remedy="Give more data, another --test or --test-fraction",
        )
