"""Small sweeps for tests: records with regions, a study with groups, and how a command is run on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from federation_support import STUDY

REGIONS = ("coast", "hill", "plain")
GROUPED = STUDY.replace("rounds = 40", "rounds = 4").replace(
    "[training]", '[fairness]\ncolumns = ["sex"]\ngroups = { sex = ["f", "m"] }\n\n[training]'
)
MAIN = (sys.executable, "-m", "assay.simulations.main")


def write_people(path: Path, rows: int = 900, seed: int = 0) -> None:
    """Write records whose risk rises with late payments; on the hill nobody is bad; a few live nowhere."""
    rng = np.random.default_rng(seed)
    amount, late = rng.uniform(0, 1000, rows), rng.integers(0, 7, rows)
    where, sex = rng.choice([*REGIONS, ""], rows, p=[0.4, 0.1, 0.4, 0.1]), rng.choice(["f", "m"], rows)
    risk = 1 / (1 + np.exp(-(0.6 * late + amount / 500 - 3.5)))
    bad = ((rng.random(rows) < risk) & (where != "hill")).astype(int)
    cells = zip(amount, late, rng.choice(["north", "south"], rows), bad, where, sex, strict=True)
    lines = [f"{a:.2f},{n},{r},{b},{w},{s}" for a, n, r, b, w, s in cells]
    path.write_text("\n".join(["amount,late,region,bad,where,sex", *lines]) + "\n", encoding="utf-8")


def command(folder: Path, out: Path, *options: object) -> list[str]:
    """Return the arguments of a simulation of the study and the records in a folder."""
    given = ("simulate", folder / "study.toml", "--data", folder / "people.csv", "--out", out, *options)
    return [str(each) for each in given]


def process(arguments: list[str], *, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, where no file may grow beyond ``limit`` bytes."""
    script = f"import sys; sys.argv[1:] = {arguments!r}\nfrom assay.simulations.main import main\n"
    if limit is not None:
        script += f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", script + "main()"], capture_output=True, text=True, timeout=300, check=False
    )


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(out: Path) -> dict[str, dict]:
    """Return the finished cells of a sweep, by key."""
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((out / "cells").glob("*.json"))
        if not path.name.endswith(".failed.json")
    }


def children(process_id: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == process_id:
            found.append(int(path.parent.name))
    return found


def runs(process_id: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True
