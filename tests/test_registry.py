"""The coordinator's database: what it acknowledges stays, whoever writes beside it and whatever dies."""

import json
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from assay.privacy.errors import AssayError, BadInput, Tampered, Unavailable
from assay.server import database
from assay.server.cli import _progress, app
from assay.server.coordinator import Coordinator, run_summary
from assay.server.federation import Federation
from assay.server.records import STATES, Checkpoint, Collected, Session
from assay.server.registry import Registry
from assay.server.rounds import Progress

STUDY = {"name": "card", "study": "[study]\n", "digest": "ab" * 32}


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / "assay.sqlite", clock=lambda: 1000.0) as opened:
        yield opened


@pytest.fixture
def running(registry):
    run = registry.add_run(**STUDY).run
    registry.set_state(run, "running")
    return run


def model(registry, run, sha256="00" * 32):
    return registry.add_model(
        run,
        path=f"models/{run}.bundle",
        sha256=sha256,
        created=1.0,
        expires=2.0,
        purpose="consumer_credit",
        label={"epsilon": 1.0},
    )


# Runs -----------------------------------------------------------------------------------------------


def test_runs_are_served_in_the_order_they_came(registry):
    first, second = registry.add_run(**STUDY), registry.add_run(**STUDY)
    assert registry.next_queued() == first
    registry.set_state(first.run, "running")
    assert registry.next_queued() == second
    assert [run.run for run in registry.runs()] == [first.run, second.run]
    assert [run.run for run in registry.runs("running")] == [first.run]
    registry.set_state(second.run, "aborted", "stopped by the operator")
    assert registry.next_queued() is None
    assert registry.run(second.run).message == "stopped by the operator"


def test_a_new_run_holds_what_it_was_given_and_nothing_else(registry):
    run = registry.add_run(**STUDY)
    assert (run.name, run.study, run.digest) == ("card", "[study]\n", "ab" * 32)
    assert (run.state, run.rounds, run.round, run.holders) == ("queued", None, None, ())
    assert (run.created, run.started, run.ended) == (1000.0, None, None)
    assert len(run.run) == 32


@pytest.mark.parametrize("state", [name for name, after in STATES.items() if not after])
def test_a_final_state_is_final(registry, running, state):
    ended = registry.set_state(running, state, "why")
    assert registry.set_state(running, state, "another reason") == ended
    for other in set(STATES) - {state}:
        with pytest.raises(AssayError, match="no way"):
            registry.set_state(running, other)
    for change in (
        lambda: registry.set_holders(running, ["a"]),
        lambda: registry.set_rounds(running, 3),
        lambda: registry.save_checkpoint(Checkpoint(run=running, round=1, state=b"x")),
        lambda: model(registry, running),
    ):
        with pytest.raises(AssayError, match=state):
            change()


def test_a_run_that_was_never_queued_is_refused(registry):
    with pytest.raises(BadInput, match="assay server status"):
        registry.run("0" * 32)
    with pytest.raises(BadInput, match="run"):
        registry.set_state("0" * 32, "running")


def test_the_number_of_rounds_is_chosen_once(registry, running):
    registry.set_rounds(running, 30)
    registry.set_rounds(running, 30)
    with pytest.raises(AssayError, match="once"):
        registry.set_rounds(running, 31)
    registry.set_holders(running, ["bank-b", "bank-a"])
    assert registry.run(running).holders == ("bank-b", "bank-a")
    assert registry.run(running).rounds == 30


def test_a_run_shows_who_is_still_in_it(tmp_path):
    with Federation.init(tmp_path / "north", "North", "localhost", 9092) as federation:
        registry, coordinator = federation.registry, Coordinator(federation)
        run = registry.add_run(**STUDY).run
        registry.set_state(run, "running")
        steps = [("counts", ("a", "b", "c")), ("dropped", ("b",)), ("round", ("a", "c"))]
        for number, (kind, holders) in enumerate(steps):
            coordinator._report(
                run, Progress(kind=kind, round=number, rounds=4, holders=holders, epsilon=0.0)
            )
        assert run_summary(registry.run(run))["holders"] == ["a", "c"]


# Checkpoints ----------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept(registry, running, tmp_path):
    assert registry.latest_checkpoint(running) is None
    for number in range(5):
        registry.save_checkpoint(Checkpoint(run=running, round=number, state=bytes([number]) * 9))
    assert registry.latest_checkpoint(running) == Checkpoint(run=running, round=4, state=b"\4" * 9)
    assert registry.run(running).round == 4
    rows = sqlite3.connect(tmp_path / "assay.sqlite")
    assert rows.execute("SELECT round FROM checkpoints ORDER BY round").fetchall() == [(3,), (4,)]
    rows.close()


def test_a_run_does_not_go_back(registry, running):
    registry.save_checkpoint(Checkpoint(run=running, round=2, state=b"a"))
    registry.save_checkpoint(Checkpoint(run=running, round=2, state=b"b"))
    with pytest.raises(AssayError, match="cannot be stored"):
        registry.save_checkpoint(Checkpoint(run=running, round=1, state=b"c"))
    assert registry.latest_checkpoint(running).state == b"b"


def test_checkpoints_of_runs_do_not_mix(registry, running):
    other = registry.add_run(**STUDY).run
    registry.set_state(other, "running")
    registry.save_checkpoint(Checkpoint(run=running, round=7, state=b"a"))
    registry.save_checkpoint(Checkpoint(run=other, round=1, state=b"b"))
    assert registry.latest_checkpoint(running).state == b"a"
    assert registry.latest_checkpoint(other).state == b"b"


def test_a_body_that_fails_leaves_nothing_behind(registry, running):
    def half():
        with registry.writing():
            registry.save_checkpoint(Checkpoint(run=running, round=1, state=b"a"))
            registry.add_event(running, "round", {"round": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert registry.latest_checkpoint(running) is None
    assert registry.run(running).round is None
    assert registry.events_since(running) == ()


# Secure aggregation ---------------------------------------------------------------------------------


def session(run, number=0, *, holders=None, tally=b"keys"):
    keys = {"bank-a": "aa" * 32, "bank-b": "bb" * 32} if holders is None else holders
    return Session(run=run, session=number, holders=keys, tally=tally)


def test_a_session_is_there_after_reopening_and_its_shares_replace_its_keys(registry, running, tmp_path):
    assert registry.session(running, 0) is None
    registry.save_session(session(running))
    registry.save_session(session(running, tally=b"keys and shares"))
    registry.close()
    with Registry(tmp_path / "assay.sqlite") as again:
        assert again.session(running, 0) == session(running, tally=b"keys and shares")


def test_a_session_is_not_begun_again_with_others(registry, running):
    registry.save_session(session(running))
    with pytest.raises(AssayError, match="other holders"):
        registry.save_session(session(running, holders={"bank-a": "aa" * 32}))
    assert registry.session(running, 0) == session(running)


def test_a_new_session_takes_the_place_of_the_one_before_in_its_own_run_only(registry, running):
    other = registry.add_run(**STUDY).run
    registry.set_state(other, "running")
    for each in (running, other):
        registry.save_session(session(each))
    registry.save_session(session(running, 1))
    assert (registry.session(running, 0), registry.session(running, 1)) == (None, session(running, 1))
    assert registry.session(other, 0) == session(other)


def collected(run, number=3, *, sent=("bank-a", "bank-b"), total=b"masked"):
    return Collected(run=run, round=number, sent=dict.fromkeys(sent, "ab" * 64), total=total)


def test_what_is_opened_in_a_round_is_decided_once(registry, running, tmp_path):
    assert registry.collected(running, 3) is None
    registry.save_collected(collected(running))
    registry.save_collected(collected(running))
    for other in (collected(running, sent=("bank-a",)), collected(running, total=b"others")):
        with pytest.raises(AssayError, match="decided once"):
            registry.save_collected(other)
    registry.close()
    with Registry(tmp_path / "assay.sqlite") as again:
        assert again.collected(running, 3) == collected(running)
        assert again.collected(running, 4) is None


def test_what_is_opened_takes_the_place_of_the_round_before_in_its_own_run_only(registry, running):
    other = registry.add_run(**STUDY).run
    registry.set_state(other, "running")
    for each in (running, other):
        registry.save_collected(collected(each))
    registry.save_collected(collected(running, 4))
    assert [registry.collected(running, n) for n in (3, 4)] == [None, collected(running, 4)]
    assert registry.collected(other, 3) == collected(other)


@pytest.mark.parametrize("state", [name for name, after in STATES.items() if not after])
def test_a_run_that_is_over_keeps_nothing_of_its_sessions_and_begins_none(registry, running, state):
    registry.save_session(session(running))
    registry.save_collected(collected(running))
    registry.set_state(running, state)
    assert (registry.session(running, 0), registry.collected(running, 3)) == (None, None)
    for change in (
        lambda: registry.save_session(session(running)),
        lambda: registry.save_collected(collected(running)),
    ):
        with pytest.raises(AssayError, match=state):
            change()


def test_where_a_ledger_was_seen_last_outlives_runs_and_belongs_to_a_key(registry, running, tmp_path):
    assert registry.heads() == {}
    registry.save_heads({"aa" * 32: "1:a", "bb" * 32: "1:b"})
    registry.save_heads({"aa" * 32: "2:a"})
    registry.set_state(running, "done")
    registry.close()
    with Registry(tmp_path / "assay.sqlite") as again:
        assert again.heads() == {"aa" * 32: "2:a", "bb" * 32: "1:b"}


# Progress and models --------------------------------------------------------------------------------


def test_progress_is_read_from_where_one_stopped(registry, running):
    for number in range(3):
        registry.add_event(running, "round", {"round": number})
    first = registry.events_since(running)
    assert [event.detail["round"] for event in first] == [0, 1, 2]
    registry.add_event(running, "done", {})
    assert [event.kind for event in registry.events_since(running, first[-1].seq)] == ["done"]
    assert first[0].time == 1000.0


def test_numbers_that_json_cannot_carry_are_not_stored(registry, running):
    with pytest.raises(ValueError, match="JSON"):
        registry.add_event(running, "round", {"loss": float("nan")})
    assert registry.events_since(running) == ()


def test_versions_count_per_study_and_a_run_has_one_model(registry, running):
    assert model(registry, running).version == 1
    again = model(registry, running, sha256="11" * 32)
    assert (again.version, again.sha256) == (1, "11" * 32)
    for name, version in (("card", 2), ("loan", 1), ("card", 3)):
        run = registry.add_run(**{**STUDY, "name": name}).run
        registry.set_state(run, "running")
        assert model(registry, run).version == version
    assert [(item.name, item.version) for item in registry.models()] == [
        ("card", 1),
        ("card", 2),
        ("card", 3),
        ("loan", 1),
    ]
    assert registry.models()[0].label == {"epsilon": 1.0}


# The file -------------------------------------------------------------------------------------------


def test_everything_is_there_after_reopening(registry, running, tmp_path):
    registry.save_checkpoint(Checkpoint(run=running, round=1, state=b"a"))
    model(registry, running)
    registry.close()
    registry.close()
    with Registry(tmp_path / "assay.sqlite") as again:
        assert again.latest_checkpoint(running).state == b"a"
        assert again.models()[0].run == running


def test_the_file_is_private_and_fully_synchronous(registry, running, tmp_path):
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["assay.sqlite", "assay.sqlite-shm", "assay.sqlite-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert registry._db.rows("PRAGMA synchronous")[0][0] == 2  # FULL
    assert registry._db.rows("PRAGMA journal_mode")[0][0] == "wal"


def test_loose_permissions_of_the_file_are_refused(registry, tmp_path):
    registry.close()
    (tmp_path / "assay.sqlite").chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        Registry(tmp_path / "assay.sqlite")


@pytest.mark.parametrize("content", [b"not a database at all" * 400, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "assay.sqlite"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises((Tampered, Unavailable)):
        Registry(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("PRAGMA user_version = 1", "version 2 .* It is of version 1: use the Assay that wrote it"),
        ("PRAGMA user_version = 3", "version 2 .* Use the version of Assay that wrote it"),
        ("PRAGMA application_id = 7", "version 2 .* Use the version of Assay that wrote it"),
    ],
    ids=["older", "newer", "another program"],
)
def test_a_database_of_another_version_or_program_is_refused(registry, tmp_path, statement, remedy):
    registry.close()
    other = sqlite3.connect(tmp_path / "assay.sqlite")
    other.execute(statement)
    other.close()
    with pytest.raises(BadInput, match=remedy):
        Registry(tmp_path / "assay.sqlite")


def test_a_database_that_somebody_else_began_is_refused(tmp_path):
    other = sqlite3.connect(tmp_path / "assay.sqlite")
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    (tmp_path / "assay.sqlite").chmod(0o600)
    with pytest.raises(BadInput, match="Assay's own"):
        Registry(tmp_path / "assay.sqlite")


def test_a_database_held_by_another_is_unavailable_after_a_finite_time(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    with Registry(tmp_path / "assay.sqlite") as second, registry.writing(), pytest.raises(Unavailable):
        second.add_run(**STUDY)


def test_a_full_disk_is_reported_and_loses_nothing(registry, running):
    registry.save_checkpoint(Checkpoint(run=running, round=1, state=b"a"))
    pages = registry._db.rows("PRAGMA page_count")[0][0]
    registry._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="full"):
        registry.save_checkpoint(Checkpoint(run=running, round=2, state=bytes(1 << 20)))
    assert registry.latest_checkpoint(running).round == registry.run(running).round == 1
    registry._db.execute("PRAGMA max_page_count = 1000000")
    registry.save_checkpoint(Checkpoint(run=running, round=2, state=bytes(1 << 20)))


# At the same time -----------------------------------------------------------------------------------


def test_threads_share_one_registry(registry, running):
    def work(number):
        registry.add_event(running, "note", {"number": number})
        with registry.writing():
            return registry.add_run(**STUDY).run

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(100)))
    assert {event.detail["number"] for event in registry.events_since(running)} == set(range(100))
    assert {run.run for run in registry.runs("queued")} == set(made)


WRITER = """
import sys
from pathlib import Path
from assay.server.records import Checkpoint
from assay.server.registry import Registry
registry = Registry(Path(sys.argv[1]))
run, rounds = sys.argv[2], int(sys.argv[3])
for number in range(rounds):
    registry.add_event(run, sys.argv[4], {"number": number})
    if sys.argv[4] == "checkpoints":
        registry.save_checkpoint(Checkpoint(run=run, round=number, state=number.to_bytes(4, "big") * 5000))
    print(number, flush=True)
"""


def writer(path, run, rounds, kind):
    command = [sys.executable, "-c", WRITER, str(path), run, str(rounds), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_file(registry, running, tmp_path):
    workers = [writer(tmp_path / "assay.sqlite", running, 40, f"worker{number}") for number in range(3)]
    for number in range(40):
        registry.add_event(running, "self", {"number": number})
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    seen = [(event.kind, event.detail["number"]) for event in registry.events_since(running)]
    assert len(seen) == len(set(seen)) == 160


def test_kill_9_in_the_middle_of_writing_loses_nothing_acknowledged(registry, running, tmp_path):
    """Twelve kills at places of the kernel's choosing: counter and checkpoint always belong together."""
    last = -1
    for attempt in range(12):
        run = registry.add_run(**STUDY).run
        registry.set_state(run, "running")
        worker = writer(tmp_path / "assay.sqlite", run, 100_000, "checkpoints")
        for _ in range(2 + attempt):
            last = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)
        acknowledged = [last, *[int(line) for line in worker.stdout.read().split("\n")[:-1]]]
        worker.stdout.close()
        assert worker.wait() == -signal.SIGKILL
        with Registry(tmp_path / "assay.sqlite") as after:
            kept = after.latest_checkpoint(run)
            assert kept.round == after.run(run).round >= max(acknowledged)
            assert kept.state == kept.round.to_bytes(4, "big") * 5000
            numbers = [event.detail["number"] for event in after.events_since(run)]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > max(acknowledged)
            assert after._db.rows("PRAGMA integrity_check")[0][0] == "ok"


# What the command line says of it ---------------------------------------------------------------------


def test_models_that_a_gate_holds_back_are_listed_as_such(tmp_path):
    home, held = tmp_path / "coordinator", "fairness: SEX f: n too small"
    assert CliRunner().invoke(app, ["init", str(home), "--name", "Tests"]).exit_code == 0
    with Federation(home) as federation:
        for reasons in ([], [held]):
            run = federation.registry.add_run(**STUDY).run
            federation.registry.set_state(run, "running")
            label = {"epsilon": 1.0} | ({"held": reasons} if reasons else {})
            federation.registry.add_model(
                run,
                path=f"models/{run}.bundle",
                sha256="00" * 32,
                created=1.0,
                expires=2.0,
                purpose="consumer_credit",
                label=label,
            )
    listed = CliRunner().invoke(app, ["models", str(home), "--json"])
    assert [model["held"] for model in json.loads(listed.stdout)["models"]] == [[], [held]]
    words = CliRunner().invoke(app, ["models", str(home)]).stdout
    assert words.count("HELD, must not be used") == 1
    assert words.splitlines()[-1].strip() == f"HELD, must not be used: {held}"


@pytest.mark.parametrize(
    ("done", "rounds", "words"),
    [
        (None, None, "round 0/?"),
        (0, 4, "round 0/4"),
        (4, 4, "round 4/4"),
        (5, 4, "round 4/4, calibrated"),
        (6, 4, "round 4/4, audited"),
    ],
)
def test_how_far_a_run_is_in_words(done, rounds, words):
    assert _progress({"round": done, "rounds": rounds}) == words
