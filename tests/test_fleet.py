"""Questions and answers between a coordinator and holder daemons in processes of their own."""

from __future__ import annotations

import datetime
import signal
import socket
import threading
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fleet_support import DAY, Pki, make_app, make_daemon, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from assay.client.fleet import FleetLink, serve
from assay.privacy.errors import AssayError, BadInput, Refused, Tampered
from assay.server.fleet import FleetServer, exchange
from assay.simulations.grid import LocalGrid

NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def parties(pki):
    return {name: pki.issue(name) for name in (*NAMES, "stranger")}


def make_server(pki, parties, home, port=0):
    fleet = FleetServer(
        "127.0.0.1",
        port,
        certfile=pki.server.certificate_file,
        keyfile=pki.server.key_file,
        client_ca=pki.ca,
        home=home,
    )
    for name in NAMES:
        fleet.admit(name, parties[name].public_key)
    return fleet


@pytest.fixture
def server(pki, parties, tmp_path):
    fleet = make_server(pki, parties, tmp_path)
    fleet.start()
    yield fleet
    fleet.stop()


@pytest.fixture
def daemons(pki, parties, tmp_path):
    """Start daemons by name; all are ended with the test."""
    started = {}

    def start(fleet, *names, **extra):
        for name in names:
            address = f"localhost:{fleet.port}"
            started[name] = make_daemon(tmp_path, pki, parties[name], address, **extra).start()
        return [started[name] for name in names]

    yield start
    for daemon in started.values():
        daemon.kill()


def online(fleet, *names):
    assert fleet.wait_online(names, 20) == set(names)


# The exchange, over any grid.


def local_grid(tmp_path, **apps):
    return LocalGrid({name: make_app(tmp_path) for name in NAMES} | apps)


def test_an_exchange_returns_every_holders_frame(tmp_path):
    seen = []
    grid = local_grid(tmp_path)
    frames = {name: f"echo:{name}".encode() for name in NAMES}
    answers = exchange(grid, frames, "train", 5.0, lambda *entry: seen.append(entry))
    assert answers == {name: f"answer:{name}".encode() for name in NAMES}
    assert dict(seen) == answers


def test_one_holder_with_garbage_or_an_error_does_not_disturb_the_others(tmp_path):
    frames = {"alpha": b"fail:", "beta": b"garbage:", "gamma": b"echo:fine"}
    answers = exchange(local_grid(tmp_path), frames, "train", 5.0)
    assert answers["gamma"] == b"answer:fine"
    assert answers["alpha"] == "the holder's application failed; its log says why"
    assert answers["beta"] == "the answer is not a frame"


def test_a_name_nobody_has_gets_a_reason(tmp_path):
    answers = exchange(local_grid(tmp_path), {"nobody": b"x", "beta": b"echo:1"}, "query", 5.0)
    assert answers == {"nobody": "not admitted", "beta": b"answer:1"}


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(tmp_path, timeout):
    with pytest.raises(BadInput, match="timeout"):
        exchange(local_grid(tmp_path), {}, "train", timeout)


def test_replies_nobody_asked_for_are_dropped(tmp_path):
    class Noisy(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            (reply,) = super().send_and_receive(messages, timeout=timeout)
            stray = Message(RecordDict(), reply_to=reply)
            return [stray, reply, reply]

    seen = []
    grid = Noisy({"alpha": make_app(tmp_path)})
    answers = exchange(grid, {"alpha": b"echo:1"}, "train", 5.0, lambda *entry: seen.append(entry))
    assert answers == {"alpha": b"answer:1"}
    assert len(seen) == 1


def test_a_local_app_cannot_reach_into_the_askers_memory(tmp_path):
    def app(message, context):
        message.content["assay"]["frame"] = b"changed"
        return Message(message.content, reply_to=message)

    grid = LocalGrid({"alpha": app})
    question = grid.create_message(
        RecordDict({"assay": ConfigRecord({"frame": b"mine"})}), "query", grid.nodes()["alpha"], ""
    )
    (reply,) = grid.send_and_receive([question])
    assert reply.content["assay"]["frame"] == b"changed"
    assert question.content["assay"]["frame"] == b"mine"


def test_a_local_grid_runs_flower_client_apps():
    app = ClientApp()

    @app.query()
    def query(message, context):
        return Message(message.content, reply_to=message)

    assert exchange(LocalGrid({"alpha": app}), {"alpha": b"1"}, "query", 5.0) == {"alpha": b"1"}


# The daemon's own certificate and first contact.


def run_daemon(pki, party, address, tmp_path, *, ca=None, key=None):
    link = FleetLink(
        address=address, ca=ca or pki.ca, certificate=party.certificate_file, key=key or party.key_file
    )
    stop = threading.Event()
    timer = threading.Timer(10.0, stop.set)
    timer.start()
    try:
        serve(make_app(tmp_path), link=link, journal_dir=tmp_path / "j", stop=stop, log=lambda line: None)
    finally:
        timer.cancel()


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:0", "localhost:99999", "a b:1", ":1", "http://x:1"]
)
def test_an_address_that_is_none_is_refused(pki, parties, address):
    party = parties["alpha"]
    with pytest.raises(BadInput, match="host:port"):
        FleetLink(address=address, ca=pki.ca, certificate=party.certificate_file, key=party.key_file)


def test_an_expired_or_future_certificate_is_named_before_any_contact(pki, tmp_path):
    old = pki.issue("old", first=-3 * DAY, last=-DAY)
    with pytest.raises(BadInput, match=r"certificate.*allowed: a date from.*clock"):
        run_daemon(pki, old, "localhost:9", tmp_path)
    early = pki.issue("early", first=datetime.timedelta(hours=5))
    with pytest.raises(BadInput, match="clock"):
        run_daemon(pki, early, "localhost:9", tmp_path)


def test_files_that_do_not_belong_together_are_named(pki, parties, tmp_path):
    alpha, beta = parties["alpha"], parties["beta"]
    with pytest.raises(BadInput, match="private key of"):
        run_daemon(pki, alpha, "localhost:9", tmp_path, key=beta.key_file)
    with pytest.raises(Tampered, match="not issued by"):
        run_daemon(pki, alpha, "localhost:9", tmp_path, ca=Pki(tmp_path / "other").ca)
    with pytest.raises(BadInput, match="readable PEM"):
        run_daemon(pki, alpha, "localhost:9", tmp_path, ca=tmp_path / "missing.pem")
    loose = tmp_path / "loose.key"
    loose.write_bytes(alpha.key_file.read_bytes())
    loose.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        run_daemon(pki, alpha, "localhost:9", tmp_path, key=loose)


def test_a_holder_that_is_not_admitted_is_told_what_to_do(pki, parties, server, tmp_path):
    with pytest.raises(Refused, match="ask it to admit") as refused:
        run_daemon(pki, parties["stranger"], f"localhost:{server.port}", tmp_path)
    assert refused.value.code == "not-admitted"


def test_a_coordinator_of_another_authority_or_for_another_host_is_not_trusted(
    pki, parties, server, tmp_path
):
    foreign = Pki(tmp_path / "foreign")
    with pytest.raises(Refused, match=r"not trusted.*(self-signed|unable to get)") as refused:
        run_daemon(foreign, foreign.issue("alpha"), f"localhost:{server.port}", tmp_path)
    assert refused.value.code == "certificate"
    with pytest.raises(Refused, match=r"not trusted.*127\.0\.0\.2"):
        run_daemon(pki, parties["alpha"], f"127.0.0.2:{listen_too(server)}", tmp_path)


def listen_too(server):
    """A port of 127.0.0.2 that leads to the coordinator, whose certificate does not name that host."""
    entry = socket.create_server(("127.0.0.2", 0))

    def forward():
        with entry, entry.accept()[0] as inside, socket.create_connection(("127.0.0.1", server.port)) as out:
            inside.sendall(out.recv(0) or b"")
            threading.Thread(target=pump, args=(inside, out), daemon=True).start()
            pump(out, inside)

    def pump(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            return

    threading.Thread(target=forward, daemon=True).start()
    return entry.getsockname()[1]


def test_an_expired_coordinator_certificate_is_named(pki, parties, tmp_path):
    san = x509.load_pem_x509_certificate(
        pki.server.certificate_file.read_bytes()
    ).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    expired = pki.issue(
        "expired-server",
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        names=list(san.value),
        first=-3 * DAY,
        last=-DAY,
    )
    fleet = FleetServer(
        "127.0.0.1",
        0,
        certfile=expired.certificate_file,
        keyfile=expired.key_file,
        client_ca=pki.ca,
        home=tmp_path,
    )
    fleet.start()
    try:
        with pytest.raises(AssayError, match="certificate has expired"):
            run_daemon(pki, parties["alpha"], f"localhost:{fleet.port}", tmp_path)
    finally:
        fleet.stop()


@pytest.mark.slow
def test_two_daemons_on_one_journal_are_refused(pki, parties, server, daemons, tmp_path):
    daemons(server, "alpha")
    online(server, "alpha")
    (tmp_path / "j").symlink_to(tmp_path / "alpha" / "journal")
    with pytest.raises(Refused, match="another daemon uses") as refused:
        run_daemon(pki, parties["alpha"], "localhost:9", tmp_path)
    assert refused.value.code == "running"


# Real daemons.


@pytest.mark.slow
def test_three_daemons_answer_round_after_round(server, daemons):
    daemons(server, *NAMES)
    online(server, *NAMES)
    with server.run("r") as grid:
        for number in range(20):
            frames = {name: f"echo:{name}{number}".encode() for name in NAMES}
            begin = time.monotonic()
            answers = exchange(grid, frames, "train", 20.0)
            assert answers == {name: f"answer:{name}{number}".encode() for name in NAMES}
            assert time.monotonic() - begin < 3
        big = exchange(grid, {"alpha": b"echo:" + b"x" * (1 << 20)}, "train", 20.0)
        assert big["alpha"] == b"answer:" + b"x" * (1 << 20)


@pytest.mark.slow
def test_an_app_that_fails_neither_stops_the_daemon_nor_says_why_upstream(server, daemons):
    (daemon,) = daemons(server, "alpha")
    online(server, "alpha")
    with server.run("r") as grid:
        for word in (b"fail:", b"other:", b"garbage:"):
            answer = exchange(grid, {"alpha": word}, "train", 20.0)["alpha"]
            assert isinstance(answer, str)
            assert "4711" not in answer
        assert exchange(grid, {"alpha": b"echo:1"}, "train", 20.0) == {"alpha": b"answer:1"}
    assert "application failed: ValueError at fleet_support.py:" in daemon.text()
    assert "4711" not in daemon.text()


@pytest.mark.slow
def test_a_slow_holder_does_not_hold_up_the_others(server, daemons):
    (daemon, _) = daemons(server, "alpha", "beta")
    online(server, "alpha", "beta")
    with server.run("r") as grid:
        answers = exchange(grid, {"alpha": b"sleep:2", "beta": b"echo:1"}, "train", 0.8)
        assert answers == {"alpha": "no answer within 0.8 s", "beta": b"answer:1"}
        # Its late answer is refused; the next question is answered.
        assert exchange(grid, {"alpha": b"echo:2"}, "train", 20.0) == {"alpha": b"answer:2"}
    assert "answer dropped" in daemon.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "calls"),
    [
        ("before-_answer", 1),  # the question is journalled, the app not yet asked
        ("after-_run_app", 2),  # the app has answered, nothing is written: it must be asked again
        ("before-_send", 1),  # the answer is journalled, not sent
        ("before-_clear", 1),  # the answer is sent, the journal not yet empty
    ],
)
def test_killed_at_any_point_the_answer_arrives_once(server, daemons, point, calls):
    (daemon,) = daemons(server, "alpha", crash=point)
    online(server, "alpha")
    with server.run("r") as grid:
        box = {}
        asking = threading.Thread(
            target=lambda: box.update(exchange(grid, {"alpha": b"echo:1"}, "train", 30.0))
        )
        asking.start()
        daemon.process.wait(15)
        assert daemon.process.returncode == -signal.SIGKILL
        (daemon,) = daemons(server, "alpha")
        asking.join(30)
        assert box == {"alpha": b"answer:1"}
        assert daemon.calls() == calls
        assert exchange(grid, {"alpha": b"echo:2"}, "train", 20.0) == {"alpha": b"answer:2"}
        assert daemon.calls() == calls + 1
    wait_for(lambda: not list((daemon.state / "journal").glob("[qr]*")))


@pytest.mark.slow
def test_an_answer_that_was_ready_is_sent_byte_for_byte(server, daemons):
    """The app of ``once:`` answers differently each time; what was journalled must be what arrives."""
    (daemon,) = daemons(server, "alpha", crash="before-_send")
    online(server, "alpha")
    with server.run("r") as grid:
        box = {}
        asking = threading.Thread(
            target=lambda: box.update(exchange(grid, {"alpha": b"once:"}, "train", 30.0))
        )
        asking.start()
        daemon.process.wait(15)
        ready = (daemon.state / "journal" / "reply").read_bytes()
        daemons(server, "alpha")
        asking.join(30)
    assert box["alpha"] in ready


@pytest.mark.slow
@pytest.mark.parametrize("name", ["question", "reply"])
@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x00"])
def test_a_journal_that_is_not_readable_is_dropped_and_the_daemon_answers(
    server, daemons, tmp_path, name, content
):
    """A power cut may leave any bytes: a daemon that stops over them would stop at every start."""
    journal = tmp_path / "alpha" / "journal"
    journal.mkdir(parents=True, mode=0o700)
    (journal / name).write_bytes(content)
    daemons(server, "alpha")
    online(server, "alpha")
    with server.run("r") as grid:
        assert isinstance(exchange(grid, {"alpha": b"?"}, "query", 20.0)["alpha"], bytes)


@pytest.mark.slow
def test_a_listener_that_goes_away_in_mid_question_is_survived(server, daemons):
    (daemon, _) = daemons(server, "alpha", "beta")
    online(server, "alpha", "beta")
    with server.run("r") as grid:
        box = {}
        frames = {"alpha": b"sleep:1", "beta": b"sleep:0.1"}
        asking = threading.Thread(target=lambda: box.update(exchange(grid, frames, "train", 30.0)))
        asking.start()
        wait_for(daemon.calls)
        server.stop()
        time.sleep(1.5)
        server.start()
        asking.join(30)
    assert box == {"alpha": b"answer:1", "beta": b"answer:0.1"}
    assert "trying again" in daemon.text()
    wait_for(lambda: "reached again" in daemon.text())


@pytest.mark.slow
def test_a_coordinator_that_starts_anew_is_rejoined_and_asks_again(pki, parties, daemons, tmp_path):
    first = make_server(pki, parties, tmp_path)
    first.start()
    (daemon, _) = daemons(first, "alpha", "beta")
    online(first, "alpha", "beta")
    with first.run("r") as grid:
        threading.Timer(0.5, first.interrupt).start()
        exchange(grid, {"alpha": b"sleep:2"}, "train", 30.0)
        assert daemon.calls() == 1
    first.stop()
    second = make_server(pki, parties, tmp_path, first.port)
    second.start()
    try:
        # Sooner than a heartbeat comes round.
        assert second.wait_online(["alpha", "beta"], 8) == {"alpha", "beta"}
        with second.run("r") as grid:
            answers = exchange(grid, {"alpha": b"echo:1", "beta": b"echo:2"}, "train", 20.0)
        assert answers == {"alpha": b"answer:1", "beta": b"answer:2"}
        assert "will ask again" in daemon.text() or "answer dropped" in daemon.text()
    finally:
        second.stop()


@pytest.mark.slow
def test_a_holder_waits_for_a_coordinator_that_is_not_there_yet(pki, parties, daemons, tmp_path):
    fleet = make_server(pki, parties, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        fleet.port = free.getsockname()[1]
    (daemon,) = daemons(fleet, "alpha")
    wait_for(lambda: "trying again" in daemon.text())
    fleet.start()
    try:
        online(fleet, "alpha")
    finally:
        fleet.stop()


@pytest.mark.slow
def test_a_clean_stop_is_quick_and_said(server, daemons):
    (daemon,) = daemons(server, "alpha")
    online(server, "alpha")
    wait_for(lambda: server._gate._polls)
    assert daemon.terminate() < 3  # in a held poll
    assert daemon.process.returncode == 0
    assert server.online() == set()
    assert daemon.text().endswith("stopped\n")


@pytest.mark.slow
def test_a_stop_in_back_off_or_without_any_contact_is_quick(server, daemons):
    (daemon,) = daemons(server, "alpha")
    online(server, "alpha")
    server.stop()
    wait_for(lambda: "trying again" in daemon.text())
    time.sleep(1.0)
    assert daemon.terminate() < 3
    assert daemon.process.returncode == 0
    (daemon,) = daemons(server, "beta")
    wait_for(lambda: "trying again" in daemon.text())
    assert daemon.terminate() < 3
    assert daemon.process.returncode == 0


@pytest.mark.slow
def test_a_stop_in_mid_question_is_quick_and_the_question_is_taken_up_again(server, daemons):
    (daemon,) = daemons(server, "alpha")
    online(server, "alpha")
    with server.run("r") as grid:
        box = {}
        asking = threading.Thread(
            target=lambda: box.update(exchange(grid, {"alpha": b"sleep:3"}, "train", 30.0))
        )
        asking.start()
        wait_for(daemon.calls)
        assert daemon.terminate() < 3
        assert daemon.process.returncode == 0
        assert "taken up at the next start" in daemon.text()
        (daemon,) = daemons(server, "alpha")
        asking.join(30)
        assert box == {"alpha": b"answer:3"}
        assert daemon.calls() == 2


@pytest.mark.slow
def test_a_peer_that_accepts_and_says_nothing_does_not_keep_the_daemon_from_stopping(pki, parties, daemons):
    with socket.create_server(("127.0.0.1", 0)) as silent:

        class Silent:
            port = silent.getsockname()[1]

        (daemon,) = daemons(Silent, "alpha")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(10)
            assert daemon.terminate() < 3
            assert daemon.process.returncode == 0


@pytest.mark.slow
def test_heartbeats_go_on_while_the_app_runs(server, daemons):
    (daemon,) = daemons(server, "alpha", beat=0.2)
    online(server, "alpha")
    beats = []
    handle = server._store.handle

    def counting(request, node_id):
        beats.append(type(request).__name__)
        return handle(request, node_id)

    server._store.handle = counting
    with server.run("r") as grid:
        assert exchange(grid, {"alpha": b"sleep:1.5"}, "train", 20.0) == {"alpha": b"answer:1.5"}
    assert beats.count("SendNodeHeartbeatRequest") >= 4
    assert daemon.calls() == 1
