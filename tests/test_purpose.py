"""What a score may be used for: one purpose, the declared contexts, and compliance on its own platform."""

from __future__ import annotations

import csv

import pytest
from federation_support import LOCAL, assay, assay_json
from typer.testing import CliRunner

from assay.models.study import parse_study
from assay.privacy.errors import BadInput, Refused
from assay.privacy.purpose import PACK, check_use
from assay.simulations.main import build

PLATFORMS = LOCAL.replace("rounds = 40", "rounds = 8").replace(
    "[training]",
    """\
[[features]]
name = "returned"
column = "returned"
component = "compliance"
kind = "integer"
domain = [0, 5]
platform = "bazaar"

[[features]]
name = "reported"
column = "reported"
component = "compliance"
kind = "integer"
domain = [0, 5]
platform = "forum"

[training]""",
)
HEADER = "amount,late,region,returned,reported,bad"


def use(context, contexts=("card_application", "limit_review"), purpose="consumer_credit"):
    return check_use(purpose, "consumer_credit", context=context, contexts=contexts)


class TestContexts:
    def test_a_declared_context_is_allowed(self):
        assert use("card_application") == use("limit_review") == use(None) == "consumer_credit"

    @pytest.mark.parametrize("context", ["loan", "card_applicatio", "Card_Application", "consumer_credit"])
    def test_a_context_that_was_not_declared_is_d03(self, context):
        with pytest.raises(Refused, match="'card_application' or 'limit_review'") as caught:
            use(context)
        assert (caught.value.code, caught.value.article) == ("D03", PACK.refusal("D03").article)
        assert context in caught.value.subject

    def test_where_nothing_was_declared_no_context_is_allowed(self):
        with pytest.raises(Refused, match="D03"):
            use("card_application", contexts=())

    def test_a_refused_use_is_refused_by_its_own_code_even_where_it_was_declared(self):
        with pytest.raises(Refused, match="D02"):
            use("travel-visa", contexts=("travel-visa",))

    def test_the_purpose_is_looked_at_first(self):
        with pytest.raises(Refused, match="D08"):
            use("loan", purpose="fraud_detection")

    @pytest.mark.parametrize("context", ["", "  ", 7, ["card_application"]])
    def test_a_context_that_is_no_word_is_bad_input(self, context):
        with pytest.raises(BadInput, match="contexts"):
            use(context)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("platforms")
    (folder / "study.toml").write_text(PLATFORMS)
    rows = [
        f"{i * 37 % 1000},{i % 7},{'north' if i % 2 else 'south'},{i % 6},{i % 5},{int(i % 6 > 3)}"
        for i in range(900)
    ]
    (folder / "records.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    made = assay_json(
        "simulate", folder / "study.toml", "--data", folder / "records.csv", "--out", folder / "out"
    )
    (folder / "without.csv").write_text("amount,late,region,reported\n100,1,north,2\n900,6,south,0\n")
    (folder / "with.csv").write_text(f"{HEADER}\n100,1,north,5,2,0\n900,6,south,0,0,1\n")
    return folder, made["bundle"]


class TestPlatforms:
    def test_only_a_compliance_feature_has_a_platform(self):
        parse_study(PLATFORMS)
        moved = PLATFORMS.replace('component = "compliance"', 'component = "spending"', 1)
        with pytest.raises(BadInput, match=r"s.toml:\d+: platform of feature returned is 'bazaar'"):
            parse_study(moved, "s.toml")

    @pytest.mark.parametrize("platform", ["7", '""', '" "', '["bazaar"]', '"a\\nb"'])
    def test_a_platform_that_is_no_word_is_bad_input(self, platform):
        with pytest.raises(BadInput, match="platform"):
            parse_study(PLATFORMS.replace('"bazaar"', platform))

    def scored(self, trained, name, *options):
        folder, bundle = trained
        target = folder / "scores.csv"
        result = assay_json(
            "model", "score", bundle, "--input", folder / name, "--output", target,
            "--purpose", "consumer_credit", *options,
        )  # fmt: skip
        with target.open(newline="") as file:
            return result, list(csv.DictReader(file))

    def test_compliance_of_another_platform_counts_as_if_its_column_were_not_there(self, trained):
        here, of_forum = self.scored(trained, "with.csv", "--platform", "forum")
        absent, without = self.scored(trained, "without.csv", "--platform", "forum")
        assert here["other_platform_columns"] == ["returned"]
        assert here["absent_columns"] == []
        assert (absent["other_platform_columns"], absent["absent_columns"]) == ([], ["returned"])
        assert of_forum == without

    def test_on_its_own_platform_it_counts(self, trained):
        bazaar, rows = self.scored(trained, "with.csv", "--platform", "bazaar")
        assert bazaar["other_platform_columns"] == ["reported"]
        assert rows != self.scored(trained, "with.csv", "--platform", "forum")[1]
        # 5 returns or none: another cell, other points.
        assert rows[0]["points_returned"] != rows[1]["points_returned"]

    @pytest.mark.parametrize("options", [(), ("--platform", "elsewhere")], ids=["none said", "a third one"])
    def test_elsewhere_no_compliance_of_a_platform_counts(self, trained, options):
        result, rows = self.scored(trained, "with.csv", *options)
        assert result["other_platform_columns"] == ["returned", "reported"]
        assert rows[0]["points_returned"] == rows[1]["points_returned"]

    def test_the_command_says_so_and_an_explanation_counts_the_same(self, trained):
        folder, bundle = trained
        arguments = ["model", "score", bundle, "--input", folder / "with.csv", "--output", folder / "s.csv",
                     "--purpose", "consumer_credit", "--context", "card"]  # fmt: skip
        done = CliRunner().invoke(build(), [str(argument) for argument in arguments])
        assert done.exit_code == 0
        assert "columns of another platform, treated as not there: returned, reported" in done.stderr
        for options in ((), ("--platform", "bazaar")):
            explained = assay_json("model", "explain", bundle, "--input", folder / "with.csv", *options)
            rows = self.scored(trained, "with.csv", *options)[1]
            assert str(explained["score"]) == rows[0]["score"]

    def test_a_file_with_nothing_that_counts_here_is_refused(self, trained):
        folder, bundle = trained
        (folder / "only.csv").write_text("returned\n3\n")
        message = assay(
            "model", "score", bundle, "--input", folder / "only.csv", "--output", folder / "s.csv",
            "--purpose", "consumer_credit", code=2,
        )  # fmt: skip
        assert "columns" in message
