"""The main job with real processes, and what happens when they are killed, starved or lied to."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import ssl
import time

import pytest
from federation_support import LOCAL, Federation, assay, assay_json, assay_process, wait_for
from typer.testing import CliRunner

from assay.simulations.main import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("federation"))
    with federation.processes:
        federation.start()
        yield federation


def test_six_commands_lead_to_a_signed_bundle_that_scores(federation, tmp_path):
    checked = assay("client", "check", federation.root / "bank-a", federation.study)
    assert "what would leave" in checked
    assert "masked" in checked
    done = federation.train()
    assert done["state"] == "done"
    assert done["rounds"] == 40
    assert done["holders"] == ["bank-a", "bank-b", "bank-c"]
    assay("model", "verify", done["bundle"])
    shown = assay_json("model", "show", done["bundle"])["label"]
    assert (shown["trust"], shown["tolerated"], shown["holders"]) == ("distributed", 1, 3)
    assert shown["epsilon_if_aggregation_fails"] > 1.0
    out = tmp_path / "scores.csv"
    assay(
        "model", "score", done["bundle"], "--input", federation.root / "bank-a/records.csv",
        "--output", out, "--purpose", "consumer_credit",
    )  # fmt: skip
    assert len(out.read_text().splitlines()) == 2001
    registered = assay_json("server", "models", federation.coordinator)["models"]
    assert [m["run"] for m in registered] == [done["run"]]
    for name in federation.names:
        ledger = federation.ledger(name)
        assert ledger["verified"] is True
        assert ledger["spent_epsilon"] == pytest.approx(1.0, abs=1e-6)
        assert ledger["spent_epsilon"] <= 1.0
        assert federation.charges(name, done["run"]) == list(range(41))
        assert federation.audit(name)["verified"] is True


def test_a_holder_killed_in_the_middle_of_a_run_comes_back_and_is_charged_once(federation):
    run = federation.train(wait=False)["run"]
    federation.await_round(run, 5)
    federation.kill("bank-b")
    time.sleep(1.0)
    held_at = federation.run_state(run)["round"]
    federation.run_holder("bank-b")
    ended = federation.await_end(run)
    assert ended["state"] == "done"
    assert ended["holders"] == ["bank-a", "bank-b", "bank-c"]
    assert held_at < 40  # the run did wait for the holder
    for name in federation.names:
        assert federation.charges(name, run) == list(range(41))
        assert federation.audit(name)["verified"] is True


def test_a_coordinator_killed_during_a_run_goes_on_with_it(federation):
    run = federation.train(wait=False)["run"]
    federation.await_round(run, 5)
    federation.kill("coordinator")
    federation.serve()
    ended = federation.await_end(run)
    assert ended["state"] == "done"
    assert ended["holders"] == ["bank-a", "bank-b", "bank-c"]
    for name in federation.names:
        assert federation.charges(name, run) == list(range(41))
        assert federation.audit(name)["verified"] is True


def test_a_coordinator_stopped_during_a_run_keeps_it_and_a_holder_without_usable_records_declines(federation):
    """The fourth run of the budget, with local trust, which two holders are enough for.

    It is stopped by SIGTERM in the middle, and one holder's file has gone bad.
    """
    records = federation.root / "bank-c/records.csv"
    good = records.read_text()
    records.write_text(good.replace("late", "later", 1).replace(",0\n", ",7\n", 1))
    run = federation.train(LOCAL, wait=False)["run"]
    federation.await_round(run, 3)
    process = federation.processes.process("coordinator")
    process.terminate()
    assert process.wait(10) == 0
    kept = assay_json("server", "status", federation.coordinator)
    assert kept["serving"] is False
    assert federation.run_state(run)["state"] == "running"
    records.write_text(good)
    federation.serve()
    ended = federation.await_end(run)
    assert ended["state"] == "done"
    assert ended["holders"] == ["bank-a", "bank-b"]
    assert federation.charges("bank-c", run) == []
    log = (federation.root / "logs/bank-c.log").read_text()
    assert "row 1, column 'bad'" in log or "label" in log or "column" in log
    assert "'7'" not in log  # the cell itself never enters a log


def test_a_run_that_would_pass_a_cap_is_refused_whole_and_charges_nothing(federation):
    before = {
        name: sum(e["kind"] == "charge" for e in federation.ledger(name)["entries"])
        for name in federation.names
    }
    result = CliRunner().invoke(
        build(), ["server", "train", str(federation.coordinator), str(federation.study), "--wait", "--json"]
    )
    assert result.exit_code == 3
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    # bank-c has room for one more run; the other two have used up four, and one holder is too few.
    assert "bank-a: declined (budget)" in last
    assert "bank-b: declined (budget)" in last
    for name in federation.names:
        charged = [e for e in federation.ledger(name)["entries"] if e["kind"] == "charge"]
        assert len(charged) == before[name]
        assert federation.ledger(name)["spent_epsilon"] <= 2.2
    assert "leaves room for" in (federation.root / "logs/bank-a.log").read_text()


def test_a_peer_without_a_certificate_of_this_federation_gets_no_connection(federation):
    port = int(assay_json("server", "status", federation.coordinator)["address"].rpartition(":")[2])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        call_with_the_ca_file_only(port, federation.coordinator / "keys/ca.pem")


def call_with_the_ca_file_only(port, ca):
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        # TLS 1.3 reports a missing client certificate with the first read.
        secure.sendall(b"POST /v1/fleet/activate-node HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        if not secure.recv(1):
            raise ConnectionError("closed")


def test_two_daemons_on_one_directory_and_two_coordinators_are_refused(federation):
    assert "stop the other daemon" in assay_process("client", "run", federation.root / "bank-a", code=1)
    assert "serving" in assay_process("server", "serve", federation.coordinator, code=1)


def test_a_revoked_holder_is_shut_out(federation):
    assay("server", "revoke", federation.coordinator, "bank-c")
    wait_for(lambda: not any(h["name"] == "bank-c" for h in federation.status()["holders"]))
    process = federation.processes.process("bank-c")
    assert process.poll() is None  # it keeps trying, and says why
    wait_for(lambda: "401" in (federation.root / "logs/bank-c.log").read_text())


def test_sigterm_stops_every_process_within_seconds_and_with_exit_code_0(federation):
    for name in ("bank-a", "bank-b", "coordinator"):
        process = federation.processes.process(name)
        start = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0, name
        assert time.monotonic() - start < 5, name


def test_a_tampered_ledger_is_named_and_the_daemon_refuses_to_start(federation):
    home = federation.root / "bank-a"
    with sqlite3.connect(home / "ledger.sqlite") as database:
        database.execute("UPDATE ledger SET noise_multiplier = noise_multiplier * 2 WHERE seq = 5")
    assert "row 5" in assay("privacy", "ledger", home, "--verify", code=1)
    error = assay_process("client", "run", home, code=1)
    assert "row 5" in error
    assert "Traceback" not in error


class TestRestoredDirectory:
    """A holder's directory as it was before a run, put back by somebody who does not know better."""

    @pytest.fixture(scope="class")
    def federation(self, tmp_path_factory):
        federation = Federation(tmp_path_factory.mktemp("restored"))
        with federation.processes:
            federation.start()
            yield federation

    @pytest.fixture(scope="class")
    def backup(self, federation):
        """The directory of bank-b after one run; a second run has taken place since."""
        assert federation.train()["state"] == "done"
        federation.processes.stop("bank-b")
        backup = federation.root / "backup"
        shutil.copytree(federation.root / "bank-b", backup)
        federation.run_holder("bank-b")
        federation.await_online(3)
        assert federation.train()["state"] == "done"
        return backup

    @staticmethod
    def put_in_place(federation, directory):
        """Stop bank-b, give it another directory, start it; return the directory it had."""
        federation.processes.stop("bank-b")
        home, aside = federation.root / "bank-b", federation.root / f"aside-{directory.name}"
        home.rename(aside)
        directory.rename(home)
        federation.run_holder("bank-b")
        federation.await_online(3)
        return aside

    def test_it_answers_ledger_is_refused_and_nobody_is_charged(self, federation, backup):
        true = self.put_in_place(federation, backup)
        before = {name: federation.ledger(name)["entries"] for name in federation.names}
        refused = CliRunner().invoke(
            build(), ["server", "train", str(federation.coordinator), str(federation.study), "--wait"]
        )
        assert refused.exit_code == 3
        assert "bank-b: LEDGER ROLLED BACK OR CLONED" in refused.stderr.splitlines()[-1]
        log = (federation.root / "logs/bank-b.log").read_text().splitlines()[-1]
        assert "older copy" in log
        for name in federation.names:
            charged = [entry for entry in federation.ledger(name)["entries"] if entry["kind"] == "charge"]
            assert charged == [entry for entry in before[name] if entry["kind"] == "charge"]
        self.put_in_place(federation, true)
        assert federation.train()["state"] == "done"

    def test_only_a_witness_tells_a_restored_directory_from_the_true_one(self, federation, backup):
        copy = federation.root / "aside-aside-backup"
        witness = federation.root / "bank-b.witness.json"
        assay("server", "witness", federation.coordinator, "bank-b", "--output", witness)
        for name in federation.names:
            assert federation.audit(name)["verified"] is True
        assert federation.audit("bank-b", "--witness", witness)["witnessed"] is True
        assay("privacy", "audit", copy)
        assert "older" in assay("privacy", "audit", copy, "--witness", witness, code=1)


class TestFourHolders:
    """Four are enough for one of them to be gone: three still reach the threshold."""

    @pytest.fixture(scope="class")
    def federation(self, tmp_path_factory):
        federation = Federation(
            tmp_path_factory.mktemp("four"), names=("bank-a", "bank-b", "bank-c", "bank-d")
        )
        settings = federation.coordinator / "federation.toml"
        text = settings.read_text()
        assert "round_timeout_s = 600" in text
        settings.write_text(text.replace("round_timeout_s = 600", "round_timeout_s = 5"))
        with federation.processes:
            federation.start()
            yield federation

    def test_a_run_goes_on_without_a_holder_that_never_comes_back(self, federation):
        run = federation.train(wait=False)["run"]
        federation.await_round(run, 5)
        federation.kill("bank-d")
        ended = federation.await_end(run)
        assert ended["state"] == "done"
        assert ended["holders"] == ["bank-a", "bank-b", "bank-c"]
        for name in ended["holders"]:
            assert federation.charges(name, run) == list(range(41))
        charged = federation.charges("bank-d", run)
        assert charged == list(range(len(charged)))
        for name in federation.names:
            assert federation.audit(name)["verified"] is True

    def test_with_three_left_the_run_ends_and_nothing_of_the_round_is_opened(self, federation):
        run = federation.train(wait=False)["run"]
        federation.await_round(run, 5)
        federation.kill("bank-c")
        ended = federation.await_end(run)
        assert ended["state"] == "failed"
        last = ended["round"] + 1
        for name in ("bank-a", "bank-b"):
            assert federation.charges(name, run)[-1] == last
            opened = [e["round"] for e in federation.ledger(name)["entries"] if e["kind"] == "open"]
            assert last not in opened[-1:]
