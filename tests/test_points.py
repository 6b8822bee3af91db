"""A holder states one person's points: for whom, from what, and what its log says of it."""

import json
import re
import shutil
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from points_support import DAY, NOW, PARTS, PEOPLE, TEXT, Holders, card, people, write_csv

from assay.client import enrol
from assay.models.bundle import read_bundle
from assay.models.encoding import Grid
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.audit import audit
from assay.privacy.auditlog import AuditLog
from assay.privacy.enrolment import Join
from assay.privacy.errors import AssayError, BadData, BadInput, Refused, Tampered, Unavailable
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.points import Statement, commitment, state
from assay.privacy.pointsrequest import PointsRequest, load_recipient_key


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    return Holders(tmp_path_factory.mktemp("points"))


@pytest.fixture
def own(holders, tmp_path):
    """The same holders in a directory that a test may change."""
    root = tmp_path / "copy"
    left = shutil.ignore_patterns("asked*", "long", "*.points", "audit.log")
    shutil.copytree(holders.root, root, ignore=left)
    copy = Holders.__new__(Holders)
    copy.root, copy.parts, copy.identity, copy.bundle = root, PARTS, holders.identity, root / "model.bundle"
    return copy


@pytest.fixture(scope="module")
def asked(holders):
    return holders.ask()


@pytest.fixture(scope="module")
def statement(holders, asked):
    return holders.state("bank", asked, person="p1")


def entries(holders, name):
    lines = (holders.root / name / "audit.log").read_text().splitlines()
    return [json.loads(line)["leaf"] for line in lines]


def refused(holders, name, asked, code, *, error=Refused, **options):
    """The holder must refuse, write nothing and log the code; return the error."""
    output = holders.root / "refused.points"
    with pytest.raises(error) as caught:
        holders.state(name, asked, output=output, **options)
    assert not output.exists()
    last = entries(holders, name)[-1]
    assert (last["kind"], last["data"]["code"]) == ("points_refused", code)
    return caught.value


class TestRequest:
    def test_what_was_asked_is_read_and_the_key_stays_private(self, asked):
        request = PointsRequest.read(asked / "points-request.json")
        assert (request.purpose, request.context, request.study_name) == (
            "consumer_credit",
            "card",
            "vertical",
        )
        assert request.expires - request.issued == 7 * DAY
        key = asked / "keys" / "recipient.key"
        assert load_recipient_key(key).public_key().public_bytes_raw() == request.recipient
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(asked.stat().st_mode) == 0o700

    def test_every_request_has_an_id_and_a_key_of_its_own(self, holders, asked):
        one = PointsRequest.read(asked / "points-request.json")
        other = PointsRequest.read(holders.ask("asked-again") / "points-request.json")
        assert one.id != other.id
        assert one.recipient != other.recipient

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"purpose": "rental_screening"}, "D03"),
            ({"purpose": "policing"}, "D02"),
            ({"purpose": "astrology"}, "purpose"),
            ({"context": "mortgage"}, "D03"),
        ],
    )
    def test_a_use_that_the_model_is_not_for_is_not_asked_for(self, holders, options, code):
        with pytest.raises(Refused) as caught:
            holders.ask("never", **options)
        assert caught.value.code == code
        assert not (holders.root / "never").exists()

    @pytest.mark.parametrize("days", [0, -1, 1827, 10**9])
    def test_it_lasts_no_longer_than_statements_are_kept(self, holders, days):
        with pytest.raises(BadInput, match="valid-days"):
            holders.ask("never", valid_days=days)

    def test_it_does_not_outlive_the_model(self, holders):
        directory = holders.ask("long", valid_days=400)
        assert PointsRequest.read(directory / "points-request.json").expires == NOW + 300 * DAY

    def test_of_a_model_that_is_held_back_or_over_nothing_is_asked(self, holders):
        held = holders.write("held.bundle", held=("the gate",))
        with pytest.raises(Refused) as caught:
            holders.ask("never", bundle=held)
        assert caught.value.code == "held"
        with pytest.raises(Refused) as caught:
            holders.ask("never", clock=lambda: NOW + 301 * DAY)
        assert caught.value.code == "expired"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("id", "00"),
            ("bundle", None),
            ("purpose", ""),
            ("context", "a\nb"),
            ("recipient", "00" * 32),  # of order 1: everybody would know the key
            ("recipient", "ff" * 32),
            ("issued", 1.5),
            ("expires", 0),
            ("expires", True),
            ("format", "assay-request"),
            ("version", 2),
            ("extra", 1),
        ],
    )
    def test_a_malformed_one_is_refused_by_field(self, asked, field, value):
        table = json.loads((asked / "points-request.json").read_text()) | {field: value}
        with pytest.raises(BadInput, match=field):
            PointsRequest.parse(json.dumps(table, indent=2, sort_keys=True).encode() + b"\n")

    def test_it_has_one_spelling(self, asked):
        data = (asked / "points-request.json").read_bytes()
        for other in (
            data + b"\n",
            data.replace(b'"version": 1', b'"version": 1.0'),
            data.replace(b"  ", b" "),
        ):
            with pytest.raises(BadInput):
                PointsRequest.parse(other)


class TestStatement:
    def test_the_recipient_reads_the_points_and_the_commitment_is_in_the_log(self, holders, asked, statement):
        read = Statement.read(statement)
        opened = read.open(load_recipient_key(asked / "keys" / "recipient.key"))
        assert (read.holder, read.components) == ("bank", ("payment_history",))
        assert [number is not None for number in opened.points] == [False, True, False, False, False, False]
        logged = next(entry for entry in entries(holders, "bank") if entry["kind"] == "points")
        assert logged["data"] == {
            "bundle": holders.open().digest,
            "components": "payment_history",
            "purpose": "consumer_credit",
            "statement": commitment(opened.salt, statement.read_bytes()),
        }

    def test_only_the_recipient_reads_them(self, statement):
        with pytest.raises(Tampered, match="decrypted"):
            Statement.read(statement).open(X25519PrivateKey.generate())

    def test_its_size_says_nothing(self, holders, asked):
        sizes = {holders.state("shop", asked, person=f"p{i}").stat().st_size for i in (2, 4, 6, 8)}
        assert len(sizes) == 1
        header = len(Statement.read(holders.state("shop", asked, person="p9")).header)
        assert sizes == {8 + 4 + header + 2064 + 64}

    def test_two_statements_of_one_person_have_nothing_in_common(self, holders, asked, statement):
        again = holders.state("bank", asked, person="p1", output=holders.root / "again.points")
        one, other = statement.read_bytes(), again.read_bytes()
        assert len(one) == len(other)
        pairs = zip(one[-2128:-64], other[-2128:-64], strict=True)
        # Of 2064 bytes about 8 agree by chance, and more than 40 do less than once in 10^14 runs.
        assert sum(a == b for a, b in pairs) < 40
        assert Statement.read(again).ephemeral != Statement.read(statement).ephemeral

    def test_the_public_part_names_no_person_and_no_points(self, holders, asked, statement):
        header = Statement.read(statement).header
        # Certificates are base64, in which any two letters stand side by side by chance.
        named = re.sub(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", b"", header)
        assert b"BEGIN" not in named
        assert b"p1" not in named.replace(b"-p1", b"")
        other = Statement.read(holders.state("bank", asked, person="p2")).header
        table, beside = json.loads(header), json.loads(other)
        assert {key for key in table if table[key] != beside[key]} == {"ephemeral"}

    def test_any_changed_byte_is_refused(self, statement, asked):
        key = load_recipient_key(asked / "keys" / "recipient.key")
        data = statement.read_bytes()
        for place in range(0, len(data), 7):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises((BadInput, Tampered)):
                Statement.parse(changed).open(key)

    @pytest.mark.parametrize(
        "change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d[:11]]
    )
    def test_a_cut_or_longer_file_is_refused(self, statement, change):
        with pytest.raises(BadInput):
            Statement.parse(change(statement.read_bytes()))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=4000))
    def test_no_bytes_fail_in_another_way(self, data):
        for begin in (b"", b"ASSAYPT1"):
            with pytest.raises(AssayError):
                Statement.parse(begin + data)

    def test_a_signature_for_something_else_is_none(self, holders, statement):
        data = statement.read_bytes()
        identity = enrol.load_keys(holders.root / "bank").identity
        with pytest.raises(Tampered, match="signature"):
            Statement.parse(data[:-64] + identity.sign("frame", data[:-64]))

    def test_a_header_moved_to_another_statement_does_not_decrypt(self, holders, asked, statement):
        """Even the holder itself cannot give its ciphertext another header: it is bound in."""
        key = load_recipient_key(asked / "keys" / "recipient.key")
        identity = enrol.load_keys(holders.root / "bank").identity
        data = statement.read_bytes()
        changed = data[:-64].replace(b'"context":"card"', b'"context":"loan"')
        moved = Statement.parse(changed + identity.sign("points", changed))
        assert moved.request.context == "loan"
        with pytest.raises(Tampered, match="decrypted"):
            moved.open(key)

    def test_another_holders_signature_is_refused(self, holders, statement):
        data = statement.read_bytes()
        other = enrol.load_keys(holders.root / "shop").identity
        with pytest.raises(Tampered, match="signature"):
            Statement.parse(data[:-64] + other.sign("points", data[:-64]))

    def test_the_commitment_needs_the_salt(self, statement):
        data = statement.read_bytes()
        assert commitment(b"a" * 32, data) != commitment(b"b" * 32, data)
        assert commitment(b"a" * 32, data) != commitment(b"a" * 32, data + b"x")

    def test_its_bytes_are_determined(self, holders, asked):
        """The format, with fixed randomness: a change of it has to be made on purpose."""
        request = PointsRequest.read(asked / "points-request.json")
        join = Join.read(holders.root / "bank" / "join.toml")
        identity = enrol.load_keys(holders.root / "bank").identity
        given = {"components": ("payment_history",), "admission": join, "identity": identity}
        times = {"issued": int(NOW), "expires": int(NOW) + 5, "entropy": lambda size: bytes([7]) * size}
        made = [state(request, [None, -3], **given, **times)[0] for _ in range(2)]
        assert made[0] == made[1]
        length = int.from_bytes(made[0][8:12], "big")
        assert made[0][:8] == b"ASSAYPT1"
        assert json.loads(made[0][12 : 12 + length])["request"] == request.table
        opened = Statement.parse(made[0]).open(load_recipient_key(asked / "keys" / "recipient.key"))
        assert opened.points == (None, -3)
        assert opened.salt == bytes([7]) * 32

    @pytest.mark.parametrize("points", [[0] * 501, [1 << 31], [-(1 << 31)]])
    def test_what_does_not_fit_is_not_stated(self, holders, asked, points):
        with pytest.raises(BadInput, match="points"):
            state(
                PointsRequest.read(asked / "points-request.json"),
                points,
                components=("payment_history",),
                admission=Join.read(holders.root / "bank" / "join.toml"),
                identity=enrol.load_keys(holders.root / "bank").identity,
                issued=1,
                expires=2,
            )


class TestHolder:
    """What a holder checks before it states anything; every refusal is in its log."""

    def test_another_federations_bundle(self, own):
        bundle = own.write("foreign.bundle", identity=Identity.generate())
        refused(own, "bank", own.ask(bundle=bundle), "federation", bundle=bundle)

    def test_another_bundle_than_the_one_asked_for(self, own):
        other = own.write("other.bundle", created=NOW - 2 * DAY)
        refused(own, "bank", own.ask(), "bundle", bundle=other)

    def test_a_bundle_that_is_held_back(self, own):
        asked = own.ask()
        held = own.write("held.bundle", held=("the gate",))
        table = json.loads((asked / "points-request.json").read_text())
        table["bundle"] = read_bundle(held).digest
        request = own.root / "held.json"
        request.write_bytes(PointsRequest.from_table(table, where="x").to_bytes())
        refused(own, "bank", asked, "held", bundle=held, request=request)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"purpose": "rental_screening"}, "D03"),
            ({"purpose": "fraud_detection"}, "D08"),
            ({"purpose": "policing"}, "D02"),
            ({"context": "mortgage"}, "D03"),
            ({"context": None}, None),
            ({"expires": int(NOW)}, "expired"),
            ({"issued": int(NOW) + 1000}, "expired"),
            ({"expires": int(NOW) + 1827 * DAY}, "expired"),
            ({"study": "0" * 64}, "bundle"),
        ],
    )
    def test_a_request_edited_on_the_way(self, own, changes, code):
        asked = own.ask()
        changes = {"issued": int(NOW) - 10} | changes
        table = json.loads((asked / "points-request.json").read_text()) | changes
        request = own.root / "edited.json"
        request.write_bytes(PointsRequest.from_table(table, where="x").to_bytes())
        if code is None:
            own.state("bank", asked, request=request)
        else:
            refused(own, "bank", asked, code, request=request)

    def test_a_request_that_is_none(self, own):
        (own.root / "no.json").write_text("{}")
        refused(own, "bank", own.ask(), "input", error=BadInput, request=own.root / "no.json")

    def test_a_changed_bundle(self, own):
        asked, data = own.ask(), own.bundle.read_bytes()
        (own.root / "bad.bundle").write_bytes(data.replace(b'"expires"', b'"expirez"', 1))
        refused(own, "bank", asked, "tampered", error=Tampered, bundle=own.root / "bad.bundle")

    def test_a_recipient_that_is_not_the_one_the_person_named(self, own):
        asked = own.ask()
        shown = PointsRequest.read(asked / "points-request.json").fingerprint
        refused(own, "bank", asked, "input", error=BadInput, expect="1234-5678-90AB-CDEF-1234-5678-90AB-CDEF")
        own.state("bank", asked, expect=shown.lower())

    def test_its_own_policy(self, own):
        own.configure("bank", purposes='["rental_screening"]')
        refused(own, "bank", own.ask(), "purpose")
        own.configure("bank", packs='["cn-2022-01-01"]')
        refused(own, "bank", own.ask("more"), "purpose")

    def test_a_component_that_the_policy_does_not_allow_is_not_stated(self, own):
        own.configure("shop", components='["compliance"]')
        asked = own.ask(platform="shop")
        assert Statement.read(own.state("shop", asked)).components == ("compliance",)
        own.configure("shop", components='["identity"]')
        refused(own, "shop", asked, "components")

    def test_compliance_counts_on_its_own_platform_only(self, own):
        for platform, wanted in (
            ("shop", ("spending", "compliance")),
            ("mall", ("spending",)),
            (None, ("spending",)),
        ):
            stated = own.state("shop", own.ask(f"on-{platform}", platform=platform))
            assert Statement.read(stated).components == wanted

    @pytest.mark.parametrize("person", ["nobody", "", " "])
    def test_a_person_that_is_not_there(self, own, person):
        error = refused(own, "bank", own.ask(), "data", error=BadData, person=person)
        assert "no row" in str(error)

    def test_of_several_rows_none_is_chosen_and_the_message_holds_no_number(self, own):
        cells = {name: [*values, *values[:4], values[3]] for name, values in people().items()}
        write_csv(own.root / "bank" / "records.csv", ("late",), cells)
        error = refused(own, "bank", own.ask(), "data", error=BadData, person="p3")
        assert "several rows" in str(error)
        assert "p3" not in str(error)
        assert not any(digit in str(error).split("records.csv:")[1] for digit in "0123456789")

    def test_without_a_person_column_nothing_is_stated(self, own):
        own.configure("bank", person="one_row_per_person = true")
        asked = own.ask()
        refused(own, "bank", asked, "input", error=BadInput)
        own.state("bank", asked, column="person")
        refused(own, "bank", asked, "input", error=BadInput, column="late")

    def test_an_identifier_is_read_as_cells_are(self, own):
        cells = people() | {"person": [f"{i}.0" for i in range(PEOPLE)]}
        write_csv(own.root / "bank" / "records.csv", ("late",), cells)
        own.state("bank", own.ask(), person="7")

    def test_nothing_is_overwritten(self, own):
        asked = own.ask()
        own.state("bank", asked)
        with pytest.raises(BadInput, match="--output"):
            own.state("bank", asked)


class TestBooks:
    def test_the_entry_is_on_disk_before_the_statement_is(self, own, monkeypatch):
        """Where the statement cannot be written, the log has an entry too many, never one too few."""

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("assay.client.points.write_durably", full)
        asked = own.ask()
        with pytest.raises(OSError, match="space"):
            own.state("bank", asked)
        assert [entry["kind"] for entry in entries(own, "bank")] == ["points"]

    def test_a_log_that_cannot_be_written_states_nothing(self, own, monkeypatch):
        def broken(*_):
            raise Unavailable("full")

        asked = own.ask()
        monkeypatch.setattr(AuditLog, "_write", broken)
        with pytest.raises(Unavailable):
            own.state("bank", asked)
        assert list(own.root.glob("*.points")) == []

    def test_no_leaf_holds_anything_of_the_person_or_the_request(self, own):
        asked = own.ask()
        own.state("bank", asked, person="p17")
        request = PointsRequest.read(asked / "points-request.json")
        text = (own.root / "bank" / "audit.log").read_text()
        for word in ("p17", request.id, request.recipient.hex(), request.fingerprint):
            assert word not in text

    def test_the_books_verify_afterwards_and_an_older_log_is_not_continued(self, own):
        home = own.root / "bank"
        identity = enrol.load_keys(home).identity
        with (
            AuditLog.open(home / "audit.log", identity) as log,
            Ledger.open(home / "ledger.sqlite", identity, log_head=log.head),
        ):
            log.append("start", version="1")
        asked = own.ask()
        own.state("bank", asked)
        refused(own, "bank", asked, "data", error=BadData, person="nobody")
        assert audit(home, None).entries == 3

    def test_while_another_process_holds_the_log_nothing_is_stated(self, own):
        asked = own.ask()
        home = own.root / "bank"
        with (
            AuditLog.open(home / "audit.log", enrol.load_keys(home).identity),
            pytest.raises(Unavailable, match="held by another process"),
        ):
            own.state("bank", asked)
        assert list(own.root.glob("*.points")) == []


def test_old_records_are_not_used(tmp_path):
    """As in training: what is older than the pack keeps records, by the date of its outcome, is not there."""
    study = parse_study(TEXT.replace('meaning = "missed', 'observed = "seen"\nmeaning = "missed'))
    made = card()
    dated = Scorecard(
        study=study, grid=Grid.of(study), points=made.points, bases=made.bases, means=made.means
    )
    holders = Holders(tmp_path)
    bundle = holders.write("dated.bundle", study=study, scorecard=dated)
    cells = people() | {"seen": ["2015-01-01", "", "2026-12-01", *["2026-01-01"] * (PEOPLE - 3)]}
    write_csv(holders.root / "bank" / "records.csv", ("late", "seen"), cells)
    asked = holders.ask(bundle=bundle)
    for person in ("p1", "p2"):
        holders.state("bank", asked, person=person, bundle=bundle)
    refused(holders, "bank", asked, "data", error=BadData, person="p0", bundle=bundle)
