"""The single pieces of a sweep: two kinds of baselines, and cells. Each is written durably when it is done.

``python -m assay.simulations.work`` does them one after the other, as a sweep's other process says: a line of
JSON with the settings, then one per task, on standard input; on standard output one line per step and result.
No task depends on what this process did before, so that it can be ended at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from assay.models.study import read_study
from assay.privacy.errors import AssayError
from assay.privacy.files import PRIVATE_FILE, make_private_dir, write_durably
from assay.simulations.baselines import pooled_card, read_card, unprotected_card, write_card
from assay.simulations.cell import Cell, simulate_cell
from assay.simulations.dataset import Dataset, Layout
from assay.simulations.faults import EndedByFaults
from assay.simulations.simulate import Simulation

__all__ = ["Files", "Work", "main", "naming"]

Task = dict[str, Any]
"""``kind`` is "unprotected" (with ``seed``), "pooled" (``epsilon`` too) or "cell" (``holders`` too)."""


class Files:
    """Where the parts of a sweep lie.

    Args:
        out: its directory.
        study: name of the study.
        single: whether the sweep is one cell, whose bundle and report then stand in ``out`` itself.
        stem: of those two.
    """

    def __init__(self, out: Path, *, single: bool, stem: str) -> None:
        self.out, self.single, self._stem = out, single, stem
        self.settings = out / "sweep.json"
        self.cells, self.baselines = out / "cells", out / "baselines"

    @classmethod
    def of(cls, plan: Simulation, study: str) -> Files:
        """Return the files of a simulation of a study."""
        single = len(plan.holders) * max(1, len(plan.epsilons)) * plan.seeds == 1
        stem = f"{study}-epsilon-{plan.epsilons[0]:g}" if plan.epsilons else study
        return cls(plan.out, single=single, stem=stem)

    def result(self, cell: Cell) -> Path:
        """Where a finished cell is kept."""
        return self.cells / f"{cell.key}.json"

    def failure(self, cell: Cell) -> Path:
        """Where it is kept why a cell has no result."""
        return self.cells / f"{cell.key}.failed.json"

    def bundle(self, cell: Cell) -> Path:
        """Where its signed model goes."""
        return self.out / f"{self._stem}.bundle" if self.single else self.cells / f"{cell.key}.bundle"

    def report(self, cell: Cell) -> Path:
        """Where its report goes."""
        return self.out / f"{self._stem}.html" if self.single else self.cells / f"{cell.key}.html"

    def card(self, task: Task) -> Path:
        """Where a baseline is kept."""
        if task["kind"] == "unprotected":
            return self.baselines / f"unprotected-s{task['seed']}.json"
        return self.baselines / f"pooled-e{task['epsilon']:g}-s{task['seed']}.json"


class Work:
    """Does the tasks of one sweep.

    Args:
        plan: its settings.
        dataset: its records, if they are read already.
    """

    def __init__(self, plan: Simulation, dataset: Dataset | None = None) -> None:
        self._plan, self._study = plan, read_study(plan.study)
        self._files = Files.of(plan, self._study.name)
        self._dataset = dataset
        self._laid: tuple[tuple[int, int], Layout] | None = None

    @property
    def dataset(self) -> Dataset:
        """The records, read when they are wanted first."""
        if self._dataset is None:
            plan = self._plan
            self._dataset = Dataset(self._study, plan.data, plan.test, plan.test_fraction, plan.spread())
        return self._dataset

    def forget(self) -> None:
        """Give the memory of the records back; they are read again if they are wanted."""
        self._dataset = self._laid = None

    def do(self, task: Task, step: Callable[[str], None]) -> None:
        """Do one task and write its result; nothing is there before all of it is.

        Raises:
            EndedByFaults: the faults that were asked for ended a cell; that is written down too.
            OSError: the disk is full or read-only; the message names what could not be written.
        """
        if task["kind"] == "unprotected":
            step("pooled model without privacy")
            card = unprotected_card(self._study.text, self.dataset.training(task["seed"]))
        elif task["kind"] == "pooled":
            step("pooled model")
            text = self._plan.text_at(self._study, task["epsilon"])
            card = pooled_card(text, self.dataset.training(task["seed"]))
        else:
            self._cell(Cell(**{name: task[name] for name in ("holders", "epsilon", "seed")}), step)
            return
        path = self._files.card(task)
        with naming(path):
            make_private_dir(path.parent)
            write_card(path, card)

    def _cell(self, cell: Cell, step: Callable[[str], None]) -> None:
        files, seed = self._files, cell.seed
        make_private_dir(files.cells)
        try:
            with naming(files.bundle(cell)):
                result = simulate_cell(
                    self._plan.text_at(self._study, cell.epsilon),
                    cell,
                    self._layout(cell),
                    self._plan.how(seed),
                    pooled=read_card(files.card({"kind": "pooled", "seed": seed, "epsilon": cell.epsilon})),
                    unprotected=read_card(files.card({"kind": "unprotected", "seed": seed})),
                    bundle=files.bundle(cell),
                    report=files.report(cell),
                    step=step,
                )
        except AssayError as error:
            said = {**asdict(cell), "error": str(error), "exit_code": error.exit_code}
            said["faults"] = error.faults if isinstance(error, EndedByFaults) else None
            _write(files.failure(cell), said)
            raise
        _write(files.result(cell), result)
        files.failure(cell).unlink(missing_ok=True)

    def _layout(self, cell: Cell) -> Layout:
        key = (cell.holders, cell.seed)
        if self._laid is None or self._laid[0] != key:
            self._laid = None  # before the next one is made: two would need twice the memory
            self._laid = key, self.dataset.layout(*key)
        return self._laid[1]


def _write(path: Path, value: dict[str, Any]) -> None:
    with naming(path):
        write_durably(path, json.dumps(value, allow_nan=False).encode(), mode=PRIVATE_FILE)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a path to an error of the disk that names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def main() -> None:
    """Work for the process at the other end of standard input and output, until that ends."""
    # Whatever libraries print goes elsewhere than what is said to the other process.
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that temporary files go
    lines = iter(sys.stdin)
    with contextlib.suppress(StopIteration, BrokenPipeError):
        work = Work(Simulation.from_json(json.loads(next(lines))))
        for line in lines:
            _say(said, _done(work, json.loads(line), lambda words: _say(said, {"step": words})))
    # The other end is gone; a last flush would complain about it.
    os._exit(0)


def _done(work: Work, task: Task, step: Callable[[str], None]) -> dict[str, Any]:
    """Do a task and return what to say of it."""
    try:
        work.do(task, step)
    except BrokenPipeError:
        raise
    except OSError as error:
        return {"disk": [error.errno, error.strerror or str(error), error.filename]}
    except AssayError as error:
        return {"failed": str(error), "exit_code": error.exit_code}
    except Exception:  # noqa: BLE001 - told to the other process, which raises it
        return {"defect": traceback.format_exc()}
    return {"done": True}


def _say(sink: TextIO, message: dict[str, Any]) -> None:
    sink.write(json.dumps(message) + "\n")
    sink.flush()


if __name__ == "__main__":
    main()
