"""Identities: a signature holds for one key, context and body, and a key file is its owner's alone."""

import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import Identity, canonical_json, fingerprint, verify

FIXED = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
PUBLIC = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")


def pem(key, password=None):
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def write_secret(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    return path


class TestSignatures:
    def test_a_signature_verifies_under_its_key_context_and_body(self):
        verify(PUBLIC, "ledger", b"row", FIXED.sign("ledger", b"row"), what="row")

    def test_the_signed_bytes_are_a_length_the_context_and_the_body(self):
        """An auditor can check a signature with nothing but RFC 8032."""
        signature = FIXED.sign("ledger", b"row")
        key = ed25519.Ed25519PublicKey.from_public_bytes(PUBLIC)
        key.verify(signature, b"\x00\x0f" + b"assay/ledger/v1" + b"row")

    @pytest.mark.parametrize("context", ["bundle", "frame", "ledge", "ledgerr", "ledger/v1", ""])
    def test_a_signature_of_one_context_is_worthless_in_another(self, context):
        signature = FIXED.sign("ledger", b"row")
        with pytest.raises(Tampered, match="row 7"):
            verify(PUBLIC, context, b"row", signature, what="row 7")

    def test_the_context_cannot_flow_into_the_body(self):
        signature = FIXED.sign("led", b"ger/v1row")
        with pytest.raises(Tampered):
            verify(PUBLIC, "ledger", b"row", signature, what="row")

    def test_every_flipped_bit_of_the_signature_is_noticed(self):
        signature = FIXED.sign("ledger", b"row")
        for bit in range(8 * len(signature)):
            changed = bytearray(signature)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Tampered):
                verify(PUBLIC, "ledger", b"row", bytes(changed), what="row")

    @pytest.mark.parametrize("body", [b"", b"ro", b"roww", b"Row", b"row\x00"])
    def test_another_body_is_noticed(self, body):
        signature = FIXED.sign("ledger", b"row")
        with pytest.raises(Tampered):
            verify(PUBLIC, "ledger", body, signature, what="row")

    @pytest.mark.parametrize("size", [0, 31, 33, 63, 65])
    def test_keys_and_signatures_of_a_wrong_size_are_tampered_and_not_a_crash(self, size):
        with pytest.raises(Tampered):
            verify(PUBLIC, "ledger", b"row", bytes(size), what="row")
        with pytest.raises(Tampered):
            verify(bytes(size), "ledger", b"row", FIXED.sign("ledger", b"row"), what="row")

    def test_another_key_is_noticed(self):
        with pytest.raises(Tampered):
            verify(Identity.generate().public, "ledger", b"row", FIXED.sign("ledger", b"row"), what="row")


class TestKeyFiles:
    def test_a_saved_key_is_the_same_key_again_and_readable_by_its_owner_only(self, tmp_path):
        before = os.umask(0)
        try:
            FIXED.save(tmp_path / "identity.pem")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "identity.pem").stat().st_mode) == 0o600
        assert Identity.load(tmp_path / "identity.pem").public == PUBLIC

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
    def test_a_key_that_others_could_read_is_refused(self, tmp_path, mode):
        path = tmp_path / "identity.pem"
        FIXED.save(path)
        path.chmod(mode)
        with pytest.raises(BadInput, match="chmod 600"):
            Identity.load(path)

    @pytest.mark.parametrize(
        "content",
        [
            pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            pem(ec.generate_private_key(ec.SECP256R1())),
            pem(x25519.X25519PrivateKey.generate()),
            pem(ed25519.Ed25519PrivateKey.generate(), password=b"secret"),
            FIXED.public,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            b"",
        ],
        ids=["RSA", "P-256", "X25519", "with a password", "raw bytes", "garbage in PEM", "empty"],
    )
    def test_what_is_not_an_ed25519_private_key_is_refused(self, tmp_path, content):
        with pytest.raises(BadInput, match="an Ed25519 private key in PEM"):
            Identity.load(write_secret(tmp_path / "identity.pem", content))

    def test_a_missing_key_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match="existing file"):
            Identity.load(tmp_path / "identity.pem")

    def test_new_keys_differ(self):
        assert len({Identity.generate().public for _ in range(20)}) == 20


class TestFingerprints:
    def test_a_fingerprint_is_what_two_people_compare(self):
        assert fingerprint(PUBLIC) == FIXED.fingerprint
        assert FIXED.fingerprint == "F733-14B3-88F6-5AB1-87E9-5FB9-005F-5DD0"

    def test_showing_an_identity_shows_no_secret(self):
        assert repr(FIXED) == f"Identity({FIXED.fingerprint})"
        assert bytes(range(32)).hex() not in repr(FIXED)


class TestCanonicalJson:
    def test_equal_values_are_equal_bytes(self):
        assert canonical_json({"b": 1.5, "a": [None, True, "é"]}) == b'{"a":[null,true,"\\u00e9"],"b":1.5}'

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_json_cannot_carry_is_refused(self, value):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": value})
