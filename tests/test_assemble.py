"""What holders stated adds up to the score of the whole record, or it is refused: never another total."""

import csv
import itertools
import json
import os
import stat
import time
from dataclasses import replace

import numpy as np
import points_support
import pytest
from federation_support import assay, assay_json
from hypothesis import given, settings
from hypothesis import strategies as st
from points_support import DAY, GRID, NOW, PARTS, PEOPLE, WHOLE, Holders, card, clock, write_csv

from assay.client import enrol
from assay.models.bundle import read_bundle
from assay.models.explain import explain
from assay.models.scoring import read_record, score_file
from assay.privacy.enrolment import Join, Request
from assay.privacy.errors import AssayError, BadInput, Refused, Tampered
from assay.privacy.keys import Identity
from assay.privacy.points import state
from assay.privacy.pointsrequest import PointsRequest
from assay.server.certificates import Authority

# What `explain` says that does not need the record itself.
SAME = (
    "score", "probability", "band", "base_points", "capped", "missing_components", "reasons", "cut_off",
    "reasons_near_cut_off",
)  # fmt: skip


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    return Holders(tmp_path_factory.mktemp("assemble"))


@pytest.fixture(scope="module")
def asked(holders):
    return holders.ask(platform="shop")


@pytest.fixture(scope="module")
def files(holders, asked):
    return [holders.state(name, asked) for name in PARTS]


def craft(holders, asked, name="bank", *, points=None, components=("payment_history",), **changes):
    """Write what a holder's own software would not: a well-signed statement of anything."""
    request = PointsRequest.read(asked / "points-request.json")
    late = [None, int(holders.open().scorecard.points[GRID.offsets[1]]), None, None, None, None]
    given = {
        "components": components,
        "admission": Join.read(holders.root / name / "join.toml"),
        "identity": enrol.load_keys(holders.root / name).identity,
        "issued": int(NOW),
        "expires": request.expires,
    }
    asks = {key: changes.pop(key) for key in list(changes) if key not in given}
    data, _ = state(replace(request, **asks), points or late, **(given | changes))
    path = holders.root / f"crafted-{os.urandom(4).hex()}.points"
    path.write_bytes(data)
    return path


def code_of(holders, asked, *files, **options):
    with pytest.raises(Refused) as caught:
        holders.put_together(asked, *files, **options)
    return caught.value.code


class TestTheSameNumbers:
    @pytest.mark.parametrize("chosen", [c for n in (1, 2, 3) for c in itertools.combinations(PARTS, n)])
    def test_as_explaining_the_record_in_one_place(self, holders, asked, chosen, tmp_path):
        columns = [column for name in chosen for column in PARTS[name]]
        whole = tmp_path / "whole.csv"
        write_csv(whole, tuple(columns))
        for row in range(0, PEOPLE, 6):
            outputs = [tmp_path / f"{name}-{row}.points" for name in chosen]
            for name, output in zip(chosen, outputs, strict=True):
                holders.state(name, asked, person=f"p{row}", output=output)
            result = holders.put_together(asked, *outputs)
            wanted = explain(holders.open().scorecard, read_record(GRID, whole, row + 1, "shop"))
            assert {key: result[key] for key in SAME} == {key: wanted[key] for key in SAME}
            for own, feature in zip(result["features"], wanted["features"], strict=True):
                assert {**own, "holder": 0, "value": 0} == {**feature, "holder": 0, "value": 0}

    def test_as_scoring_the_file(self, holders, asked, tmp_path):
        write_csv(tmp_path / "whole.csv", WHOLE)
        scored = tmp_path / "scored.csv"
        score_file(
            holders.open(),
            tmp_path / "whole.csv",
            scored,
            purpose="consumer_credit",
            platform="shop",
            clock=clock,
        )
        with scored.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for person in (0, 7, 29):
            made = [
                holders.state(name, asked, person=f"p{person}", output=tmp_path / f"{name}{person}")
                for name in PARTS
            ]
            result = holders.put_together(asked, *made)
            row = rows[person]
            assert result["score"] == int(row["score"])
            assert result["probability"] == float(row["probability"])
            assert result["band"] == row["band"]
            assert [r["words"] for r in result["reasons"]] == [row[f"reason_{i}"] for i in range(1, 5)]
            assert {f["name"]: f["points"] for f in result["features"]} == {
                term.name: int(row[f"points_{term.name}"]) for term in GRID.terms
            }

    def test_in_any_order_of_the_files(self, holders, asked, files):
        results = [holders.put_together(asked, *order) for order in itertools.permutations(files)]
        assert len({json.dumps({key: result[key] for key in SAME}) for result in results}) == 1

    def test_capped_where_the_total_leaves_the_scale(self, tmp_path):
        holders = Holders(tmp_path)
        steep = card(scale=8.0)
        bundle = holders.write("steep.bundle", theta=steep.theta, scorecard=steep)
        asked, capped = holders.ask(bundle=bundle, platform="shop"), 0
        for person in ("p1", "p2", "p3"):
            made = [holders.state(name, asked, person=person, bundle=bundle) for name in PARTS]
            result = holders.put_together(asked, *made, opened=read_bundle(bundle))
            total = result["base_points"] + sum(f["points"] for f in result["features"])
            assert result["score"] == total + result["capped"]
            assert 350 <= result["score"] <= 950
            capped += result["capped"] != 0
        assert capped

    def test_it_says_who_stated_what_and_what_is_missing(self, holders, asked, files):
        result = holders.put_together(asked, *files[:2])
        assert result["missing_components"] == ["identity"]
        told = {each["holder"]: each["components"] for each in result["statements"]}
        assert told == {"bank": ["payment_history"], "shop": ["spending", "compliance"]}
        owners = {f["name"]: f["holder"] for f in result["features"]}
        assert owners == {
            "amount": "shop",
            "late": "bank",
            "region": None,
            "basket": "shop",
            "returns": "shop",
            "amount_x_basket": "shop",
        }
        region = next(f for f in result["features"] if f["name"] == "region")
        assert region["points"] == 0
        assert "region" not in {reason["feature"] for reason in result["reasons"]}

    def test_the_commitment_is_the_one_in_the_holders_log(self, holders, asked, files):
        for told in holders.put_together(asked, *files)["statements"]:
            lines = (holders.root / told["holder"] / "audit.log").read_text()
            assert told["commitment"] in lines

    def test_points_that_are_known_add_up_as_encoded_ones(self):
        """The card itself, on many random rows and patterns."""
        rng, made = np.random.default_rng(3), card()
        cells = {
            "amount": rng.uniform(-10, 1100, 500),
            "late": rng.integers(0, 7, 500).astype(float),
            "region": rng.choice(["north", "south", "sea"], 500).astype(object),
            "basket": rng.normal(0, 60, 500),
            "returns": rng.integers(0, 4, 500).astype(float),
        }
        patterns = rng.integers(1, GRID.patterns + 1, 500).astype(np.int32)
        wanted = made.score(GRID.encode(cells, patterns))
        found = made.add_up(wanted.points, patterns)
        for name in vars(wanted):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))

    @pytest.mark.parametrize("pattern", [0, -1, GRID.patterns + 1])
    def test_a_pattern_that_is_none_is_refused(self, pattern):
        with pytest.raises(BadInput):
            card().add_up(np.zeros((1, 5), dtype=np.int32), np.array([pattern], dtype=np.int32))


class TestRefused:
    """Each way in which a statement is not the answer to this request of this person for this purpose."""

    def test_the_matrix_of_purpose_context_recipient_request_model_time_and_holder(
        self, holders, asked, tmp_path
    ):
        """Every combination of what may be wrong: only the one where nothing is wrong gives a total."""
        stranger = Holders(tmp_path, {"bank": ("late",)}).root / "bank"
        another = PointsRequest.read(holders.ask("another") / "points-request.json")
        foreign = {
            "admission": Join.read(stranger / "join.toml"),
            "identity": enrol.load_keys(stranger).identity,
        }
        wrong = [
            ("D03", {"purpose": "rental_screening"}),
            ("D03", {"context": "loan"}),
            ("request", {"recipient": another.recipient}),
            ("request", {"id": another.id}),
            ("request", {"bundle": "0" * 64}),
            ("expired", {"issued": int(NOW) - 60, "expires": int(NOW)}),
            ("admission", foreign),
        ]
        for number in range(1 << len(wrong)):
            chosen = [each for place, each in enumerate(wrong) if number >> place & 1]
            changes = {key: value for _, change in chosen for key, value in change.items()}
            path = craft(holders, asked, **changes)
            if chosen:
                assert code_of(holders, asked, path) in {code for code, _ in chosen}, changes
            else:
                assert holders.put_together(asked, path)["score"]

    def test_a_purpose_that_is_not_the_requests(self, holders, asked, files):
        assert code_of(holders, asked, *files, purpose="rental_screening") == "D03"
        assert code_of(holders, asked, *files, purpose="fraud_detection") == "D08"
        assert code_of(holders, asked, *files, purpose="policing") == "D02"

    def test_a_statement_of_an_earlier_request_of_the_same_person(self, holders, files):
        assert code_of(holders, holders.ask("second", platform="shop"), *files) == "request"

    def test_an_earlier_request_given_the_new_ones_key(self, holders, asked, files):
        """Replayed beside another request, although the key is the same."""
        directory = holders.ask("third", platform="shop")
        key = (asked / "keys" / "recipient.key").read_bytes()
        (directory / "keys" / "recipient.key").write_bytes(key)
        old = PointsRequest.read(asked / "points-request.json")
        new = PointsRequest.read(directory / "points-request.json")
        (directory / "points-request.json").write_bytes(replace(new, recipient=old.recipient).to_bytes())
        assert code_of(holders, directory, *files) == "request"

    def test_another_bundle(self, holders, asked, files):
        other = read_bundle(holders.write("other.bundle", created=NOW - 2 * DAY))
        assert code_of(holders, asked, *files, opened=other) == "request"

    def test_a_bundle_that_is_held_back(self, holders, asked, files):
        held = read_bundle(holders.write("held.bundle", held=("the gate",)))
        assert code_of(holders, asked, *files, opened=held) == "held"

    def test_another_platform(self, holders, asked):
        assert code_of(holders, asked, craft(holders, asked, platform="mall")) == "request"

    def test_after_its_time(self, holders, asked, files):
        last = PointsRequest.read(asked / "points-request.json").expires
        holders.put_together(asked, *files, clock=lambda: last - 1)
        assert code_of(holders, asked, *files, clock=lambda: last) == "expired"
        assert code_of(holders, asked, *files, clock=lambda: NOW - 1000) == "expired"

    def test_a_statement_that_is_over_before_the_request(self, holders, asked):
        path = craft(holders, asked, expires=int(NOW) + DAY)
        holders.put_together(asked, path, clock=lambda: NOW + DAY - 1)
        assert code_of(holders, asked, path, clock=lambda: NOW + DAY) == "expired"

    @pytest.mark.parametrize("changes", [{"issued": int(NOW) - DAY}, {"expires": int(NOW) + 8 * DAY}])
    def test_a_statement_dated_outside_the_request(self, holders, asked, changes):
        assert code_of(holders, asked, craft(holders, asked, **changes)) == "expired"

    def test_a_request_made_to_outlast_the_rules(self, holders, asked):
        directory = holders.ask("lasting")
        path = directory / "points-request.json"
        path.write_bytes(replace(PointsRequest.read(path), expires=int(NOW) + 1827 * DAY).to_bytes())
        assert code_of(holders, directory, craft(holders, directory)) == "expired"

    def test_a_key_that_is_not_the_requests(self, holders, files):
        directory, other = holders.ask("keys", platform="shop"), holders.ask("keys-2")
        (directory / "keys" / "recipient.key").write_bytes((other / "keys" / "recipient.key").read_bytes())
        with pytest.raises(BadInput, match="recipient"):
            holders.put_together(directory, *files)

    def test_a_key_that_others_can_read(self, holders, files):
        directory = holders.ask("open", platform="shop")
        (directory / "keys" / "recipient.key").chmod(0o644)
        with pytest.raises(BadInput, match="0600"):
            holders.put_together(directory, *files)

    def test_no_statement_at_all(self, holders, asked):
        with pytest.raises(BadInput, match="statements"):
            holders.put_together(asked)


class TestHolders:
    def test_a_component_is_stated_by_one_holder(self, holders, asked, files):
        again = craft(holders, asked, name="shop")
        with pytest.raises(Refused, match=r"'shop'.*'bank'") as caught:
            holders.put_together(asked, files[0], again)
        assert caught.value.code == "twice"

    def test_the_same_file_is_not_counted_twice(self, holders, asked, files):
        assert code_of(holders, asked, files[0], files[0]) == "twice"

    def test_a_holder_of_another_federation(self, holders, asked, tmp_path):
        others = Holders(tmp_path, {"bank": ("late",)})
        admission = Join.read(others.root / "bank" / "join.toml")
        identity = enrol.load_keys(others.root / "bank").identity
        path = craft(holders, asked, admission=admission, identity=identity)
        assert code_of(holders, asked, path) == "admission"

    def test_a_holder_that_admitted_itself(self, holders, asked, tmp_path):
        """With the coordinator's real name, address and authority, under a coordinator's key of its own."""
        real = Join.read(holders.root / "bank" / "join.toml")
        own, coordinator = Identity.generate(), Identity.generate()
        from assay.privacy.transport import new_transport_key, signing_request

        csr = signing_request(new_transport_key(tmp_path / "t.key"), "bank")
        request = Request.make("bank", own, csr)
        authority = Authority.create(tmp_path / "ca.key", tmp_path / "ca.pem", "Points", NOW)
        joined = Join.make(
            request,
            authority.certify_client(request, NOW),
            federation=real.federation,
            address=real.address,
            ca_pem=authority.certificate_pem,
            identity=coordinator,
        )
        path = craft(holders, asked, admission=joined, identity=own)
        assert code_of(holders, asked, path) == "admission"
        text = joined.to_bytes().replace(
            coordinator.public.hex().encode(), real.coordinator_public.hex().encode()
        )
        with pytest.raises(Tampered):
            Join.parse(text)

    def test_a_holder_that_speaks_with_another_key_than_the_admitted_one(self, holders, asked):
        path = craft(holders, asked, identity=Identity.generate())
        with pytest.raises(Tampered, match="signature"):
            holders.put_together(asked, path)

    def test_a_holder_whose_admission_is_out_of_date(self, holders):
        lasting = holders.write("lasting.bundle", expires=NOW + 900 * DAY)
        directory = holders.ask("admitted", bundle=lasting, valid_days=800)
        path, opened = craft(holders, directory), read_bundle(lasting)
        holders.put_together(directory, path, opened=opened, clock=lambda: NOW + 729 * DAY)
        with pytest.raises(BadInput, match="certificate"):
            holders.put_together(directory, path, opened=opened, clock=lambda: NOW + 731 * DAY)

    @pytest.mark.parametrize(
        ("points", "components", "words"),
        [
            ([None, None, None, None, None, None], ("payment_history",), "points of late"),
            ([None, 0, 0, None, None, None], ("payment_history",), "points of region"),
            ([5, 0, None, None, None, None], ("payment_history",), "points of amount"),
            ([None, 0, None, None, None, 3], ("payment_history",), "points of amount_x_basket"),
            ([None, 10**6, None, None, None, None], ("payment_history",), "what a cell"),
            ([None, -(10**6), None, None, None, None], ("payment_history",), "what a cell"),
            ([None, 0], ("payment_history",), "one per feature"),
            ([None, 0, None, None, None, None, 7], ("payment_history",), "one per feature"),
            ([None, 0, None, None, None, None], ("payment_history", "wealth"), "components"),
            ([None, 0, None, None, None, None], ("third_party",), "components"),
        ],
    )
    def test_points_that_the_model_cannot_give(self, holders, asked, points, components, words):
        with pytest.raises(BadInput, match=words):
            holders.put_together(asked, craft(holders, asked, points=points, components=components))


class TestMutants:
    def test_any_changed_byte_is_refused(self, holders, asked, files, tmp_path):
        data, path = files[0].read_bytes(), tmp_path / "changed.points"

        @settings(max_examples=250, deadline=None)
        @given(place=st.integers(0, len(data) - 1), bits=st.integers(1, 255))
        def change(place, bits):
            path.write_bytes(data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :])
            with pytest.raises(AssayError):
                holders.put_together(asked, path, *files[1:])

        change()

    def test_no_splice_of_two_statements_is_read(self, holders, asked, files, tmp_path):
        other = holders.state("bank", asked, person="p4").read_bytes()
        data, path = files[0].read_bytes(), tmp_path / "spliced.points"
        assert len(other) == len(data)

        @settings(max_examples=120, deadline=None)
        @given(a=st.integers(0, len(data)), b=st.integers(0, len(data)))
        def splice(a, b):
            mixed = data[: min(a, b)] + other[min(a, b) : max(a, b)] + data[max(a, b) :]
            if mixed in (data, other):
                return
            path.write_bytes(mixed)
            with pytest.raises(AssayError):
                holders.put_together(asked, path)

        splice()

    def test_a_changed_request_gives_no_total(self, holders, files, tmp_path):
        directory = holders.ask("mutated", platform="shop")
        own = [holders.state(name, directory) for name in PARTS]
        path = directory / "points-request.json"
        data = path.read_bytes()

        @settings(max_examples=120, deadline=None)
        @given(place=st.integers(0, len(data) - 1), bits=st.integers(1, 255))
        def change(place, bits):
            path.write_bytes(data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :])
            with pytest.raises(AssayError):
                holders.put_together(directory, *own)

        change()


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    """Holders that were enrolled by the clock of this machine, which the commands go by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points_support, "NOW", float(int(time.time())))
        return Holders(tmp_path_factory.mktemp("commands"))


class TestCommands:
    def test_from_request_to_score(self, now, tmp_path):
        home = tmp_path / "asked"
        made = assay_json(
            "model", "request", now.bundle, "--purpose", "consumer_credit", "--context", "card", "--out", home
        )
        outputs = []
        for name in PARTS:
            outputs.append(tmp_path / f"{name}.points")
            stated = assay_json(
                "client", "points", now.root / name, now.bundle, made["file"], "--person", "p3",
                "--output", outputs[-1], "--expect", made["fingerprint"],
            )  # fmt: skip
            assert stated["recipient_compared"] is True
            assert stat.S_IMODE(outputs[-1].stat().st_mode) == 0o600
        arguments = ("model", "assemble", now.bundle, *outputs, "--key", home, "--purpose", "consumer_credit")
        result = assay_json(*arguments, "--output", tmp_path / "score.json")
        assert json.loads((tmp_path / "score.json").read_text()) == result
        assert stat.S_IMODE((tmp_path / "score.json").stat().st_mode) == 0o600
        words = assay(*arguments)
        assert f"Score {result['score']}" in words
        assert "compliance" in words  # on no platform it counts for nothing
        assert "--output" in assay(*arguments, "--output", tmp_path / "never" / "x", code=2)

    def test_codes_of_refusals(self, now, tmp_path):
        bundle, home = now.bundle, tmp_path / "asked"
        ask = ("model", "request", bundle, "--out", home, "--purpose")
        assay(*ask, "rental_screening", code=3)
        file = assay_json(*ask, "consumer_credit")["file"]
        point = ("client", "points", now.root / "bank", bundle, file, "--output", tmp_path / "x", "--person")
        assert "several" not in assay(*point, "nobody", code=2)
        assay(*point, "p3", "--expect", "0" * 32, code=2)
        assay(*point, "p3")
        together = ("model", "assemble", bundle, tmp_path / "x", "--key", home, "--purpose")
        assay(*together, "consumer_credit")
        assay(*together, "rental_screening", code=3)
        data = bytearray((tmp_path / "x").read_bytes())
        data[-1] ^= 1
        (tmp_path / "x").write_bytes(data)
        assay(*together, "consumer_credit", code=1)
        (tmp_path / "x").write_bytes(b"nothing")
        assay(*together, "consumer_credit", code=2)
