"""How fast `assay model score` scores a file, and what of it is more than reading and writing.

Run: python benchmarks/scoring.py [--rows 1000000] [--features 20] [--repetitions 3] [--json]

Every measurement is a process of its own, pinned to one core; they take turns and the medians count.

score    the whole command: interpreter, bundle, reading, scores, points, reasons, writing, fsync
copy     the floor: pyarrow reads the same columns of the same file and writes a table of the same shape as
         the scores, made before the clock starts, with the same writers; nothing is scored or checked
arrays   columns in memory to scores, points and reasons in memory

Rates are per second of processor time, because a busy machine makes the clock on the wall worthless; the
wall time stands beside it. Peak memory is VmHWM of the process. The bundle is trained here, on generated
records with epsilon 1; the generated file has numbers only, one missing cell in fifty. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

FORMATS = ("csv", "parquet")
TRAINING_ROWS, HOLDERS, ROUNDS = 5000, 3, 20
ONE_ROW_TURNS = 500
PURPOSE = "consumer_credit"


# The generated study, bundle and records -----------------------------------------------------------


def study_text(features: int) -> str:
    """Return a study of numeric features."""
    head = f'[study]\nname = "scoring"\npurpose = "{PURPOSE}"\ncontexts = ["card"]\n\n'
    outcome = '[outcome]\ncolumn = "bad"\nmeaning = "missed a payment"\n\n'
    each = "".join(
        f'[[features]]\nname = "f{i}"\ncolumn = "f{i}"\ncomponent = "spending"\nkind = "numeric"\n'
        f'domain = [0, 1000]\nlabel = "Feature {i}"\n\n'
        for i in range(features)
    )
    return f"{head}{outcome}{each}[training]\nrounds = {ROUNDS}\n\n[privacy]\nepsilon = 1.0\ndelta = 1e-6\n"


def make_columns(rows: int, features: int, seed: int) -> dict[str, np.ndarray]:
    """Return float64 columns with two decimals in [0, 1000], NaN where missing."""
    rng = np.random.default_rng(seed)
    columns = {}
    for i in range(features):
        values = rng.integers(0, 100_001, rows) / 100
        values[rng.random(rows) < 0.02] = np.nan
        columns[f"f{i}"] = values
    return columns


def make_bundle(path: Path, features: int) -> None:
    """Train and publish over simulated holders."""
    from assay.client.records import Records
    from assay.server.publish import publish
    from assay.simulations.engine import federate

    holders = {}
    for seed in range(HOLDERS):
        columns = make_columns(TRAINING_ROWS, features, seed)
        risk = np.nanmean(np.array([columns[f"f{i}"] for i in range(min(3, features))]), axis=0) / 1000
        labels = np.random.default_rng(seed).random(TRAINING_ROWS) < risk
        holders[f"holder-{seed}"] = Records(columns=columns, labels=labels.astype(np.float64))
    run = federate(study_text(features), holders)
    publish(path, study=run.study, trained=run.trained, identity=run.identity, created=time.time())


def make_files(folder: Path, rows: int, features: int) -> None:
    """Write the same records as CSV and Parquet, and one of them alone as CSV."""
    columns = make_columns(rows, features, HOLDERS)
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    pyarrow.csv.write_csv(table, folder / "records.csv")
    pyarrow.parquet.write_table(table, folder / "records.parquet")
    pyarrow.csv.write_csv(table.slice(0, 1), folder / "one.csv")


# What is measured, each in a process of its own -----------------------------------------------------


def score(folder: Path, form: str, records: str = "records") -> dict[str, float]:
    """Run the command as a user does."""
    from assay.simulations.main import build

    source, target = folder / f"{records}.{form}", folder / f"scores.{form}"
    arguments = ["model", "score", str(folder / "card.bundle"), "--input", str(source)]
    arguments += ["--output", str(target), "--purpose", PURPOSE, "--json"]
    with open(os.devnull, "w") as nowhere:
        sys.stdout, printer = nowhere, sys.stdout
        build()(arguments, standalone_mode=False)
        sys.stdout = printer
    return {"cpu_s": time.process_time(), "megabytes_out": target.stat().st_size / 1e6}


def copy(folder: Path, form: str) -> dict[str, float]:
    """Read the input and write as much as the command did, with pyarrow alone."""
    source, target = folder / f"records.{form}", folder / f"copy.{form}"
    if form == "csv":
        with pyarrow.csv.open_csv(folder / "scores.csv") as reader:
            ready = pa.Table.from_batches([reader.read_next_batch()])
        start = time.process_time()
        reader, writer = pyarrow.csv.open_csv(source), pyarrow.csv.CSVWriter
    else:
        with pyarrow.parquet.ParquetFile(folder / "scores.parquet") as file:
            ready = pa.Table.from_batches([next(file.iter_batches(batch_size=1 << 16))])
        start = time.process_time()
        reader = pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1 << 16)
        writer = pyarrow.parquet.ParquetWriter
    with writer(str(target), ready.schema) as sink:
        for batch in reader:
            left = batch.num_rows
            while left > 0:
                sink.write(part := ready.slice(0, left))
                left -= part.num_rows
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return {"cpu_s": time.process_time() - start, "megabytes_out": target.stat().st_size / 1e6}


def arrays(folder: Path, rows: int) -> dict[str, float]:
    """Score columns that are in memory, all at once and one row at a time."""
    from assay.models.bundle import read_bundle
    from assay.models.rowscorer import RowScorer

    card = read_bundle(folder / "card.bundle").scorecard
    columns = make_columns(rows, len(card.grid.features), HOLDERS)
    start = time.process_time()
    card.score(card.grid.encode(columns))
    all_s = time.process_time() - start
    scorer = RowScorer(card)
    one = {name: float(values[0]) for name, values in columns.items()}
    start = time.process_time()
    for _ in range(ONE_ROW_TURNS):
        scorer.score(one)
    return {"cpu_s": all_s, "one_row_s": (time.process_time() - start) / ONE_ROW_TURNS}


def child(what: str, folder: Path, rows: int) -> None:
    """Do one measurement and print it; runs in a process of its own."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    kind, _, form = what.partition("-")
    if kind == "score":
        facts = score(folder, form)
    elif kind == "one":
        facts = score(folder, form, "one")
    elif kind == "copy":
        facts = copy(folder, form)
    else:
        facts = arrays(folder, rows)
    print(json.dumps({**facts, "peak_mb": peak_bytes() / 1e6}))


def peak_bytes() -> int:
    """Return the most memory this process has had at once (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# The comparison -------------------------------------------------------------------------------------


def measure(folder: Path, rows: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Return the medians of each measurement, taking turns."""
    what = [f"{kind}-{form}" for form in FORMATS for kind in ("score", "copy")] + ["arrays", "one-csv"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in what}
    for _ in range(repetitions):
        for name in what:
            start = time.monotonic()
            command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
            done = subprocess.run(
                [*command, "--rows", str(rows)], stdout=subprocess.PIPE, check=True, timeout=300
            )
            facts = json.loads(done.stdout)
            found[name].append({**facts, "wall_s": time.monotonic() - start})
    return {
        name: {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        for name, turns in found.items()
    }


def results(medians: dict[str, dict[str, float]], rows: int, folder: Path) -> dict[str, object]:
    """Return the figures in the units in which they are printed."""
    files = {}
    for form in FORMATS:
        whole, floor = medians[f"score-{form}"], medians[f"copy-{form}"]
        files[form] = {
            "rows_per_s": round(rows / whole["cpu_s"], -3),
            "cpu_s": round(whole["cpu_s"], 2),
            "wall_s": round(whole["wall_s"], 2),
            "peak_mb": round(whole["peak_mb"]),
            "megabytes_in": round((folder / f"records.{form}").stat().st_size / 1e6),
            "megabytes_out": round(whole["megabytes_out"]),
            "copy_cpu_s": round(floor["cpu_s"], 2),
            "copy_megabytes_out": round(floor["megabytes_out"]),
            "times_copy": round(whole["cpu_s"] / floor["cpu_s"], 2),
        }
    memory, alone = medians["arrays"], medians["one-csv"]
    return {
        "rows": rows,
        **files,
        "arrays_rows_per_s": round(rows / memory["cpu_s"], -3),
        "one_row_us": round(1e6 * memory["one_row_s"]),
        "one_row_command_cpu_s": round(alone["cpu_s"], 2),
        "one_row_command_peak_mb": round(alone["peak_mb"]),
    }


LINES = (
    ("rows_per_s", "rows per second of processor time", "{:,.0f}"),
    ("cpu_s", "processor time of the command, s", "{:.2f}"),
    ("wall_s", "  on the wall, s", "{:.2f}"),
    ("copy_cpu_s", "pyarrow reading and writing alone, s", "{:.2f}"),
    ("times_copy", "  the command takes times as long", "{:.2f}"),
    ("peak_mb", "peak memory, MB", "{}"),
    ("megabytes_in", "read, MB", "{}"),
    ("megabytes_out", "written, MB", "{}"),
    ("copy_megabytes_out", "  by pyarrow alone, MB", "{}"),
)


def show(found: dict[str, object], features: int) -> None:
    """Print the figures for people."""
    print(f"{found['rows']:,} rows x {features} features, one core")
    print(f"{'assay model score':<45}{'CSV':>12}{'Parquet':>12}")
    for key, words, form in LINES:
        print(f"{words:<45}" + "".join(f"{form.format(found[name][key]):>12}" for name in FORMATS))
    print(f"{'from columns in memory, rows per second':<45}{found['arrays_rows_per_s']:>12,.0f}")
    print(f"{'one row in a running process, microseconds':<45}{found['one_row_us']:>12}")
    print(f"{'one row as a command, processor time, s':<45}{found['one_row_command_cpu_s']:>12.2f}")
    print(f"{'  peak memory, MB':<45}{found['one_row_command_peak_mb']:>12}")


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.rows)
        return
    if not (options.rows >= 1 and options.features >= 1 and options.repetitions >= 1):
        parser.error("--rows, --features and --repetitions are at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="assay-scoring-") as scratch:
        folder = Path(scratch)
        make_bundle(folder / "card.bundle", options.features)
        make_files(folder, options.rows, options.features)
        found = results(measure(folder, options.rows, options.repetitions), options.rows, folder)
    if options.json:
        print(json.dumps({**found, "features": options.features}))
    else:
        show(found, options.features)


if __name__ == "__main__":
    main()
