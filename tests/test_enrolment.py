"""Enrolment: a holder asks, the coordinator admits, the holder joins; nobody in between can change it."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.client import enrol
from assay.privacy.enrolment import Join, Request
from assay.privacy.errors import AssayError, BadInput, Refused, Tampered
from assay.privacy.homes import directory_lock, new_home
from assay.privacy.keys import Identity, canonical_json, fingerprint
from assay.privacy.names import check_host, exact_keys, federation_id, split_address
from assay.privacy.transport import load_transport_key, new_transport_key, signing_request
from assay.server.certificates import Authority
from assay.server.federation import Federation

DAY = 86400


@pytest.fixture
def federation(tmp_path):
    with Federation.init(tmp_path / "north", "North", "localhost", 9092) as made:
        yield made


@pytest.fixture
def holder(tmp_path):
    enrol.init(tmp_path / "bank-a", "bank-a")
    return tmp_path / "bank-a"


@pytest.fixture
def request_a(holder):
    return Request.read(holder / "REQUEST.json")


def request_of(tmp_path: Path, name: str, identity: Identity | None = None) -> Request:
    key = new_transport_key(tmp_path / f"{name}.key")
    return Request.make(name, identity or Identity.generate(), signing_request(key, name))


def join_file(tmp_path: Path, join: Join) -> Path:
    path = tmp_path / "JOIN.toml"
    path.write_bytes(join.to_bytes())
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The whole way --------------------------------------------------------------------------------------


def test_a_holder_that_was_admitted_joins(federation, holder, request_a, tmp_path):
    file = join_file(tmp_path, federation.admit(request_a))
    joined = enrol.join(holder, file, federation.fingerprint)
    assert joined.federation_id == federation.id
    assert joined.address == "localhost:9092"
    assert enrol.load_join(holder) == joined


def test_both_directories_and_every_secret_are_private(federation, holder, request_a, tmp_path):
    enrol.join(holder, join_file(tmp_path, federation.admit(request_a)))
    for home in (holder, federation.directory):
        assert mode(home) == mode(home / "keys") == 0o700
        for key in (home / "keys").glob("*.key"):
            assert mode(key) == 0o600
    assert all(mode(path) == 0o600 for path in federation.directory.glob("assay.sqlite*"))


def test_no_private_key_leaves_the_directory(federation, holder, request_a):
    joined = federation.admit(request_a).to_bytes()
    for text in ((holder / "REQUEST.json").read_bytes(), joined):
        assert b"PRIVATE" not in text
    assert (holder / "keys/identity.key").read_bytes().splitlines()[1] not in joined


def test_the_certificates_make_a_tls_13_connection_and_a_stranger_gets_none(
    federation, holder, request_a, tmp_path
):
    import ssl

    enrol.join(holder, join_file(tmp_path, federation.admit(request_a)))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(federation.server_certificate, federation.server_key)
    server.load_verify_locations(federation.ca_certificate)
    server.verify_mode = ssl.CERT_REQUIRED

    def handshake(chain):
        client = ssl.create_default_context(cafile=holder / "keys/ca.pem")
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        client.minimum_version = ssl.TLSVersion.TLSv1_3
        if chain:
            client.load_cert_chain(*chain)
        a_in, b_in = ssl.MemoryBIO(), ssl.MemoryBIO()
        a = client.wrap_bio(a_in, b_in, server_hostname="localhost")
        b = server.wrap_bio(b_in, a_in, server_side=True)
        waiting = [a, b]
        for _ in range(6):
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
        assert not waiting
        return b.getpeercert()

    peer = handshake((holder / "keys/client.pem", holder / "keys/transport.key"))
    assert peer["subject"] == ((("commonName", "bank-a"),),)
    with pytest.raises(ssl.SSLError):
        handshake(None)
    with pytest.raises(ssl.SSLError, match=r"(?i)purpose|verify"):
        handshake((federation.server_certificate, federation.server_key))


# The request ----------------------------------------------------------------------------------------


def test_a_request_survives_its_own_bytes(request_a):
    assert Request.parse(request_a.to_bytes()) == request_a
    assert list(json.loads(request_a.to_bytes())) == [
        "csr_pem",
        "format",
        "identity_public",
        "name",
        "version",
        "signature",
    ]


@pytest.mark.parametrize("field", ["name", "csr_pem", "identity_public", "signature", "format", "version"])
def test_a_request_changed_in_any_field_is_refused(request_a, tmp_path, field):
    other = json.loads(request_of(tmp_path, "bank-b").to_bytes()) | {"format": "assay-join", "version": 2}
    document = json.loads(request_a.to_bytes())
    document[field] = other[field]
    with pytest.raises((Tampered, BadInput)):
        Request.parse(json.dumps(document).encode())


def test_every_changed_character_of_a_request_is_refused(request_a):
    data = request_a.to_bytes()
    for place in range(0, len(data), 7):
        mutant = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises((Tampered, BadInput)):
            Request.parse(mutant)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_typed_refusal(data):
    for parse in (Request.parse, Join.parse):
        with pytest.raises((Tampered, BadInput)):
            parse(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 3000,
        b'{"format": "assay-request", "format": "assay-request"}',
        b'{"format": 1e999}',
        b"\xff\xfe{}",
        b"\0",
    ],
)
def test_what_is_not_a_request_is_refused(data):
    with pytest.raises(BadInput):
        Request.parse(data)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(request_a):
    document = json.loads(request_a.to_bytes())
    document["csr_pen"] = "x"
    with pytest.raises(BadInput, match="Did you mean csr_pem"):
        Request.parse(json.dumps(document).encode())


def test_a_key_that_stands_twice_is_refused(request_a):
    twice = request_a.to_bytes().replace(b'"name": "bank-a"', b'"name": "bank-b", "name": "bank-a"')
    with pytest.raises(BadInput, match="twice"):
        Request.parse(twice)


def test_an_oversized_request_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "REQUEST.json"
    path.write_bytes(b" " * (1 << 20))
    with pytest.raises(BadInput, match="at most 16384 bytes"):
        Request.read(path)


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a_b", "a" * 64, "coordinator", "a\n", "ä", "a/../b", None, 7]
)
def test_a_name_outside_the_alphabet_or_the_coordinators_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="name"):
        enrol.init(tmp_path / "home", name)
    assert not (tmp_path / "home").exists()


def signed_with_csr(pem: str, name: str = "bank-a") -> Request:
    return Request.make(name, Identity.generate(), pem)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_a_transport_key_on_another_curve_is_refused(curve):
    with pytest.raises(BadInput, match="P-384"):
        signed_with_csr(signing_request(ec.generate_private_key(curve), "bank-a"))


def test_a_transport_key_of_another_kind_is_refused():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(BadInput, match="P-384"):
        signed_with_csr(signing_request(key, "bank-a"))


def test_a_signing_request_for_a_key_one_does_not_have_is_refused(tmp_path):
    """The victim's public key under the thief's signature: proof of possession must fail."""
    victim, thief = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    stolen = x509.load_pem_x509_csr(signing_request(victim, "bank-a").encode())
    der = bytearray(stolen.public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(signing_request(thief, "bank-a").encode())
    ours = victim.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    theirs = thief.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    der = other.public_bytes(serialization.Encoding.DER).replace(theirs, ours)
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(Tampered, match="own key"):
        signed_with_csr(forged)


def test_a_signing_request_in_another_name_is_refused(tmp_path):
    key = new_transport_key(tmp_path / "k")
    with pytest.raises(BadInput, match="CN=bank-a"):
        signed_with_csr(signing_request(key, "bank-b"))


def test_two_signing_requests_in_one_field_are_refused(tmp_path):
    pem = signing_request(new_transport_key(tmp_path / "k"), "bank-a")
    with pytest.raises(BadInput, match="exactly one"):
        signed_with_csr(pem + pem)


def test_a_request_signed_in_another_context_is_refused(tmp_path):
    identity = Identity.generate()
    good = request_of(tmp_path, "bank-a", identity)
    body = json.loads(good.to_bytes())
    del body["signature"]
    with pytest.raises(Tampered):
        replace(good, signature=identity.sign("ledger", canonical_json(body)))


# The holder's directory -----------------------------------------------------------------------------


def test_init_overwrites_nothing(holder):
    before = (holder / "keys/identity.key").read_bytes()
    with pytest.raises(BadInput, match="empty directory"):
        enrol.init(holder, "bank-a")
    assert (holder / "keys/identity.key").read_bytes() == before


def test_init_leaves_a_directory_of_somebody_elses_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="empty directory"):
        enrol.init(tmp_path, "bank-a")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_init_takes_an_empty_directory_and_makes_it_private(tmp_path):
    tmp_path.chmod(0o755)
    shown = enrol.init(tmp_path, "bank-a")
    assert mode(tmp_path) == 0o700
    assert shown == Request.read(tmp_path / "REQUEST.json").fingerprint


def test_init_on_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(BadInput, match="directory"):
        enrol.init(tmp_path / "f", "bank-a")


def test_an_interrupted_init_is_started_again(tmp_path):
    with pytest.raises(OSError, match="full"), new_home(tmp_path / "h", remedy=""):
        raise OSError("disk full")
    enrol.init(tmp_path / "h", "bank-a")
    assert enrol.load_keys(tmp_path / "h").name == "bank-a"


def test_an_init_that_was_killed_is_started_again(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from assay.privacy.homes import new_home\n"
        "from assay.privacy.keys import Identity\n"
        "with new_home(Path(sys.argv[1]), remedy='') as home:\n"
        "    Identity.generate().save(home / 'keys/identity.key'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "h")], check=False).returncode == -9
    enrol.init(tmp_path / "h", "bank-a")
    assert enrol.load_keys(tmp_path / "h").name == "bank-a"


def test_two_inits_of_one_directory_do_not_mix(tmp_path):
    with new_home(tmp_path / "h", remedy=""), pytest.raises(BadInput, match="no other process"):
        enrol.init(tmp_path / "h", "bank-a")


@pytest.mark.parametrize("name", [".", "keys", "keys/identity.key", "keys/transport.key"])
def test_loose_permissions_of_a_holder_are_refused(holder, name):
    (holder / name).chmod(0o750 if (holder / name).is_dir() else 0o640)
    with pytest.raises(BadInput, match="chmod"):
        enrol.load_keys(holder)


def test_swapped_keys_of_a_holder_are_noticed(holder):
    Identity.generate().save(holder / "keys/identity.key")
    with pytest.raises(Tampered, match="Restore both"):
        enrol.load_keys(holder)


def test_a_directory_that_is_no_holders_says_what_to_run(tmp_path):
    with pytest.raises(BadInput, match="assay client init"):
        enrol.load_keys(tmp_path)


# Joining --------------------------------------------------------------------------------------------


def test_every_changed_character_of_a_join_file_is_refused_or_stands_in_a_comment(federation, request_a):
    good = federation.admit(request_a)
    data = good.to_bytes()
    for place in range(0, len(data), 11):
        mutant = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            assert Join.parse(mutant) == good
        except (Tampered, BadInput):
            continue
        line = data[data.rfind(b"\n", 0, place) + 1 :]
        assert line.startswith(b"#") or data[place : place + 1] in b" \n"


def test_a_join_file_signed_by_another_federation_in_its_name_is_refused(federation, request_a):
    good = federation.admit(request_a)
    stranger = Identity.generate()
    with pytest.raises(Tampered, match="signature"):
        replace(good, coordinator_public=stranger.public)
    text = good.to_bytes().replace(good.federation_id.encode(), federation_id(stranger.public).encode())
    with pytest.raises(Tampered, match="digest"):
        Join.parse(text)


def test_a_certificate_of_another_authority_is_refused(federation, request_a, tmp_path):
    good = federation.admit(request_a)
    other = Authority.create(tmp_path / "ca.key", tmp_path / "ca.pem", "North", time.time())
    with pytest.raises(Tampered, match="not issued by"):
        Join.make(
            request_a,
            good.certificate_pem,
            federation="North",
            address="localhost:9092",
            ca_pem=other.certificate_pem,
            identity=federation.identity,
        )


def test_a_server_certificate_is_no_client_certificate(federation, request_a):
    good = federation.admit(request_a)
    with pytest.raises(Tampered, match="not a TLS client"):
        Join.make(
            request_a,
            federation.server_certificate.read_text(),
            federation="North",
            address="localhost:9092",
            ca_pem=good.ca_pem,
            identity=federation.identity,
        )


def test_a_join_file_for_another_holder_is_refused(federation, holder, tmp_path):
    other = federation.admit(request_of(tmp_path, "bank-b"))
    with pytest.raises(BadInput, match="allowed: bank-a"):
        enrol.join(holder, join_file(tmp_path, other))
    assert not (holder / "join.toml").exists()


def test_a_join_file_for_another_identity_of_the_same_name_is_refused(federation, holder, tmp_path):
    other = federation.admit(request_of(tmp_path, "bank-a"))
    with pytest.raises(BadInput, match="identity_public"):
        enrol.join(holder, join_file(tmp_path, other))


def test_a_certificate_for_another_transport_key_is_refused(federation, holder, tmp_path):
    identity = enrol.load_keys(holder).identity
    other = federation.admit(request_of(tmp_path, "bank-a", identity))
    with pytest.raises(BadInput, match=r"transport\.key"):
        enrol.join(holder, join_file(tmp_path, other))


def test_the_wrong_fingerprint_stops_joining(federation, holder, request_a, tmp_path):
    file = join_file(tmp_path, federation.admit(request_a))
    with pytest.raises(BadInput, match="operator"):
        enrol.join(holder, file, fingerprint(b"another key"))
    assert not (holder / "join.toml").exists()
    assert not (holder / "keys/client.pem").exists()
    enrol.join(holder, file, federation.fingerprint.lower().replace("-", " "))


def test_joining_twice_is_joining_once(federation, holder, request_a, tmp_path):
    file = join_file(tmp_path, federation.admit(request_a))
    assert enrol.join(holder, file) == enrol.join(holder, file)


def test_a_second_federation_is_refused(federation, holder, request_a, tmp_path):
    joined = enrol.join(holder, join_file(tmp_path, federation.admit(request_a)))
    with Federation.init(tmp_path / "south", "North", "localhost", 9092) as other:
        file = join_file(tmp_path, other.admit(request_a))
    with pytest.raises(Refused, match="another federation"):
        enrol.join(holder, file)
    assert enrol.load_join(holder) == joined


def test_what_join_wrote_is_verified_every_time(federation, holder, request_a, tmp_path):
    enrol.join(holder, join_file(tmp_path, federation.admit(request_a)))
    other = Authority.create(tmp_path / "ca.key", tmp_path / "ca.pem", "North", time.time())
    (holder / "keys/ca.pem").write_text(other.certificate_pem)
    with pytest.raises(Tampered, match=r"ca\.pem"):
        enrol.load_join(holder)


@pytest.mark.parametrize("name", ["keys/ca.pem", "keys/client.pem", "join.toml"])
def test_half_a_join_is_noticed_and_healed_by_joining_again(federation, holder, request_a, tmp_path, name):
    file = join_file(tmp_path, federation.admit(request_a))
    joined = enrol.join(holder, file)
    (holder / name).unlink()
    with pytest.raises(AssayError, match="assay client join"):
        enrol.load_join(holder)
    assert enrol.join(holder, file) == joined


def test_a_holder_that_has_not_joined_is_told_how(holder):
    with pytest.raises(BadInput, match="assay client join"):
        enrol.load_join(holder)


def test_an_expired_certificate_is_refused_and_admitting_again_renews_it(tmp_path, holder, request_a):
    now = time.time()
    later = now + 800 * DAY
    with Federation.init(tmp_path / "north", "North", "localhost", 9092) as early:
        old = early.admit(request_a)
    with pytest.raises(BadInput, match="admit this holder again"):
        enrol.join(holder, join_file(tmp_path, old), clock=lambda: later)
    with Federation(tmp_path / "north", clock=lambda: later) as late:
        new = late.admit(request_a)
        assert [member.seq for member in late.roster.members()] == [1]
    assert enrol.join(holder, join_file(tmp_path, new), clock=lambda: later) == new


# The federation -------------------------------------------------------------------------------------


def test_admitting_the_same_request_again_gives_the_same_answer(federation, request_a):
    assert federation.admit(request_a) == federation.admit(request_a)
    assert [member.name for member in federation.roster.members()] == ["bank-a"]


def test_another_key_under_a_known_name_is_refused(federation, request_a, tmp_path):
    federation.admit(request_a)
    with pytest.raises(BadInput, match="revoke"):
        federation.admit(request_of(tmp_path, "bank-a"))


def test_one_holder_cannot_be_two(federation, holder, request_a, tmp_path):
    federation.admit(request_a)
    keys = enrol.load_keys(holder)
    with pytest.raises(BadInput, match="bank-a has it"):
        federation.admit(request_of(tmp_path, "bank-b", keys.identity))
    with pytest.raises(BadInput, match="bank-a has it"):
        federation.admit(
            Request.make("bank-c", Identity.generate(), signing_request(keys.transport, "bank-c"))
        )


def test_a_revoked_key_never_comes_back_but_its_name_may(federation, request_a, tmp_path):
    federation.admit(request_a)
    assert federation.revoke("bank-a").revoked_at is not None
    assert federation.roster.members() == ()
    with pytest.raises(Refused, match="revoked"):
        federation.admit(request_a)
    federation.admit(request_of(tmp_path, "bank-a"))
    assert [member.seq for member in federation.roster.members()] == [2]
    with pytest.raises(BadInput, match="roster"):
        federation.revoke("bank-z")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE roster SET name = 'bank-x' WHERE seq = 1",
        "UPDATE roster SET transport_public = 'x' WHERE seq = 1",
        "UPDATE roster SET revoked_at = NULL WHERE seq = 2",
        "UPDATE roster SET signature = (SELECT signature FROM roster WHERE seq = 2) WHERE seq = 1",
        "DELETE FROM roster WHERE seq = 2",
        "DELETE FROM roster",
        "DELETE FROM roster_head",
        "INSERT INTO roster SELECT 3, 'bank-z', 'aa', 'b', certificate_pem, serial, fingerprint, admitted_at,"
        " NULL, signature FROM roster WHERE seq = 1",
    ],
)
def test_a_roster_changed_in_the_database_is_refused(federation, request_a, tmp_path, statement):
    federation.admit(request_a)
    federation.admit(request_of(tmp_path, "bank-b"))
    federation.revoke("bank-b")
    with sqlite3.connect(federation.directory / "assay.sqlite") as database:
        database.execute(statement)
    database.close()
    for action in (federation.roster.members, lambda: federation.admit(request_a)):
        with pytest.raises(Tampered, match="roster"):
            action()


def test_an_old_signed_line_cannot_undo_a_revocation(federation, request_a, tmp_path):
    federation.admit(request_a)
    before = federation.roster.members()[0]
    federation.revoke("bank-a")
    with sqlite3.connect(federation.directory / "assay.sqlite") as database:
        database.execute("UPDATE roster SET revoked_at = NULL, signature = ?", (before.signature,))
    database.close()
    with pytest.raises(Tampered, match="roster"):
        federation.roster.members()


def test_a_lost_database_does_not_forget_revocations(federation):
    federation.close()
    for path in federation.directory.glob("assay.sqlite*"):
        path.unlink()
    with pytest.raises(BadInput, match=r"assay\.sqlite.*backup"):
        Federation(federation.directory)


@pytest.mark.parametrize(
    "name", ["", "keys", "keys/ca.key", "keys/server.key", "keys/signing.key", "assay.sqlite"]
)
def test_loose_permissions_of_a_coordinator_are_refused(federation, name):
    path = federation.directory / name
    path.chmod(0o750 if path.is_dir() else 0o604)
    with pytest.raises(BadInput, match="chmod"):
        Federation(federation.directory)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("round_timeout_s = 600", "round_timeout = 600", "Did you mean round_timeout_s"),
        ("round_timeout_s = 600", "round_timeout_s = 0", "round_timeout_s is 0"),
        ("round_timeout_s = 600", "round_timeout_s = nan", "round_timeout_s is nan"),
        ("minimum_holders = 2", "minimum_holders = true", "1..1000"),
        ("port = 9092", "port = 0", "1..65535"),
        ("port = 9092", 'port = "9092"', "1..65535"),
        ('host = "localhost"', 'host = "0.0.0.0"', "reach"),
        ('listen = "127.0.0.1"', 'listen = "example"', "IP address"),
        ("port = 9092", "", "missing"),
        ("[federation]", "[federatoin]", "Did you mean federation"),
        ("port = 9092", "port = ", "valid TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(federation, old, new, message):
    path = federation.directory / "federation.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        Federation(federation.directory)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "host", ["", "a b", "-a", "a..b", "1.2.3", "300.1.1.1", "0.0.0.0", "::", "a/b", "x" * 254, None]
)
def test_a_host_that_nobody_can_reach_is_refused(tmp_path, host):
    with pytest.raises(BadInput, match="host"):
        Federation.init(tmp_path / "f", "North", host, 9092)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "fe80::1", "a.example.org"])
def test_an_address_survives_its_text(host):
    text = f"[{host}]:1" if ":" in host else f"{host}:1"
    assert split_address(text) == (check_host(host), 1)


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "fe80::1:1", "[a]:1", "a:01", "a:1 ", None]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadInput, match="HOST:PORT"):
        split_address(text)


def test_a_table_is_exact():
    assert exact_keys({"a": 1}, ["a"], where="f") == {"a": 1}
    for table in ({}, {"a": 1, "b": 2}, [], None):
        with pytest.raises(BadInput):
            exact_keys(table, ["a"], where="f")


def test_init_of_a_federation_overwrites_nothing(federation):
    before = (federation.directory / "keys/signing.key").read_bytes()
    with pytest.raises(BadInput, match="empty directory"):
        Federation.init(federation.directory, "North", "localhost", 9092)
    assert (federation.directory / "keys/signing.key").read_bytes() == before


def test_a_server_certificate_is_renewed_when_it_must_be_and_only_then(federation):
    first = federation.server_certificate.read_bytes()
    assert not federation.ensure_server_certificate()
    with Federation(federation.directory, clock=lambda: time.time() + 380 * DAY) as later:
        assert later.ensure_server_certificate()
    second = federation.server_certificate.read_bytes()
    assert second != first
    new_transport_key(federation.server_key)  # a crash between key and certificate
    assert federation.ensure_server_certificate()
    certificate = x509.load_pem_x509_certificate(federation.server_certificate.read_bytes())
    assert certificate.public_key() == load_transport_key(federation.server_key).public_key()


def test_a_changed_host_gets_a_certificate_that_names_it(federation):
    path = federation.directory / "federation.toml"
    path.write_text(path.read_text().replace('host = "localhost"', 'host = "hub.example.org"'))
    with Federation(federation.directory) as changed:
        assert changed.ensure_server_certificate()
        assert not changed.ensure_server_certificate()


def test_a_directory_serves_one_process(federation):
    code = (
        "import sys; from pathlib import Path; from assay.privacy.homes import directory_lock\n"
        "with directory_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(federation.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AssayError, match="already serving"), directory_lock(federation.directory):
            pass
        other.kill()
    with directory_lock(federation.directory):
        pass
