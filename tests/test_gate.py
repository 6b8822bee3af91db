"""The coordinator's public port: what gets through, and everything that must not."""

from __future__ import annotations

import contextlib
import datetime
import resource
import socket
import ssl
import threading
import time

import pytest
from fleet_support import Pki, post, signed_headers, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

from assay.privacy.errors import BadInput, Unavailable
from assay.server import gate, peers
from assay.server.fleet import FleetServer

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
ACTIVATE, LEAVE = "/v1/fleet/activate-node", "/v1/fleet/deactivate-node"
BEAT = "/v1/fleet/send-node-heartbeat"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def parties(pki):
    return [pki.issue(name) for name in ("alpha", "beta", "stranger")]


@pytest.fixture
def server(pki, parties, tmp_path):
    fleet = FleetServer(
        "127.0.0.1",
        0,
        certfile=pki.server.certificate_file,
        keyfile=pki.server.key_file,
        client_ca=pki.ca,
        home=tmp_path,
    )
    for party in parties[:2]:
        fleet.admit(party.name, party.public_key)
    fleet.start()
    yield fleet
    fleet.stop()


class Peer:
    """A holder that sends single requests by hand."""

    def __init__(self, pki, server, party):
        self.pki, self.server, self.party = pki, server, party
        self.node = server._store.nodes().get(party.name, 0)

    def post(self, path, request, headers=None, tls=None):
        body = request if isinstance(request, bytes) else request.SerializeToString()
        headers = signed_headers(self.party) if headers is None else headers
        return post(self.pki, tls or self.party, self.server.port, path, body, headers)

    def pull(self, node=None):
        return PullMessagesRequest(node=Node(node_id=node or self.node))

    def question(self):
        """Pull one question; returns its protobuf, None when there is none."""
        status, body = self.post(PULL, self.pull())
        assert status == 200, body
        found = PullMessagesResponse.FromString(body).messages_list
        return found[0] if found else None

    def reply(self, question, *, src=None, records=1, false_id=False):
        """Build the push of a reply to ``question``."""
        content = RecordDict({f"r{i}": ConfigRecord({"frame": b"hi"}) for i in range(records)})
        message = Message(content, reply_to=message_from_proto(question))
        message.metadata.__dict__["_message_id"] = "0" * 64 if false_id else message.object_id
        proto = message_to_proto(message)
        if src is not None:
            proto.metadata.src_node_id = src
        return PushMessagesRequest(node=Node(node_id=self.node), messages_list=[proto])


@pytest.fixture
def peers_of(pki, server, parties):
    return [Peer(pki, server, party) for party in parties]


def ask(grid, node, text=b"?"):
    message = grid.create_message(RecordDict({"assay": ConfigRecord({"frame": text})}), "query", node, "")
    return grid.push_messages([message])[0]


# Who may connect.


def test_a_peer_without_a_client_certificate_fails_the_handshake(pki, server):
    with pytest.raises((ssl.SSLError, OSError)):
        post(pki, None, server.port, PULL)


def test_a_certificate_of_another_authority_fails_the_handshake(pki, server, tmp_path):
    foreign = Pki(tmp_path / "foreign").issue("alpha")
    with pytest.raises((ssl.SSLError, OSError)):
        post(pki, foreign, server.port, PULL)


def test_tls_1_2_is_refused(pki, server, parties):
    context = pki.client_context(parties[0])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as raw,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(raw, server_hostname="localhost")


def test_a_certified_key_that_is_not_admitted_is_refused(peers_of):
    stranger = peers_of[2]
    request = ActivateNodeRequest(public_key=stranger.party.public_key, heartbeat_interval=30)
    assert stranger.post(ACTIVATE, request) == (401, b"unknown-key")


def test_a_revoked_holder_is_refused_at_once_and_may_be_admitted_again(server, peers_of, parties):
    alpha = peers_of[0]
    assert (
        alpha.post(BEAT, SendNodeHeartbeatRequest(node=Node(node_id=alpha.node), heartbeat_interval=30))[0]
        == 200
    )
    server.revoke("alpha")
    assert alpha.post(PULL, alpha.pull()) == (401, b"unknown-key")
    server.revoke("alpha")  # twice changes nothing
    assert server.admit("alpha", parties[0].public_key) != alpha.node


def test_admission_is_idempotent_and_a_new_key_replaces_the_old(pki, server, parties):
    first = server.admit("alpha", parties[0].public_key)
    assert first == server._store.nodes()["alpha"]
    assert server.admit("alpha", parties[2].public_key) != first
    assert server._store.node_of(parties[0].public_key) is None


def test_a_key_of_another_holder_or_another_kind_is_not_admitted(server, parties):
    with pytest.raises(BadInput, match="no other holder"):
        server.admit("gamma", parties[0].public_key)
    with pytest.raises(BadInput, match="P-384"):
        server.admit("gamma", b"-----BEGIN NOTHING-----")


# Who speaks.


def test_the_signing_key_must_be_the_key_of_the_certificate(peers_of):
    alpha, beta = peers_of[:2]
    for request in (alpha.pull(), beta.pull()):
        assert alpha.post(PULL, request, signed_headers(beta.party)) == (401, b"signature")
        named = {"flwr-public-key": signed_headers(beta.party)["flwr-public-key"]}
        assert alpha.post(PULL, request, signed_headers(alpha.party) | named) == (401, b"signature")


def test_a_node_speaks_for_itself_only(server, peers_of):
    alpha, beta = peers_of[:2]
    other = Node(node_id=beta.node)
    for path, request in (
        (PULL, PullMessagesRequest(node=other)),
        (PUSH, PushMessagesRequest(node=other)),
        (BEAT, SendNodeHeartbeatRequest(node=other, heartbeat_interval=30)),
        (LEAVE, DeactivateNodeRequest(node_id=beta.node)),
        (ACTIVATE, ActivateNodeRequest(public_key=beta.party.public_key, heartbeat_interval=30)),
    ):
        assert alpha.post(path, request) == (401, b"node"), path
    assert server.online() == set()


def test_a_holder_cannot_read_or_answer_a_question_to_another(server, peers_of):
    alpha, beta = peers_of[:2]
    with server.run("r") as grid:
        asked = ask(grid, beta.node)
        question = beta.question()
        assert alpha.post(PUSH, alpha.reply(question)) == (403, b"node")
        assert alpha.post(PUSH, alpha.reply(question, src=alpha.node)) == (403, b"not-asked")
        assert grid.pull_messages([asked]) == []
        assert beta.post(PUSH, beta.reply(question))[0] == 200
        assert grid.pull_messages([asked])[0].content["r0"]["frame"] == b"hi"


def test_signed_headers_work_once(peers_of):
    alpha = peers_of[0]
    headers = signed_headers(alpha.party)
    beat = SendNodeHeartbeatRequest(node=Node(node_id=alpha.node), heartbeat_interval=30)
    assert alpha.post(BEAT, beat, headers)[0] == 200
    assert alpha.post(BEAT, beat, headers) == (401, b"replay")
    assert alpha.post(PULL, alpha.pull(), headers) == (401, b"replay")


@pytest.mark.parametrize("seconds", [-400, 60])
def test_a_clock_that_is_off_is_named(peers_of, seconds):
    alpha = peers_of[0]
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    assert alpha.post(PULL, alpha.pull(), signed_headers(alpha.party, at)) == (401, b"clock")


def test_broken_signatures_are_refused(peers_of):
    alpha = peers_of[0]
    good = signed_headers(alpha.party)
    for change in (
        {"flwr-signature": signed_headers(peers_of[1].party)["flwr-signature"]},
        {"flwr-timestamp": "yesterday"},
        {"flwr-timestamp": "2026-01-01T00:00:00"},
        {"flwr-signature": "%%%"},
        {"flwr-public-key": ""},
    ):
        assert alpha.post(PULL, alpha.pull(), good | change)[0] == 401, change


# What may be called.


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/push-object",
        "/v1/fleet/pull-object",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
        "/v1/fleet/../control/start-run",
        "/V1/fleet/pull-messages",
    ],
)
def test_nothing_but_the_five_fleet_calls_exists(peers_of, path):
    assert peers_of[0].post(path, b"") == (404, b"path")


def test_only_post_is_answered(pki, server, parties):
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        headers = signed_headers(parties[0])
        assert post(pki, parties[0], server.port, PULL, b"", headers, method=method)[0] == 404


# How much, how fast, how many.


def raw(pki, server, party, text):
    """Open a TLS connection and send ``text``."""
    tls = pki.client_context(party).wrap_socket(
        socket.create_connection(("127.0.0.1", server.port), 10), server_hostname="localhost"
    )
    tls.settimeout(10)
    tls.sendall(text)
    return tls


def request_head(party, path, extra):
    lines = [f"POST {path} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in signed_headers(party).items())]
    return "\r\n".join([*lines, extra, "", ""]).encode()


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        (PUSH, 10**9, 413),
        (PUSH, (8 << 20) + 65537, 413),
        (PULL, 5000, 413),
        (PULL, "x", 400),
        (PULL, -1, 400),
    ],
)
def test_a_body_too_large_is_refused_before_any_of_it_is_sent(pki, server, parties, path, size, status):
    with raw(pki, server, parties[0], request_head(parties[0], path, f"content-length: {size}")) as tls:
        assert tls.recv(100).split()[1] == str(status).encode()


def test_a_chunked_body_is_refused(pki, server, parties):
    with raw(pki, server, parties[0], request_head(parties[0], PUSH, "transfer-encoding: chunked")) as tls:
        assert tls.recv(100).split()[1] == b"411"


def test_a_body_that_trickles_is_given_up(pki, server, parties, monkeypatch):
    monkeypatch.setattr(gate, "BODY_S", 0.3)
    with raw(pki, server, parties[0], request_head(parties[0], PUSH, "content-length: 9") + b"a") as tls:
        assert tls.recv(100).split()[1] == b"408"


@pytest.mark.parametrize(
    "text", [b"", b"POST /v1/fleet/pull-mess", b"POST / HTTP/1.1\r\nhost: x\r\na: b\r\n"]
)
def test_headers_that_never_end_are_cut_off(pki, server, parties, monkeypatch, text):
    monkeypatch.setattr(peers, "HEADER_S", 0.3)
    with raw(pki, server, parties[0], text) as tls:
        begin = time.monotonic()
        with _broken():
            assert tls.recv(100) == b""
        assert time.monotonic() - begin < 3


def _broken():
    """A connection that was cut shows as an end of file or as an error, depending on the moment."""
    return contextlib.suppress(OSError)


def test_a_header_block_of_a_megabyte_is_refused(pki, server, parties):
    with raw(pki, server, parties[0], b"POST / HTTP/1.1\r\nhost: x\r\na: ") as tls, _broken():
        tls.sendall(b"b" * (1 << 20))
        assert tls.recv(100)[:12] in (b"HTTP/1.1 400", b"")


def test_one_holder_cannot_use_up_connections_or_requests(pki, server, parties, peers_of):
    held = [raw(pki, server, parties[0], b"") for _ in range(peers.CONNECTIONS_PER_HOLDER + 4)]
    wait_for(lambda: len(server._server.server_state.connections) <= peers.CONNECTIONS_PER_HOLDER, 5)
    beta = peers_of[1]
    beat = SendNodeHeartbeatRequest(node=Node(node_id=beta.node), heartbeat_interval=30)
    assert beta.post(BEAT, beat)[0] == 200
    for tls in held:
        tls.close()
    wait_for(lambda: not server._server.server_state.connections)
    head = [request_head(parties[0], PUSH, "content-length: 9") for _ in range(gate.REQUESTS_PER_HOLDER)]
    held = [raw(pki, server, parties[0], each) for each in head]
    wait_for(lambda: server._gate._busy[parties[0].public_key] == gate.REQUESTS_PER_HOLDER)
    assert peers_of[0].post(PULL, peers_of[0].pull()) == (429, b"busy")
    assert beta.post(BEAT, beat)[0] == 200
    for tls in held:
        tls.close()
    wait_for(lambda: server._gate._busy[parties[0].public_key] == 0)


def limits():
    return resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture
def few_files():
    before = limits()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
    yield before[1] // 2
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_get_a_quarter_of_the_open_files_at_most(few_files, monkeypatch):
    hard = limits()[1]
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 8)
    assert peers._places() == 8
    assert limits() == (few_files, hard)  # enough as it is
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", hard)
    assert peers._places() == hard // 4
    assert limits() == (hard, hard)


def test_what_comes_when_all_places_are_taken_is_closed_at_once(monkeypatch):
    """Connections of strangers used up the file descriptors, those of the registry included."""
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 4)
    with peers.Door(socket.create_server(("127.0.0.1", 0))) as door, contextlib.ExitStack() as stack:

        def arrive():
            client = stack.enter_context(socket.create_connection(door.getsockname(), 5))
            return client, stack.enter_context(door.accept()[0])

        inside = [arrive() for _ in range(4)]
        excess = stack.enter_context(socket.create_connection(door.getsockname(), 5))
        with pytest.raises(ConnectionAbortedError):
            door.accept()
        assert excess.recv(1) == b""
        inside[0][1].close()
        assert arrive()[1].fileno() >= 0


def test_strangers_without_a_certificate_do_not_use_up_the_file_descriptors(server, peers_of, monkeypatch):
    server.stop()
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 6)
    server.start()
    beta = peers_of[1]
    beat = SendNodeHeartbeatRequest(node=Node(node_id=beta.node), heartbeat_interval=30)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 3)) for _ in range(40)
        ]
        for excess in silent[6:]:
            with contextlib.suppress(ConnectionError):
                assert excess.recv(1) == b""  # at once, not when the handshake has timed out
        silent[0].close()
        wait_for(lambda: _answered(lambda: beta.post(BEAT, beat)))


def _answered(call):
    with _broken():
        return call()[0] == 200
    return False


# What may be said.


def test_bytes_that_are_no_protobuf_are_refused(peers_of):
    assert peers_of[0].post(PULL, b"\xff\xff\xff") == (400, b"protobuf")


def test_a_reply_with_more_than_one_value_or_a_false_id_is_refused(server, peers_of):
    alpha = peers_of[0]
    with server.run("r") as grid:
        asked = ask(grid, alpha.node)
        question = alpha.question()
        assert alpha.post(PUSH, alpha.reply(question, records=2)) == (400, b"record")
        assert alpha.post(PUSH, alpha.reply(question, false_id=True)) == (400, b"message")
        assert alpha.post(PUSH, PushMessagesRequest(node=Node(node_id=alpha.node))) == (400, b"messages")
        assert grid.pull_messages([asked]) == []


def test_an_internal_error_says_nothing(server, peers_of, monkeypatch, caplog):
    def broken(request, node_id):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server._store, "handle", broken)
    beat = SendNodeHeartbeatRequest(node=Node(node_id=peers_of[0].node), heartbeat_interval=30)
    assert peers_of[0].post(BEAT, beat) == (500, b"internal")
    assert "secret detail" in caplog.text


# Waiting for questions.


def in_background(call):
    box = []
    thread = threading.Thread(target=lambda: box.append((call(), time.monotonic())))
    thread.start()
    return thread, box


def settled(server, node):
    wait_for(lambda: node in server._gate._polls)
    time.sleep(0.05)


def test_a_poll_is_held_and_answered_when_a_question_comes(server, peers_of):
    alpha = peers_of[0]
    with server.run("r") as grid:
        thread, box = in_background(alpha.question)
        settled(server, alpha.node)
        asked_at = time.monotonic()
        ask(grid, alpha.node, b"now")
        thread.join(5)
    question, answered_at = box[0]
    assert question.content.items[0].config_record.items[0].value.bytes == b"now"
    assert answered_at - asked_at < 0.5


def test_an_idle_poll_ends_empty_and_counts_as_a_sign_of_life(server, peers_of, monkeypatch):
    monkeypatch.setattr(gate, "POLL_S", 0.2)
    assert server.online() == set()
    assert peers_of[0].question() is None
    peers_of[0].post(ACTIVATE, ActivateNodeRequest(public_key=peers_of[0].party.public_key))
    assert server.online() == {"alpha"}


def test_stopping_the_listener_ends_held_polls_at_once(server, peers_of):
    thread, box = in_background(peers_of[0].question)
    settled(server, peers_of[0].node)
    begin = time.monotonic()
    server.stop()
    thread.join(5)
    assert time.monotonic() - begin < 3
    assert box[0][0] is None


def test_revoking_a_holder_ends_its_poll(server, peers_of):
    alpha = peers_of[0]
    thread, box = in_background(lambda: alpha.post(PULL, alpha.pull()))
    settled(server, alpha.node)
    server.revoke("alpha")
    thread.join(5)
    assert box[0][0] == (401, b"node")


def test_of_two_polls_the_newer_gets_the_question(server, peers_of):
    alpha = peers_of[0]
    with server.run("r") as grid:
        older, old = in_background(alpha.question)
        settled(server, alpha.node)
        newer, new = in_background(alpha.question)
        older.join(5)
        settled(server, alpha.node)
        ask(grid, alpha.node)
        newer.join(5)
    assert old[0][0] is None
    assert new[0][0] is not None


def test_a_question_is_not_handed_to_a_peer_that_hung_up(pki, server, peers_of):
    alpha = peers_of[0]
    body = alpha.pull().SerializeToString()
    with server.run("r") as grid:
        head = request_head(alpha.party, PULL, f"content-length: {len(body)}")
        with raw(pki, server, alpha.party, head + body):
            settled(server, alpha.node)
        wait_for(lambda: alpha.node not in server._gate._polls, 5)
        asked = ask(grid, alpha.node)
        assert not any(m.metadata.delivered_at for m in server._store._state.message_ins_store.values())
        assert alpha.question().metadata.message_id == asked


def test_a_question_lost_on_the_way_is_given_again_until_it_is_answered(server, peers_of, monkeypatch):
    monkeypatch.setattr(gate, "AGAIN_S", 0.05)
    alpha = peers_of[0]
    with server.run("r") as grid:
        asked = ask(grid, alpha.node)
        given = [alpha.question() for _ in range(8)]
        assert [question.metadata.message_id for question in given] == [asked] * 8
        assert alpha.post(PUSH, alpha.reply(given[-1]))[0] == 200
        monkeypatch.setattr(gate, "POLL_S", 0.2)
        assert alpha.question() is None


def test_a_question_is_given_again_after_a_while_only(server, peers_of, monkeypatch):
    """A holder whose answer is refused each time would compute it anew without a pause."""
    monkeypatch.setattr(gate, "AGAIN_S", 0.6)
    monkeypatch.setattr(gate, "POLL_S", 0.2)
    alpha, beta = peers_of[:2]
    with server.run("r") as grid:
        asked, other = ask(grid, alpha.node), ask(grid, beta.node)
        begin = time.monotonic()
        assert alpha.question().metadata.message_id == asked
        assert beta.question().metadata.message_id == other  # the others do not wait
        assert alpha.question() is None
        monkeypatch.setattr(gate, "POLL_S", 20.0)
        assert alpha.question().metadata.message_id == asked
        assert 0.5 < time.monotonic() - begin < 5


def test_a_question_that_replaces_a_lost_one_comes_at_once(server, peers_of):
    alpha = peers_of[0]
    with server.run("r") as grid:
        lost = ask(grid, alpha.node)
        assert alpha.question().metadata.message_id == lost
        server._store.forget({lost})
        asked = ask(grid, alpha.node, b"!")
        begin = time.monotonic()
        assert alpha.question().metadata.message_id == asked
        assert time.monotonic() - begin < 1


def test_an_error_with_a_body_of_records_or_a_long_reason_is_refused_before_flower_sees_it(server, peers_of):
    """An error beside a million tiny records kept the coordinator's event loop busy for ten seconds."""
    alpha = peers_of[0]
    with server.run("r") as grid:
        ask(grid, alpha.node)
        question = alpha.question()
        push = alpha.reply(question)
        push.messages_list[0].error.code = 1
        assert alpha.post(PUSH, push) == (400, b"record")
        push.messages_list[0].ClearField("content")
        push.messages_list[0].error.reason = "x" * (gate.MAX_REASON + 1)
        assert alpha.post(PUSH, push) == (400, b"record")


def test_a_reply_with_a_list_for_a_value_is_refused_before_flower_sees_it(server, peers_of):
    """A list of four million empty strings kept the coordinator's event loop busy for seconds."""
    alpha = peers_of[0]
    with server.run("r") as grid:
        ask(grid, alpha.node)
        push = alpha.reply(alpha.question())
        (value,) = push.messages_list[0].content.items[0].config_record.items
        value.value.bytes_list.vals.extend([b""] * 3)
        assert alpha.post(PUSH, push) == (400, b"record")


def test_questions_come_in_order_and_an_answered_one_does_not_come_again(server, peers_of, monkeypatch):
    monkeypatch.setattr(gate, "POLL_S", 0.2)
    alpha = peers_of[0]
    with server.run("r") as grid:
        asked = [ask(grid, alpha.node, text) for text in (b"1", b"2")]
        for expected in asked:
            question = alpha.question()
            assert question.metadata.message_id == expected
            assert alpha.post(PUSH, alpha.reply(question))[0] == 200
        assert alpha.question() is None
        assert len(grid.pull_messages(asked)) == 2


def test_a_late_duplicate_or_unknown_reply_is_dropped(server, peers_of):
    alpha = peers_of[0]
    with server.run("r") as grid:
        asked = ask(grid, alpha.node)
        question = alpha.question()
        push = alpha.reply(question)
        assert alpha.post(PUSH, push)[0] == 200
        assert alpha.post(PUSH, push)[0] == 200  # the same bytes again: a holder that did not hear the answer
        assert alpha.post(PUSH, alpha.reply(question)) == (403, b"not-asked")  # another reply
        assert len(grid.pull_messages([asked])) == 1
        assert alpha.post(PUSH, push) == (403, b"not-asked")
        withdrawn = ask(grid, alpha.node)
        question = alpha.question()
        server._store.forget({withdrawn})
        assert alpha.post(PUSH, alpha.reply(question)) == (403, b"not-asked")
    assert alpha.post(PUSH, push) == (403, b"not-asked")


def test_a_question_waits_for_a_holder_that_is_away(server, peers_of):
    with server.run("r") as grid:
        asked = ask(grid, peers_of[0].node)
        assert server.online() == set()
        assert peers_of[0].question().metadata.message_id == asked


def test_revoking_a_holder_ends_the_wait_for_it(server, peers_of):
    with server.run("r") as grid:
        message = grid.create_message(
            RecordDict({"assay": ConfigRecord({"frame": b""})}), "query", peers_of[0].node, ""
        )
        threading.Timer(0.2, server.revoke, ["alpha"]).start()
        begin = time.monotonic()
        (reply,) = grid.send_and_receive([message], timeout=10)
    assert reply.has_error()
    assert time.monotonic() - begin < 3


def test_interrupt_ends_every_wait(server, peers_of):
    with server.run("r") as grid:
        message = grid.create_message(
            RecordDict({"assay": ConfigRecord({"frame": b""})}), "query", peers_of[0].node, ""
        )
        threading.Timer(0.2, server.interrupt).start()
        assert list(grid.send_and_receive([message], timeout=30)) == []
        assert server.wait_online(["alpha"], 30) == set()


# Runs.


def test_one_run_at_a_time(server):
    with server.run("first"), pytest.raises(Unavailable, match="in progress"), server.run("second"):
        pass
    with server.run("third"):
        pass


def test_nothing_is_left_of_a_run(server, peers_of):
    alpha, beta = peers_of[:2]
    state = server._store._state
    for _ in range(3):
        with server.run("r") as grid:
            ask(grid, beta.node)  # never answered
            ask(grid, alpha.node)
            assert alpha.post(PUSH, alpha.reply(alpha.question()))[0] == 200  # answered, never collected
    tables = {
        name: len(value)
        for name, value in vars(state).items()
        if isinstance(value, (dict, set)) and name not in ("nodes", "node_public_key_to_node_id")
    }
    tables.pop("owner_to_node_ids")
    tables.pop("flwr_aid_to_run_ids")
    assert not any(tables.values()), tables
    assert not any(state.flwr_aid_to_run_ids.values())
    assert len(state.object_store) == 0


def test_an_address_in_use_is_named(pki, server, tmp_path):
    second = FleetServer(
        "127.0.0.1",
        server.port,
        certfile=pki.server.certificate_file,
        keyfile=pki.server.key_file,
        client_ca=pki.ca,
        home=tmp_path,
    )
    with pytest.raises(Unavailable, match=f"127.0.0.1:{server.port}"):
        second.start()
