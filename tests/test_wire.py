"""The wire format: every message has one encoding, byte for byte, and everything else is refused unread."""

import json
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.privacy.accounting import TALLIES
from assay.privacy.errors import AssayError, Tampered
from assay.privacy.keys import Identity, canonical_json
from assay.privacy.messages import (
    MAX_ROUNDS,
    Accepted,
    Close,
    Closed,
    Consent,
    CountsRequest,
    Declined,
    GradientRequest,
    Keys,
    KeysRequest,
    Masked,
    MaskRequest,
    Offer,
    Opened,
    OpenRequest,
    Release,
    Shares,
    SharesRequest,
    SurvivorsRequest,
    WireError,
)
from assay.privacy.wire import MAX_FRAME_BYTES, Frame, open_frame, seal

SIGNER = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RUN = "00112233445566778899aabbccddeeff"
FEDERATION = "ab" * 32
HEADS = f"7:{'cd' * 32}:9:{'ef' * 32}"
PROOF = "5a" * 64
ASK = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
TELL = Frame(federation=FEDERATION, sender="north", receiver="coordinator")

# (message, frame, header length, header, array, signature); the magic stands before all of them.
GOLDEN = {
    "offer": (
        Offer(run=RUN, study='[study]\nname = "é"\n', heads=HEADS, countersignature=PROOF),
        ASK,
        "0000021c",  # 540 bytes of header
        '{"array":null,"federation":"@","fields":{"countersignature":"5a5a5a5a5a5a5a5a5a5a5a5a5'
        "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"
        'a5a5a5a5a5a5a5a5a","heads":"7:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd'
        'cdcdcdcd:9:efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef","run":"00'
        r'112233445566778899aabbccddeeff","study":"[study]\nname = \"\u00e9\"\n","version":2},"f'
        'rom":"coordinator","kind":"offer","to":"north"}',
        "",  # no array
        "c489815a4aa969b3c9d7a96673828708de8b79ea00d33b2bf57c1e2fd8abd89f"  # R
        "f1f658076b48236d4392812d778bd736d702e18c67cf1937670b8f471a79c302",  # S
    ),
    "accepted": (
        Accepted(run=RUN, pattern=5, heads=HEADS),
        TELL,
        "00000162",  # 354 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"7:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd'
        "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcd:9:efefefefefefefefefefefefefefefefefefefefefefefefefefe"
        'fefefefefef","pattern":5,"run":"00112233445566778899aabbccddeeff"},"from":"north","kin'
        'd":"accepted","to":"coordinator"}',
        "",  # no array
        "0517685d8b018ee06424f24f88fc1edd8ece678bac8b3eac7c6a2174a4e911c7"  # R
        "e5486dfb6df2b32933d250ec1e77e791c57cefad8bf2f9034442737be4b8310a",  # S
    ),
    "declined": (
        Declined(run=RUN, code="budget"),
        TELL,
        "000000d6",  # 214 bytes of header
        '{"array":null,"federation":"@","fields":{"code":"budget","run":"00112233445566778899aabb'
        'ccddeeff"},"from":"north","kind":"declined","to":"coordinator"}',
        "",  # no array
        "44c1919834acc502c4177ad018ed9152b3008cf86dc0ec29a07fc8248bfde823"  # R
        "7a75d0f5607987f2adad4ec3e973c2972272b6a1e0d539c22ea92cc77512780b",  # S
    ),
    "counts": (
        CountsRequest(run=RUN),
        ASK,
        "000000cf",  # 207 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"","run":"00112233445566778899aabbccdde'
        'eff"},"from":"coordinator","kind":"counts","to":"north"}',
        "",  # no array
        "8346e0a90e36e95179c8efd519ffbeb54ab8dc46f996c88969dec8de4b1b0946"  # R
        "ed0c2825dffd1f6566f9c1d77810e21b09d3b2826737164cb38424ce912d5d0c",  # S
    ),
    "gradient": (
        GradientRequest(run=RUN, round=2, rounds=30, theta=np.array([0.0, -1.5])),
        ASK,
        "000000fd",  # 253 bytes of header
        '{"array":{"dtype":"<f8","length":2},"federation":"@","fields":{"heads":"","round":2,"rou'
        'nds":30,"run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"gradient"'
        ',"to":"north"}',
        "0000000000000000000000000000f8bf",
        "275da3948a2232a1043b3ef450deca46ff24b76f57ff4a270a9803b5fd181703"  # R
        "bfad0e66da793a700f9004aca80bee14861c823fa05a652a4d6f19b3a0696907",  # S
    ),
    "release": (
        Release(run=RUN, round=2, unit=0.0078125, values=np.array([1, -2, 1 << 52])),
        TELL,
        "00000101",  # 257 bytes of header
        '{"array":{"dtype":"<i8","length":3},"federation":"@","fields":{"heads":"","round":2,"run'
        '":"00112233445566778899aabbccddeeff","unit":0.0078125},"from":"north","kind":"release","'
        'to":"coordinator"}',
        "0100000000000000feffffffffffffff0000000000001000",
        "603f7ee96211deb38ecaa1fe7e5c089c211f4d01cdf108def31cb0a9d36cc4e8"  # R
        "21fd88be9a3ce3b4ef2909c03dd1fed78413dc63374de71da9b1949d0449040c",  # S
    ),
    "keys-request": (
        KeysRequest(run=RUN, session=1, holders={"east": "11" * 32, "north": "22" * 32}),
        ASK,
        "00000177",  # 375 bytes of header
        '{"array":null,"federation":"@","fields":{"holders":{"east":"1111111111111111111111111111'
        '111111111111111111111111111111111111","north":"22222222222222222222222222222222222222222'
        '22222222222222222222222"},"run":"00112233445566778899aabbccddeeff","session":1},"from":"'
        'coordinator","kind":"keys-request","to":"north"}',
        "",  # no array
        "eb940346f250dce79ef129881e405e893aa6b4d5e361f37d25ec355c4ebe4d2a"  # R
        "559126e713218fb52f5cc3e977c969686bfeeb5c5c7e404f2094d953ec9c4500",  # S
    ),
    "keys": (
        Keys(run=RUN, session=1, advert=b"\x01\x02\x03"),
        TELL,
        "000000e4",  # 228 bytes of header
        '{"array":{"dtype":"|u1","length":3},"federation":"@","fields":{"run":"001122334455667788'
        '99aabbccddeeff","session":1},"from":"north","kind":"keys","to":"coordinator"}',
        "010203",
        "e828a406df80e2a5387bfb87cec256561dbf56ec056ab32f4b02b2554be62b15"  # R
        "3678d6f1319032d56606b652d84d6021e76062b38856926894058f6e0bd22603",  # S
    ),
    "shares-request": (
        SharesRequest(run=RUN, session=1, names=["east", "north"], adverts=b"\x01\x02\x03\x04"),
        ASK,
        "00000107",  # 263 bytes of header
        '{"array":{"dtype":"|u1","length":4},"federation":"@","fields":{"names":["east","north"],'
        '"run":"00112233445566778899aabbccddeeff","session":1},"from":"coordinator","kind":"share'
        's-request","to":"north"}',
        "01020304",
        "1b028978fbbf141005cb09ccd30505b8c8f7205c1a0cc7809d2b74c748c1e850"  # R
        "f0266a98e744113b2fe605d4fd3e2bad4ab8b6eef6a35d2be1fbac56c536820e",  # S
    ),
    "shares": (
        Shares(run=RUN, session=1, shares=b"\x09\x08"),
        TELL,
        "000000e6",  # 230 bytes of header
        '{"array":{"dtype":"|u1","length":2},"federation":"@","fields":{"run":"001122334455667788'
        '99aabbccddeeff","session":1},"from":"north","kind":"shares","to":"coordinator"}',
        "0908",
        "b2b4248b2b85c188717257942315c85226b36c4dfe9f6d3044a17f85f0f4dc81"  # R
        "17f6775995d3aeb5af4434a824f976414f8184ef424b12d49c11da425b6dc006",  # S
    ),
    "mask": (
        MaskRequest(
            run=RUN,
            session=1,
            round=33,
            rounds=60,
            active=["east", "north"],
            theta=np.array([0.25]),
            heads=HEADS,
        ),
        ASK,
        "000001a5",  # 421 bytes of header
        '{"array":{"dtype":"<f8","length":1},"federation":"@","fields":{"active":["east","north"]'
        ',"heads":"7:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd:9:efefefefe'
        'fefefefefefefefefefefefefefefefefefefefefefefefefefefef","round":33,"rounds":60,"run":"0'
        '0112233445566778899aabbccddeeff","session":1},"from":"coordinator","kind":"mask","to":"n'
        'orth"}',
        "000000000000d03f",
        "860c45f478018729545035d3ed5e22dcd74f5e94ae7ab4b390dc51a5b5e2cbcd"  # R
        "c73e016fb990650f347a23215cbb16b3cfa2f8dbbc336521c828037192417705",  # S
    ),
    "masked": (
        Masked(
            run=RUN,
            session=1,
            round=33,
            unit=0.5,
            sent=PROOF,
            values=np.array([1, (1 << 64) - 2], dtype=np.uint64),
        ),
        TELL,
        "00000191",  # 401 bytes of header
        '{"array":{"dtype":"<u8","length":2},"federation":"@","fields":{"heads":"","round":33,"ru'
        'n":"00112233445566778899aabbccddeeff","sent":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a'
        '5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",'
        '"session":1,"unit":0.5},"from":"north","kind":"masked","to":"coordinator"}',
        "0100000000000000feffffffffffffff",
        "008602b36e4d92d8d30ab5335187f02111d31e08d9738d01927fd959a97df8a1"  # R
        "4babc143c8d1fe128e32ffeb5669dc9e1722b61d93a209d1a1986e8b5b36090f",  # S
    ),
    "survivors": (
        SurvivorsRequest(
            run=RUN,
            session=1,
            round=33,
            rounds=60,
            active=["east", "north"],
            theta_sha256="77" * 32,
            survivors=["east", "north"],
        ),
        ASK,
        "00000173",  # 371 bytes of header
        '{"array":null,"federation":"@","fields":{"active":["east","north"],"round":33,"rounds":6'
        '0,"run":"00112233445566778899aabbccddeeff","session":1,"survivors":["east","north"],"the'
        'ta_sha256":"7777777777777777777777777777777777777777777777777777777777777777"},"from":"c'
        'oordinator","kind":"survivors","to":"north"}',
        "",  # no array
        "32819b0919450a5d9c427a3adb3955455265d0e080a218afbc91ad883cef06cf"  # R
        "0a80d9d7838e661a1deb1c70fa97f9c8fe958e6750c2014cb9be0079dd11740f",  # S
    ),
    "consent": (
        Consent(run=RUN, session=1, round=33, signature=PROOF),
        TELL,
        "0000016b",  # 363 bytes of header
        '{"array":null,"federation":"@","fields":{"round":33,"run":"00112233445566778899aabbccdde'
        'eff","session":1,"signature":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a'
        '5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"},"from":"north",'
        '"kind":"consent","to":"coordinator"}',
        "",  # no array
        "387d95e8c7d16bb4c50d25c8b774b78dba97db633ead097d43de0259f123c1e4"  # R
        "d53435cf8161e5e2c3cf28b60575ad9b014096f624874fe05aabc68f298d290b",  # S
    ),
    "open": (
        OpenRequest(
            run=RUN,
            session=1,
            round=33,
            rounds=60,
            active=["east", "north"],
            theta_sha256="77" * 32,
            survivors=["east", "north"],
            signers=["east"],
            blob=bytes(range(66)),
        ),
        ASK,
        "00000198",  # 408 bytes of header
        '{"array":{"dtype":"|u1","length":66},"federation":"@","fields":{"active":["east","north"'
        '],"round":33,"rounds":60,"run":"00112233445566778899aabbccddeeff","session":1,"signers":'
        '["east"],"survivors":["east","north"],"theta_sha256":"7777777777777777777777777777777777'
        '777777777777777777777777777777"},"from":"coordinator","kind":"open","to":"north"}',
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324252627"
        "28292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f4041",
        "34db86869863cb0581d2408ca1ec815e75dfd3a35c145783bdcf0519825a2b26"  # R
        "93273f0d54e7a5a9f256377d678b703500fa4a369eb0b152d6f1e7883c070303",  # S
    ),
    "opened": (
        Opened(run=RUN, session=1, round=33, shares=b"\xff\xfe"),
        TELL,
        "000000f1",  # 241 bytes of header
        '{"array":{"dtype":"|u1","length":2},"federation":"@","fields":{"round":33,"run":"0011223'
        '3445566778899aabbccddeeff","session":1},"from":"north","kind":"opened","to":"coordinator'
        '"}',
        "fffe",
        "228035eab167532861e9acb9398af8654acfaaf9d797e6ca8fb6a758d953a878"  # R
        "e046ebbc73818005e887ba7ce608d1d327860cbc8554ce9b253cec5323ebc907",  # S
    ),
    "close": (
        Close(run=RUN, outcome="done"),
        ASK,
        "000000f5",  # 245 bytes of header
        '{"array":null,"federation":"@","fields":{"countersignature":"","heads":"","outcome":"don'
        'e","run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"close","to":"n'
        'orth"}',
        "",  # no array
        "0c8f3ca38e9c58d12f50e4c7352ab2c37c711e4c02fb3ed63aa93c23cfd104b7"  # R
        "37f01d670b5606b68ead3f74d17e43cad9ac99b3596c4a430a1055b2e6c16e0f",  # S
    ),
    "closed": (
        Closed(run=RUN),
        TELL,
        "000000cf",  # 207 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"","run":"00112233445566778899aabbccdde'
        'eff"},"from":"north","kind":"closed","to":"coordinator"}',
        "",  # no array
        "5920ac442b910dd653b61e766760cfc9b9d435ae849bb721a8fa474d0ec34b72"  # R
        "5dec079f7ceed433359311f0848980ef0fd0c3162653dc24e137efd730183604",  # S
    ),
}
KINDS = list(GOLDEN)


def recorded(kind):
    _, _, length, header, array, signature = GOLDEN[kind]
    return (
        bytes.fromhex("415353415932")  # magic "ASSAY2"
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
    return signed(b"ASSAY2" + len(raw).to_bytes(4, "big") + raw + payload)


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

    def test_only_releases_carry_anything_computed_from_records(self):
        from_holder = {kind for kind in KINDS if GOLDEN[kind][1] is TELL}
        keys = {"keys", "shares", "consent", "opened"}  # of secure aggregation: they depend on no record
        assert from_holder == {"accepted", "declined", "release", "masked", "closed"} | keys
        for kind in from_holder - {"release", "masked"} - keys:
            assert GOLDEN[kind][0].array is None
            # A pattern is a choice of components: which columns there are, whatever stands in them.
            assert set(vars(GOLDEN[kind][0])) <= {"run", "code", "heads", "pattern"}

    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(0, MAX_ROUNDS + TALLIES),
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
        """All positions, four changes each: more than 30,000 mutants over all kinds."""
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
    for magic in (b"ASSAY1", b"ASSAY3"):
        refused(signed(magic + body[6:]), "accepted", "magic")


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
        data = signed(b"ASSAY2" + length.to_bytes(4, "big") + b"[" * room)
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

    @pytest.mark.parametrize("dtype", ["<i8", "<f8", ">u8", "<u4", "|u1"])
    def test_masked_integers_of_another_type_are_refused(self, dtype):
        header = header_of("masked", array={"dtype": dtype, "length": 2})
        refused(forged(header, bytes(16)), "masked", "array dtype")

    def test_counts_have_no_parameters(self):
        header = with_fields("mask", round=0, rounds=0)
        refused(forged(header, struct.pack("<d", 0.25)), "mask", "theta")
        frame = GOLDEN["mask"][1]
        assert open_frame(forged(header, bytes(8)), frame, SIGNER.public).theta.tolist() == [0.0]

    def test_a_decoded_array_cannot_be_changed(self):
        values = open_frame(recorded("release"), TELL, SIGNER.public).values
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 7


@pytest.mark.parametrize(("kind", "number"), [("gradient", 31), ("gradient", 32), ("mask", 61), ("mask", 62)])
def test_two_rounds_follow_the_gradients(kind, number):
    session = {"session": number // 32} if kind == "mask" else {}
    payload = bytes.fromhex(GOLDEN[kind][4])
    header = with_fields(kind, round=number, **session)
    assert open_frame(forged(header, payload), GOLDEN[kind][1], SIGNER.public).round == number


BAD_FIELDS = [
    (
        "accepted",
        "run",
        [RUN.upper().replace("A", "G"), RUN.upper(), RUN[:-1], RUN + "0", RUN + "\n", "", 5, None],
    ),
    ("accepted", "run", ["../" + RUN[3:], [RUN], {"run": RUN}, True, 1.5]),
    ("declined", "code", ["", "a b", "x" * 33, "é", "a\n", "12 rows", 5, None, ["budget"], True]),
    ("accepted", "pattern", [0, -1, 32, 1.0, "1", True, None]),
    ("offer", "version", [-1, 1 << 31, 2.0, "2", True, None]),
    ("gradient", "round", [0, -1, 33, 1.0, "1", True, None, 10**30]),
    ("gradient", "rounds", [0, -1, MAX_ROUNDS + 1, 30.0, "30", True, None, 10**30]),
    ("release", "round", [-1, MAX_ROUNDS + TALLIES + 1, 1.0, "1", True, False, None]),
    ("release", "unit", [0.0, -1.0, -0.0, 1, True, "1", None]),
    ("close", "outcome", ["", "finished", "DONE", 1, None, True, ["done"]]),
    ("offer", "study", ["", 5, None, ["x"], "\ud800", "a = 1 # \udfff"]),
    *(
        (kind, "heads", ["7", HEADS + ":", HEADS.upper(), "-" + HEADS, "0" + HEADS, 7, None, [HEADS], True])
        for kind in (
            "offer",
            "accepted",
            "release",
            "counts",
            "gradient",
            "mask",
            "masked",
            "close",
            "closed",
        )
    ),
    ("offer", "countersignature", ["", PROOF[:-1], PROOF.upper(), PROOF + "0", 5, None]),
    ("keys-request", "session", [-1, 1001, 1.0, "1", True, None]),
    (
        "keys-request",
        "holders",
        [{}, {"north": "22"}, {"North": "22" * 32}, {"coordinator": "22" * 32}, [], 5, None],
    ),
    (
        "shares-request",
        "names",
        [[], ["north", "east"], ["east", "east"], ["east", "NORTH"], "east", None, [5]],
    ),
    ("shares-request", "names", [["a", "b", "c"]]),
    ("mask", "round", [-1, 63, 0, 1.0, "1", True, None]),
    ("mask", "rounds", [-1, 30, 0, MAX_ROUNDS + 1, 60.0, None]),
    ("mask", "active", [[], ["north", "east"], ["east", "east"], "east", None]),
    ("masked", "sent", ["", PROOF[:-1], PROOF.upper(), 5, None]),
    ("masked", "unit", [0.0, -1.0, 1, True, None]),
    ("survivors", "survivors", [[], ["north", "east"], ["a"] * 1001, ["west"], None]),
    ("survivors", "theta_sha256", ["", "77", "77" * 33, 7, None]),
    ("consent", "signature", ["", PROOF[:-1], 5, None]),
    ("open", "signers", [[], ["north", "east"], [f"h{number:02d}" for number in range(5)], None]),
    ("opened", "round", [-1, MAX_ROUNDS + TALLIES + 1, True, None]),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(kind, name, value) for kind, name, values in BAD_FIELDS for value in values]
)
def test_a_field_out_of_its_range_or_of_another_type_is_refused(kind, name, value):
    payload = bytes.fromhex(GOLDEN[kind][4])
    named = {"names": "(names|adverts)", "signers": "(signers|blob)", "rounds": "rounds?"}.get(name, name)
    refused(forged(with_fields(kind, **{name: value}), payload), kind, f"message: {named}")


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_unit_that_is_not_finite_is_refused(text):
    raw = canonical_json(header_of("release")).replace(b"0.0078125", text)
    refused(forged(raw, bytes(24)), "release", "header")


def test_a_refusal_says_that_nothing_was_done_and_repeats_nothing_of_the_message():
    with pytest.raises(WireError) as caught:
        open_frame(forged(with_fields("declined", code="SECRET WORDS")), TELL, SIGNER.public)
    assert "nothing was done" in str(caught.value)
    assert "SECRET" not in str(caught.value)
