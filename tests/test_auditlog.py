"""The audit log: what was acknowledged is there, in order, and nothing of it can be changed unnoticed."""

import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading

import pytest

from assay.privacy.accounting import Event
from assay.privacy.auditentry import OPTIONAL
from assay.privacy.auditlog import FIELDS, AuditLog
from assay.privacy.errors import AssayError, BadInput, Refused, Tampered, Unavailable
from assay.privacy.keys import Identity, canonical_json, verify
from assay.privacy.ledger import Ledger, Limits

IDENTITY = Identity.generate()
LIMITS = Limits(epsilon_per_study=9.0, epsilon_per_year=9.0, delta=1e-6)
EVENT = Event(noise_multiplier=100.0)


class Clock:
    def __init__(self, now=1_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.log"


def filled(path, entries=9, identity=IDENTITY):
    """Write a log of ``entries`` declined offers; return its lines."""
    with AuditLog.open(path, identity, Clock()) as log:
        for number in range(entries):
            log.append("declined", run=f"{number:032x}", code="budget")
    return path.read_bytes().splitlines(keepends=True)


def look(path, identity=IDENTITY):
    with AuditLog.open(path, identity, read_only=True) as log:
        return log.size, log.unfinished


def put(path, data):
    path.write_bytes(data)
    path.chmod(0o600)


# --- the file ---------------------------------------------------------------------------------------


def test_a_line_is_a_leaf_and_a_signed_checkpoint(path):
    with AuditLog.open(path, IDENTITY, Clock(12.5)) as log:
        log.append("policy", sha256="ab" * 32)
        log.append("stop")
        assert log.head() == f"2:{log.root}"
    first, second = path.read_text().splitlines()
    assert first.startswith(
        '{"leaf":{"data":{"sha256":"' + "ab" * 32 + '"},"index":1,"kind":"policy","time":12.5}'
    )
    record = json.loads(second)
    assert record["root"] == log.root
    verify(
        IDENTITY.public,
        "audit-checkpoint",
        canonical_json({"root": record["root"], "size": 2}),
        bytes.fromhex(record["signature"]),
        what="line 2",
    )


def test_the_file_is_private_and_goes_on_where_it_ended(path):
    filled(path, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with AuditLog.open(path, IDENTITY, Clock(0.0)) as log:  # the clock was set back
        assert log.size == 3
        before = log.root
        log.append("stop")
        assert (log.size, log.root_at(3), log.root_at(5)) == (4, before, None)
    times = [json.loads(line)["leaf"]["time"] for line in path.read_bytes().splitlines()]
    assert times == sorted(times)


def test_a_log_in_memory_needs_no_file():
    with AuditLog.open(None, IDENTITY, Clock()) as log:
        log.append("session", run="a" * 32, session=0, holders="ab" * 32)
        assert (log.size, log.has("session", run="a" * 32), log.has("session", run="b" * 32)) == (
            1,
            True,
            False,
        )


def test_it_says_which_rounds_have_an_entry():
    with AuditLog.open(None, IDENTITY) as log:
        log.append("release", run="a", round=0, row_sha256="00", ledger_seq=3)
        assert log.has("release", run="a", round=0)
        assert not log.has("release", run="a", round=1)
        assert not log.has("open", run="a", round=0)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("gossip", {}),
        ("stop", {"name": "x"}),
        ("accepted", {"run": "a"}),
        ("policy", {"sha256": "x" * 513}),
        ("policy", {"sha256": "Ren\u00e9"}),
        ("policy", {"sha256": 0.5}),
        ("policy", {"sha256": -1}),
        ("policy", {"sha256": True}),
        ("session", {"run": "a", "holders": "b", "session": "0"}),
        ("session", {"run": "a", "holders": "b", "session": True}),
        ("session", {"run": "a", "holders": "b", "session": -1}),
        ("session", {"run": "a", "holders": "b", "session": 1 << 53}),
        ("policy", {"sha256": ["x"]}),
    ],
)
def test_nothing_but_the_declared_fields_enters_a_leaf(kind, data):
    with AuditLog.open(None, IDENTITY) as log:
        with pytest.raises(BadInput, match="audit entry"):
            log.append(kind, **data)
        assert log.size == 0


def test_no_field_of_a_leaf_can_name_a_person():
    """A new field has to be looked at: does it depend on a record?"""
    assert {name for names in (*FIELDS.values(), *OPTIONAL.values()) for name in names} == {
        *("run", "round", "session", "ledger_seq", "version", "code", "question", "outcome", "article"),
        *("study", "sha256", "row_sha256", "holders", "heads", "signature"),
        *("bundle", "components", "purpose", "statement"),  # a statement is a salted commitment
    }


def test_a_refusal_may_name_its_article_and_nothing_else_may():
    with AuditLog.open(None, IDENTITY) as log:
        log.append("declined", run="r", code="D05", article="GDPR Art. 9")
        log.append("declined", run="r", code="data")
        log.append("refused", run="r", code="D05", question="offer", article="GDPR Art. 9")
        with pytest.raises(BadInput, match="audit entry"):
            log.append("accepted", run="r", study="0" * 64, article="GDPR Art. 9")
        assert log.size == 3


def test_a_second_writer_is_refused_and_a_reader_is_not(path):
    with AuditLog.open(path, IDENTITY) as log:
        log.append("stop")
        with pytest.raises(Unavailable, match="held by another process"):
            AuditLog.open(path, IDENTITY)
        assert look(path) == (1, False)
        with AuditLog.open(path, IDENTITY, read_only=True) as reader, pytest.raises(Unavailable):
            reader.append("stop")
    AuditLog.open(path, IDENTITY).close()
    with pytest.raises(Unavailable):
        log.append("stop")


def test_missing_loose_and_odd_files_are_refused(path, tmp_path):
    with pytest.raises(BadInput, match="an existing file"):
        AuditLog.open(path, IDENTITY, read_only=True)
    filled(path)
    path.chmod(0o640)
    for read_only in (True, False):
        with pytest.raises(BadInput, match="chmod 600"):
            AuditLog.open(path, IDENTITY, read_only=read_only)
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    for read_only in (True, False):
        with pytest.raises(AssayError):
            AuditLog.open(folder, IDENTITY, read_only=read_only)


def test_threads_share_one_log(path):
    with AuditLog.open(path, IDENTITY) as log:
        threads = [threading.Thread(target=lambda: [log.append("stop") for _ in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert look(path) == (100, False)


# --- tampering --------------------------------------------------------------------------------------


def test_any_flipped_byte_is_noticed_and_its_entry_named(path):
    lines = filled(path, 4)
    whole = b"".join(lines)
    starts = [sum(map(len, lines[:number])) for number in range(5)]
    for position in range(len(whole)):
        for bit in (0x01, 0x20):
            put(path, whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            entry = max(number for number in range(4) if starts[number] <= position) + 1
            with pytest.raises(Tampered, match=f"entry {entry}"):
                look(path)


TAMPERING = {
    "two entries swapped": (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "entry 4 is missing"),
    "an entry taken out": (lambda lines: [*lines[:3], *lines[4:]], "entry 4 is missing"),
    "the first taken out": (lambda lines: lines[1:], "entry 1 is missing"),
    "an entry twice": (lambda lines: [*lines[:4], lines[3], *lines[4:]], "entry 5"),
    "an empty line": (lambda lines: [*lines[:2], b"\n", *lines[2:]], "entry 3"),
    "two lines made one": (lambda lines: [*lines[:2], lines[2][:-1], *lines[3:]], "entry 3"),
    "a line end with a return": (lambda lines: [lines[0][:-1] + b"\r\n", *lines[1:]], "entry 1"),
    "spaces": (lambda lines: [lines[0].replace(b",", b", "), *lines[1:]], "entry 1"),
    "a key more": (lambda lines: [b'{"a":1,' + lines[0][1:], *lines[1:]], "entry 1"),
    "no JSON": (lambda lines: [b"scribble\n", *lines[1:]], "entry 1"),
    "JSON of another kind": (lambda lines: [b"5\n", *lines[1:]], "entry 1"),
    "fields that are a list": (
        lambda lines: [b'{"leaf":{"data":["version"],"index":1,"kind":"start","time":0.0}}\n', *lines[1:]],
        "entry 1",
    ),
    "deep JSON": (lambda lines: [b"[" * 8000 + b"\n", *lines[1:]], "entry 1"),
    "an endless line": (lambda lines: [*lines, b"{" * 9000], "entry 10"),
}


@pytest.mark.parametrize(("change", "words"), TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_noticed_and_the_first_bad_entry_is_named(path, change, words):
    put(path, b"".join(change(filled(path))))
    with pytest.raises(Tampered, match=words):
        look(path)
    before = path.read_bytes()
    with pytest.raises(Tampered, match=words):
        AuditLog.open(path, IDENTITY)
    assert path.read_bytes() == before


def test_an_entry_of_another_holder_or_another_log_is_noticed(path, tmp_path):
    lines = filled(path)
    other = filled(tmp_path / "other", identity=Identity.generate())
    put(path, b"".join([*lines[:4], other[4], *lines[5:]]))
    with pytest.raises(Tampered, match="entry 5: the signature"):
        look(path)
    with AuditLog.open(tmp_path / "own", IDENTITY, Clock()) as log:  # the same key, another history
        for _ in range(5):
            log.append("stop")
    branch = (tmp_path / "own").read_bytes().splitlines(keepends=True)
    put(path, b"".join([*lines[:4], branch[4], *lines[5:]]))
    with pytest.raises(Tampered, match="entry 5: the root"):
        look(path)
    with pytest.raises(Tampered, match="entry 1"):
        look(tmp_path / "own", Identity.generate())


def test_an_entry_inserted_with_the_identity_key_breaks_what_follows(path):
    lines = filled(path)
    put(path, b"".join(lines[:5]))
    with AuditLog.open(path, IDENTITY, Clock()) as log:
        log.append("declined", run="f" * 32, code="data")
    put(path, path.read_bytes() + b"".join(lines[6:]))
    with pytest.raises(Tampered, match="entry 7: the root"):
        look(path)


def test_only_who_saw_it_notices_that_whole_lines_were_cut_off(path):
    """What a file cannot show: hence the heads in the ledger and at the coordinator."""
    lines = filled(path)
    with AuditLog.open(path, IDENTITY, read_only=True) as log:
        size, root = log.size, log.root
        log.require_prefix(size, root)
        log.require_prefix(0, log.root_at(0))
    put(path, b"".join(lines[:-2]))
    assert look(path) == (7, False)
    with AuditLog.open(path, IDENTITY, Clock()) as log:
        with pytest.raises(Refused, match="restored from an older copy") as caught:
            log.require_prefix(size, root)
        assert caught.value.code == "ledger"
        for _ in range(5):  # a second branch, longer than the first
            log.append("stop")
        with pytest.raises(Refused, match="does not contain the 9 entries"):
            log.require_prefix(size, root)


# --- crashes and full disks -------------------------------------------------------------------------


def test_an_incomplete_last_line_is_taken_away_by_the_next_writer_only(path):
    lines = filled(path, 3)
    whole = b"".join(lines[:2])
    for kept in range(1, len(lines[2]) - 1):
        put(path, whole + lines[2][:kept])
        assert look(path) == (2, True)
        if kept % 40 == 1:
            with AuditLog.open(path, IDENTITY, Clock()) as log:
                assert (log.size, log.unfinished) == (2, True)
                assert path.read_bytes() == whole
                log.append("stop")
            assert look(path) == (3, False)
    put(path, whole + bytes(500))  # what some file systems leave after a power cut
    with AuditLog.open(path, IDENTITY) as log:
        assert log.size == 2


def test_a_last_line_that_lacks_only_its_end_is_kept(path):
    lines = filled(path, 3)
    put(path, b"".join(lines)[:-1])
    assert look(path) == (3, False)
    with AuditLog.open(path, IDENTITY) as log:
        assert log.size == 3
        assert path.read_bytes() == b"".join(lines)


APPENDING = """
import sys
from pathlib import Path
from assay.privacy.auditlog import AuditLog
from assay.privacy.keys import Identity
directory = Path(sys.argv[1])
with AuditLog.open(directory / "audit.log", Identity.load(directory / "identity.key")) as log:
    while True:
        log.append("declined", run=str(log.size + 1) * 100, code="later")
        print(log.size, log.root, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_entry(tmp_path):
    IDENTITY.save(tmp_path / "identity.key")
    for attempt in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        lines = [child.stdout.readline() for _ in range(2 + 31 * attempt)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        with AuditLog.open(tmp_path / "audit.log", IDENTITY) as log:
            for line in lines:
                if line.endswith("\n"):
                    size, root = line.split()
                    log.require_prefix(int(size), root)


def test_the_line_is_on_disk_before_append_returns(path, monkeypatch):
    """A power cut keeps what was synced: the content at the last fsync is all that counts."""
    synced = b""

    def fsync(descriptor, real=os.fsync):
        nonlocal synced
        real(descriptor)
        synced = path.read_bytes()

    monkeypatch.setattr(os, "fsync", fsync)
    with AuditLog.open(path, IDENTITY) as log:
        for number in range(1, 6):
            log.append("stop")
            assert len(synced.splitlines()) == number == log.size


@pytest.fixture
def file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_appends_nothing_and_later_goes_on(path, file_limit):
    whole = b"".join(filled(path, 3))
    with AuditLog.open(path, IDENTITY, Clock()) as log:
        root = log.root
        file_limit(len(whole) + 100)
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be written"):
                log.append("accepted", run="a" * 32, study="b" * 64)
            assert path.read_bytes() == whole
            assert (log.size, log.root, log.has("accepted", run="a" * 32)) == (3, root, False)
        file_limit(resource.RLIM_INFINITY)
        log.append("accepted", run="a" * 32, study="b" * 64)
    assert look(path) == (4, False)


def test_an_fsync_that_fails_acknowledges_nothing(path, monkeypatch):
    whole = b"".join(filled(path, 3))
    with AuditLog.open(path, IDENTITY, Clock()) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(Unavailable, match="Input/output error"):
                log.append("stop")
            assert path.read_bytes() == whole
            patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(Unavailable, match="Input/output error"):
                log.append("stop")
        with pytest.raises(Unavailable, match="the audit log is closed"):
            log.append("stop")
        assert log.size == 3
    with AuditLog.open(path, IDENTITY) as log:  # written, never acknowledged: it may be there or not
        assert log.size in (3, 4)


# --- beside the ledger ------------------------------------------------------------------------------


def books(tmp_path, log):
    return Ledger.open(tmp_path / "ledger.sqlite", IDENTITY, Clock(), log_head=log.head)


def release(ledger, number=0, run="a"):
    ledger.reserve(study="card", run=run, planned=[EVENT] * 9, limits=LIMITS)
    ledger.charge(run=run, round=number, mechanism="gaussian", sensitivity=1.0, event=EVENT)
    ledger.release(run=run, round=number, payload=b"%d" % number)


def test_each_release_opening_and_close_gets_one_entry(tmp_path, path):
    with AuditLog.open(path, IDENTITY, Clock()) as log, books(tmp_path, log) as ledger:
        release(ledger)
        log.follow(ledger)
        log.follow(ledger)
        ledger.open_round(run="a", round=0, survivors="x,y,z")
        log.follow(ledger)
        release(ledger, 1)
        ledger.close_run(run="a", outcome="done")
        log.follow(ledger)  # what a crash left out, two at once
        rows = ledger.landmarks()
        assert [row.kind for row in rows] == ["release", "open", "release", "close"]
        assert tuple(log.landmarks.values()) == rows
        kinds = [json.loads(line)["leaf"]["kind"] for line in path.read_bytes().splitlines()]
        assert kinds == ["release", "open", "release", "closed"]
        assert log.has("closed", run="a")


def test_no_entry_holds_a_hash_that_a_guess_of_what_was_released_would_confirm(tmp_path, path):
    """The heads leave with every answer; the hash of the row is blinded by its random next key."""
    guesses = [hashlib.sha256(guess).hexdigest() for guess in (b"0", b"1", b"x,y,z")]
    named = []
    for holder in ("one", "two"):  # the same history twice
        (tmp_path / holder).mkdir()
        path = tmp_path / holder / "audit.log"
        with AuditLog.open(path, IDENTITY, Clock()) as log, books(tmp_path / holder, log) as ledger:
            for number in (0, 1):
                release(ledger, number)
                ledger.open_round(run="a", round=number, survivors="x,y,z")
            ledger.close_run(run="a", outcome="done")
            log.follow(ledger)
            followers = {row["seq"] - 1: row["prev_hash"] for row in ledger.summary(LIMITS).entries}
            newest, followers[newest] = ledger.head()
        assert not [guess for guess in guesses if guess in path.read_text()]
        leaves = [json.loads(line)["leaf"]["data"] for line in path.read_bytes().splitlines()]
        assert all(leaf["row_sha256"] == followers[leaf["ledger_seq"]] for leaf in leaves)
        named.append({leaf["row_sha256"] for leaf in leaves})
    assert len(named[0] | named[1]) == 10


def test_an_entry_names_no_row_twice(tmp_path):
    with AuditLog.open(None, IDENTITY) as log:
        log.append("release", run="a", round=0, row_sha256="00", ledger_seq=3)
        for row in (2, 3):
            with pytest.raises(BadInput, match="behind row 3"):
                log.append("release", run="a", round=0, row_sha256="00", ledger_seq=row)


def test_every_ledger_row_names_the_log_it_was_written_beside(tmp_path, path):
    with AuditLog.open(path, IDENTITY) as log, books(tmp_path, log) as ledger:
        log.append("start", version="1")
        release(ledger)
        log.follow(ledger)
        ledger.close_run(run="a", outcome="done")
        heads = [head for _, head in ledger.log_heads()]
        assert set(heads[:-1]) == {f"1:{log.root_at(1)}"}
        assert heads[-1] == log.head()


def test_a_start_notices_an_older_copy_of_either_file(tmp_path, path):
    with AuditLog.open(path, IDENTITY) as log:
        log.append("start", version="1")
        with books(tmp_path, log) as ledger:
            release(ledger)
            log.follow(ledger)
        old = {name: (tmp_path / name).read_bytes() for name in ("audit.log", "ledger.sqlite")}
        with books(tmp_path, log) as ledger:
            release(ledger, 1)
            log.follow(ledger)
            release(ledger, 2)
            log.follow(ledger)
    new = {name: (tmp_path / name).read_bytes() for name in old}
    for name, words in (
        ("audit.log", "audit.log ends at entry 2"),
        ("ledger.sqlite", "does not contain row"),
    ):
        for file, content in (new | {name: old[name]}).items():
            put(tmp_path / file, content)
        before = path.read_bytes()
        with (
            AuditLog.open(path, IDENTITY) as log,
            books(tmp_path, log) as ledger,
            pytest.raises(Tampered, match=words),
        ):
            log.follow(ledger)
        assert path.read_bytes() == before
