"""What each holder has: its rows, the columns of its components, its persons; and their description."""

from dataclasses import replace

import numpy as np
import pytest
from toy_study import GRID, STUDY, records

from assay.client.training import LocalTraining
from assay.privacy.errors import BadInput
from assay.simulations.comparison import pool, records_at
from assay.simulations.holding import describe, hold, hold_all, known_to
from assay.simulations.partition import Part, Partition, split

ROWS = 600
PERSONS = np.random.default_rng(1).permutation(np.arange(ROWS) % 250)
RECORDS = records(ROWS, persons=PERSONS)


def parts(partition, holders, overlap=None):
    return split(
        Partition.parse(partition, overlap=overlap),
        holders=holders,
        labels=RECORDS.labels,
        persons=PERSONS,
        components=GRID.components,
        seed=3,
    )


def same(one, other):
    assert list(one.columns) == list(other.columns)
    for a, b in zip(one.columns.values(), other.columns.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.persons, other.persons)
    assert list(one.groups) == list(other.groups)
    for a, b in zip(one.groups.values(), other.groups.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.absent, one.ignored) == (other.absent, other.ignored)
    return True


@pytest.mark.parametrize("overlap", [None, "0.5:4"])
def test_all_holders_at_once_have_what_each_would_have_alone(overlap):
    pieces = parts("quantity", 9, overlap)
    held = hold_all(RECORDS, pieces, GRID)
    assert len(held) == 9
    for own, part in zip(held, pieces, strict=True):
        assert same(own, records_at(RECORDS, part.rows))
        assert same(own, hold(RECORDS, part, GRID))


def test_rows_that_are_persons_stay_so():
    alone = records(ROWS)
    held = hold_all(alone, parts("iid", 4), GRID)
    assert all(own.persons is None for own in held)


def test_the_columns_of_a_component_that_a_holder_lacks_are_absent_and_its_rows_say_so():
    pieces = parts("component:all,spending,identity+payment_history", 3)
    everything, spending, two = hold_all(RECORDS, pieces, GRID)
    assert set(everything.columns) == {"INCOME", "DELAY", "BALANCE", "HOUSE"}
    assert (set(spending.columns), spending.absent) == ({"INCOME", "BALANCE"}, ("delay", "house"))
    assert (set(two.columns), two.absent) == ({"DELAY", "HOUSE"}, ("income", "balance"))
    assert set(two.groups) == set(RECORDS.groups)
    for own, names in ((spending, ("spending",)), (two, ("identity", "payment_history"))):
        assert GRID.components_of(LocalTraining(STUDY, own).pattern) == names
        assert set(GRID.encode(own.columns, own.patterns).pattern.tolist()) == {GRID.pattern_of(own.columns)}


def test_rows_that_already_lack_a_component_lack_it_still():
    rows = np.arange(ROWS)
    names = GRID.components
    whole = pool([records_at(RECORDS, rows[:300]), hold(RECORDS, Part(rows=rows[300:]), GRID)], GRID)
    part = Part(rows=rows, components=names[:2])
    own = hold(whole, part, GRID)
    assert set(own.patterns.tolist()) == {0b11}
    assert hold(whole, Part(rows=rows), GRID).patterns.tolist() == whole.patterns.tolist()


def test_a_holder_without_a_column_is_refused():
    few = {"INCOME": RECORDS.columns["INCOME"]}
    with pytest.raises(BadInput, match="at least one feature column"):
        hold(replace(RECORDS, columns=few), Part(rows=np.arange(5), components=("identity",)), GRID)


def test_a_description_counts_rows_persons_outcomes_components_and_who_knows_whom():
    labels = np.array([1, 0, 0, 1, 1, 0], dtype=float)
    persons = np.array([0, 0, 1, 2, 3, 3])
    pieces = [
        Part(rows=np.array([0, 1, 2])),
        Part(rows=np.array([0, 1, 3]), components=("spending",)),
        Part(rows=np.array([0, 1, 4, 5])),
    ]
    first, second, third = describe(pieces, labels, persons, ["a", "b", "c"])
    assert first == {
        "name": "a",
        "rows": 3,
        "persons": 2,
        "base_rate": pytest.approx(1 / 3),
        "components": None,
        "known_to": [0.5, 0, 0.5, 0, 0],
    }
    assert (second["components"], second["base_rate"]) == (["spending"], pytest.approx(2 / 3))
    assert (third["name"], third["persons"], third["known_to"]) == ("c", 2, [0.5, 0, 0.5, 0, 0])
    assert known_to(pieces, persons) == [0.75, 0, 0.25, 0, 0]
    assert known_to(pieces, persons, most=2) == [0.75, 0.25]


def test_a_description_of_an_overlap_gives_its_shares():
    pieces = parts("label", 8, "0.2:5")
    assert known_to(pieces, PERSONS) == [0.8, 0.052, 0.052, 0.048, 0.048]
    described = describe(pieces, RECORDS.labels, PERSONS)
    assert [own["name"] for own in described] == list("12345678")
    assert sum(own["rows"] for own in described) == sum(len(part.rows) for part in pieces)
    assert sum(own["persons"] for own in described) == 200 + 13 * 5 + 12 * 9
    assert all(sum(own["known_to"]) == pytest.approx(1) for own in described)
    alone = describe(parts("label", 8), RECORDS.labels)
    assert all(own["known_to"] == [1, 0, 0, 0, 0] and own["persons"] == own["rows"] for own in alone)
