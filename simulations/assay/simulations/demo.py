"""``assay demo``: a real coordinator and real holder daemons on this machine, on real credit records.

Everything a federation does happens for real: certificate authority, keys, admission, TLS, Flower, Opacus,
ledgers. The demo only plays all parties at once, which is why it may also measure the model on held-out
records and train the holders' own models for comparison.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from assay.client import enrol
from assay.client.config import CONFIG_FILE, HolderConfig, template
from assay.client.daemon import LEDGER_FILE, records_for
from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.bundle import read_bundle
from assay.models.schema import Study
from assay.models.study import parse_study, read_study
from assay.privacy.enrolment import Request
from assay.privacy.errors import BadInput, Refused, Unavailable
from assay.privacy.files import PRIVATE_FILE, make_private_dir, write_durably
from assay.privacy.ledger import Ledger
from assay.server.admin import AdminClient
from assay.server.cli import follow
from assay.server.federation import Federation
from assay.simulations.comparison import Baselines, Evaluation, evaluate, people_lines, train_baselines
from assay.simulations.engine import with_epsilon
from assay.simulations.examples import example
from assay.simulations.findings import HolderLine, PersonLine, Trust
from assay.simulations.partition import hold_out, split
from assay.simulations.processes import Processes
from assay.simulations.simulate import require_new, source_of
from assay.simulations.summary import summarise
from assay.simulations.wording import trusted

__all__ = ["MAX_HOLDERS", "MIN_HOLDERS", "Demo"]

MIN_HOLDERS = 3  # what the demo's study, with distributed trust and one tolerated holder, can add up
MAX_HOLDERS = 10  # each is a process of some 400 MB
TEST_FRACTION = 0.2
# Who is held out and who holds whom is the same each time, so that two demos differ by their noise alone.
SPLIT_SEED = 0
START_S, RUN_S = 120.0, 600.0
_KINDS = ("csv", "parquet", "sqlite")
Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One demonstration.

    Attributes:
        holders: number of holder processes, 3..10.
        epsilon: privacy target for one person over the run.
        out: directory for everything; new or empty.
    """

    holders: int
    epsilon: float
    out: Path

    def __post_init__(self) -> None:
        if self.holders == MIN_HOLDERS - 1:
            raise Refused(
                f"--holders is {self.holders}; allowed: {MIN_HOLDERS} to {MAX_HOLDERS}, because a sum of two"
                ' tells each the other\'s numbers. To see two train, set trust = "local" in a study and run:'
                " assay simulate STUDY --holders 2",
                code="holders",
            )
        if not MIN_HOLDERS <= self.holders <= MAX_HOLDERS:
            raise BadInput("--holders", value=self.holders, allowed=f"{MIN_HOLDERS} to {MAX_HOLDERS}")
        require_new(self.out)

    def run(self, step: Step, on_event: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], str]:
        """Run the whole federation.

        Args:
            step: called with words as the work goes on.
            on_event: called with each step of the training run.

        Returns:
            The JSON of ``assay demo``, and what to print for people.

        Raises:
            AssayError: a process failed; its log is named.
        """
        # The processes share this machine's cores: one thread each.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        text = with_epsilon(read_study(example("taiwan") / "study.toml").text, self.epsilon)
        study = parse_study(text)
        make_private_dir(self.out)
        write_durably(self.out / "study.toml", text.encode())
        step("spreading 30,000 real credit records over the holders")
        names = self._write_records(study)
        step("setting up the federation: certificate authority, keys, admission")
        self._enrol(names)
        test = _held_out(self.out, study)
        holders = {name: records_for(HolderConfig.load(self.out / name), study) for name in names}
        with Processes(self.out / "logs") as processes:
            step("starting the coordinator and the holders")
            processes.start("coordinator", "server", "serve", str(self.out / "coordinator"))
            for name in names:
                processes.start(name, "client", "run", str(self.out / name))
            # While they start: what the federated model is compared with.
            baselines = train_baselines(
                text, holders, test, step=lambda what: step(f"for comparison: {what}")
            )
            step("waiting for the holders to connect")
            _await_holders(self.out / "coordinator", len(names), processes)
            step("training through Flower over TLS")
            done = self._train(text, on_event)
        signed = read_bundle(Path(done["bundle"]))
        federated, trust = evaluate(signed.scorecard, test), Trust.of(signed.label)
        report = self._write_report(study, holders, federated, baselines, test, done)
        result = {
            **asdict(federated.metrics),
            "epsilon": study.privacy.epsilon,
            "delta": study.privacy.delta,
            **trust.to_json(),
            "rounds": done["rounds"],
            "holders": self.holders,
            "seconds": done["seconds"],
            "bundle": done["bundle"],
            "report": str(report),
            "baselines": baselines.to_json(),
        }
        return result, _words(result, trust, federated, test)

    def _train(self, text: str, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Order a run from the coordinator and wait for its end; ``seconds`` is added to what it tells."""
        coordinator, start = self.out / "coordinator", time.monotonic()
        run = AdminClient.call(coordinator, "train", {"study": text})["run"]
        done = follow(coordinator, run, timeout=RUN_S, on_event=on_event)
        return done | {"seconds": time.monotonic() - start}

    def _write_report(
        self,
        study: Study,
        holders: dict[str, Records],
        federated: Evaluation,
        baselines: Baselines,
        test: Records,
        done: dict[str, Any],
    ) -> Path:
        report = self.out / "report.html"
        summarise(
            report,
            title=f"One scoring model from {self.holders} institutions that share no records",
            study=study,
            bundle=Path(done["bundle"]),
            holders=tuple(
                HolderLine(
                    name=name,
                    rows=records.rows,
                    epsilon_spent=_spent(self.out / name),
                    epsilon_limit=HolderConfig.load(self.out / name).policy.epsilon_per_year,
                    local_auroc=baselines.local[name].metrics.auroc,
                )
                for name, records in holders.items()
            ),
            federated=federated,
            baselines=baselines,
            test=test,
            rounds=done["rounds"],
            seconds=done["seconds"],
            notes=(
                "Records: default of credit card clients, Taiwan 2005 (Yeh 2016, CC BY 4.0).",
                f"{test.rows:,} records were held out and seen by no holder.",
                "Who holds whom is the same in every demo; the noise never is.",
            ),
        )
        return report

    def _write_records(self, study: Study) -> list[str]:
        """Split the records at random: some held out, the rest one file per holder, of different kinds."""
        table = pyarrow.csv.read_csv(example("taiwan") / "taiwan_credit.csv.gz")
        labels = table[study.outcome.column].to_numpy().astype(float)
        train, held = hold_out(rows=len(labels), persons=None, fraction=TEST_FRACTION, seed=SPLIT_SEED)
        pyarrow.csv.write_csv(table.take(held), self.out / "held-out.csv")
        parts = split("iid", holders=self.holders, labels=labels[train], persons=None, seed=SPLIT_SEED)
        names = [f"bank-{i}" for i in range(1, self.holders + 1)]
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            enrol.init(self.out / name, name)
            kind = _KINDS[index % len(_KINDS)]
            _write_table(table.take(train[part.rows]), kind, self.out / name)
            _write_settings(self.out / name, name, kind, self.epsilon)
        return names

    def _enrol(self, names: list[str]) -> None:
        coordinator = self.out / "coordinator"
        with Federation.init(coordinator, "Assay demo", "127.0.0.1", _free_port()) as federation:
            for name in names:
                joined = federation.admit(Request.read(self.out / name / enrol.REQUEST_FILE))
                path = self.out / name / "JOIN.toml"
                write_durably(path, joined.to_bytes(), mode=PRIVATE_FILE)
                enrol.join(self.out / name, path, federation.fingerprint)


def _await_holders(coordinator: Path, count: int, processes: Processes) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        status = _status(coordinator)
        if status and sum(holder["online"] for holder in status["holders"]) == count:
            return
        processes.check()
        time.sleep(0.1)
    raise Unavailable(f"not all holders connected within {START_S:g} s; see {coordinator.parent / 'logs'}")


def _write_table(table: pa.Table, kind: str, folder: Path) -> None:
    if kind == "csv":
        pyarrow.csv.write_csv(table, folder / "records.csv")
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "records.parquet")
    else:
        with contextlib.closing(sqlite3.connect(folder / "records.sqlite")) as database, database:
            columns = ", ".join(f'"{name}"' for name in table.column_names)
            marks = ", ".join("?" * table.num_columns)
            database.execute(f"CREATE TABLE records ({columns})")
            rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
            database.executemany(f"INSERT INTO records VALUES ({marks})", rows)  # noqa: S608 - question marks


def _write_settings(folder: Path, name: str, kind: str, epsilon: float) -> None:
    """Fill in the settings file that `assay client init` made: data source, and caps that fit the demo."""
    table = '\ntable = "records"' if kind == "sqlite" else ""
    data = f'[data]\nkind = "{kind}"\npath = "records.{kind}"{table}\none_row_per_person = true\n\n[policy]'
    text = template(name).replace("[policy]", data, 1)
    for key, factor in (("epsilon_per_run", 1), ("epsilon_per_study", 3), ("epsilon_per_year", 6)):
        line = next(line for line in text.splitlines() if line.startswith(f"{key} ="))
        text = text.replace(line, f"{key} = {factor * epsilon!r}")
    write_durably(folder / CONFIG_FILE, text.encode(), mode=PRIVATE_FILE)


def _status(coordinator: Path) -> dict[str, Any] | None:
    try:
        return AdminClient.call(coordinator, "status", {})
    except Unavailable:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _held_out(out: Path, study: Study) -> Records:
    with open_source(source_of(out / "held-out.csv")) as source:
        return load_records(source, study)


def _spent(folder: Path) -> float:
    policy, keys = HolderConfig.load(folder).policy, enrol.load_keys(folder)
    with Ledger.open(folder / LEDGER_FILE, keys.identity, read_only=True) as ledger:
        ledger.verify()
        return ledger.summary(policy.limits).spent_epsilon


def _words(result: dict[str, Any], trust: Trust, federated: Evaluation, test: Records) -> str:
    base = result["baselines"]
    people = "\n\n".join(_person_words(line) for line in people_lines(federated, test))
    return (
        f"{people}\n\n{trusted(trust)}\n"
        f"AUROC on {test.rows:,} held-out records, all at epsilon {result['epsilon']:g}:\n"
        f"  local-only  {base['local_only_auroc']:.4f} (mean of {result['holders']}; best"
        f" {base['local_only_best_auroc']:.4f})\n"
        f"  federated   {result['auroc']:.4f}\n"
        f"  pooled      {base['pooled_auroc']:.4f}\n"
        f"Training took {result['seconds']:.1f} s for {result['rounds']} rounds"
        f" with {result['holders']} holders.\n"
        f"Bundle  {result['bundle']}\nReport  {result['report']}"
    )


def _person_words(line: PersonLine) -> str:
    reasons = "\n".join(f"    {place}. {words}" for place, words in enumerate(line.reasons, start=1))
    return (
        f"{line.title}: score {line.score}, {line.band}, chance of a bad outcome {line.probability:.1%}\n"
        f"  Main reasons:\n{reasons}"
    )
