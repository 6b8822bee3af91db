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
        "00000210",  # 528 bytes of header
        '{"array":null,"federation":"@","fields":{"countersignature":"5a5a5a5a5a5a5a5a5a5a5a5a5a5'
        "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"
        'a5a5a5a5a5a5a","heads":"7:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd'
        'cd:9:efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef","run":"0011223344'
        r'5566778899aabbccddeeff","study":"[study]\nname = \"\u00e9\"\n"},"from":"coordinator","ki'
        'nd":"offer","to":"north"}',
        "",  # no array
        "cc675a5e9f3b48459d5b4d2181872a8fc7d4d81b9b3745407d3278b2b8c52648"  # R
        "95dc1d8b6e0dd09157b5d558b771aabd8cc3ce8c27ef136a18e757859ae2ef03",  # S
    ),
    "accepted": (
        Accepted(run=RUN, heads=HEADS),
        TELL,
        "00000156",  # 342 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"7:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd'
        "cdcdcdcdcdcdcdcdcdcdcdcdcdcd:9:efefefefefefefefefefefefefefefefefefefefefefefefefefefefe"
        'fefefef","run":"00112233445566778899aabbccddeeff"},"from":"north","kind":"accepted","to"'
        ':"coordinator"}',
        "",  # no array
        "b039ba6cb8c57864648b22c07f0c954f68191e046249f7b20ae2c587a166727e"  # R
        "1cc51ec6cc71a75e00604f318b0007a93220945e77287386a74a97126ee62c05",  # S
    ),
    "declined": (
        Declined(run=RUN, code="budget"),
        TELL,
        "000000d6",  # 214 bytes of header
        '{"array":null,"federation":"@","fields":{"code":"budget","run":"00112233445566778899aabb'
        'ccddeeff"},"from":"north","kind":"declined","to":"coordinator"}',
        "",  # no array
        "0f4afb872116a7d20f1f05af950fb697435c38d015cdaba11a301a1000bc7802"  # R
        "09be4e59c055694f622c9f5dae800dd2b76c6a6f41bcd9fd16db9b932096da02",  # S
    ),
    "counts": (
        CountsRequest(run=RUN),
        ASK,
        "000000cf",  # 207 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"","run":"00112233445566778899aabbccdde'
        'eff"},"from":"coordinator","kind":"counts","to":"north"}',
        "",  # no array
        "99583c5095c101fb262c657d56434d2a8d4931eac6d96e6ae0d9d345daafb62c"  # R
        "62a20dc04144b877517513744860d602052d6eb1dd8744b80a202333ebdce40c",  # S
    ),
    "gradient": (
        GradientRequest(run=RUN, round=2, rounds=30, theta=np.array([0.0, -1.5])),
        ASK,
        "000000fd",  # 253 bytes of header
        '{"array":{"dtype":"<f8","length":2},"federation":"@","fields":{"heads":"","round":2,"rou'
        'nds":30,"run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"gradient"'
        ',"to":"north"}',
        "0000000000000000000000000000f8bf",
        "7968f653e591ccc95b24b4ece5b80a45f4fa669dcebe8fad196fb113322a33fe"  # R
        "4b6d9c0d9278f211fb1ae0fbb3347a05718bc967b3e536ce256e569f2f60610a",  # S
    ),
    "release": (
        Release(run=RUN, round=2, unit=0.0078125, values=np.array([1, -2, 1 << 52])),
        TELL,
        "00000101",  # 257 bytes of header
        '{"array":{"dtype":"<i8","length":3},"federation":"@","fields":{"heads":"","round":2,"run'
        '":"00112233445566778899aabbccddeeff","unit":0.0078125},"from":"north","kind":"release","'
        'to":"coordinator"}',
        "0100000000000000feffffffffffffff0000000000001000",
        "192486513e67637571f702c101d9ffc03634fb3f30e7427b223b838dc9d38bb0"  # R
        "c8a7574547e3beae62996652434fe0f5b83d2f2e82779403f4d29db210cb7503",  # S
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
        "0e1e5d5a57c112259de75e0851c56b540035988d632819b2da712fd6de2abef9"  # R
        "3eda0ec5ec5fc8f9ac03ba5c35120d2f1f70be3dd84ea95a6b3715fb15a27604",  # S
    ),
    "keys": (
        Keys(run=RUN, session=1, advert=b"\x01\x02\x03"),
        TELL,
        "000000e4",  # 228 bytes of header
        '{"array":{"dtype":"|u1","length":3},"federation":"@","fields":{"run":"001122334455667788'
        '99aabbccddeeff","session":1},"from":"north","kind":"keys","to":"coordinator"}',
        "010203",
        "3d01bfd4be59128829c323e91cc87702721284e22ea4af65faa986e9c5ad6fac"  # R
        "604ec83d6c78686e02f28b3f6d8d590c882f104d419440e5ca317e3f55552d08",  # S
    ),
    "shares-request": (
        SharesRequest(run=RUN, session=1, names=["east", "north"], adverts=b"\x01\x02\x03\x04"),
        ASK,
        "00000107",  # 263 bytes of header
        '{"array":{"dtype":"|u1","length":4},"federation":"@","fields":{"names":["east","north"],'
        '"run":"00112233445566778899aabbccddeeff","session":1},"from":"coordinator","kind":"share'
        's-request","to":"north"}',
        "01020304",
        "4934dfc6290b9bf86eca3d37b88889329bb885ce398313f93521a87df296aa9f"  # R
        "95732604fa47d0e189b92794966b671d7f2316ac1f93a05145cd9e688cd1b30c",  # S
    ),
    "shares": (
        Shares(run=RUN, session=1, shares=b"\x09\x08"),
        TELL,
        "000000e6",  # 230 bytes of header
        '{"array":{"dtype":"|u1","length":2},"federation":"@","fields":{"run":"001122334455667788'
        '99aabbccddeeff","session":1},"from":"north","kind":"shares","to":"coordinator"}',
        "0908",
        "09ecdf1aa56b37e1cc3aa41614a7a290698da7acc9a449f99b0747b73d64f77f"  # R
        "7b9691a64601d4b51dde0a5f50b1149db479d7c70ade8da5450f47397e250c09",  # S
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
        "2c33cf6afffeeb15dfd0fe74f33cd78d13cd232825598de4b2c55b6149b51caf"  # R
        "cc19ed58d0e9cdeb40ae2dbd9e6dfd706deae3525b14ee845818fbac841e4a08",  # S
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
        "35cf16e70b40d8fe0e29ef27a94154789e3f560eb7734846b0652e3510d341d2"  # R
        "09283401620d7dca79919adbc8031f13db27ed5d41108dd3747d6da98d3b640c",  # S
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
        "4c95b881f88ea6e0877b8e7a573e2ae887212a77f2192b275481cee511a029f3"  # R
        "39a2850111d9e0bd880695cf67d0f20f9ae9cbbdbaff730a300df98a83e78d0d",  # S
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
        "1b0924204abef89131d6287fc444a4edeae9efaf11e181f69453dcc4279d0274"  # R
        "59c022ecd1ab76030bee203a04eb0ca97d73ec12d298bd8fe4c839e99902f405",  # S
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
        "3b9626d74b8de1fee2451b8f156d5fd37a2df0d43bda7c832bac4d16ddc33411"  # R
        "f8fe1c671bf8256c8e933a191c5cf0b9ffe00333015c011d14e6c263ac624f09",  # S
    ),
    "opened": (
        Opened(run=RUN, session=1, round=33, shares=b"\xff\xfe"),
        TELL,
        "000000f1",  # 241 bytes of header
        '{"array":{"dtype":"|u1","length":2},"federation":"@","fields":{"round":33,"run":"0011223'
        '3445566778899aabbccddeeff","session":1},"from":"north","kind":"opened","to":"coordinator'
        '"}',
        "fffe",
        "796ca9945f4faa820be239cf1cce3335a7ea3e2afa70844bd12a4e1812559f39"  # R
        "74f5e7946b3d2e4d6843c51582fe4fd29e9b04d4bbb452557b3897ca2409e902",  # S
    ),
    "close": (
        Close(run=RUN, outcome="done"),
        ASK,
        "000000f5",  # 245 bytes of header
        '{"array":null,"federation":"@","fields":{"countersignature":"","heads":"","outcome":"don'
        'e","run":"00112233445566778899aabbccddeeff"},"from":"coordinator","kind":"close","to":"n'
        'orth"}',
        "",  # no array
        "1d18f9f8ca2d842798ce4fa17fb1fae44b2a1eb090bcfb805c8e40506b100bac"  # R
        "33733d4bfbe02372639cf006809ea99b6f40d36d400579fdffc7849424215e07",  # S
    ),
    "closed": (
        Closed(run=RUN),
        TELL,
        "000000cf",  # 207 bytes of header
        '{"array":null,"federation":"@","fields":{"heads":"","run":"00112233445566778899aabbccdde'
        'eff"},"from":"north","kind":"closed","to":"coordinator"}',
        "",  # no array
        "105d0faf02a2cb858e130b58a605b58829221997ae73fac01208f8d248faab06"  # R
        "1803fc28046666a75a16e58d323b6c69f0f48107a1df7d5b70340edbda2aa704",  # S
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

    def test_only_releases_carry_anything_computed_from_records(self):
        from_holder = {kind for kind in KINDS if GOLDEN[kind][1] is TELL}
        keys = {"keys", "shares", "consent", "opened"}  # of secure aggregation: they depend on no record
        assert from_holder == {"accepted", "declined", "release", "masked", "closed"} | keys
        for kind in from_holder - {"release", "masked"} - keys:
            assert GOLDEN[kind][0].array is None
            assert set(vars(GOLDEN[kind][0])) <= {"run", "code", "heads"}

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
    ("mask", "round", [-1, 61, 0, 1.0, "1", True, None]),
    ("mask", "rounds", [-1, 32, 0, MAX_ROUNDS + 1, 60.0, None]),
    ("mask", "active", [[], ["north", "east"], ["east", "east"], "east", None]),
    ("masked", "sent", ["", PROOF[:-1], PROOF.upper(), 5, None]),
    ("masked", "unit", [0.0, -1.0, 1, True, None]),
    ("survivors", "survivors", [[], ["north", "east"], ["a"] * 1001, ["west"], None]),
    ("survivors", "theta_sha256", ["", "77", "77" * 33, 7, None]),
    ("consent", "signature", ["", PROOF[:-1], 5, None]),
    ("open", "signers", [[], ["north", "east"], [f"h{number:02d}" for number in range(5)], None]),
    ("opened", "round", [-1, MAX_ROUNDS + 1, True, None]),
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
