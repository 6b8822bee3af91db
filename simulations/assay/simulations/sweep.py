"""Many cells: planned, spread over the cores there are, written as they finish, and gone on with later.

===============================  ========================================================================
``OUT/sweep.json``               the settings, by which ``--resume`` knows the sweep
``OUT/baselines/*.json``         models that several cells are compared with
``OUT/cells/KEY.json``           a finished cell; its bundle and its own report beside it
``OUT/cells/KEY.failed.json``    why a cell has no result; ``--resume`` tries it again
``OUT/report.html`` and others   of all cells; written at the end from the cells alone
===============================  ========================================================================

Each file is written whole or not at all, and a cell's result last, so a sweep can be stopped anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.privacy.errors import AssayError, BadInput
from assay.privacy.files import PRIVATE_FILE, make_private_dir, write_durably
from assay.simulations.baselines import MOST_ALONE
from assay.simulations.cell import Cell
from assay.simulations.resumption import alone_in, require_same, settings_of
from assay.simulations.simulate import Simulation, require_new
from assay.simulations.work import Files, Task, Work, naming
from assay.simulations.workers import Workers, usable_cores

__all__ = ["Event", "Sweep", "finished", "report_of"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to tell whoever waits.

    Attributes:
        words: what is being done, or was.
        done: finished cells, those of an earlier part of the sweep included.
        cells: all cells.
        left_s: estimate of the seconds that are left; None where nothing is known yet.
        finished: the cell that has just finished, else None.
        major: whether it is worth a line of its own where lines stay.
    """

    words: str
    done: int
    cells: int
    left_s: float | None = None
    finished: dict[str, Any] | None = None
    major: bool = False


Tell = Callable[[Event], None]


class CellFailed(AssayError):
    """A cell that could not be trained, told by another process; ends a command like the error it was."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Sweep:
    """All cells of a simulation; a single one is a sweep of one.

    Args:
        plan: what to simulate.
    """

    def __init__(self, plan: Simulation) -> None:
        self.plan = plan

    def run(self, tell: Tell = lambda _: None) -> dict[str, Any]:
        """Simulate what is not there yet, and write everything.

        Args:
            tell: called as the work goes on, in this process.

        Returns:
            The JSON of ``assay simulate``: of one cell, or a list under ``results`` with ``report``, ``csv``,
            ``pictures`` and ``failed``.

        Raises:
            BadInput: an option, the study or the data are not what they must be; nothing is written. Or
                ``--resume`` on another sweep.
            Refused: the study's purpose or its number of holders is refused; nothing is read or written.
            OSError: the disk is full; finished cells are kept.
            KeyboardInterrupt: likewise.
        """
        plan, study = self.plan, self.plan.check()
        files, cells = Files.of(plan, study.name), plan.cells(study)
        if not plan.resume:
            require_new(plan.out)
        tell(Event(words="reading records", done=0, cells=len(cells), major=True))
        settings = settings_of(plan, study)
        if plan.resume:
            require_same(files, settings)
        missing = [cell for cell in cells if not files.result(cell).exists()]
        work = Work(plan)
        for holders, seed in {(cell.holders, cell.seed): None for cell in missing}:
            work.dataset.check(holders, seed)
        make_private_dir(plan.out)
        with alone_in(plan.out):
            _prepare(files, settings)
            progress = _Progress(cells, missing, work.dataset.rows if missing else 0, tell)
            _Running(plan, files, progress, work).run(missing)
        return _result(files, cells, progress.first_error)


class _Progress:
    """What is done and what is left; cells cost about as much as their rows and holders say."""

    def __init__(
        self,
        cells: tuple[Cell, ...],
        missing: list[Cell],
        rows: int,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cells, self._done, self._tell = len(cells), len(cells) - len(missing), tell
        self._clock = clock
        self._cost = {cell: _cost(cell, rows) for cell in missing}
        self._started: dict[Cell, float] = {}
        self._spent_s, self._spent_cost = 0.0, 0.0
        self.first_error: AssayError | None = None
        self.jobs = 1

    def step(self, task: Task, words: str) -> None:
        """Tell what is being done for a task."""
        if task["kind"] == "cell" and self._cells > 1:
            where = _cell_of(task).words
        else:
            given = (f"{name} {task[name]:g}" for name in ("epsilon", "seed") if name in task)
            where = ", ".join(given)
        self._say(f"{where}: {words}", major=task["kind"] != "cell")

    def started(self, cell: Cell) -> None:
        """A cell has begun."""
        self._started[cell] = self._clock()

    def finished(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell has its result."""
        self._ended(cell)
        self._done += 1
        words = f"{cell.words}: AUROC {result['auroc']:.4f} ({result['seconds']:.1f} s of training)"
        self._say(words, finished=result, major=True)

    def failed(self, cell: Cell, error: AssayError) -> None:
        """A cell has no result."""
        self._ended(cell)
        self.first_error = self.first_error or error
        self._say(f"{cell.words}: failed: {error}", major=True)

    def _say(self, words: str, *, finished: dict[str, Any] | None = None, major: bool = False) -> None:
        left = self._left()
        self._tell(
            Event(
                words=words, done=self._done, cells=self._cells, left_s=left, finished=finished, major=major
            )
        )

    def _ended(self, cell: Cell) -> None:
        self._spent_s += self._clock() - self._started.pop(cell)
        self._spent_cost += self._cost.pop(cell)

    def _left(self) -> float | None:
        if not self._cost or not self._spent_cost > 0:
            return None
        rate, now = self._spent_s / self._spent_cost, self._clock()
        ahead = sum(self._cost.values()) * rate
        behind = sum(min(now - began, self._cost[cell] * rate) for cell, began in self._started.items())
        return max(0.0, ahead - behind) / self.jobs


class _Running:
    """Does the tasks of the missing cells, here or in other processes."""

    def __init__(self, plan: Simulation, files: Files, progress: _Progress, work: Work) -> None:
        self._plan, self._files, self._progress, self._work = plan, files, progress, work

    def run(self, missing: list[Cell]) -> None:
        """Do everything that is missing."""
        tasks = [task for task in _baselines(missing) if not self._files.card(task).exists()]
        tasks += [{"kind": "cell", **asdict(cell)} for cell in missing]
        # Ray wants the main process, and has processes of its own.
        jobs = 1 if self._plan.engine == "flower" else self._plan.jobs or usable_cores()
        jobs = min(jobs, len(missing))
        if jobs <= 1:
            for task in tasks:
                self._here(task)
            return
        self._progress.jobs = jobs
        self._work.forget()
        with Workers(jobs, self._plan.to_json()) as workers:
            self._spread(workers, tasks)

    def _here(self, task: Task) -> None:
        def step(words: str) -> None:
            self._progress.step(task, words)

        if task["kind"] != "cell":
            self._work.do(task, step)
            return
        cell = _cell_of(task)
        self._progress.started(cell)
        try:
            self._work.do(task, step)
        except AssayError as error:
            self._progress.failed(cell, error)
        else:
            self._progress.finished(cell, _read(self._files, cell))

    def _spread(self, workers: Workers, tasks: list[Task]) -> None:
        waiting, given = list(tasks), dict[int, Task]()
        while waiting or given:
            for number in workers.idle:
                task = next((each for each in waiting if self._ready(each)), None)
                if task is None:
                    break
                waiting.remove(task)
                given[number] = task
                if task["kind"] == "cell":
                    self._progress.started(_cell_of(task))
                workers.give(number, task)
            for number, message in workers.said():
                if "step" in message:
                    self._progress.step(given[number], message["step"])
                else:
                    self._ended(given.pop(number), message)

    def _ready(self, task: Task) -> bool:
        """Whether the baselines of a cell are there."""
        if task["kind"] != "cell":
            return True
        return all(self._files.card(need).exists() for need in _baselines([_cell_of(task)]))

    def _ended(self, task: Task, message: dict[str, Any]) -> None:
        if "disk" in message:
            raise OSError(*message["disk"])
        if "defect" in message:
            raise RuntimeError(f"a worker process failed:\n{message['defect']}")
        failure = CellFailed(message["failed"], message["exit_code"]) if "failed" in message else None
        if task["kind"] != "cell":
            if failure is not None:
                raise failure
            return
        cell = _cell_of(task)
        if failure is not None:
            self._progress.failed(cell, failure)
        else:
            self._progress.finished(cell, _read(self._files, cell))


def _cost(cell: Cell, rows: int) -> float:
    """What a cell costs, in rows: all of them together, a share of them once more alone, and each holder."""
    return rows * (1 + min(1.0, MOST_ALONE / cell.holders)) + 100 * cell.holders + 10_000


def _baselines(cells: list[Cell]) -> list[Task]:
    """Return the baselines that cells need, each once."""
    seeds = {cell.seed: None for cell in cells}
    pairs = {(cell.seed, cell.epsilon): None for cell in cells}
    tasks: list[Task] = [{"kind": "unprotected", "seed": seed} for seed in seeds]
    return tasks + [{"kind": "pooled", "seed": seed, "epsilon": epsilon} for seed, epsilon in pairs]


def _cell_of(task: Task) -> Cell:
    return Cell(holders=task["holders"], epsilon=task["epsilon"], seed=task["seed"])


def _prepare(files: Files, settings: dict[str, Any]) -> None:
    """Make the directories, and remove what a process that was killed left half written."""
    for folder in (files.cells, files.baselines):
        make_private_dir(folder)
    for folder in (files.out, files.cells, files.baselines):
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
    if not files.settings.exists():
        write_durably(files.settings, json.dumps(settings, indent=1).encode(), mode=PRIVATE_FILE)


def _read(files: Files, cell: Cell) -> dict[str, Any]:
    """Return a finished cell; its files are where the sweep is now.

    Raises:
        BadInput: it is not what a sweep writes.
    """
    path = files.result(cell)
    try:
        found = _json(path)
        if (found["holders"], found["epsilon"], found["seed"]) != (cell.holders, cell.epsilon, cell.seed):
            raise ValueError("another cell")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            "cell",
            where=path,
            allowed=f"what a sweep wrote ({error})",
            remedy="Remove the file and run the same command with --resume",
        ) from None
    return {**found, "bundle": str(files.bundle(cell)), "report": str(files.report(cell))}


def _result(files: Files, cells: tuple[Cell, ...], first_error: AssayError | None) -> dict[str, Any]:
    """Put the results together and write the report of all of them.

    Raises:
        AssayError: there are none.
    """
    results = [_read(files, cell) for cell in sorted(cells) if files.result(cell).exists()]
    if not results and first_error is not None:
        raise _told_where(first_error, files)
    if files.single:
        return results[0]
    failed = [_json(files.failure(cell)) for cell in sorted(cells) if files.failure(cell).exists()]
    written = report_of(files.out, results, failed)
    return {
        "results": results,
        "failed": failed,
        "report": written["html"],
        "csv": written["csv"],
        "pictures": [path for path in written.values() if path.endswith(".png")],
    }


def _told_where(error: AssayError, files: Files) -> AssayError:
    """Return an error that ended every cell; where faults did, with the place of what they came to."""
    if any(_json(path)["faults"] is not None for path in files.cells.glob("*.failed.json")):
        return CellFailed(f"{error}. What was injected and caught is in {files.cells}", error.exit_code)
    return error


def report_of(out: Path, results: list[dict[str, Any]], failed: list[dict[str, Any]]) -> dict[str, str]:
    """Write the report of a sweep, with pictures and tables beside it; return their paths."""
    from assay.simulations.sweep_report import write_sweep_report

    with naming(out / "report.html"):
        return write_sweep_report(out, results, title=f"Simulations of {results[0]['study']}", failed=failed)


def finished(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the results in a directory, and what is known of cells without one; both may be empty."""
    paths = sorted((out / "cells").glob("*.json"))
    failures = [path for path in paths if path.name.endswith(".failed.json")]
    return [_json(path) for path in paths if path not in failures], [_json(path) for path in failures]


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
