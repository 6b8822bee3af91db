"""``assay privacy audit``: log, ledger and witness bear each other out, or the first bad entry is named."""

import hashlib
import json
import shutil
import sqlite3

import pytest
from typer.testing import CliRunner

from assay.client import enrol
from assay.privacy.accounting import Event
from assay.privacy.audit import audit
from assay.privacy.auditlog import AuditLog
from assay.privacy.cli import app
from assay.privacy.enrolment import Request
from assay.privacy.errors import BadInput, Tampered
from assay.privacy.heads import Heads, countersign
from assay.privacy.keys import Identity, canonical_json
from assay.privacy.ledger import Ledger, Limits
from assay.server.federation import Federation

EVENT = Event(noise_multiplier=100.0)
LIMITS = Limits(epsilon_per_study=9.0, epsilon_per_year=9.0, delta=1e-6)
BOOKS = ("audit.log", "ledger.sqlite")


class Site:
    """A holder's directory, and the coordinator that has seen its heads."""

    def __init__(self, directory, coordinator, federation):
        self.directory, self.coordinator, self.federation = directory, coordinator, federation
        self.identity = Identity.load(directory / "keys" / "identity.key")

    def books(self):
        log = AuditLog.open(self.directory / "audit.log", self.identity)
        return log, Ledger.open(self.directory / "ledger.sqlite", self.identity, log_head=log.head)

    def train(self, run, *, rounds=3):
        """Do what a daemon does in a run; return the heads the coordinator saw last."""
        log, ledger = self.books()
        with log, ledger:
            log.follow(ledger)
            log.append("start", version="1")
            ledger.reserve(study="card", run=run, planned=[EVENT] * 9, limits=LIMITS)
            log.append("accepted", run=run, study="ab" * 32)
            for number in range(rounds):
                self.round(log, ledger, run, number)
            ledger.close_run(run=run, outcome="done")
            log.follow(ledger)
            seen = self.heads(log, ledger)
            log.append("countersigned", heads=seen.text, signature=self.countersign(seen))
            log.append("stop")
        return seen

    def round(self, log, ledger, run, number):
        ledger.charge(run=run, round=number, mechanism="gaussian", sensitivity=1.0, event=EVENT)
        ledger.release(run=run, round=number, payload=f"{run} {number}".encode())
        log.follow(ledger)
        ledger.open_round(run=run, round=number, survivors="x,y,z")
        log.follow(ledger)

    def heads(self, log, ledger):
        seq, digest = ledger.head()
        return Heads(ledger_seq=seq, ledger_hash=digest, log_size=log.size, log_root=log.root)

    def countersign(self, heads, holder="bank-a"):
        return countersign(self.coordinator, federation=self.federation, holder=holder, heads=heads)

    def witness(self, heads, /, holder="bank-a", **changes):
        path = self.directory.parent / "witness.json"
        document = {
            "format": "assay-witness-1",
            "holder": holder,
            "federation": self.federation,
            "coordinator_public": self.coordinator.public.hex(),
            "heads": heads.text,
            "signature": self.countersign(heads, holder),
        }
        path.write_text(json.dumps(document | changes), encoding="utf-8")
        return path

    def keep(self):
        return {name: (self.directory / name).read_bytes() for name in BOOKS}

    def put(self, **files):
        for name, content in files.items():
            path = self.directory / name.replace("_", ".")
            path.write_bytes(content)
            path.chmod(0o600)

    def sql(self, script):
        database = sqlite3.connect(self.directory / "ledger.sqlite")
        database.executescript(script)
        database.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    home = tmp_path_factory.mktemp("template")
    enrol.init(home / "bank-a", "bank-a")
    with Federation.init(home / "north", "North", "localhost", 9092) as federation:
        join = federation.admit(Request.read(home / "bank-a" / "REQUEST.json"))
        (home / "JOIN.toml").write_bytes(join.to_bytes())
        enrol.join(home / "bank-a", home / "JOIN.toml", join.fingerprint)
        site = Site(home / "bank-a", federation.identity, federation.id)
        site.train("a" * 32)
        return site


@pytest.fixture
def site(template, tmp_path):
    shutil.copytree(template.directory, tmp_path / "bank-a")
    return Site(tmp_path / "bank-a", template.coordinator, template.federation)


def call(site, *arguments):
    return CliRunner().invoke(app, ["audit", str(site.directory), *map(str, arguments)])


def refused(site, words, *arguments):
    """The command fails in one line that says ``words``."""
    result = call(site, *arguments, "--json")
    assert result.exit_code == 1, result.output
    answer = json.loads(result.stdout)
    assert answer["verified"] is False
    assert words in answer["problem"]
    assert result.stderr.strip().count("\n") == 0
    assert "NOT VERIFIED" in call(site, *arguments).stdout


# --- in order ---------------------------------------------------------------------------------------


def test_books_in_order_verify(site):
    result = call(site, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer == {
        "verified": True,
        "problem": None,
        "entries": 11,
        "rows": 19,
        "countersigned": 1,
        "unfinished": [],
        "witnessed": False,
    }
    assert "an older copy of the whole directory would look the same" in call(site).stdout


def test_books_verify_while_the_daemon_goes_on(site):
    log, ledger = site.books()
    with log, ledger:
        ledger.reserve(study="card", run="b" * 32, planned=[EVENT] * 9, limits=LIMITS)
        for number in range(3):
            site.round(log, ledger, "b" * 32, number)
            assert json.loads(call(site, "--json").stdout)["unfinished"] == []


def test_a_holder_that_has_done_nothing_verifies(site):
    for name in BOOKS:
        (site.directory / name).unlink()
    found = audit(site.directory)
    assert (found.entries, found.rows) == (0, 0)
    assert not (site.directory / "ledger.sqlite").exists()
    (site.directory / "join.toml").unlink()
    assert audit(site.directory).entries == 0


def test_a_crash_between_row_and_entry_is_unfinished_and_made_good(site):
    log, ledger = site.books()
    with log, ledger:
        ledger.reserve(study="card", run="b" * 32, planned=[EVENT] * 9, limits=LIMITS)
        ledger.charge(run="b" * 32, round=0, mechanism="gaussian", sensitivity=1.0, event=EVENT)
        ledger.release(run="b" * 32, round=0, payload=b"x")
    result = call(site, "--json")
    assert result.exit_code == 0
    (line,) = json.loads(result.stdout)["unfinished"]
    assert line == f"ledger row 30 has no entry yet: release of run {'b' * 32}, round 0"
    assert f"unfinished: {line}" in call(site).stdout
    with (site.directory / "audit.log").open("ab") as file:
        file.write(b'{"leaf":{"da')
    assert len(audit(site.directory).unfinished) == 2
    log, ledger = site.books()
    with log, ledger:
        log.follow(ledger)
    assert audit(site.directory).unfinished == ()


# --- the coordinator's witness ----------------------------------------------------------------------


def test_only_the_witness_notices_that_everything_is_an_older_copy(site, tmp_path):
    old = tmp_path / "backup"
    shutil.copytree(site.directory, old)
    seen = site.train("b" * 32)
    file = site.witness(seen)
    result = call(site, "--witness", file, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["witnessed"] is True
    assert f"contains row {seen.ledger_seq} and entry {seen.log_size}" in call(site, "--witness", file).stdout
    shutil.rmtree(site.directory)
    shutil.copytree(old, site.directory)
    assert call(site).exit_code == 0  # genuine in itself: nothing in the directory can tell
    refused(site, "the witness", "--witness", file)


def test_the_witness_tells_a_clone_that_went_another_way(site, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(site.directory, clone)
    seen = site.train("b" * 32)
    other = Site(clone, site.coordinator, site.federation)
    other.train("c" * 32, rounds=4)
    file = site.witness(seen)
    assert call(site, "--witness", file).exit_code == 0
    assert call(other).exit_code == 0
    refused(other, "the witness", "--witness", file)


@pytest.mark.parametrize("changed", ["ledger_seq", "ledger_hash", "log_size", "log_root"])
def test_each_head_of_the_witness_is_compared(site, changed):
    log, ledger = site.books()
    with log, ledger:
        heads = vars(site.heads(log, ledger))
    value = heads[changed]
    other = Heads(**{**heads, changed: value - 1 if isinstance(value, int) else "0" * 64})
    refused(site, "the witness", "--witness", site.witness(other))


def test_a_witness_of_somebody_else_proves_nothing(site):
    log, ledger = site.books()
    with log, ledger:
        heads = site.heads(log, ledger)
    result = call(site, "--witness", site.witness(heads, holder="bank-b"))
    assert (result.exit_code, "bank-b in federation" in result.stderr) == (2, True)
    stranger = Site(site.directory, Identity.generate(), "")
    stranger.federation = hashlib.sha256(stranger.coordinator.public).hexdigest()
    assert call(site, "--witness", stranger.witness(heads)).exit_code == 2
    (site.directory / "join.toml").unlink()
    result = call(site, "--witness", site.witness(heads))
    assert (result.exit_code, "join.toml is missing" in result.stderr) == (2, True)


def test_a_witness_that_was_changed_is_refused(site):
    log, ledger = site.books()
    with log, ledger:
        heads = site.heads(log, ledger)
    older = Heads.parse(heads.text.replace(heads.log_root, "0" * 64))
    file = site.witness(heads, heads=older.text)
    result = call(site, "--witness", file)
    assert (result.exit_code, "signature does not verify" in result.stderr) == (1, True)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff\xfe",
        b"[" * 9000,
        b"{" + b" " * 20000 + b"}",
        b"[]",
        b"{}",
        b'{"format":"assay-witness-1"}',
    ],
)
def test_an_unreadable_witness_is_bad_input(site, content):
    path = site.directory.parent / "witness.json"
    if content is not None:
        path.write_bytes(content)
    result = call(site, "--witness", path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "assay-witness-2"),
        ("holder", "No Name"),
        ("holder", 5),
        ("federation", "00" * 32),
        ("coordinator_public", "zz"),
        ("heads", "1:2:3:4"),
        ("heads", None),
        ("extra", "x"),
    ],
)
def test_a_witness_with_a_wrong_field_is_bad_input(site, key, value):
    log, ledger = site.books()
    with log, ledger:
        file = site.witness(site.heads(log, ledger), **{key: value})
    result = call(site, "--witness", file)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1


def test_a_witness_without_a_signature_is_refused(site):
    log, ledger = site.books()
    with log, ledger:
        heads = site.heads(log, ledger)
    for signature in ("", "zz", "00" * 64):
        assert call(site, "--witness", site.witness(heads, signature=signature)).exit_code == 1


# --- tampering --------------------------------------------------------------------------------------


def test_an_older_copy_of_one_file_is_noticed_without_a_witness(site):
    old = site.keep()
    site.train("b" * 32)
    new = site.keep()
    site.put(audit_log=old["audit.log"])
    refused(site, "does not contain the 12 entries that ledger row 20 names")
    site.put(audit_log=new["audit.log"], ledger_sqlite=old["ledger.sqlite"])
    refused(site, "no such row 30 as the audit log names")
    site.put(ledger_sqlite=new["ledger.sqlite"])
    assert call(site).exit_code == 0


def test_a_tail_cut_off_the_log_is_noticed_up_to_the_newest_ledger_row(site):
    lines = (site.directory / "audit.log").read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        site.put(audit_log=b"".join(lines[:kept]))
        result = call(site, "--json")
        # The newest row, the close, names entries 1 to 8; entry 9 is its own.
        assert (kept, result.exit_code) == (kept, 0 if kept >= 8 else 1)
        assert bool(json.loads(result.stdout).get("unfinished")) == (kept == 8)


def test_missing_files_are_noticed(site):
    kept = site.keep()
    (site.directory / "audit.log").unlink()
    refused(site, "does not contain the 1 entries that ledger row 1 names")
    site.put(audit_log=kept["audit.log"])
    (site.directory / "ledger.sqlite").unlink()
    refused(site, "no such row")


def test_the_first_bad_entry_or_row_is_named(site):
    kept = site.keep()
    lines = kept["audit.log"].splitlines(keepends=True)
    site.put(audit_log=b"".join([*lines[:4], lines[5], lines[4], *lines[6:]]))
    refused(site, "audit.log: entry 5 is missing")
    site.put(audit_log=kept["audit.log"])
    site.sql("UPDATE ledger SET noise_multiplier = 1e6 WHERE seq = 11")
    refused(site, "ledger.sqlite: row 11: the signature does not verify")
    site.put(ledger_sqlite=b"scribble" * 999)
    refused(site, "not a readable ledger")
    site.put(audit_log=b"scribble")
    refused(site, "not a readable ledger")
    site.put(ledger_sqlite=kept["ledger.sqlite"], audit_log=b"scribble\n")
    refused(site, "entry 1 is not a line of an audit log")


def forge(site, entries):
    """Write the log anew with the identity key, entry by entry."""
    path = site.directory / "audit.log"
    path.unlink()
    with AuditLog.open(path, site.identity) as log:
        for kind, data in entries:
            log.append(kind, **data)


def listed(site):
    records = map(json.loads, (site.directory / "audit.log").read_bytes().splitlines())
    return [(record["leaf"]["kind"], record["leaf"]["data"]) for record in records]


def test_the_identity_key_cannot_rewrite_the_log_below_the_newest_row(site):
    """Every line is genuine; the ledger's rows, whose keys are gone, name the log as it was."""
    entries = listed(site)
    forge(site, [("start", {"version": "2"}), *entries[1:]])
    refused(site, "entries that ledger row 1 names")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda kind, data: None if data.get("round") == 1 else (kind, data), "ledger row 14 has no entry"),
        (
            lambda kind, data: (
                (kind, data | {"row_sha256": "0" * 64}) if data.get("round") == 1 else (kind, data)
            ),
            "no such row 14",
        ),
        (
            lambda kind, data: (kind, data | {"round": 7}) if data.get("round") == 1 else (kind, data),
            "no such row 14",
        ),
        (
            lambda kind, data: (kind, data | {"run": "c" * 32}) if kind == "closed" else (kind, data),
            "no such row 19",
        ),
        (
            lambda kind, data: (kind, data | {"row_sha256": "0" * 64}) if kind == "closed" else (kind, data),
            "no such row 19",
        ),
    ],
)
def test_rows_and_entries_are_compared_one_by_one(site, change, words, monkeypatch):
    """Were the heads in the rows not there, each entry would still have to have its row."""
    entries = [changed for kind, data in listed(site) if (changed := change(kind, data)) is not None]
    forge(site, entries)
    monkeypatch.setattr(AuditLog, "require_head", lambda *_, **__: None)
    refused(site, words)


def test_a_ledger_row_written_without_the_log_is_noticed(site):
    with Ledger.open(site.directory / "ledger.sqlite", site.identity) as ledger:
        ledger.reserve(study="card", run="b" * 32, planned=[EVENT], limits=LIMITS)
    refused(site, "row 20 was written without the audit log")


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ("nonsense", "holds no heads"),
        ("{seq}:{other}:{size}:{root}", "does not contain row"),
        ("{seq}:{hash}:{size}:{other}", "does not contain the"),
        ("{seq}:{hash}:99:{root}", "a later log than the one it stands in"),
    ],
)
def test_countersigned_heads_must_be_those_of_these_books(site, heads, words):
    log, ledger = site.books()
    with log, ledger:
        seen = site.heads(log, ledger)
        text = heads.format(
            seq=seen.ledger_seq, hash=seen.ledger_hash, size=seen.log_size, root=seen.log_root, other="0" * 64
        )
        signature = site.countersign(Heads.parse(text)) if ":" in text else ""
        log.append("countersigned", heads=text, signature=signature)
    refused(site, words)


def test_heads_that_nobody_countersigned_are_noticed(site):
    log, ledger = site.books()
    with log, ledger:
        log.append("countersigned", heads=site.heads(log, ledger).text, signature="00" * 64)
    refused(site, "countersignature of the heads of bank-a")


def test_an_edited_row_signed_anew_with_the_identity_key_is_noticed(site):
    database = sqlite3.connect(site.directory / "ledger.sqlite")
    database.row_factory = sqlite3.Row
    row = dict(database.execute("SELECT * FROM ledger WHERE seq = 19").fetchone())
    body = {key: value for key, value in row.items() if key not in ("payload", "signature")}
    body["outcome"] = "aborted"
    database.execute(
        "UPDATE ledger SET outcome = 'aborted', signature = ? WHERE seq = 19",
        [site.identity.sign("ledger", canonical_json(body))],
    )
    database.commit()
    database.close()
    refused(site, "row 19: the signature does not verify")


def test_any_sampled_byte_of_the_books_is_noticed_or_changes_nothing(site):
    said = audit(site.directory)
    for name, step in (("audit.log", 61), ("ledger.sqlite", 997)):
        whole = (site.directory / name).read_bytes()
        noticed = 0
        for position in range(0, len(whole), step):
            flipped = whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :]
            site.put(**{name.replace(".", "_"): flipped})
            result = call(site, "--json")
            if result.exit_code:
                noticed += 1
                assert isinstance(result.exception, SystemExit)
                assert result.stderr.count("\n") == 1
            else:
                assert name == "ledger.sqlite"  # bytes that SQLite does not read
                assert json.loads(result.stdout)["rows"] == said.rows
        assert noticed > 5
        site.put(**{name.replace(".", "_"): whole})


# --- bad input --------------------------------------------------------------------------------------


def test_a_directory_that_is_no_holders_is_bad_input(tmp_path, site):
    for directory in (tmp_path / "nowhere", tmp_path, site.directory / "audit.log"):
        result = CliRunner().invoke(app, ["audit", str(directory)])
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["audit.log", "ledger.sqlite", "keys/identity.key"])
def test_files_that_others_may_read_are_bad_input(site, name):
    (site.directory / name).chmod(0o644)
    result = call(site)
    assert (result.exit_code, "chmod 600" in result.stderr) == (2, True)


def test_another_identity_than_the_admitted_one_is_noticed(site):
    Identity.generate().save(site.directory / "keys" / "identity.key")
    refused(site, "admits another key")


def test_the_function_raises_what_the_command_says(site):
    with pytest.raises(BadInput):
        audit(site.directory / "nowhere")
    site.sql("DELETE FROM ledger WHERE seq = 7")
    with pytest.raises(Tampered, match="row 7 is missing"):
        audit(site.directory)
