"""Secret sharing: any threshold of shares gives the secret, and wrong shares are found."""

from __future__ import annotations

import hashlib
import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.privacy.errors import BadInput, Refused
from assay.privacy.masking import keystream
from assay.privacy.shamir import PRIME, combine, evaluate, polynomial, recover, split

SECRET = hashlib.sha256(b"a secret").digest()


def stream(seed: int = 0):
    return keystream(seed.to_bytes(32, "big"))


def shares(threshold: int, holders: int, secret: bytes = SECRET) -> dict[int, int]:
    values = split(secret, threshold=threshold, holders=holders, stream=stream(holders))
    return dict(enumerate(values, start=1))


@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (1, 3), (3, 3), (4, 6)])
def test_every_set_of_threshold_shares_gives_the_secret(threshold, holders):
    dealt = shares(threshold, holders)
    for xs in itertools.combinations(dealt, threshold):
        assert combine({x: dealt[x] for x in xs}) == SECRET
    assert combine(dealt) == SECRET


@given(secret=st.binary(min_size=32, max_size=32), seed=st.integers(0, 1 << 64))
@settings(max_examples=100, deadline=None)
def test_any_secret_survives_in_any_order_of_shares(secret, seed):
    dealt = list(enumerate(split(secret, threshold=7, holders=10, stream=stream(seed)), start=1))
    Random(seed).shuffle(dealt)
    assert combine(dict(dealt[:7])) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\1"])
def test_leading_zeros_and_the_largest_secret_survive(secret):
    assert combine(shares(3, 4, secret)) == secret


def test_fewer_shares_fit_every_secret_equally():
    dealt = shares(3, 5)
    two = {1: dealt[1], 2: dealt[2]}
    for other in (bytes(32), b"\xff" * 32, SECRET):
        # There is a third share that makes the two belong to any secret: the two alone rule none out.
        third = _value_at(3, {0: int.from_bytes(other, "big"), **two})
        assert combine({**two, 3: third}) == other


def _value_at(x: int, points: dict[int, int]) -> int:
    """Lagrange's formula as it stands in textbooks, independent of the module."""
    total = 0
    for a, value in points.items():
        term = value
        for b in points:
            if b != a:
                term = term * (x - b) * pow(a - b, PRIME - 2, PRIME) % PRIME
        total += term
    return total % PRIME


def test_shares_are_the_values_of_the_polynomial():
    coefficients = polynomial(SECRET, threshold=5, stream=stream(7))
    dealt = split(SECRET, threshold=5, holders=1000, stream=stream(7))
    assert coefficients[0] == int.from_bytes(SECRET, "big")
    for x in (1, 2, 500, 1000):
        plain = sum(c * pow(x, power, PRIME) for power, c in enumerate(coefficients)) % PRIME
        assert dealt[x - 1] == evaluate(coefficients, x) == plain


def test_coefficients_are_521_bits_of_the_stream_and_the_one_that_is_no_element_is_skipped():
    drawn = [
        b"\xff" * 66,
        b"\x01" + b"\xff" * 65,
        b"\xfe" + bytes(64) + b"\x05",
        b"\x01" + b"\xff" * 64 + b"\xfe",
    ]
    source = iter(drawn)
    coefficients = polynomial(SECRET, threshold=3, stream=lambda size: next(source)[:size])
    assert coefficients[1:] == [5, PRIME - 1]
    assert list(source) == []


def test_the_same_stream_gives_the_same_shares_and_another_gives_others():
    first = split(SECRET, threshold=3, holders=4, stream=stream(1))
    assert first == split(SECRET, threshold=3, holders=4, stream=stream(1))
    assert not set(first) & set(split(SECRET, threshold=3, holders=4, stream=stream(2)))


@pytest.mark.parametrize(
    ("secret", "threshold", "holders"), [(bytes(31), 2, 3), (bytes(33), 2, 3), (SECRET, 0, 3), (SECRET, 4, 3)]
)
def test_a_sharing_that_cannot_be_rebuilt_is_refused(secret, threshold, holders):
    with pytest.raises(BadInput):
        split(secret, threshold=threshold, holders=holders, stream=stream())


def test_a_polynomial_without_a_threshold_is_refused():
    with pytest.raises(BadInput, match="threshold"):
        polynomial(SECRET, threshold=0, stream=stream())


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {0: 5},
        {-1: 5},
        {PRIME: 5},
        {1: 5, 1 + PRIME: 5},  # twice the same x
        {1: -1},
        {1: PRIME},
    ],
)
def test_an_x_or_a_value_outside_the_field_is_refused(bad):
    with pytest.raises(BadInput, match="shares"):
        combine(bad)


def test_shares_of_two_secrets_do_not_combine():
    mixed = {1: shares(2, 3)[1], 2: shares(2, 4)[2]}
    with pytest.raises(Refused, match="do not belong together") as refused:
        combine(mixed)
    assert refused.value.code == "aggregation"


@pytest.mark.parametrize("number", range(4))
def test_up_to_three_wrong_shares_of_ten_are_found_wherever_they_are(number):
    dealt = shares(7, 10)
    for wrong in itertools.combinations(dealt, number):
        secret, liars = recover(_spoiled(dealt, wrong), threshold=7, accept=SECRET.__eq__)
        assert secret == SECRET
        # The shares behind the first seven are looked at only if those do not do.
        assert liars == (frozenset(wrong) if any(x <= 7 for x in wrong) else frozenset())


def _spoiled(dealt: dict[int, int], wrong) -> dict[int, int]:
    draw = Random(1)
    return {
        x: (value + draw.randrange(1, PRIME)) % PRIME if x in wrong else value for x, value in dealt.items()
    }


def test_errors_that_cancel_change_who_is_named_and_never_the_secret():
    dealt = shares(2, 4)
    # At x = 1 and 2 the coefficients at 0 are 2 and -1: errors of 1 and 2 cancel there.
    spoiled = {3: dealt[3] + 5, 1: dealt[1] + 1, 2: dealt[2] + 2, 4: dealt[4]}
    secret, named = recover(spoiled, threshold=2, accept=SECRET.__eq__)
    assert secret == SECRET
    assert named == {3, 4}


def test_two_wrong_shares_of_thirty_are_found_at_random():
    dealt = shares(21, 30)
    secret, liars = recover(_spoiled(dealt, (1, 17)), threshold=21, accept=SECRET.__eq__)
    assert (secret, liars) == (SECRET, {1, 17})


@pytest.mark.parametrize(("threshold", "holders"), [(7, 10), (21, 30)])
def test_too_many_wrong_shares_are_a_refusal_and_never_another_secret(threshold, holders):
    dealt = shares(threshold, holders)
    wrong = range(1, holders - threshold + 2)
    with pytest.raises(Refused, match="too many are wrong"):
        recover(_spoiled(dealt, wrong), threshold=threshold, accept=SECRET.__eq__)


def test_fewer_shares_than_the_threshold_are_refused():
    with pytest.raises(Refused, match="2 shares, 3 are needed"):
        recover({1: 5, 2: 5}, threshold=3, accept=SECRET.__eq__)


def test_a_share_of_the_golden_vector():
    # Keystream: AES-256-CTR under the zero key from counter zero; NIST's first block is dc95c078a2408989...
    dealt = split(bytes(range(32)), threshold=3, holders=3, stream=keystream(bytes(32)))
    joined = b"".join(value.to_bytes(66, "big") for value in dealt)
    assert (
        hashlib.sha256(joined).hexdigest()
        == "44a6d3875485a64ca6c7b9cbd2f753c7e9525d0551c2a8f3f7032bede216b912"
    )
