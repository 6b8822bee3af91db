"""Groups for audits: declared in the study, one of them for every value, and nothing taken from records."""

import numpy as np
import pytest
from toy_study import GRID, STUDY, TEXT

from assay.client.records import load_records
from assay.client.sources import DataSource, open_source
from assay.models.fairness import Fairness, Gate, GroupColumn
from assay.models.study import parse_study
from assay.models.tally import AuditTally
from assay.privacy.errors import BadInput

AUDITED = 'columns = ["SEX"]\ngroups = { SEX = ["f", "m"] }\n'


def study(section):
    """The toy study with another ``[fairness]`` section."""
    assert AUDITED in TEXT
    return parse_study(TEXT.replace(AUDITED, section))


class TestLevels:
    COLUMN = GroupColumn.of("SEX", ("f", "m"))

    def test_every_level_has_a_group_and_whatever_is_left_has_one_too(self):
        assert self.COLUMN.labels == ("f", "m", "other", "missing")
        assert (self.COLUMN.kind, self.COLUMN.judged) == ("text", 2)
        values = np.array(["m", "f", None, "x", "F", "", " f", "missing", "other"], dtype=object)
        assert self.COLUMN.codes(values).tolist() == [1, 0, 3, 2, 2, 2, 2, 2, 2]

    def test_a_value_has_the_same_group_alone_as_among_others(self):
        values = np.array(["m", None, "x", "f"], dtype=object)
        alone = [int(self.COLUMN.codes(values[i : i + 1])[0]) for i in range(4)]
        assert alone == self.COLUMN.codes(values).tolist()

    def test_no_values_have_no_groups(self):
        assert self.COLUMN.codes(np.array([], dtype=object)).tolist() == []


class TestEdges:
    COLUMN = GroupColumn.of("AGE", (25, 35.5, 60))

    def test_groups_are_below_between_and_from_the_edges_on(self):
        assert self.COLUMN.labels == (
            "below 25",
            "25 to below 35.5",
            "35.5 to below 60",
            "60 or more",
            "missing",
        )
        assert (self.COLUMN.kind, self.COLUMN.judged) == ("number", 4)
        values = np.array([24.999, 25, 35.499, 35.5, 59, 60, 1e308, -np.inf, np.inf, np.nan])
        assert self.COLUMN.codes(values).tolist() == [0, 1, 1, 2, 2, 3, 3, 0, 3, 4]

    def test_one_edge_makes_two_groups(self):
        assert GroupColumn.of("AGE", (0,)).labels == ("below 0", "0 or more", "missing")


@pytest.mark.parametrize(
    "declared",
    [
        (),
        ["f", "m"],
        "fm",
        ("f", "f"),
        ("f", ""),
        ("f", " m"),
        ("f", 1),
        (1, "f"),
        (25, 25),
        (35, 25),
        (25, float("nan")),
        (25, float("inf")),
        (True, False),
        (None,),
        tuple(str(i) for i in range(33)),
        tuple(range(33)),
    ],
    ids=repr,
)
def test_what_declares_no_groups_is_refused(declared):
    with pytest.raises(BadInput, match=r"groups\.SEX"):
        GroupColumn.of("SEX", declared)


@pytest.mark.parametrize(
    "declared", [tuple(str(i) for i in range(32)), tuple(range(32))], ids=["texts", "edges"]
)
def test_as_many_groups_as_allowed_are_allowed(declared):
    assert len(GroupColumn.of("SEX", declared).labels) in (34, 34)


@pytest.mark.parametrize("name", ["min_approval_ratio", "max_tpr_gap", "max_fpr_gap", "max_calibration_gap"])
class TestGate:
    @pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), "0.8", True, [0.8]])
    def test_a_limit_that_is_no_share_is_refused(self, name, value):
        with pytest.raises(BadInput, match=f"gate.{name}"):
            Gate(**{name: value})

    @pytest.mark.parametrize("value", [0, 1, 0.8])
    def test_a_limit_that_is_set_is_in_force_zero_too(self, name, value):
        assert Gate(**{name: value}).limits == {name: float(value)}

    def test_a_limit_that_is_not_set_is_not(self, name):
        assert name not in Gate().limits


class TestStudyFile:
    def test_groups_gate_and_the_smallest_group_are_read(self):
        found = study(
            'columns = ["AGE", "SEX", "MARRIAGE"]\nsmallest_group = 50\n'
            'groups = { SEX = ["f", "m"], AGE = [25, 35.5] }\n'
            "gate = { min_approval_ratio = 0.8, max_tpr_gap = 0.1 }\n"
        ).fairness
        assert [column.column for column in found.audited] == ["AGE", "SEX"]  # in the order of the columns
        assert found.audited[0].edges == (25.0, 35.5)
        assert found.gate.limits == {"min_approval_ratio": 0.8, "max_tpr_gap": 0.1}
        assert found.smallest_group == 50

    def test_without_the_section_nothing_is_audited(self):
        found = parse_study(TEXT.replace("[fairness]\n" + AUDITED, "")).fairness
        assert (found, found.audited) == (Fairness(), ())

    def test_a_column_without_groups_is_declared_and_not_audited(self):
        """Which groups there are may not be taken from records."""
        assert study('columns = ["SEX"]\n').fairness.audited == ()

    @pytest.mark.parametrize(
        ("section", "words"),
        [
            ('columns = ["SEX"]\ngroups = { AGE = [25] }\n', "fairness.columns"),
            ('columns = ["SEX"]\ngroups = { SEX = [35, 25] }\n', "groups.SEX"),
            ('columns = ["SEX"]\ngroups = { SEX = [] }\n', "groups.SEX"),
            ('columns = ["SEX"]\ngroups = { SEX = "f" }\n', "groups.SEX"),
            ('columns = ["SEX"]\ngroups = ["f"]\n', "groups"),
            (AUDITED + "gate = { min_approval_ratio = 1.5 }\n", "gate.min_approval_ratio"),
            (AUDITED + "gate = { min_aproval_ratio = 0.8 }\n", "min_approval_ratio"),
            (AUDITED + "gate = 0.8\n", "gate"),
            ('columns = ["SEX"]\ngate = { max_tpr_gap = 0.1 }\n', "gate"),
            (AUDITED + "smallest_group = 0\n", "smallest_group"),
            (AUDITED + "smallest_group = 20.5\n", "smallest_group"),
            (AUDITED + "smallest_group = true\n", "smallest_group"),
            (AUDITED + "smalest_group = 20\n", "smallest_group"),
        ],
    )
    def test_what_cannot_be_audited_is_bad_input_that_names_the_key(self, section, words):
        with pytest.raises(BadInput, match=words):
            study(section)


class TestRecords:
    """A holder reads the columns that it has; the others are nobody's group."""

    ROWS = "INCOME,DELAY,BALANCE,HOUSE,bad{}\n5,1,0,own,0{}\n6,2,10,rent,1{}\n7,0,20,own,0{}\n"

    def load(self, folder, *cells):
        path = folder / "rows.csv"
        path.write_text(self.ROWS.format(*cells))
        with open_source(DataSource(kind="csv", path="rows.csv", directory=folder)) as source:
            return load_records(source, STUDY)

    def test_groups_are_read_and_are_no_input(self, tmp_path):
        found = self.load(tmp_path, ",SEX", ",f", ",", ",x")
        assert found.groups["SEX"].tolist() == [0, 3, 2]
        assert "SEX" not in found.columns
        assert "SEX" not in found.ignored

    def test_a_holder_without_the_column_counts_in_no_group(self, tmp_path):
        assert self.load(tmp_path, *[""] * 4).groups == {}


def test_groups_lie_side_by_side_in_the_audit():
    layout = AuditTally(study=STUDY, grid=GRID)
    assert (layout.groups(0).start, layout.groups(0).stop) == (40, 40 + 5 * 4)
    two = study('columns = ["SEX", "AGE"]\ngroups = { SEX = ["f", "m"], AGE = [40] }\n')
    wider = AuditTally(study=two, grid=GRID)
    assert (wider.groups(1).start, wider.groups(1).stop) == (60, 60 + 5 * 3)
    assert wider.size == 75 + len(GRID.features) + 1
    assert wider.sensitivity**2 == pytest.approx(layout.sensitivity**2 + 2)
