"""Encoding puts every record on the public table, the same way alone and among many."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.models.columns import no_duplicates, typed_column
from assay.models.encoding import ABSENT, KNOTS, STEPS, FeatureGrid, Grid
from assay.models.schema import Feature, Outcome, Privacy, Study
from assay.privacy.errors import BadData, BadInput

NUMBER = Feature(name="x", column="X", component="spending", kind="numeric", label="X", domain=(0, 11))
LOG = Feature(
    name="l", column="L", component="spending", kind="numeric", label="L", domain=(0, 1000), transform="log"
)
BOTH = Feature(
    name="b",
    column="B",
    component="spending",
    kind="numeric",
    label="B",
    domain=(-1000, 1000),
    transform="signed_log",
)
WHOLE = Feature(name="i", column="I", component="payment_history", kind="integer", label="I", domain=(-2, 8))
LEVEL = Feature(
    name="c", column="C", component="identity", kind="categorical", label="C", levels=("1", "two")
)


def study_of(*features):
    return Study(
        name="s",
        purpose="consumer_credit",
        contexts=("here",),
        outcome=Outcome(column="y", meaning="bad"),
        features=features,
        privacy=Privacy(epsilon=1.0),
        text="made in a test",
    )


GRID = Grid.of(study_of(NUMBER, LOG, BOTH, WHOLE, LEVEL))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def weights(grid, columns):
    """Dense design rows, by the definition of a hat function and nothing else."""
    encoded = grid.encode(columns)
    dense = np.zeros((len(encoded), grid.size + 1))
    for row in range(len(encoded)):
        for low, upper in zip(encoded.low[row], encoded.upper[row], strict=True):
            if low >= 0:
                dense[row, low] += 1 - upper
                dense[row, low + 1] += upper
    return dense[:, :-1]


def objects(*values):
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def test_cells_are_counted_without_looking_at_records():
    assert [feature.cells for feature in GRID.features] == [KNOTS + 1] * 3 + [12, 4]
    assert GRID.offsets.tolist() == [0, *(k * (KNOTS + 1) for k in (1, 2, 3)), 3 * KNOTS + 15, 3 * KNOTS + 19]
    assert GRID.size == 3 * KNOTS + 19
    assert all(len(feature.labels) == feature.cells for feature in GRID.features)
    assert [feature.ordered for feature in GRID.features] == [KNOTS, KNOTS, KNOTS, 11, 0]
    assert all(feature.labels[-1] == "missing" for feature in GRID.features)


@given(st.lists(st.floats(0, 11), min_size=1, max_size=20))
def test_hat_weights_rebuild_the_value_they_encode(values):
    feature = FeatureGrid.of(NUMBER, 0)
    low, upper = feature.encode(np.array(values))
    rebuilt = feature.knots[low] * (1 - upper) + feature.knots[np.minimum(low + 1, KNOTS - 1)] * upper
    step = 11 / (KNOTS - 1) / STEPS
    assert (np.abs(rebuilt - values) <= step * (1 + 1e-3)).all()
    assert (upper * STEPS == np.rint(upper * STEPS)).all()


@given(st.lists(st.one_of(FINITE, st.just(float("nan"))), min_size=1, max_size=30))
def test_every_row_has_weight_one_in_each_feature_and_stays_in_its_own_cells(values):
    number = np.array(values)
    whole = np.rint(number)
    columns = {"X": number, "L": number, "B": number, "I": whole, "C": objects(*["1"] * len(number))}
    dense = weights(GRID, columns)
    for feature in GRID.features:
        own = dense[:, feature.offset : feature.offset + feature.cells]
        np.testing.assert_allclose(own.sum(axis=1), 1.0)
        assert (own >= 0).all()
        assert (own[np.isnan(number), -1] == (feature.name != "c")).all()
    assert ((dense**2).sum(axis=1) <= len(GRID.features) + 1e-9).all()


@given(st.lists(FINITE, min_size=1, max_size=30))
def test_a_row_is_encoded_alone_as_it_is_among_others(values):
    number = np.array(values)
    together = GRID.encode({"X": number, "L": number, "B": number})
    for row in range(len(values)):
        alone = GRID.encode(dict.fromkeys(("X", "L", "B"), number[row : row + 1]))
        assert (alone.low[0] == together.low[row]).all()
        assert (alone.upper[0] == together.upper[row]).all()


@pytest.mark.parametrize("feature", [NUMBER, LOG, BOTH])
def test_values_outside_the_domain_count_as_its_ends(feature):
    grid = FeatureGrid.of(feature, 5)
    low, high = feature.domain
    outside = grid.encode(np.array([low - 1e12, -1e308, high + 1e12, 1e308]))
    ends = grid.encode(np.array([low, low, high, high], dtype=float))
    for found, wanted in zip(outside, ends, strict=True):
        assert (found == wanted).all()


@pytest.mark.parametrize("feature", [NUMBER, LOG, BOTH])
def test_larger_values_never_move_to_a_smaller_place(feature):
    low, upper = FeatureGrid.of(feature, 0).encode(np.linspace(*feature.domain, 5000))
    assert (np.diff(low + upper.astype(np.float64)) >= -1e-6).all()


def test_the_last_knot_is_reached_exactly():
    low, upper = FeatureGrid.of(NUMBER, 0).encode(np.array([0.0, 11.0]))
    assert low.tolist() == [0, KNOTS - 2]
    assert upper.tolist() == [0.0, 1.0]


def test_integers_have_one_cell_each_and_are_clamped():
    low, upper = FeatureGrid.of(WHOLE, 10).encode(np.array([-2.0, 0.0, 8.0, -99.0, 99.0, np.nan]))
    assert low.tolist() == [10, 12, 20, 10, 20, 21]
    assert not upper.any()


def test_levels_others_and_missing_have_their_own_cells():
    low, _ = FeatureGrid.of(LEVEL, 0).encode(objects("1", "two", "three", None, "1.0"))
    assert low.tolist() == [0, 1, 2, 3, 0]


def test_missing_is_neither_zero_nor_other():
    missing = GRID.encode({"X": np.array([np.nan]), "C": objects(None)})
    given_ = GRID.encode({"X": np.array([0.0]), "C": objects("")})
    assert (missing.low[0, 0], missing.low[0, 4]) == (GRID.features[0].missing, GRID.features[4].missing)
    assert given_.low[0, 0] != missing.low[0, 0]
    assert given_.low[0, 4] != missing.low[0, 4]


def test_an_absent_column_makes_its_feature_missing_where_its_component_is_there():
    encoded = GRID.encode({"X": np.array([1.0, 2.0])})
    assert (encoded.low[:, 1:3] == [feature.missing for feature in GRID.features[1:3]]).all()


def test_a_component_without_a_column_is_absent_and_the_pattern_says_so():
    assert GRID.components == ("identity", "spending", "payment_history")
    encoded = GRID.encode({"X": np.array([1.0, 2.0])})
    assert (encoded.low[:, 3:] == ABSENT).all()
    assert not encoded.upper[:, 3:].any()
    assert encoded.pattern.tolist() == [0b010, 0b010]
    assert GRID.components_of(0b010) == ("spending",)
    assert (GRID.patterns, GRID.width) == (7, GRID.size + 7)
    assert GRID.pattern_of({"X", "I", "other"}) == 0b110


def test_rows_of_different_patterns_lie_side_by_side():
    columns = {"X": np.array([1.0, 2.0]), "I": np.array([3.0, np.nan])}
    mixed = GRID.encode(columns, np.array([0b110, 0b100], dtype=np.int32))
    assert (mixed.low[0] >= 0).tolist() == [True, True, True, True, False]
    assert (mixed.low[1] >= 0).tolist() == [False, False, False, True, False]
    assert mixed.low[1, 3] == GRID.features[3].missing


@pytest.mark.parametrize("patterns", [[0, 1], [1, 8], [1]])
def test_a_pattern_that_is_none_is_refused(patterns):
    with pytest.raises(BadInput, match="patterns"):
        GRID.encode({"X": np.array([1.0, 2.0])}, np.array(patterns, dtype=np.int32))


def test_records_without_any_column_of_the_study_are_refused():
    with pytest.raises(BadInput, match="columns"):
        GRID.encode({"Y": np.array([1.0, 2.0])})


@pytest.mark.parametrize("feature", [NUMBER, LOG, WHOLE])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused(feature, value):
    with pytest.raises(BadData, match="finite"):
        FeatureGrid.of(feature, 0).encode(np.array([1.0, value]))


def test_a_fraction_in_an_integer_column_is_refused():
    with pytest.raises(BadData, match="whole"):
        FeatureGrid.of(WHOLE, 0).encode(np.array([1.5]))


@pytest.mark.parametrize("columns", [{}, {"X": np.zeros(2), "L": np.zeros(3)}])
def test_columns_of_different_length_are_refused(columns):
    with pytest.raises(BadInput, match="one length"):
        GRID.encode(columns)


def test_the_grid_depends_on_the_study_alone():
    GRID.encode({"X": np.array([5.0, 6.0])})
    again = Grid.of(study_of(NUMBER, LOG, BOTH, WHOLE, LEVEL))
    assert again.size == GRID.size
    for one, other in zip(again.features, GRID.features, strict=True):
        assert one.labels == other.labels
        assert (one.knots == other.knots).all()


def test_labels_are_in_the_units_of_the_column():
    assert GRID.features[1].labels[0] == "0 or less"
    assert GRID.features[1].labels[-2] == "1,000 or more"
    assert GRID.features[3].labels[:3] == ("-2 or less", "-1", "0")
    assert GRID.features[4].labels == ("1", "two", "other", "missing")


TEXTS = pa.array(["1", " 2.5 ", "", None, "-3e2"], pa.string())


def read(values, kind, type_=None):
    return typed_column(pa.array(values, type_), "a", kind, where="f.csv", first_row=11)


def test_numbers_are_parsed_and_empty_cells_are_missing():
    np.testing.assert_array_equal(
        typed_column(TEXTS, "a", "number", where="f"), [1, 2.5, np.nan, np.nan, -300]
    )


@pytest.mark.parametrize(
    "cell", ["nan", "NaN", "inf", "-Infinity", "1e309", "x", "1,000", "0x10", "1_0", "--1", "1 2"]
)
@pytest.mark.parametrize("kind", ["number", "integer", "label"])
def test_a_cell_that_is_no_finite_number_is_refused_with_row_and_column(cell, kind):
    with pytest.raises(BadData) as caught:
        read(["1", cell], kind)
    assert str(caught.value).startswith("f.csv: row 12, column 'a' is ")
    assert cell in str(caught.value)
    assert repr(cell) not in caught.value.without_cell()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_stored_nan_is_refused_like_a_written_one(value):
    with pytest.raises(BadData, match="row 12"):
        read([1.0, value], "number", pa.float64())


def test_a_null_is_missing_whatever_the_type():
    for type_ in (pa.float64(), pa.int32(), pa.string(), pa.bool_(), pa.decimal128(5, 2), pa.null()):
        assert np.isnan(read([None], "number", type_)).all()
        assert read([None], "text", type_).tolist() == [None]


@pytest.mark.parametrize("values", [["1.5"], ["9007199254740993.5"], ["1e300"]])
def test_an_integer_column_holds_whole_numbers(values):
    with pytest.raises(BadData, match="whole number"):
        read(values, "integer")


@pytest.mark.parametrize("values", [["2"], ["0.5"], [""], ["-1"], ["yes"]])
def test_a_label_is_zero_or_one_and_never_missing(values):
    with pytest.raises(BadData, match="0 or 1"):
        read(["1", *values], "label")
    assert read(["1", "0", "1.0"], "label").tolist() == [1, 0, 1]


@pytest.mark.parametrize("type_", [pa.date32(), pa.list_(pa.int8()), pa.binary()])
@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_type_that_is_neither_number_nor_text_is_refused(type_, kind):
    with pytest.raises(BadData, match="column 'a'"):
        read([None], kind, type_)


def test_codes_are_the_same_text_from_every_type():
    for values, type_ in ((["3"], pa.string()), ([3], pa.int64()), ([3.0], pa.float64()), ([3], pa.uint8())):
        assert read(values, "text", type_).tolist() == ["3"]
    dictionary = pa.array(["3", "4", "3"]).dictionary_encode()
    assert typed_column(dictionary, "a", "text", where="f").tolist() == ["3", "4", "3"]


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(BadData, match="'b'"):
        no_duplicates(["a", "b", "b"], "f.csv")
