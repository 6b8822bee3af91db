"""How fast a simulated federation is: Assay against Flower's simulation engine with Opacus, and Apple's pfl.

Run: python benchmarks/simulation.py [--holders 100] [--rows 3000] [--rounds 5] [--features 20] [--batch 32]
                                     [--no-flower] [--no-pfl] [--no-scale] [--no-lines] [--repetitions 3]
                                     [--json]
Example, without the minutes that Flower takes: python benchmarks/simulation.py --no-flower

Every measurement is a fresh process; they take turns, and medians count. The same logistic model over
piecewise linear features, the same rows, the same noise multiplier:

assay    `federate(..., engine="fast")`: every holder's clipped sum over all its rows, rounded, with its own
         exact noise, charged to a ledger and added up
flower   Flower's simulation engine (Ray) with Opacus as in Flower's example of the two: NumPyClient,
         `PrivacyEngine.make_private`, one epoch over a DataLoader in a round, FedAvg
pfl      Apple's pfl 0.6, federated averaging with one full-batch step at each user and noise per user

A round is the time from the end of one to the end of the next, so the first does not count. The whole run is
from starting the interpreter to its end, imports and making the data included. Memory is that of the process
and all its descendants, looked at five times a second: the sum of their resident sets, and with shared pages
counted once (PSS), every two seconds. Processor time is that of all of them.

Also measured: 1,000 holders of 1,000 rows and 10,000 of 100, 30 rounds each, and how the time grows with rows
and with holders. Ends with 1 where a goal is missed. Works offline; needs Linux and `pip install
'assay[bench]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from simulation_peers import Task

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")

LOOK_S, LIMIT_S = 0.2, 1800.0
PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
LARGE = {
    "1,000 holders x 1,000 rows": {"holders": 1000, "rows": 1000, "limit_s": 60, "limit_mb": 2000},
    "10,000 holders x 100 rows": {"holders": 10_000, "rows": 100, "limit_s": 120, "limit_mb": None},
}
LARGE_ROUNDS, LINE_ROUNDS = 30, 10
LINES = {
    "rows": [{"holders": 100, "rows": rows} for rows in (1000, 2000, 4000, 8000, 16000)],
    "holders": [{"holders": holders, "rows": 1000} for holders in (100, 200, 400, 800, 1600)],
}

RATIOS = ("round_s", "round_cpu_s", "total_s", "total_cpu_s", "peak_mb", "peak_pss_mb")

Figures = dict[str, Any]


# One measurement ----------------------------------------------------------------------------------


@dataclass
class Meter:
    """Memory and processor time of a process and everything it has started, directly or not."""

    pid: int
    peak_mb: float = 0.0
    peak_pss_mb: float = 0.0
    times: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Look once; at shared pages only now and then, since counting them takes processor time itself."""
        parents: dict[int, list[int]] = {}
        ticks: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()  # proc(5), from field 3 on
                parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
                ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
        members = [self.pid]
        for member in members:  # grows while it is walked
            members += parents.get(member, [])
        self.times.append(time.time())
        self.cpu_s.append(sum(ticks.get(member, 0) for member in members) / TICK)
        self.peak_mb = max(self.peak_mb, sum(map(resident_mb, members)))
        if len(self.times) % 10 == 0:
            self.peak_pss_mb = max(self.peak_pss_mb, sum(map(pss_mb, members)))

    def cpu_at(self, moments: list[float]) -> list[float]:
        """Return the processor time used up to these moments, seconds since 1970."""
        return np.interp(moments, self.times, self.cpu_s).tolist()


def resident_mb(pid: int) -> float:
    """Return the resident set of a process; 0 when it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6
    return 0.0


def pss_mb(pid: int) -> float:
    """Return the same with every page divided by the number of processes that share it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def measure(name: str, task: Task) -> Figures:
    """Run one program in a fresh process; return its times and memory."""
    began = time.time()
    command = [sys.executable, str(Path(__file__).with_name("simulation_peers.py")), name, task.json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        meter = Meter(run.pid)
        try:
            while run.poll() is None:
                if time.time() - began > LIMIT_S:
                    raise SystemExit(f"{name} took more than {LIMIT_S:g} s")
                meter.look()
                time.sleep(LOOK_S)
        finally:
            run.kill()
        assert run.stdout is not None
        said = run.stdout.read().splitlines()
    total_s = time.time() - began
    if run.returncode or not said:
        raise SystemExit(f"{name} ended with {run.returncode}; run it alone to see why: {' '.join(command)}")
    found = json.loads(said[-1])
    cpu_ends = found.get("cpu_ends") or meter.cpu_at(found["ends"])
    return {
        **found,
        "total_s": total_s,
        "total_cpu_s": max(meter.cpu_s),
        "round_s": np.diff(found["ends"]).tolist(),
        "round_cpu_s": np.diff(cpu_ends).tolist(),
        "peak_mb": meter.peak_mb,
        "peak_pss_mb": meter.peak_pss_mb,
    }


def together(runs: list[Figures], task: Task) -> Figures:
    """Return the medians over repetitions and rounds."""
    middle = {
        key: statistics.median(run[key] for run in runs)
        for key in ("total_s", "total_cpu_s", "peak_mb", "peak_pss_mb")
    }
    for key in ("round_s", "round_cpu_s"):
        middle[key] = statistics.median(seconds for run in runs for seconds in run[key])
    middle["holder_round_us"] = 1e6 * middle["round_s"] / task.holders
    return {**{key: round(each, 4) for key, each in middle.items()}, "runs": len(runs)}


# What is measured ---------------------------------------------------------------------------------


def tell(words: str) -> None:
    """Say on stderr what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def compare(task: Task, peers: list[str], repetitions: int) -> Figures:
    """Measure Assay and the peers in turns; Flower, which takes minutes, once."""
    runs: dict[str, list[Figures]] = {name: [] for name in ("assay", *peers)}
    for turn in range(repetitions):
        for name in runs:
            if name != "flower" or turn == 0:
                tell(f"{name}, {task.holders} holders x {task.rows} rows x {task.rounds} rounds")
                runs[name].append(measure(name, task))
    found: Figures = {name: together(each, task) for name, each in runs.items()}
    for name in peers:
        ratios = {key: round(found[name][key] / found["assay"][key], 2) for key in RATIOS}
        found[name]["times_assay"] = ratios
    return found


def large(features: int) -> Figures:
    """Measure the large federations."""
    found = {}
    for words, size in LARGE.items():
        tell(words)
        task = Task(holders=size["holders"], rows=size["rows"], rounds=LARGE_ROUNDS, features=features)
        found[words] = together([measure("assay", task)], task)
    return found


def lines(features: int) -> Figures:
    """Measure how processor time grows with rows and with holders; fit a line through the points."""
    found: Figures = {}
    for what, sizes in LINES.items():
        points = []
        for size in sizes:
            tell(f"{size['holders']} holders x {size['rows']} rows")
            run = measure("assay", Task(**size, rounds=LINE_ROUNDS, features=features))
            point = {"cpu_s": round(run["train_cpu_s"], 3), "wall_s": round(run["train_s"], 3)}
            points.append({**size, **point, "peak_mb": round(run["peak_mb"])})
        x, y = (np.array([point[key] for point in points], dtype=float) for key in (what, "cpu_s"))
        slope, start = np.polyfit(x, y, 1)
        left = float(np.square(y - slope * x - start).sum() / np.square(y - y.mean()).sum())
        found[what] = {
            "points": points,
            "start_s": round(float(start), 3),
            "ms_for_1000": round(float(slope) * 1e6, 1),
            "r_squared": round(1 - left, 4),
        }
    return found


def goals(found: Figures) -> list[tuple[str, bool]]:
    """Return what is promised and whether it holds."""
    compared, out = found["compared"], []
    if "flower" in compared:
        out += [
            (
                "at least 30 times as fast per round as Flower with Opacus",
                compared["flower"]["times_assay"]["round_s"] >= 30,
            ),
            ("at least 8 times as fast with start-up", compared["flower"]["times_assay"]["total_s"] >= 8),
            ("at most a third of its memory", compared["flower"]["times_assay"]["peak_mb"] >= 3),
        ]
    if "pfl" in compared:
        out.append(("faster than pfl per client and round", compared["pfl"]["times_assay"]["round_s"] > 1))
    for words, figures in found.get("large", {}).items():
        size = LARGE[words]
        out.append((f"{words}: under {size['limit_s']} s", figures["total_s"] < size["limit_s"]))
        if size["limit_mb"]:
            out.append((f"{words}: under {size['limit_mb']} MB", figures["peak_mb"] < size["limit_mb"]))
    for what, line in found.get("lines", {}).items():
        out.append((f"time is a line in {what}: R² above 0.99", line["r_squared"] > 0.99))
    return out


# Output -------------------------------------------------------------------------------------------

LABELS = {"assay": "Assay", "flower": "Flower, Opacus", "pfl": "pfl"}
ROWS = (
    ("from one round to the next, s", "round_s", "{:,.3f}"),
    ("  processor time, s", "round_cpu_s", "{:,.3f}"),
    ("  for one holder, microseconds", "holder_round_us", "{:,.0f}"),
    ("whole run with start-up, s", "total_s", "{:,.1f}"),
    ("  processor time, s", "total_cpu_s", "{:,.1f}"),
    ("peak memory, MB", "peak_mb", "{:,.0f}"),
    ("  shared pages counted once, MB", "peak_pss_mb", "{:,.0f}"),
)


def show(found: Figures, task: Task) -> None:
    """Print the figures for people."""
    compared = found["compared"]
    print(
        f"{task.holders} holders x {task.rows:,} rows x {task.rounds} rounds, {task.features} features,"
        f" {os.cpu_count()} cores, load before {found['load_before']}, after {found['load_after']}"
    )
    names = [name for name in LABELS if name in compared]
    print(f"{'':<34}" + "".join(f"{LABELS[name]:>22}" for name in names))
    for words, key, form in ROWS:
        cells = []
        for name in names:
            ratio = compared[name].get("times_assay", {}).get(key)
            cells.append(form.format(compared[name][key]) + (f" ({ratio:.3g} x)" if ratio else ""))
        print(f"{words:<34}" + "".join(f"{cell:>22}" for cell in cells))
    for words, each in found.get("large", {}).items():
        print(
            f"{words} x {LARGE_ROUNDS} rounds: {each['total_s']:.1f} s, a round {each['round_s']:.2f} s,"
            f" {each['peak_mb']:,.0f} MB"
        )
    for what, line in found.get("lines", {}).items():
        print(f"processor time of training against {what}, {LINE_ROUNDS} rounds")
        print(f"{'holders':>12}{'rows each':>12}{'s':>10}{'on the wall':>14}{'memory, MB':>12}")
        for point in line["points"]:
            print(
                f"{point['holders']:>12,}{point['rows']:>12,}{point['cpu_s']:>10.2f}{point['wall_s']:>14.2f}"
                f"{point['peak_mb']:>12,}"
            )
        print(
            f"  {line['start_s']} s + {line['ms_for_1000']} ms for every 1,000 {what}, R² {line['r_squared']}"
        )
    for words, met in found["goals"]:
        print(f"{'met   ' if met else 'MISSED'}  {words}")


def mechanism(task: Task) -> dict[str, float]:
    """Return the noise and the bound of one holder's gradients in this study."""
    from assay.models.encoding import Grid
    from assay.models.label import mechanism_of
    from assay.models.study import parse_study

    study = parse_study(task.study())
    found = mechanism_of(study, Grid.of(study), number=1, rounds=task.rounds)
    return {"noise_multiplier": found.noise_multiplier, "max_grad_norm": found.l2_clip_norm}


def load() -> float:
    """Return how many processes wanted to run in the last minute."""
    return round(os.getloadavg()[0], 1)


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example, without the minutes that Flower takes: python benchmarks/simulation.py --no-flower",
    )
    for name, default in (("holders", 100), ("rows", 3000), ("rounds", 5), ("features", 20), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repetitions", type=int, default=3, help="of everything but Flower")
    for name in ("flower", "pfl", "scale", "lines"):
        parser.add_argument(f"--no-{name}", action="store_true", help=f"leave {name} out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 2 or min(options.holders, options.rows, options.features, options.repetitions) < 1:
        parser.error("--rounds is at least 2, the other numbers at least 1")
    task = Task(
        holders=options.holders,
        rows=options.rows,
        rounds=options.rounds,
        features=options.features,
        batch=options.batch,
        cores=len(os.sched_getaffinity(0)),
    )
    task = Task(**{**json.loads(task.json()), **mechanism(task)})
    peers = [name for name in ("flower", "pfl") if not getattr(options, f"no_{name}")]
    for name, module in (("flower", "ray"), ("pfl", "pfl")):
        if name in peers and importlib.util.find_spec(module) is None:
            parser.error(f"{module} is not installed: pip install 'assay[bench]', or --no-{name}")
    found: Figures = {"load_before": load(), "compared": compare(task, peers, options.repetitions)}
    if not options.no_scale:
        found["large"] = large(options.features)
    if not options.no_lines:
        found["lines"] = lines(options.features)
    found |= {"load_after": load(), "task": json.loads(task.json())}
    found["goals"] = goals(found)
    if options.json:
        print(json.dumps(found))
    else:
        show(found, task)
    sys.exit(0 if all(met for _, met in found["goals"]) else 1)


if __name__ == "__main__":
    main()
