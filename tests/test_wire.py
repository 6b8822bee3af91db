"""The wire format: every message has one encoding, byte for byte, and everything else is refused unread."""

import json
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.privacy.errors import AssayError, Tampered
from assay.privacy.keys import Identity, canonical_json
from assay.privacy.wire import (
    MAX_FRAME_BYTES,
    MAX_ROUNDS,
    Accepted,
    Close,
    Closed,
    CountsRequest,
    Declined,
    Frame,
    GradientRequest,
    Offer,
    Release,
    WireError,
    open_frame,
    seal,
)

SIGNER = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RUN = "00112233445566778899aabbccddeeff"
FEDERATION = "ab" * 32
ASK = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
TELL = Frame(federation=FEDERATION, sender="north", receiver="coordinator")

# (message, frame, header length, header, array, signature); the magic stands before all of them.
GOLDEN = {
    "offer": (
        Offer(run=RUN, study='[study]\nname = "é"\n'),
        ASK,
        "000000ea",  # 234 bytes of header
        r'{"array":null,"federation":"@","fields":{"run":"00112233445566778899aabbccddeeff",'
        r'"study":"[study]\nname = \"\u00e9\"\n"},"from":"coordinator","kind":"offer","to":"north"}',
        "",  # no array
        "8bbf8f41520413679e12d92995427419c2640ccc79d9b330ab9e50b59efe0261"  # R of the signature
        "67a6bfd1f672a287058dda49b9fce266abb725121f7aa96ba9a07b299de1740b",  # S of the signature
    ),
    "accepted": (
        Accepted(run=RUN),
        TELL,
        "000000c6",  # 198 bytes of header
        '{"array":null,"federation":"@","fields":{"run":"00112233445566778899aabbccddeeff"},'
        '"from":"north","kind":"accepted","to":"coordinator"}',
        "",  # no array
        "dd2af3afc25c5f3e6e1929fceaec1396f276f0fe6a8e5a2a8a4f934a81c05b87"  # R
        "f66a1030fb1d040043fb53368e863517c223e9cfc36dac412ac9ef4502e68d0d",  # S
    ),
    "declined": (
        Declined(run=RUN, code="budget"),
        TELL,
        "000000d6",  # 214 bytes of header
        '{"array":null,"federation":"@","fields":{"code":"budget",'
        '"run":"00112233445566778899aabbccddeeff"},"from":"north","kind":"declined","to":"coordinator"}',
        "",  # no array
        "0f4afb872116a7d20f1f05af950fb697435c38d015cdaba11a301a1000bc7802"  # R
        "09be4e59c055694f622c9f5dae800dd2b76c6a6f41bcd9fd16db9b932096da02",  # S
    ),
    "counts": (
        CountsRequest(run=RUN),
        ASK,
        "000000c4",  # 196 bytes of header
        '{"array":null,"federation":"@","fields":{"run":"00112233445566778899aabbccddeeff"},'
        '"from":"coordinator","kind":"counts","to":"north"}',
        "",  # no array
        "f19e7d0b3fd61e69a08c6a5c4ee24569bb37bae597366506ce71774501404ec2"  # R
        "b1388ce1a5c399fea1388bebbf35742ba90094face88b875e406bce2d52f4806",  # S
    ),
    "gradient": (
        GradientRequest(run=RUN, round=2, rounds=30, theta=np.array([0.0, -1.5])),
        ASK,
        "000000f2",  # 242 bytes of header
        '{"array":{"dtype":"<f8","length":2},"federation":"@","fields":{"round":2,"rounds":30,'
        '"run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"gradient","to":"north"}',
        "0000000000000000"  # theta[0] = 0.0
        "000000000000f8bf",  # theta[1] = -1.5
        "92984971fc2fb63335a187e1f87bee5ae7a7aeb718de7eb41fda475774395066"  # R
        "20ca7779771efbce62dd4a632e2c61def4a753b27de6d53db857393e7606b80c",  # S
    ),
    "release": (
        Release(run=RUN, round=2, unit=0.0078125, values=np.array([1, -2, 1 << 52])),
        TELL,
        "000000f6",  # 246 bytes of header
        '{"array":{"dtype":"<i8","length":3},"federation":"@","fields":{"round":2,'
        '"run":"00112233445566778899aabbccddeeff","unit":0.0078125},"from":"north","kind":"release",'
        '"to":"coordinator"}',
        "0100000000000000"  # values[0] = 1
        "feffffffffffffff"  # values[1] = -2
        "0000000000001000",  # values[2] = 2^52
        "df00aef424f9420f8c8a5f57bb09ce3ae970ee4a48c82d325b58bea8b2db12d5"  # R
        "3c127136c4784a8e4026e8a263facd5a9e0526e5f05e07811186869fdc5a180c",  # S
    ),
    "close": (
        Close(run=RUN, outcome="done"),
        ASK,
        "000000d4",  # 212 bytes of header
        '{"array":null,"federation":"@","fields":{"outcome":"done",'
        '"run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"close","to":"north"}',
        "",  # no array
        "2495d0429e23e69bef317ce8f383e664ce328f8ec5adcbc2da71ce300aa53d11"  # R
        "dbfe1150e1afb081cc164f1a50a8ed8f8f90c26285671b7b8225f65d1b771d0b",  # S
    ),
    "closed": (
        Closed(run=RUN),
        TELL,
        "000000c4",  # 196 bytes of header
        '{"array":null,"federation":"@","fields":{"run":"00112233445566778899aabbccddeeff"},'
        '"from":"north","kind":"closed","to":"coordinator"}',
        "",  # no array
        "471956ab14978ad1121ee1fa69ae8e7ffe702a4f2c36877032b816814fd98649"  # R
        "5203b2401dc99c94668b61042d98fb9faa64802c95bbe16a0b72cab4ef45650d",  # S
    ),
}
KINDS = list(GOLDEN)


def recorded(kind):
    _, _, length, header, array, signature = GOLDEN[kind]
    return (
        bytes.fromhex("415353415931")  # magic "ASSAY1"
        + bytes.fromhex(length)
        + header.replace("@", FEDERATION).encode("ascii")
        + bytes.fromhex(array)
        + bytes.fromhex(signature)
    )


def equal(one, other):
    """Messages hold arrays, so ``==`` does not do."""
    return type(one) is type(other) and all(
        np.array_equal(value, getattr(other, name)) for name, value in vars(one).items()
    )


def signed(body):
    """What a sender with a good key and a bad program could send."""
    return body + SIGNER.sign("frame", body)


def forged(header, payload=b""):
    raw = header if isinstance(header, bytes) else canonical_json(header)
    return signed(b"ASSAY1" + len(raw).to_bytes(4, "big") + raw + payload)


def header_of(kind, /, **changes):
    """Return the recorded header, decoded, with changed top-level keys (None: removed)."""
    header = json.loads(GOLDEN[kind][3].replace("@", FEDERATION)) | changes
    return {key: value for key, value in header.items() if value != "REMOVE"}


def with_fields(kind, /, **changes):
    fields = header_of(kind)["fields"] | changes
    return header_of(kind, fields={key: value for key, value in fields.items() if value != "REMOVE"})


def refused(data, kind, match):
    with pytest.raises(WireError, match=match):
        open_frame(data, GOLDEN[kind][1], SIGNER.public)


class TestBytes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_message_is_exactly_these_bytes(self, kind):
        message, frame = GOLDEN[kind][:2]
        assert seal(message, frame, SIGNER) == recorded(kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_these_bytes_are_the_message(self, kind):
        message, frame = GOLDEN[kind][:2]
        assert equal(open_frame(recorded(kind), frame, SIGNER.public), message)

    def test_the_signature_can_be_checked_with_rfc_8032_alone(self):
        data = recorded("release")
        key = Ed25519PublicKey.from_public_bytes(SIGNER.public)
        key.verify(data[-64:], struct.pack(">H", 14) + b"assay/frame/v1" + data[:-64])

    def test_only_a_release_carries_anything_computed_from_records(self):
        from_holder = {kind for kind in KINDS if GOLDEN[kind][1] is TELL}
        assert from_holder == {"accepted", "declined", "release", "closed"}
        for kind in from_holder - {"release"}:
            assert GOLDEN[kind][0].array is None
            assert set(vars(GOLDEN[kind][0])) <= {"run", "code"}

    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(0, MAX_ROUNDS),
        st.floats(min_value=1e-300, max_value=1e300),
        st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1, max_size=20),
    )
    def test_every_release_survives_the_trip(self, number, unit, values):
        message = Release(run=RUN, round=number, unit=unit, values=np.array(values))
        assert equal(open_frame(seal(message, TELL, SIGNER), TELL, SIGNER.public), message)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    def test_every_theta_survives_the_trip_bit_by_bit(self, theta):
        message = GradientRequest(run=RUN, round=1, rounds=1, theta=np.array(theta))
        back = open_frame(seal(message, ASK, SIGNER), ASK, SIGNER.public)
        assert back.theta.tobytes() == message.theta.tobytes()

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
    def test_every_study_text_survives_the_trip(self, text):
        message = Offer(run=RUN, study=text)
        assert open_frame(seal(message, ASK, SIGNER), ASK, SIGNER.public) == message

    @pytest.mark.parametrize("character", ['"', "é", "€", "😀", "a"])
    def test_a_study_of_the_largest_size_survives_whatever_its_script(self, character):
        text = character * ((1 << 19) // len(character.encode()))
        message = Offer(run=RUN, study=text)
        assert open_frame(seal(message, ASK, SIGNER), ASK, SIGNER.public) == message


class TestChangedBytes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_byte_changed_in_transit_is_noticed(self, kind):
        """All positions, four changes each: more than 10,000 mutants over the eight kinds."""
        data = recorded(kind)
        for position in range(len(data)):
            for change in (0x01, 0x20, 0x80, 0xFF):
                mutant = bytearray(data)
                mutant[position] ^= change
                with pytest.raises(AssayError):
                    open_frame(bytes(mutant), GOLDEN[kind][1], SIGNER.public)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_changed_frame_signed_again_is_refused_or_another_message_but_never_a_crash(self, kind):
        """What a holder with a good key and a bad program can send; nothing has two encodings."""
        body = recorded(kind)[:-64]
        frame, accepted = GOLDEN[kind][1], 0
        for position in range(len(body)):
            for change in (0x01, 0x02, 0x10, 0x80):
                mutant = bytearray(body)
                mutant[position] ^= change
                data = signed(bytes(mutant))
                try:
                    opened = open_frame(data, frame, SIGNER.public)
                except AssayError:
                    continue
                accepted += 1
                assert seal(opened, frame, SIGNER) == data
        assert accepted > 0  # a digit of the run, for example: the control that mutants do get this far

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_frame_cut_off_or_continued_is_refused(self, kind):
        data, frame = recorded(kind), GOLDEN[kind][1]
        for size in range(len(data)):
            with pytest.raises(AssayError):
                open_frame(data[:size], frame, SIGNER.public)
        for extra in (b"\x00", b"{}", data):
            with pytest.raises(AssayError):
                open_frame(data + extra, frame, SIGNER.public)
            with pytest.raises(WireError):
                open_frame(signed(data[:-64] + extra), frame, SIGNER.public)

    def test_a_frame_signed_by_somebody_else_is_tampered(self):
        with pytest.raises(Tampered, match="message from north"):
            open_frame(recorded("release"), TELL, Identity.generate().public)

    def test_a_signature_of_another_context_is_tampered(self):
        body = recorded("release")[:-64]
        with pytest.raises(Tampered):
            open_frame(body + SIGNER.sign("ledger", body), TELL, SIGNER.public)


class TestWhoSaysItToWhom:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("key", "other"), [("federation", "cd" * 32), ("sender", "south"), ("receiver", "south")]
    )
    def test_a_frame_replayed_elsewhere_is_refused_though_its_signature_is_good(self, kind, key, other):
        frame = GOLDEN[kind][1]
        elsewhere = Frame(**(vars(frame) | {key: other}))
        named = {"federation": "federation", "sender": "from", "receiver": "to"}[key]
        with pytest.raises(WireError, match=f"message: {named};"):
            open_frame(recorded(kind), elsewhere, SIGNER.public)

    def test_a_question_sent_back_to_its_sender_is_refused(self):
        with pytest.raises(WireError):
            open_frame(recorded("counts"), TELL, SIGNER.public)

    @pytest.mark.parametrize("value", [None, 5, ["north"], {"north": 1}, True])
    @pytest.mark.parametrize("key", ["federation", "from", "to"])
    def test_names_of_another_type_are_refused(self, key, value):
        refused(forged(header_of("accepted", **{key: value})), "accepted", f"message: {key};")

    @pytest.mark.parametrize("federation", ["", "ab", "AB" * 32, "ab" * 33, "zz" * 32])
    def test_a_federation_is_64_hexadecimal_digits(self, federation):
        with pytest.raises(WireError, match="federation"):
            Frame(federation=federation, sender="a", receiver="b")


HEADERS = {
    "not JSON": b"{",
    "no object": b"[]",
    "a number": b"1",
    "not UTF-8": b"\xff\xfe\xfd",
    "UTF-16": json.dumps(header_of("accepted")).encode("utf-16"),
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "an endless number": b"1" * 100_000,
    "spaces": json.dumps(header_of("accepted"), sort_keys=True).encode(),
    "other order": json.dumps(
        dict(reversed(header_of("accepted").items())), separators=(",", ":"), sort_keys=False
    ).encode(),
    "a key twice": canonical_json(header_of("accepted")).replace(
        b'"kind":"accepted"', b'"kind":"closed","kind":"accepted"'
    ),
    "a field twice": canonical_json(header_of("accepted")).replace(
        b'"run":', b'"run":"ffffffffffffffffffffffffffffffff","run":'
    ),
    "raw UTF-8": canonical_json(with_fields("declined", code="é")).replace(rb"\u00e9", "é".encode()),
    "a missing key": header_of("accepted", to="REMOVE"),
    "an extra key": header_of("accepted", time=1),
    "fields as a list": header_of("accepted", fields=[RUN]),
    "no fields": header_of("accepted", fields=None),
    "an unknown kind": header_of("accepted", kind="exec"),
    "a kind of another type": header_of("accepted", kind=["accepted"]),
    "the kind of a base class": header_of("accepted", kind="_Message"),
    "an extra field": with_fields("accepted", rows=7),
    "a missing field": with_fields("accepted", run="REMOVE"),
    "a field that is a method": with_fields("accepted", _check=1),
    "an announced array that is not there": header_of("accepted", array={"dtype": "<i8", "length": 1}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_not_exactly_as_described_is_refused(name):
    refused(forged(HEADERS[name]), "accepted", "message: ")


def test_the_magic_names_the_version():
    body = recorded("accepted")[:-64]
    refused(signed(b"ASSAY2" + body[6:]), "accepted", "magic")


class TestSizesComeFirst:
    def test_a_frame_that_is_too_large_is_refused_before_its_signature_is_looked_at(self):
        with pytest.raises(WireError, match="message size"):
            open_frame(bytes(MAX_FRAME_BYTES + 1), TELL, SIGNER.public)

    def test_a_frame_that_is_too_small_is_refused(self):
        for size in (0, 1, 63, 64, 73):
            with pytest.raises(WireError, match="message size"):
                open_frame(bytes(size), TELL, SIGNER.public)

    @pytest.mark.parametrize(
        ("length", "room"), [(0xFFFFFFFF, 10), (1 << 31, 10), (5, 4), ((1 << 21) + 1, (1 << 21) + 1)]
    )
    def test_a_header_longer_than_allowed_or_than_the_message_is_refused_unread(self, length, room):
        data = signed(b"ASSAY1" + length.to_bytes(4, "big") + b"[" * room)
        refused(data, "accepted", "header length")

    @pytest.mark.parametrize("length", [10**12, 1 << 63, (1 << 19) + 1, 4, 2, 0, -1, -3])
    def test_an_array_length_that_is_not_the_bytes_that_follow_is_refused(self, length):
        header = header_of("release", array={"dtype": "<i8", "length": length})
        refused(forged(header, bytes(24)), "release", "array (length|bytes)")

    def test_nothing_larger_than_a_receiver_reads_is_ever_sent(self):
        with pytest.raises(WireError, match="message size"):
            seal(Release(run=RUN, round=0, unit=1.0, values=np.zeros(1 << 20, dtype=np.int64)), TELL, SIGNER)
        Offer(run=RUN, study="x" * (1 << 19))
        for study in ("x" * ((1 << 19) + 1), "é" * ((1 << 18) + 1), ""):
            with pytest.raises(WireError, match="512 KiB"):
                Offer(run=RUN, study=study)
        with pytest.raises(WireError, match="header length"):
            seal(Offer(run=RUN, study="\x01" * (1 << 19)), ASK, SIGNER)


class TestArrays:
    @pytest.mark.parametrize("dtype", ["<f8", ">i8", "<i4", "|O", "i8", "", None, 8, ["<i8"]])
    def test_integers_of_another_type_are_refused(self, dtype):
        header = header_of("release", array={"dtype": dtype, "length": 3})
        refused(forged(header, bytes(24)), "release", "array dtype")

    @pytest.mark.parametrize("length", [True, 3.0, "3", None, [3]])
    def test_a_length_of_another_type_is_refused(self, length):
        header = header_of("release", array={"dtype": "<i8", "length": length})
        refused(forged(header, bytes(24)), "release", "array length")

    @pytest.mark.parametrize(
        "array", [None, [], "<i8", {"dtype": "<i8"}, {"dtype": "<i8", "length": 3, "x": 1}]
    )
    def test_an_array_described_in_another_way_is_refused(self, array):
        refused(forged(header_of("release", array=array), bytes(24)), "release", "array")

    def test_an_array_among_the_fields_is_refused(self):
        refused(forged(with_fields("release", values=[1, 2, 3]), bytes(24)), "release", "fields")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_a_theta_that_is_not_finite_is_refused(self, value):
        payload = struct.pack("<2d", 0.0, value)
        refused(forged(header_of("gradient"), payload), "gradient", "theta")
        with pytest.raises(WireError, match="theta"):
            GradientRequest(run=RUN, round=1, rounds=1, theta=np.array([value]))

    @pytest.mark.parametrize("value", [1 << 53, -(1 << 53), (1 << 63) - 1, -(1 << 63)])
    def test_a_released_integer_that_float64_cannot_hold_exactly_is_refused(self, value):
        payload = struct.pack("<3q", 0, 0, value)
        refused(forged(header_of("release"), payload), "release", "values")

    def test_a_decoded_array_cannot_be_changed(self):
        values = open_frame(recorded("release"), TELL, SIGNER.public).values
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 7


BAD_FIELDS = [
    (
        "accepted",
        "run",
        [RUN.upper().replace("A", "G"), RUN.upper(), RUN[:-1], RUN + "0", RUN + "\n", "", 5, None],
    ),
    ("accepted", "run", ["../" + RUN[3:], [RUN], {"run": RUN}, True, 1.5]),
    ("declined", "code", ["", "a b", "x" * 33, "é", "a\n", "12 rows", 5, None, ["budget"], True]),
    ("gradient", "round", [0, -1, 31, 1.0, "1", True, None, 10**30]),
    ("gradient", "rounds", [0, -1, MAX_ROUNDS + 1, 30.0, "30", True, None, 10**30]),
    ("release", "round", [-1, MAX_ROUNDS + 1, 1.0, "1", True, False, None]),
    ("release", "unit", [0.0, -1.0, -0.0, 1, True, "1", None]),
    ("close", "outcome", ["", "finished", "DONE", 1, None, True, ["done"]]),
    ("offer", "study", ["", 5, None, ["x"], "\ud800", "a = 1 # \udfff"]),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(kind, name, value) for kind, name, values in BAD_FIELDS for value in values]
)
def test_a_field_out_of_its_range_or_of_another_type_is_refused(kind, name, value):
    payload = bytes.fromhex(GOLDEN[kind][4])
    refused(forged(with_fields(kind, **{name: value}), payload), kind, f"message: {name}")


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_unit_that_is_not_finite_is_refused(text):
    raw = canonical_json(header_of("release")).replace(b"0.0078125", text)
    refused(forged(raw, bytes(24)), "release", "header")


def test_a_refusal_says_that_nothing_was_done_and_repeats_nothing_of_the_message():
    with pytest.raises(WireError) as caught:
        open_frame(forged(with_fields("declined", code="SECRET WORDS")), TELL, SIGNER.public)
    assert "nothing was done" in str(caught.value)
    assert "SECRET" not in str(caught.value)
