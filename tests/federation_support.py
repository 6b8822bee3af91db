"""A whole federation for tests: real directories, real processes, the real command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from assay.privacy.errors import Unavailable
from assay.server.admin import AdminClient
from assay.simulations.main import build
from assay.simulations.processes import Processes

STUDY = """\
[study]
name = "tiny"
purpose = "consumer_credit"
contexts = ["card"]

[outcome]
column = "bad"
meaning = "missed a payment"

[[features]]
name = "amount"
column = "amount"
component = "spending"
kind = "numeric"
domain = [0, 1000]
label = "Amount"

[[features]]
name = "late"
column = "late"
component = "payment_history"
kind = "integer"
domain = [0, 6]
risk_trend = "rises"
label = "Late payments"
changeable = true

[[features]]
name = "region"
column = "region"
component = "identity"
kind = "categorical"
levels = ["north", "south"]
label = "Region"

[training]
rounds = 40

[privacy]
epsilon = 1.0
delta = 1e-6
trust = "distributed"
"""
LOCAL = STUDY.replace('trust = "distributed"', 'trust = "local"')


def write_records(path: Path, rows: int = 2000, seed: int = 0) -> None:
    """Write records whose risk rises with late payments and with the amount."""
    rng = np.random.default_rng(seed)
    amount, late = rng.uniform(0, 1000, rows), rng.integers(0, 7, rows)
    risk = 1 / (1 + np.exp(-(0.6 * late + amount / 500 - 3.5)))
    bad, region = (rng.random(rows) < risk).astype(int), rng.choice(["north", "south"], rows)
    lines = [f"{a:.2f},{n},{r},{b}" for a, n, r, b in zip(amount, late, region, bad, strict=True)]
    path.write_text("\n".join(["amount,late,region,bad", *lines]) + "\n", encoding="utf-8")


def assay(*arguments: object, code: int = 0) -> str:
    """Run one command in this process and return its standard output; its exit code must be ``code``."""
    result = CliRunner().invoke(build(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (arguments, result.exit_code, result.output)
    return result.stdout if code == 0 else result.stderr


def assay_process(*arguments: object, code: int) -> str:
    """Run one long-lived command in a process of its own; it must end with ``code``. Returns its stderr."""
    command = [sys.executable, "-m", "assay.simulations.main", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code, (arguments, result.returncode, result.stderr)
    return result.stderr


def assay_json(*arguments: object) -> dict:
    """Run one command with ``--json`` and return its object."""
    return json.loads(assay(*arguments, "--json"))


class Federation:
    """A coordinator and holders in one directory, set up through the command line."""

    def __init__(self, root: Path, names: tuple[str, ...] = ("bank-a", "bank-b", "bank-c")) -> None:
        self.root, self.names = root, names
        self.coordinator, self.study = root / "coordinator", root / "study.toml"
        self.study.write_text(STUDY, encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        assay("server", "init", self.coordinator, "--name", "Tests", "--port", port)
        for seed, name in enumerate(names):
            self.enrol(name)
            write_records(root / name / "records.csv", seed=seed)
        self.processes = Processes(root / "logs")

    def enrol(self, name: str) -> None:
        """The steps of a holder that joins."""
        home = self.root / name
        shown = assay_json("client", "init", home, "--name", name)
        admitted = assay_json(
            "server", "admit", self.coordinator, shown["request"], "--expect", shown["fingerprint"]
        )
        assay("client", "join", home, admitted["join"], "--expect", admitted["federation"])
        settings = home / "client.toml"
        text = settings.read_text().replace(
            "[policy]", '[data]\nkind = "csv"\npath = "records.csv"\none_row_per_person = true\n\n[policy]', 1
        )
        for key in ("epsilon_per_study = 3.0", "epsilon_per_year = 6.0"):
            text = text.replace(key, f"{key.split()[0]} = 2.2")  # room for four runs of epsilon 1
        settings.write_text(text)

    def serve(self) -> None:
        """Start the coordinator and wait until it answers."""
        self.processes.start("coordinator", "server", "serve", str(self.coordinator))
        wait_for(lambda: self.status() is not None)

    def run_holder(self, name: str) -> None:
        """Start a holder's daemon."""
        self.processes.start(name, "client", "run", str(self.root / name))

    def start(self) -> None:
        """Start everything and wait until all holders are online."""
        self.serve()
        for name in self.names:
            self.run_holder(name)
        self.await_online(len(self.names))

    def await_online(self, count: int) -> None:
        """Wait until that many holders are connected."""
        wait_for(lambda: sum(h["online"] for h in (self.status() or {"holders": []})["holders"]) >= count)

    def status(self) -> dict | None:
        """Ask the serving coordinator; None when it does not serve."""
        try:
            return AdminClient.call(self.coordinator, "status", {})
        except Unavailable:
            return None

    def run_state(self, run: str) -> dict:
        """Return one run as the coordinator tells it."""
        return next(r for r in assay_json("server", "status", self.coordinator)["runs"] if r["run"] == run)

    def train(self, study: str = STUDY, *, wait: bool = True) -> dict:
        """Order a run of a study's text and return it as the coordinator tells it, ended if ``wait``."""
        self.study.write_text(study, encoding="utf-8")
        options = ["--wait"] if wait else []
        return assay_json("server", "train", self.coordinator, self.study, *options)

    def kill(self, name: str) -> None:
        """End a process the hard way, as a power cut would."""
        process = self.processes.process(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def await_round(self, run: str, number: int) -> None:
        """Wait until a run has passed a round."""

        def passed() -> bool:
            state = self.run_state(run)
            assert state["state"] in ("queued", "running"), state
            return (state["round"] or 0) >= number

        wait_for(passed)

    def await_end(self, run: str, timeout: float = 90) -> dict:
        """Wait until a run has ended and return it."""
        wait_for(lambda: self.run_state(run)["state"] not in ("queued", "running"), timeout)
        return self.run_state(run)

    def ledger(self, name: str) -> dict:
        """Return a holder's verified ledger."""
        return assay_json("privacy", "ledger", self.root / name, "--verify")

    def audit(self, name: str, *options: object) -> dict:
        """Check a holder's audit log and ledger offline and return the verdict."""
        return assay_json("privacy", "audit", self.root / name, *options)

    def charges(self, name: str, run: str) -> list[int]:
        """Return the rounds charged to a holder for a run, in ledger order."""
        entries = self.ledger(name)["entries"]
        return [e["round"] for e in entries if e["kind"] == "charge" and e["run"] == run]


def wait_for(condition, timeout: float = 90, every: float = 0.1) -> None:
    """Wait until ``condition()`` is true, at most ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(every)
    raise TimeoutError("the awaited condition did not come true")
