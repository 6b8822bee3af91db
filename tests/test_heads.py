"""Heads: one spelling, and a countersignature that is good for one holder of one federation only."""

import pytest

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.heads import Heads, countersign, verify_countersignature
from assay.privacy.keys import Identity

HEADS = Heads(ledger_seq=7, ledger_hash="cd" * 32, log_size=9, log_root="ef" * 32)
FEDERATION = "ab" * 32


def test_the_text_is_the_heads():
    assert HEADS.text == f"7:{'cd' * 32}:9:{'ef' * 32}"
    assert Heads.parse(HEADS.text) == HEADS


@pytest.mark.parametrize(
    "text",
    ["", "7", HEADS.text + "0", HEADS.text.upper(), "0" + HEADS.text, "-" + HEADS.text, HEADS.text + "\n"],
)
def test_another_spelling_is_refused(text):
    with pytest.raises(BadInput, match="heads"):
        Heads.parse(text)


def test_numbers_that_no_ledger_reaches_are_refused():
    with pytest.raises(BadInput, match="heads"):
        Heads(ledger_seq=-1, ledger_hash="cd" * 32, log_size=0, log_root="ef" * 32)


@pytest.mark.parametrize(
    "changed",
    [
        {"federation": "ac" * 32},
        {"holder": "south"},
        {"heads": Heads(ledger_seq=8, ledger_hash="cd" * 32, log_size=9, log_root="ef" * 32)},
        {"heads": Heads(ledger_seq=7, ledger_hash="cd" * 32, log_size=9, log_root="ee" * 32)},
        {"signature": "00" * 64},
        {"signature": "zz"},
    ],
)
def test_a_countersignature_is_good_for_exactly_what_was_signed(changed):
    coordinator = Identity.generate()
    said = {"federation": FEDERATION, "holder": "north", "heads": HEADS}
    signature = countersign(coordinator, **said)
    verify_countersignature(coordinator.public, **said, signature=signature)
    with pytest.raises(Tampered, match="countersignature"):
        verify_countersignature(coordinator.public, **{**said, "signature": signature, **changed})
    with pytest.raises(Tampered):
        verify_countersignature(Identity.generate().public, **said, signature=signature)
