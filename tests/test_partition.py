"""Splitting records over holders: everybody exactly once, a person's rows together, no holder empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.privacy.errors import BadInput
from assay.simulations.partition import NAMED, hold_out, split

ROWS = 2000
LABELS = (np.random.default_rng(1).random(ROWS) < 0.2).astype(np.float64)
REGION = np.array([f"region {i % 7}" for i in range(ROWS)], dtype=object)


COMPONENTS = ("identity", "spending", "payment_history")


def full(partition, holders, *, persons=None, column=None, seed=0, labels=LABELS):
    return split(
        partition,
        holders=holders,
        labels=labels,
        persons=persons,
        column=column,
        components=COMPONENTS,
        seed=seed,
    )


def parts(*args, **options):
    return [part.rows for part in full(*args, **options)]


def everybody_once(pieces, rows=ROWS):
    return np.array_equal(np.sort(np.concatenate(pieces)), np.arange(rows))


@pytest.mark.parametrize("holders", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("partition", NAMED)
def test_every_row_is_at_exactly_one_holder_and_no_holder_is_empty(partition, holders):
    pieces = parts(partition, holders)
    assert everybody_once(pieces)
    assert len(pieces) == holders
    assert all(len(piece) for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMED), st.integers(1, 30), st.integers(30, 60), st.integers(0, 2**32 - 1))
def test_the_same_holds_for_every_size_and_seed(partition, holders, rows, seed):
    labels = (np.arange(rows) % 3 == 0).astype(np.float64)
    pieces = parts(partition, holders, seed=seed, labels=labels)
    assert everybody_once(pieces, rows)
    assert len(pieces) == holders
    assert all(len(piece) for piece in pieces)


@pytest.mark.parametrize("partition", [*NAMED, "region"])
def test_the_rows_of_a_person_stay_together(partition):
    persons = np.random.default_rng(2).permutation(np.arange(ROWS) % 500)
    column = REGION if partition == "region" else None
    pieces = parts(partition, 5, persons=persons, column=column)
    assert everybody_once(pieces)
    held = [set(persons[piece].tolist()) for piece in pieces]
    assert sum(len(own) for own in held) == 500


@pytest.mark.parametrize("partition", NAMED)
def test_a_seed_decides_the_layout(partition):
    first, again, other = (parts(partition, 4, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_iid_sizes_differ_by_one_person_at_most():
    sizes = [len(piece) for piece in parts("iid", 7)]
    assert max(sizes) - min(sizes) <= 1


def test_quantity_gives_the_first_holder_a_third_of_ten():
    sizes = [len(piece) for piece in parts("quantity", 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(ROWS / 2.93, rel=0.02)  # 1 + 1/2 + ... + 1/10 = 2.93


def test_label_makes_base_rates_differ_several_fold():
    """Over ten layouts: a split that ignores the labels stays within a factor of two."""
    spread = {}
    for partition in ("label", "iid"):
        rates = [
            [LABELS[piece].mean() for piece in parts(partition, 5, seed=seed) if len(piece) >= 50]
            for seed in range(10)
        ]
        spread[partition] = np.median([max(own) / max(min(own), 1e-3) for own in rates])
    assert spread["label"] > 3
    assert spread["iid"] < 2


def test_a_column_keeps_each_of_its_values_at_one_holder_and_balances_them():
    pieces = parts("region", 3, column=REGION)
    held = [set(REGION[piece]) for piece in pieces]
    assert sum(len(own) for own in held) == len(set().union(*held)) == 7
    assert sorted(len(own) for own in held) == [2, 2, 3]


def test_a_missing_value_of_the_column_is_a_value():
    column = np.where(np.arange(ROWS) % 2 == 0, None, "x").astype(object)
    assert everybody_once(parts("region", 2, column=column))


class TestRefusals:
    @pytest.mark.parametrize("holders", [0, -1, 10_001, ROWS + 1])
    def test_more_holders_than_persons_or_none_at_all(self, holders):
        with pytest.raises(BadInput, match="--holders"):
            parts("iid", holders)

    def test_persons_are_counted_and_not_rows(self):
        with pytest.raises(BadInput, match="1 to 4"):
            parts("iid", 5, persons=np.arange(ROWS) % 4)

    def test_more_holders_than_values_of_the_column(self):
        with pytest.raises(BadInput, match="at most 7"):
            parts("region", 8, column=REGION)

    def test_an_unknown_name_without_a_column(self):
        with pytest.raises(BadInput, match=r"iid, quantity, label, .* or a column"):
            parts("random", 3)


class TestHoldOut:
    def test_everybody_is_on_exactly_one_side_in_file_order(self):
        train, test = hold_out(rows=ROWS, persons=None, fraction=0.25, seed=0)
        assert everybody_once([train, test])
        assert len(test) == ROWS // 4
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()

    def test_nobody_is_trained_and_tested_on(self):
        persons = np.random.default_rng(3).permutation(np.arange(ROWS) % 300)
        train, test = hold_out(rows=ROWS, persons=persons, fraction=0.2, seed=0)
        assert everybody_once([train, test])
        assert not set(persons[train]) & set(persons[test])
        assert len(set(persons[test])) == 60

    def test_a_seed_decides_who(self):
        first, again, other = (hold_out(rows=ROWS, persons=None, fraction=0.2, seed=s)[1] for s in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.1, float("nan"), 1e-9, 1 - 1e-9])
    def test_a_share_that_leaves_one_side_empty_is_refused(self, fraction):
        with pytest.raises(BadInput, match="--test-fraction"):
            hold_out(rows=ROWS, persons=None, fraction=fraction, seed=0)
