"""What the holder's commands say: what would leave under which trust, and where ledger and log stand."""

import hashlib
import json
import threading

import pytest
from federation_support import STUDY, assay, assay_json, write_records

from assay.client import enrol
from assay.client.daemon import AUDIT_FILE, LEDGER_FILE, daemon_books
from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import Identity


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "bank-a"
    enrol.init(directory, "bank-a")
    settings = directory / "client.toml"
    data = '[data]\nkind = "csv"\npath = "records.csv"\none_row_per_person = true\n\n[policy]'
    settings.write_text(settings.read_text().replace("[policy]", data, 1))
    write_records(directory / "records.csv")
    return directory


def identity_of(home):
    return Identity.load(home / enrol.IDENTITY_KEY)


def opened_books(home):
    return daemon_books(home, identity_of(home), threading.Event())


def write_study(tmp_path, trust, extra=""):
    section = STUDY[: STUDY.index("[privacy]")]
    path = tmp_path / f"{trust}.toml"
    path.write_text(section + f'[privacy]\nepsilon = 1.0\ndelta = 1e-6\ntrust = "{trust}"\n{extra}')
    return path


def leaves(home):
    lines = (home / AUDIT_FILE).read_text().splitlines()
    return [(leaf["kind"], leaf["data"]) for leaf in (json.loads(line)["leaf"] for line in lines)]


@pytest.mark.parametrize(
    ("trust", "extra", "words"),
    [
        ("distributed", "", "only the sum over at least 3 holders can be read"),
        ("distributed", "tolerated = 3\n", "only the sum over at least 8 holders can be read"),
        ("local", "", "can be read by the coordinator"),
    ],
)
def test_check_says_under_which_trust_what_would_leave(home, tmp_path, trust, extra, words):
    study = write_study(tmp_path, trust, extra)
    assert words in assay("client", "check", home, study)
    checked = assay_json("client", "check", home, study)
    assert checked["trust"] == trust
    assert words in checked["trust_in_words"]


def test_check_warns_of_holders_that_nobody_has_compared(home, tmp_path):
    study = write_study(tmp_path, "distributed")
    assert "policy.peers is empty" in assay("client", "check", home, study)
    assert any(
        "policy.peers" in warning for warning in assay_json("client", "check", home, study)["warnings"]
    )
    assert "policy.peers" not in assay("client", "check", home, write_study(tmp_path, "local"))
    settings = home / "client.toml"
    settings.write_text(settings.read_text() + f'\n[policy.peers]\nbank-b = "{"-".join(["0123"] * 8)}"\n')
    assert "policy.peers" not in assay("client", "check", home, study)


def test_check_refuses_a_trust_that_the_policy_does_not_allow(home, tmp_path):
    settings = home / "client.toml"
    settings.write_text(settings.read_text().replace('["distributed", "local"]', '["distributed"]'))
    error = assay("client", "check", home, write_study(tmp_path, "local"), code=3)
    assert "policy.trust" in error
    assert len(error.splitlines()) == 1


def test_status_shows_where_ledger_and_log_stand(home):
    before = assay_json("client", "status", home)
    assert before["ledger_head"] == {"seq": 0, "hash": ""}
    assert before["audit_log"] == {"size": 0, "root": ""}
    with opened_books(home) as (ledger, audit):
        seq, digest = ledger.head()
        status = assay_json("client", "status", home)
        assert status["ledger_head"] == {"seq": seq, "hash": digest}
        assert status["audit_log"] == {"size": audit.size, "root": audit.root}
    assert "Audit log   3 entries" in assay("client", "status", home)


def test_every_start_and_stop_and_the_policy_of_then_are_logged(home):
    for _ in range(2):
        with opened_books(home):
            pass
    digest = hashlib.sha256((home / "client.toml").read_bytes()).hexdigest()
    assert [kind for kind, _ in leaves(home)] == ["start", "policy", "stop"] * 2
    assert leaves(home)[1] == ("policy", {"sha256": digest})


def test_a_stop_is_logged_when_the_daemon_fails(home):
    with pytest.raises(MemoryError), opened_books(home):
        raise MemoryError
    assert leaves(home)[-1][0] == "stop"


def test_a_log_that_was_changed_stops_the_start(home):
    with opened_books(home):
        pass
    text = (home / AUDIT_FILE).read_text()
    (home / AUDIT_FILE).write_text(text.replace('"kind":"policy"', '"kind":"stop"', 1))
    with pytest.raises(Tampered), opened_books(home):
        pytest.fail("started")


@pytest.mark.parametrize("name", [AUDIT_FILE, LEDGER_FILE])
def test_books_that_others_can_read_stop_the_start(home, name):
    with opened_books(home):
        pass
    (home / name).chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"), opened_books(home):
        pytest.fail("started")
