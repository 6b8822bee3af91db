"""The holder's daemon when a disk is full, a service is away for a moment, or it is stopped at work."""

import errno
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from federation_support import write_records
from fleet_support import Pki, wait_for
from flwr.app import Message
from toy_study import COORDINATOR, FEDERATION, RUN, counts, holder, offer

from assay.client import daemon, enrol, fleet, offers, session
from assay.client.app import make_app
from assay.client.daemon import STATUS_FILE, daemon_books, read_status, run_daemon
from assay.client.fleet import FleetLink, serve
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import Unavailable
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    Accepted,
    Release,
)
from assay.privacy.wire import Frame, open_frame, seal
from assay.server.fleet import FleetServer, exchange
from assay.simulations.grid import LocalGrid

INBOUND = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
OUTBOUND = Frame(federation=FEDERATION, sender="north", receiver="coordinator")
WITHIN_S = 20.0


def full(*args, **settings):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unavailable(*args, **settings):
    raise Unavailable("audit.log: the audit log cannot be written (No space left on device)")


def echo(message, context):
    return Message(message.content, reply_to=message)


# What the daemon says.


def test_a_full_disk_takes_no_line_and_stops_nothing(tmp_path):
    lines = []
    status = daemon._Status(tmp_path / "missing" / STATUS_FILE, lines.append)
    status.say("goes on")
    assert lines == ["goes on"]
    daemon._Status(tmp_path / STATUS_FILE, full).say("said here")
    assert read_status(tmp_path)["last"] == "said here"


def test_two_threads_may_speak_at_once(tmp_path):
    status, raised = daemon._Status(tmp_path / STATUS_FILE, lambda line: None), []
    before = sys.getswitchinterval()

    def speak(name):
        for number in range(300):
            try:
                status.say(f"{name} {number}")
                json.loads((tmp_path / STATUS_FILE).read_text())
            except (OSError, ValueError) as error:
                raised.append(error)

    threads = [threading.Thread(target=speak, args=(name,)) for name in "ab"]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert raised == []
    assert read_status(tmp_path)["last"].endswith(" 299")


# Questions that cannot be answered for a while.


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def party(pki):
    return pki.issue("north")


@pytest.fixture
def server(pki, party, tmp_path):
    made = FleetServer(
        "127.0.0.1",
        0,
        certfile=pki.server.certificate_file,
        keyfile=pki.server.key_file,
        client_ca=pki.ca,
        home=tmp_path,
    )
    made.admit("north", party.public_key)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def serving(pki, party, server, tmp_path):
    """Serve an app in a thread of this process; ``left`` is what ``serve`` said of the app at the end."""

    @contextmanager
    def start(app):
        stop, lines, link = threading.Event(), [], FleetLink(
            address=f"localhost:{server.port}",
            ca=pki.ca,
            certificate=party.certificate_file,
            key=party.key_file,
        )  # fmt: skip
        made = SimpleNamespace(stop=stop, lines=lines, left=None)

        def run():
            made.left = serve(app, link=link, journal_dir=tmp_path / "j", stop=stop, log=lines.append)

        made.thread = threading.Thread(target=run)
        made.thread.start()
        try:
            yield made
        finally:
            stop.set()
            made.thread.join(10)

    return start


def asked(grid, frame, timeout=WITHIN_S):
    return exchange(grid, {"north": frame}, "train", timeout)["north"]


def ask(grid, identity, question):
    answer = asked(grid, seal(question, INBOUND, COORDINATOR))
    assert isinstance(answer, bytes), answer
    return open_frame(answer, OUTBOUND, identity.public)


def journalled(tmp_path):
    return sorted(path.name for path in (tmp_path / "j").iterdir() if path.name != "lock")


def failing_twice(real, when=lambda *args, **settings: True, failure=unavailable):
    """``real``, which fails the first two times that ``when`` holds."""
    left = [1, 1]

    def method(*args, **settings):
        if left and when(*args, **settings):
            left.pop()
            failure()
        return real(*args, **settings)

    return method, left


@pytest.mark.parametrize("where", ["audit log", "ledger", "a file"])
def test_a_disk_that_is_full_for_a_moment_delays_the_answer(serving, server, tmp_path, monkeypatch, where):
    owner, name, when, failure = {
        "audit log": (AuditLog, "append", lambda log, kind, **data: kind == "release", unavailable),
        "ledger": (Ledger, "release", lambda *args, **settings: True, unavailable),
        "a file": (offers, "write_durably", lambda *args, **settings: True, full),
    }[where]
    method, left = failing_twice(getattr(owner, name), when, failure)
    monkeypatch.setattr(owner, name, method)
    identity = Identity.generate()
    north = holder(tmp_path, identity=identity)
    lines = []
    app = make_app(
        north, identity=identity, federation=FEDERATION, coordinator_key=COORDINATOR.public, log=lines.append
    )
    with serving(app) as made, server.run("r") as grid:
        assert isinstance(ask(grid, identity, offer()), Accepted)
        first, again = (ask(grid, identity, counts()) for _ in range(2))
    assert left == []
    assert isinstance(first, Release)
    assert first.values.tobytes() == again.values.tobytes()
    assert len(north._ledger.charged(RUN)) == 1
    assert any("No space left on device" in line for line in made.lines)
    assert not any("application failed" in line for line in made.lines)


def test_a_question_that_cannot_be_answered_does_not_hold_up_the_stop(serving, server, tmp_path):
    tries = []

    def app(message, context):
        tries.append(message.metadata.message_id)
        unavailable()

    with serving(app) as made, server.run("r") as grid:
        asking = threading.Thread(target=asked, args=(grid, b"x", 2.0))
        asking.start()
        wait_for(lambda: len(tries) > 2)
        assert journalled(tmp_path) == ["question"]
        begin = time.monotonic()
        made.stop.set()
        made.thread.join(10)
        assert time.monotonic() - begin < 3
        asking.join()
    assert made.left is False
    assert len(set(tries)) == 1
    assert journalled(tmp_path) == ["question"]


def test_a_withdrawn_question_does_not_keep_others_waiting(serving, server, monkeypatch):
    monkeypatch.setattr(session, "LONGEST_PAUSE_S", 0.4)
    monkeypatch.setattr(fleet, "LONGEST_PAUSE_S", 0.4)

    def app(message, context):
        if bytes(message.content["assay"]["frame"]) == b"never":
            unavailable()
        return echo(message, context)

    with serving(app), server.run("r") as grid:
        assert asked(grid, b"never", 1.0) == "no answer within 1 s"
        assert asked(grid, b"now") == b"now"


# A stop in mid-answer.


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_fails_after_the_stop_is_no_answer(serving, server, tmp_path, error):
    begun, end = threading.Event(), threading.Event()

    def app(message, context):
        begun.set()
        end.wait(10)
        raise error("books closed")

    box = []
    with server.run("r") as grid:
        with serving(app) as made:
            asking = threading.Thread(target=lambda: box.append(asked(grid, b"x")))
            asking.start()
            assert begun.wait(10)
            made.stop.set()
            made.thread.join(10)
            assert made.left is True
            (worker,) = (thread for thread in threading.enumerate() if thread.name == "answers")
            end.set()
            worker.join(10)
            assert journalled(tmp_path) == ["question"]
        unlock(tmp_path / "j" / "lock")
        with serving(echo):
            asking.join(WITHIN_S)
    assert box == [b"x"]


def unlock(path):
    """Close the lock file, as the end of the process does."""
    for each in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{each}") == str(path):
                os.close(int(each))
        except FileNotFoundError:
            continue


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "north"
    enrol.init(directory, "north")
    settings = directory / "client.toml"
    data = '[data]\nkind = "csv"\npath = "records.csv"\none_row_per_person = true\n\n[policy]'
    settings.write_text(settings.read_text().replace("[policy]", data, 1))
    write_records(directory / "records.csv")
    return directory


def kinds(home):
    lines = (home / daemon.AUDIT_FILE).read_text().splitlines()
    return [json.loads(line)["leaf"]["kind"] for line in lines]


@pytest.mark.parametrize("running", [True, False])
def test_books_are_not_closed_under_an_app_that_runs(home, monkeypatch, running):
    joined = SimpleNamespace(
        holder="north",
        federation="f",
        federation_id=FEDERATION,
        coordinator_public=COORDINATOR.public,
        address="localhost:9",
    )
    monkeypatch.setattr(daemon, "load_join", lambda directory: joined)
    apps = []
    monkeypatch.setattr(fleet, "serve", lambda app, **settings: apps.append(app) or running)
    books = []
    real = daemon.daemon_books

    @contextmanager
    def kept(*args):
        with real(*args) as opened:
            books.extend(opened)
            yield opened

    monkeypatch.setattr(daemon, "daemon_books", kept)
    run_daemon(home, threading.Event(), lambda line: None)
    frame = seal(counts(), INBOUND, COORDINATOR)
    answer = asked(LocalGrid({"north": apps[0]}), frame)
    assert isinstance(answer, bytes) is running
    assert kinds(home) == ["start", "policy", "stop"] + ["refused"] * running
    for each in reversed(books):
        each.close()


def test_a_disk_too_full_for_the_last_line_closes_no_books_in_use(home, monkeypatch):
    identity, in_use = Identity.load(home / enrol.IDENTITY_KEY), threading.Event()
    books = daemon_books(home, identity, in_use)
    ledger, audit = books.__enter__()
    in_use.set()
    monkeypatch.setattr(audit, "append", unavailable)
    with pytest.raises(Unavailable):
        books.__exit__(None, None, None)
    assert ledger.head()[0] == 0
    ledger.close()
    audit.close()
