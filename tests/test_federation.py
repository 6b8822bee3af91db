"""The main job with real processes, and what happens when they are killed, starved or lied to."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import ssl
import time

import pytest
from federation_support import LOCAL, STUDY, Federation, assay, assay_json, assay_process, wait_for
from typer.testing import CliRunner

from assay.simulations.main import build

pytestmark = pytest.mark.slow

EVERY_ROUND = list(range(1 + 40 + 2))  # counts, gradients, calibration, audit
# Nobody's records have the column, so that no group is known to be large enough.
GATED = STUDY.replace(
    "[training]",
    """[fairness]
columns = ["sex"]
groups = { sex = ["f", "m"] }
gate = { min_approval_ratio = 0.8 }

[training]""",
)


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
    assert [(m["run"], m["held"]) for m in registered] == [(done["run"], [])]
    assert done["held"] == []
    audited = assay_json("model", "show", done["bundle"])["audit"]
    assert audited["persons"] == pytest.approx(6000, rel=0.5)
    assert audited["patterns"] == [{"components": ["identity", "spending", "payment_history"], "holders": 3}]
    for name in federation.names:
        ledger = federation.ledger(name)
        assert ledger["verified"] is True
        assert ledger["spent_epsilon"] == pytest.approx(1.0, abs=1e-6)
        assert ledger["spent_epsilon"] <= 1.0
        assert federation.charges(name, done["run"]) == EVERY_ROUND
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
        assert federation.charges(name, run) == EVERY_ROUND
        assert federation.audit(name)["verified"] is True


def test_a_coordinator_killed_during_a_run_goes_on_with_it_and_holds_the_model_that_its_gate_stops(
    federation,
):
    run = federation.train(GATED, wait=False)["run"]
    federation.await_round(run, 5)
    federation.kill("coordinator")
    federation.serve()
    ended = federation.await_end(run)
    assert ended["state"] == "done"
    assert ended["holders"] == ["bank-a", "bank-b", "bank-c"]
    for name in federation.names:
        assert federation.charges(name, run) == EVERY_ROUND
        assert federation.audit(name)["verified"] is True
    (model,) = [
        m for m in assay_json("server", "models", federation.coordinator)["models"] if m["run"] == run
    ]
    assert model["held"] == ["fairness: sex f: n too small", "fairness: sex m: n too small"]
    assay("model", "verify", model["bundle"])  # it is there, and signed
    assert "held back" in assay(
        "model", "score", model["bundle"], "--input", federation.root / "bank-a/records.csv",
        "--output", federation.root / "none.csv", "--purpose", "consumer_credit", code=3,
    )  # fmt: skip


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
        (row,) = database.execute("SELECT max(seq) FROM ledger WHERE kind = 'charge'").fetchone()
        database.execute("UPDATE ledger SET noise_multiplier = noise_multiplier * 2 WHERE seq = ?", [row])
    assert f"row {row}" in assay("privacy", "ledger", home, "--verify", code=1)
    assert f"row {row}" in assay("privacy", "audit", home, code=1)
    error = assay_process("client", "run", home, code=1)
    assert f"row {row}" in error
    assert "Traceback" not in error


@pytest.fixture(scope="class")
def restored(tmp_path_factory):
    """Two runs of three holders; the directory of bank-b as it was between them is in ``backup``."""
    federation = Federation(tmp_path_factory.mktemp("restored"))
    with federation.processes:
        federation.start()
        assert federation.train()["state"] == "done"
        federation.processes.stop("bank-b")
        shutil.copytree(federation.root / "bank-b", federation.root / "backup")
        federation.run_holder("bank-b")
        federation.await_online(3)
        assert federation.train()["state"] == "done"
        yield federation


class TestRestoredDirectory:
    """A holder's directory as it was before a run, put back by somebody who does not know better."""

    def test_it_answers_ledger_is_refused_and_nobody_is_charged(self, restored):
        put_in_place(restored, "backup", aside="true")
        before = {name: charges(restored, name) for name in restored.names}
        refused = CliRunner().invoke(
            build(), ["server", "train", str(restored.coordinator), str(restored.study), "--wait"]
        )
        assert refused.exit_code == 3
        assert "bank-b: LEDGER ROLLED BACK OR CLONED" in refused.stderr.splitlines()[-1]
        assert "older copy" in (restored.root / "logs/bank-b.log").read_text().splitlines()[-1]
        assert {name: charges(restored, name) for name in restored.names} == before

    def test_only_a_witness_tells_it_from_the_true_one(self, restored):
        witness = restored.root / "bank-b.witness.json"
        assay("server", "witness", restored.coordinator, "bank-b", "--output", witness)
        assert restored.audit("bank-b")["verified"] is True
        said = assay("privacy", "audit", restored.root / "bank-b", "--witness", witness, code=1)
        assert "older" in said

    def test_with_the_true_one_the_next_run_is_trained(self, restored):
        put_in_place(restored, "true", aside="backup")
        assert restored.train()["state"] == "done"
        witness = restored.root / "bank-b.witness.json"
        assert restored.audit("bank-b", "--witness", witness)["witnessed"] is True
        for name in restored.names:
            assert restored.audit(name)["verified"] is True


def put_in_place(federation, directory, *, aside):
    """Stop bank-b, put its directory aside and another one in its place, and start it again."""
    federation.processes.stop("bank-b")
    (federation.root / "bank-b").rename(federation.root / aside)
    (federation.root / directory).rename(federation.root / "bank-b")
    federation.run_holder("bank-b")
    federation.await_online(3)


def charges(federation, name):
    return [entry for entry in federation.ledger(name)["entries"] if entry["kind"] == "charge"]


@pytest.fixture(scope="class")
def four(tmp_path_factory):
    """Four holders: three of them still reach the threshold. A round waits five seconds."""
    names = ("bank-a", "bank-b", "bank-c", "bank-d")
    federation = Federation(tmp_path_factory.mktemp("four"), names)
    settings = federation.coordinator / "federation.toml"
    text = settings.read_text()
    assert "round_timeout_s = 600" in text
    settings.write_text(text.replace("round_timeout_s = 600", "round_timeout_s = 5"))
    with federation.processes:
        federation.start()
        yield federation


class TestFourHolders:
    """What becomes of a run whose holders are gone for good."""

    def test_a_run_goes_on_without_one_of_them(self, four):
        run = four.train(wait=False)["run"]
        four.await_round(run, 5)
        four.kill("bank-d")
        ended = four.await_end(run)
        assert ended["state"] == "done"
        for name in ("bank-a", "bank-b", "bank-c"):
            assert four.charges(name, run) == EVERY_ROUND
        charged = four.charges("bank-d", run)
        assert charged == list(range(len(charged)))
        assert 5 < len(charged) < len(EVERY_ROUND)
        for name in four.names:
            assert four.audit(name)["verified"] is True

    def test_with_two_left_it_ends_and_the_last_round_gives_no_sum(self, four):
        run = four.train(wait=False)["run"]
        four.await_round(run, 5)
        four.kill("bank-c")
        ended = four.await_end(run)
        assert ended["state"] == "aborted"
        assert "allowed: at least 3" in ended["message"]
        for name in ("bank-a", "bank-b"):
            last = four.charges(name, run)[-1]
            assert last == ended["round"] + 1
            rows = four.ledger(name)["entries"]
            opened = [row["round"] for row in rows if (row["kind"], row["run"]) == ("open", run)]
            # Where bank-c had sent its values before, two openings are left, and three are needed.
            assert opened[: ended["round"] + 1] == list(range(last))
            assert set(opened[last:]) <= {last}
            assert four.audit(name)["verified"] is True
