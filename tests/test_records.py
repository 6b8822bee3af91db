"""Records are checked against the study before anything is computed from them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.client.records import Records, describe, load_records
from assay.client.sources import DataSource, Source, open_source
from assay.models.encoding import Grid
from assay.models.label import mechanism_of
from assay.models.study import Study, parse_study
from assay.privacy.errors import BadData, BadInput
from assay.privacy.purpose import PACK

STUDY = """
[study]
name = "card-default"
purpose = "consumer_credit"
contexts = ["credit_card_application"]
[outcome]
column = "default"
meaning = "missed a payment"
{person}
[[features]]
name = "limit"
column = "LIMIT"
component = "identity"
kind = "numeric"
domain = [10, 100]
label = "Limit"
[[features]]
name = "status"
column = "PAY"
component = "payment_history"
kind = "integer"
domain = [-2, 8]
label = "Status"
[[features]]
name = "housing"
column = "HOUSING"
component = "identity"
kind = "categorical"
levels = ["own", "rent"]
label = "Housing"
[fairness]
columns = ["SEX"]
[privacy]
epsilon = 1.0
delta = 1e-6
trust = "local"
"""
HEADER = "default,id,LIMIT,PAY,HOUSING,SEX,note"
GOOD = ["0,p1,10,-2,own,F,x", "1,p2,,8,rent,M,x", "0,p1,500,9,boat,F,x", "1,p3,50,,,F,x"]


def study(*, person: bool = True, delta: str = "1e-6") -> Study:
    text = STUDY.format(person='[person]\ncolumn = "id"' if person else "")
    return parse_study(text.replace("delta = 1e-6", f"delta = {delta}"))


def load(directory: Path, rows: list[str], *, header: str = HEADER, person: bool = True) -> Records:
    (directory / "r.csv").write_text("\n".join([header, *rows]) + "\n")
    with open_source(DataSource(directory=directory, kind="csv", path="r.csv")) as source:
        return load_records(source, study(person=person))


def refuse(directory: Path, rows: list[str], **options: str) -> BadData:
    with pytest.raises(BadData) as caught:
        load(directory, rows, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def test_records_hold_exactly_what_the_study_uses(tmp_path: Path) -> None:
    records = load(tmp_path, GOOD)
    assert sorted(records.columns) == ["HOUSING", "LIMIT", "PAY"]
    np.testing.assert_array_equal(records.columns["LIMIT"], [10, np.nan, 500, 50])
    np.testing.assert_array_equal(records.columns["PAY"], [-2, 8, 9, np.nan])
    assert records.columns["HOUSING"].tolist() == ["own", "rent", "boat", None]
    np.testing.assert_array_equal(records.labels, [0, 1, 0, 1])
    assert records.labels.dtype == np.float64
    assert records.persons is not None
    assert records.persons.dtype == np.int64
    np.testing.assert_array_equal(records.persons, [0, 1, 0, 2])
    assert (records.rows, records.persons_count) == (4, 3)
    assert records.absent == ()
    assert records.ignored == ("SEX", "note")
    assert Grid.of(study()).encode(records.columns).low.shape == (4, 3)


def test_without_a_person_column_every_row_is_a_person(tmp_path: Path) -> None:
    records = load(tmp_path, GOOD, person=False)
    assert records.persons is None
    assert records.persons_count == 4
    assert "id" in records.ignored


def test_an_identifier_in_spaces_is_the_same_person(tmp_path: Path) -> None:
    assert load(tmp_path, ["0, 7 ,10,1,own,F,x", "1,7,10,1,own,F,x"]).persons_count == 1


def test_a_feature_whose_column_is_absent_becomes_missing(tmp_path: Path) -> None:
    records = load(tmp_path, ["0,p1,3", "1,p2,4"], header="default,id,PAY")
    assert records.absent == ("limit", "housing")
    assert list(records.columns) == ["PAY"]
    assert Grid.of(study()).encode(records.columns).low.shape == (2, 3)


@pytest.mark.parametrize(
    ("header", "column"),
    [("id,LIMIT,PAY", "'default'"), ("default,LIMIT,PAY", "'id'"), ("default,id,other", "'LIMIT'")],
    ids=["no outcome", "no person", "no feature at all"],
)
def test_a_column_that_must_be_there_is_named(header: str, column: str, tmp_path: Path) -> None:
    assert column in str(refuse(tmp_path, ["1,2,3"], header=header))


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "", "yes", "nan", "inf", "true"])
def test_a_label_that_is_not_0_or_1_is_refused_with_its_row(label: str, tmp_path: Path) -> None:
    message = str(refuse(tmp_path, [GOOD[0], f"{label},p2,10,1,own,F,x"]))
    assert "row 2, column 'default'" in message
    assert "r.csv" in message


def test_a_missing_identifier_is_refused_with_its_row(tmp_path: Path) -> None:
    assert "row 3, column 'id'" in str(refuse(tmp_path, [*GOOD[:2], "0,,10,1,own,F,x"]))


@pytest.mark.parametrize("cell", ["NaN", "inf", "-inf", "1e309"])
def test_a_number_that_is_not_finite_is_refused_with_its_row(cell: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, [GOOD[0], f"0,p2,{cell},1,own,F,x"])
    assert "row 2, column 'LIMIT'" in str(error)
    assert cell not in error.without_cell()


def test_a_cell_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    assert load(tmp_path, ["0,p1,10,1,own,nan,1e309"]).rows == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": {}},
        {"labels": np.array([0.0, 2.0])},
        {"labels": np.array([0.0, np.nan])},
        {"labels": np.array([0.0])},
        {"columns": {"LIMIT": np.array([1.0, np.inf])}},
        {"columns": {"LIMIT": np.array([])}, "labels": np.array([])},
        {"persons": np.array([0])},
    ],
    ids=["no column", "label 2", "label NaN", "short labels", "infinity", "no rows", "short persons"],
)
def test_records_made_in_code_are_checked_too(wrong: dict[str, object]) -> None:
    good = {"columns": {"LIMIT": np.array([1.0, 2.0])}, "labels": np.array([0.0, 1.0])}
    with pytest.raises(BadInput):
        Records(**{**good, **wrong})  # type: ignore[arg-type]


def test_records_do_not_show_themselves(tmp_path: Path) -> None:
    assert "boat" not in repr(load(tmp_path, GOOD))
    assert "500" not in repr(load(tmp_path, GOOD))


def test_the_description_counts_what_is_missing_and_outside(tmp_path: Path) -> None:
    result, lines = describe(load(tmp_path, GOOD), study())
    json.dumps(result, allow_nan=False)
    by_name = {entry["name"]: entry for entry in result["features"]}
    assert (by_name["limit"]["missing_share"], by_name["limit"]["outside_domain"]) == (0.25, 1)
    assert (by_name["status"]["missing_share"], by_name["status"]["outside_domain"]) == (0.25, 1)
    assert (by_name["housing"]["missing_share"], by_name["housing"]["outside_domain"]) == (0.25, 1)
    assert (result["rows"], result["persons"], result["bad_share"]) == (4, 3, 0.5)
    assert result["ignored_columns"] == ["SEX", "note"]
    assert all("\n" not in line for line in lines)


def test_the_description_says_exactly_what_would_leave(tmp_path: Path) -> None:
    """As many integers as each kind of release has; four rounds of gradients stand for any number."""
    result, lines = describe(load(tmp_path, GOOD), study())
    grid = Grid.of(study())
    sizes = [mechanism_of(study(), grid, number=number, rounds=4).size for number in (0, 1, 5, 6)]
    assert [entry["integers"] for entry in result["leaves"]] == sizes
    text = "\n".join(lines)
    for words in (
        f"round 0: {sizes[0]} integers, ",
        f"rounds 1 to T: {sizes[1]} integers each, ",
        f"round T + 1: {sizes[2]} integers, noisy histogram of outcomes",
        f"round T + 2: {sizes[3]} integers, noisy counts of scores, outcomes and groups",
    ):
        assert words in text


def test_columns_that_are_audited_are_among_those_that_are_used(tmp_path: Path) -> None:
    audited = study().text.replace('columns = ["SEX"]', 'columns = ["SEX"]\ngroups = { SEX = ["F", "M"] }')
    (tmp_path / "r.csv").write_text("\n".join([HEADER, *GOOD]) + "\n")
    with open_source(DataSource(directory=tmp_path, kind="csv", path="r.csv")) as source:
        result, _ = describe(load_records(source, parse_study(audited)), parse_study(audited))
    assert "SEX" in result["used_columns"]
    assert result["ignored_columns"] == ["note"]


def test_an_absent_column_is_described_as_missing(tmp_path: Path) -> None:
    result, lines = describe(load(tmp_path, ["0,p1,3", "1,p2,4"], header="default,id,PAY"), study())
    assert [entry["absent"] for entry in result["features"]] == [True, False, True]
    assert sum("no such column here" in line for line in lines) == 2


def test_a_delta_too_large_for_the_number_of_persons_is_warned_of() -> None:
    def warned(persons: int, delta: str) -> bool:
        rows = np.arange(persons)
        records = Records(columns={"LIMIT": rows + 10.0}, labels=rows % 2 / 1.0)
        return any("privacy.delta" in text for text in describe(records, study(delta=delta))[0]["warnings"])

    assert not warned(100_000, "1e-6")
    assert warned(100_001, "1e-6")
    assert not warned(100_001, "9e-7")


def test_labels_that_are_all_alike_are_warned_of(tmp_path: Path) -> None:
    result, _ = describe(load(tmp_path, ["0,p1,10,1,own,F,x"] * 3), study())
    assert any("every label is 0" in text for text in result["warnings"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(
        st.tuples(
            st.sampled_from(["0", "1"]),
            st.text(alphabet="abc ", min_size=1, max_size=3).filter(str.strip),
            st.none() | st.floats(-1e12, 1e12),
            st.none() | st.integers(-100, 100),
            st.sampled_from(["", "own", "rent", "tent"]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_what_is_written_is_what_is_loaded(cells: list[tuple[object, ...]], tmp_path: Path) -> None:
    rows = [",".join("" if cell is None else str(cell) for cell in row) + ",F,x" for row in cells]
    records = load(tmp_path, rows)
    np.testing.assert_array_equal(records.labels, [float(str(row[0])) for row in cells])
    for column, index in (("LIMIT", 2), ("PAY", 3)):
        expected = np.array([np.nan if row[index] is None else row[index] for row in cells], dtype=float)
        np.testing.assert_array_equal(records.columns[column], expected)
    identifiers = [str(row[1]).strip() for row in cells]
    assert records.persons is not None
    assert len({*zip(identifiers, records.persons.tolist(), strict=True)}) == len(set(identifiers))
    assert records.persons_count == len(set(identifiers))


NOON = datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()
DAYS = PACK.retention["records"].days
DATED = f"{HEADER},SEEN"


def dated_study() -> Study:
    return parse_study(study().text.replace('meaning = "', 'observed = "SEEN"\nmeaning = "'))


def load_dated(directory: Path, dates: list[str], now: float = NOON) -> Records:
    """Load one row of a person p0, p1, ... for each date."""
    rows = [f"{i % 2},p{i},{10 + i},1,own,F,x,{day}" for i, day in enumerate(dates)]
    (directory / "r.csv").write_text("\n".join([DATED, *rows]) + "\n")
    with open_source(DataSource(directory=directory, kind="csv", path="r.csv")) as source:
        return load_records(source, dated_study(), clock=lambda: now)


def ago(days: int) -> str:
    return (date(2026, 6, 15) - timedelta(days=days)).isoformat()


def test_records_older_than_the_policy_pack_keeps_them_are_left_out(tmp_path: Path) -> None:
    records = load_dated(tmp_path, [ago(DAYS + 1), ago(DAYS), ago(0), ago(9999), ago(-1)])
    np.testing.assert_array_equal(records.columns["LIMIT"], [11, 12, 14])
    np.testing.assert_array_equal(records.labels, [1, 0, 0])
    np.testing.assert_array_equal(records.persons, [0, 1, 2])
    assert (records.rows, records.persons_count, records.too_old) == (3, 3, 2)
    assert "SEEN" not in (*records.columns, *records.ignored)
    later = load_dated(tmp_path, [ago(DAYS), ago(0)], now=NOON + 86_400)
    assert (later.rows, later.too_old) == (1, 1)


def test_persons_are_those_of_the_rows_that_are_kept(tmp_path: Path) -> None:
    rows = [f"0,{who},1,1,own,F,x,{ago(days)}" for who, days in (("a", 9999), ("b", 1), ("b", 1), ("c", 1))]
    (tmp_path / "r.csv").write_text("\n".join([DATED, *rows]) + "\n")
    with open_source(DataSource(directory=tmp_path, kind="csv", path="r.csv")) as source:
        records = load_records(source, dated_study(), clock=lambda: NOON)
    np.testing.assert_array_equal(records.persons, [0, 0, 1])


def test_without_a_date_column_in_the_study_nothing_is_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, [f"{GOOD[0]},{ago(9999)}"], header=DATED).too_old == 0


def test_the_check_says_how_many_are_left_out_and_by_which_rule(tmp_path: Path) -> None:
    result, lines = describe(load_dated(tmp_path, [ago(DAYS + 1), ago(1), ago(2)]), dated_study())
    assert (result["rows"], result["too_old_rows"]) == (2, 1)
    assert "SEEN" in result["used_columns"]
    (line,) = [line for line in lines if line.startswith("left out: 1 rows whose SEEN")]
    assert f"{DAYS} days" in line
    assert PACK.retention["records"].article in line


@pytest.mark.parametrize(
    "cell",
    ["", "yesterday", "31.03.2026", "2026-02-30", "2026-13-01", "1780000000", ago(-2), "2999-01-01"],
)
def test_a_date_that_cannot_be_read_or_lies_in_the_future_is_refused(cell: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="row 2, column 'SEEN'") as caught:
        load_dated(tmp_path, [ago(1), cell])
    assert not cell or cell not in caught.value.without_cell()


@pytest.mark.parametrize("cell", ["2026-06-01 08:30:00", "2026-06-01T08:30:00.250+02:00", " 2026-06-01 "])
def test_a_time_after_the_date_is_read(cell: str, tmp_path: Path) -> None:
    assert load_dated(tmp_path, [cell]).rows == 1


def test_dates_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    days = [date(2026, 6, 1), date(2010, 6, 1)]
    for kind in (pa.date32(), pa.date64(), pa.timestamp("us"), pa.timestamp("ns", tz="UTC")):
        table = pa.table(
            {"default": [0, 1], "id": ["a", "b"], "LIMIT": [1.0, 2.0], "SEEN": pa.array(days).cast(kind)}
        )
        pq.write_table(table, tmp_path / "r.parquet")
        with open_source(DataSource(directory=tmp_path, kind="parquet", path="r.parquet")) as source:
            records = load_records(source, dated_study(), clock=lambda: NOON)
        assert (records.rows, records.too_old) == (1, 1)


def test_where_all_are_too_old_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="older records are not used"):
        load_dated(tmp_path, [ago(DAYS + 1)] * 3)


def test_a_missing_date_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="'SEEN'"), open_dated(tmp_path) as source:
        load_records(source, dated_study(), clock=lambda: NOON)


def open_dated(directory: Path) -> Source:
    (directory / "r.csv").write_text("\n".join([HEADER, *GOOD]) + "\n")
    return open_source(DataSource(directory=directory, kind="csv", path="r.csv"))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ages=st.lists(st.sampled_from([0, 1, DAYS - 1, DAYS, DAYS + 1, 9999]), min_size=2, max_size=8))
def test_leaving_one_record_away_changes_which_others_are_used_in_nothing(
    ages: list[int], tmp_path: Path
) -> None:
    """The accounting assumes it: a record is left out by its own date and by no other record."""

    def used(kept: list[int]) -> set[float]:
        rows = [f"0,p{i},{10 + i},1,own,F,x,{ago(ages[i])}" for i in kept]
        (tmp_path / "r.csv").write_text("\n".join([DATED, *rows]) + "\n")
        with open_source(DataSource(directory=tmp_path, kind="csv", path="r.csv")) as source:
            try:
                records = load_records(source, dated_study(), clock=lambda: NOON)
            except BadData:
                return set()  # none is young enough
        return set(records.columns["LIMIT"].tolist())

    everybody = list(range(len(ages)))
    whole = used(everybody)
    for gone in everybody:
        assert used([i for i in everybody if i != gone]) == whole - {10.0 + gone}
