"""Planted bugs: each one must turn a test red. ``make mutants`` runs them all, in a few minutes.

``mutants.toml`` is the table. Every entry is applied alone to a copy of the working tree, and the tests that
are expected to catch it run against that copy. The table fails where a bug survives, where the text it
replaces is gone, where a copy does not even start, and where a test is red without any bug.

    python .ci/mutants.py [--list] [--only NAME]... [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("mutants.toml")
ROLES = ("privacy", "models", "client", "server", "simulations")
WORKERS = 2
# For many tests on a busy machine; one that hangs is a bug of the table.
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: short, unique.
        breaks: one sentence: what it does to whom.
        file: path from the root of the tree.
        old: text that stands exactly once in ``file``.
        new: what it becomes.
        tests: pytest node identifiers; at least one of them must fail.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Plant the bug in the tree at ``root`` and return the text that stood there before.

        Raises:
            ValueError: ``old`` does not stand there exactly once.
        """
        path = root / self.file
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = before.count(self.old)
        if found != 1:
            raise ValueError(f"the text to replace stands {found} times in {self.file}")
        path.write_text(before.replace(self.old, self.new), encoding="utf-8")
        return before


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one planted bug.

    Attributes:
        name: of the mutant; empty for the run without any.
        verdict: ``"caught"``, ``"survived"``, ``"gone"`` (its text is no longer there) or ``"broken"`` (the
            tests did not run).
        failed: the tests that failed.
        seconds: how long they took.
        detail: words, where something is wrong.
    """

    name: str
    verdict: str
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    detail: str = ""


def read_table(path: Path = TABLE) -> tuple[Mutant, ...]:
    """Read the table.

    Raises:
        ValueError: two entries have one name.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    table = tuple(Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries)
    if len({mutant.name for mutant in table}) < len(table):
        raise ValueError(f"{path}: a name stands twice")
    return table


@contextmanager
def copies(count: int) -> Iterator[queue.Queue[Path]]:
    """Make copies of the files that git tracks or would track; they vanish at the end."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    pool: queue.Queue[Path] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="assay-mutants-") as folder:
        for number in range(count):
            root = Path(folder).resolve() / f"tree-{number}"
            for name in names:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, root / name)
            pool.put(root)
        yield pool


def run_tests(root: Path, tests: Sequence[str], name: str = "") -> Outcome:
    """Run tests against the tree at ``root`` and make sure that they ran against it and no other."""
    report = root.with_suffix(".json")
    report.unlink(missing_ok=True)
    # No bytecode: a file that changes twice within a second would be taken for the one it was.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(root / part) for part in (*ROLES, ".ci")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MUTANTS_ROOT": str(root),
        "MUTANTS_REPORT": str(report),
    }
    options = ("-q", "--tb=no", "--maxfail=3", "-p", "no:cacheprovider", "-p", "mutants_report")
    command = (sys.executable, "-m", "pytest", *options, f"--basetemp={root.with_suffix('.tmp')}", *tests)
    start = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own tests
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name=name, verdict="broken", detail=f"not done within {TIMEOUT_S:g} s")
    seconds = time.monotonic() - start
    told = json.loads(report.read_text()) if report.exists() else {"failed": [], "foreign": ["no report"]}
    if told["foreign"]:
        detail = f"not the copy's code: {', '.join(told['foreign'][:3])}"
    else:
        detail = "" if done.returncode in (0, 1) else (done.stdout + done.stderr)[-1500:]
    verdict = "broken" if detail else "caught" if done.returncode == 1 else "survived"
    failed = tuple(told["failed"])
    return Outcome(name=name, verdict=verdict, failed=failed, seconds=seconds, detail=detail)


def try_mutant(mutant: Mutant, pool: queue.Queue[Path]) -> Outcome:
    """Plant one bug in a free copy, run its tests, and mend the copy."""
    root = pool.get()
    try:
        before = mutant.apply(root)
        try:
            return run_tests(root, mutant.tests, mutant.name)
        finally:
            (root / mutant.file).write_text(before, encoding="utf-8")
    except ValueError as error:
        return Outcome(name=mutant.name, verdict="gone", detail=str(error))
    finally:
        pool.put(root)


def run_bare(tests: Sequence[str], pool: queue.Queue[Path]) -> Outcome:
    """Run tests in a free copy without any bug."""
    root = pool.get()
    try:
        return run_tests(root, tests)
    finally:
        pool.put(root)


def _together(parts: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several bare runs as one: the worst of them."""
    worst = next((part for part in parts if part.verdict != "survived"), parts[0])
    failed = tuple(test for part in parts for test in part.failed)
    return replace(worst, failed=failed, seconds=max(part.seconds for part in parts))


def run_table(table: Sequence[Mutant]) -> list[Outcome]:
    """Run the tests without a bug, then with each; outcomes in order of the table, the bare run first."""
    tests = sorted({test for mutant in table for test in mutant.tests})
    with copies(WORKERS) as pool, ThreadPoolExecutor(WORKERS) as workers:
        halves = [tests[number::WORKERS] for number in range(WORKERS)]
        bare = _together(list(workers.map(lambda half: run_bare(half, pool), filter(None, halves))))
        _say(f"without a bug: {len(tests)} test(s), {bare.verdict}, {bare.seconds:.0f} s")
        if bare.verdict != "survived":
            return [bare]
        pending = {workers.submit(try_mutant, mutant, pool): mutant for mutant in table}
        done: dict[str, Outcome] = {}
        for number, future in enumerate(as_completed(pending), start=1):
            outcome = future.result()
            done[outcome.name] = outcome
            _say(f"{number}/{len(table)} {outcome.verdict:<8} {outcome.name} ({outcome.seconds:.0f} s)")
    return [bare, *(done[mutant.name] for mutant in table)]


def _say(line: str) -> None:
    """Progress goes to standard error, the result to standard output."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        tests = sorted({test.partition("[")[0] for test in outcome.failed})
        by = ", ".join(test.rpartition("::")[2] for test in tests)
        note = outcome.detail if outcome.verdict in ("broken", "gone") else by
        yield f"{outcome.name:<{width}}  {outcome.verdict:<8}  {outcome.seconds:5.1f} s  {note}"


def main() -> int:
    """Run the table, or the part of it that was asked for; 0 where every bug is caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run this one; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="say what each one breaks, and run nothing")
    parser.add_argument("--json", action="store_true", help="the outcomes as JSON")
    asked = parser.parse_args()
    table = read_table()
    unknown = set(asked.only) - {mutant.name for mutant in table}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in table if not asked.only or mutant.name in asked.only]
    if asked.list:
        sys.stdout.writelines(f"{mutant.name}: {mutant.breaks}\n" for mutant in chosen)
        return 0
    bare, *outcomes = run_table(chosen)
    if bare.verdict != "survived":
        _say(f"tests are red without any bug: {', '.join(bare.failed)} {bare.detail}")
        return 1
    if asked.json:
        sys.stdout.write(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in _lines(outcomes))
    missed = [outcome.name for outcome in outcomes if outcome.verdict != "caught"]
    _say(
        f"{len(outcomes) - len(missed)} of {len(outcomes)} bugs caught"
        + (f"; NOT: {missed}" if missed else "")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
