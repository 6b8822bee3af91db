"""The gate, in order of speed: format, lint, layers, types, tests, wheel contents, slow tests.

Run by ``make check`` (without the slow tests) and ``make test`` (with them). Stops at the first failure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def step(name: str, *command: str) -> None:
    """Run one command; end with its exit code where it fails."""
    start = time.monotonic()
    sys.stdout.write(f"== {name}\n")
    sys.stdout.flush()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603 - our own commands
    sys.stdout.write(f"   {time.monotonic() - start:.1f} s\n")
    if code:
        sys.exit(code)


def check_wheel() -> None:
    """Build the wheel and refuse any top-level name other than ``assay``."""
    with tempfile.TemporaryDirectory() as folder:
        out = ("--wheel", "--no-isolation", "--outdir", folder)
        step("wheel", sys.executable, "-m", "build", *out, str(ROOT))
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    extra = {name for name in top if name != "assay" and not name.endswith(".dist-info")}
    if extra or not any(name.startswith("assay/") for name in names):
        sys.exit(f"wheel: top-level names {sorted(top)}; allowed: assay")
    if not any(name.endswith("taiwan_credit.csv.gz") for name in names):
        sys.exit("wheel: the demo's data is missing")


def main() -> None:
    """Run every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="also the tests that start real processes")
    slow = parser.parse_args().slow
    step("format", str(BIN / "ruff"), "format", "--check", "--quiet", ".")
    step("lint", str(BIN / "ruff"), "check", "--quiet", ".")
    step("layers", str(BIN / "lint-imports"), "--no-cache")
    step("types", str(BIN / "mypy"))
    # Files side by side on the cores there are; tests that start real processes run alone, below.
    spread = ("-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile")
    step("tests", sys.executable, "-m", "pytest", "-q", "-m", "not slow", *spread)
    check_wheel()
    if slow:
        step("slow tests", sys.executable, "-m", "pytest", "-q", "-m", "slow")


if __name__ == "__main__":
    main()
