"""The plan and the label: what a run costs, known before anything is spent, from public numbers only."""

import json
import math

import pytest
import typer
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from toy_study import FEATURES, GRID, STUDY, TEXT
from typer.testing import CliRunner

from assay.models.fitting import default_rounds
from assay.models.label import label_in_words, privacy_label, privacy_target
from assay.models.plan import plan, plan_run
from assay.models.study import parse_study
from assay.privacy.errors import BadInput

WITHOUT_ROUNDS = parse_study(TEXT.replace("[training]\nrounds = 4\n", ""))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "study.toml").write_text(TEXT, encoding="utf-8")
    app = typer.Typer()
    app.command()(plan)

    def invoke(*arguments, study="study.toml"):
        return CliRunner().invoke(app, [str(tmp_path / study), *arguments])

    return invoke


class TestPlan:
    def test_the_cost_is_the_studys_epsilon_and_never_more(self):
        result = plan_run(STUDY, holders=3, rows=1000)
        assert 2.0 * (1 - 1e-6) <= result["epsilon_per_holder"] <= 2.0

    def test_the_noise_it_shows_keeps_the_promise_by_an_independent_account(self):
        result = plan_run(STUDY, holders=3, rows=1000)
        mu2 = result["counts_noise_multiplier"] ** -2 + result["rounds"] * result["noise_multiplier"] ** -2
        delta = GaussianPrivacyLoss(1 / math.sqrt(mu2)).get_delta_for_epsilon(2.0)
        assert delta <= 1e-6
        assert delta == pytest.approx(1e-6, rel=1e-3)

    def test_it_shows_the_public_shape(self):
        result = plan_run(STUDY, holders=3, rows=1000)
        assert (result["rounds"], result["cells"]) == (4, GRID.size)
        assert result["sensitivity"] == math.sqrt(FEATURES + 1)
        noise = result["noise_multiplier"] * result["sensitivity"] * math.sqrt(3) / 3000
        assert result["noise_of_mean_gradient"] == pytest.approx(noise)

    @pytest.mark.parametrize(("holders", "rows"), [(1, 100), (3, 5_000), (10, 100_000)])
    def test_rounds_the_study_leaves_open_are_those_the_coordinator_would_choose(self, holders, rows):
        wanted = default_rounds(epsilon=2.0, persons=holders * rows, holders=holders)
        assert plan_run(WITHOUT_ROUNDS, holders=holders, rows=rows)["rounds"] == wanted

    def test_more_persons_brighten_the_outlook(self):
        outlooks = [plan_run(STUDY, holders=1, rows=rows)["outlook"] for rows in (1, 1_000, 1_000_000)]
        assert outlooks == ["hopeless", "weak", "good"]

    def test_a_person_known_to_several_holders_costs_noise(self):
        shared = parse_study(TEXT + "holders_per_person = 4\n")
        alone, several = (plan_run(s, holders=4, rows=1000)["noise_multiplier"] for s in (STUDY, shared))
        assert several == pytest.approx(2 * alone)

    @pytest.mark.parametrize(
        ("holders", "rows", "setting"),
        [
            (0, 1, "--holders"),
            (-1, 1, "--holders"),
            (10_001, 1, "--holders"),
            (1, 0, "--rows"),
            (1, -5, "--rows"),
            (1, 10**12 + 1, "--rows"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, holders, rows, setting):
        with pytest.raises(BadInput, match=setting):
            plan_run(STUDY, holders=holders, rows=rows)


class TestCommand:
    def test_json_is_one_object_with_the_plan(self, run):
        done = run("--holders", "3", "--rows", "1000", "--json")
        assert (done.exit_code, done.stderr) == (0, "")
        assert json.loads(done.stdout) == plan_run(STUDY, holders=3, rows=1000)

    def test_text_says_noise_rounds_cost_and_outlook(self, run):
        done = run("--holders", "3", "--rows", "1000")
        assert done.exit_code == 0
        for words in ("toy: epsilon 2 at delta 1e-06", "3 holder(s)", "rounds            4", "good"):
            assert words in done.stdout
        assert "epsilon 2 in each holder's ledger" in done.stdout

    def test_a_bad_number_is_exit_code_2_and_one_line(self, run):
        done = run("--holders", "0")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("assay: --holders is 0; allowed: 1 to 10000")
        assert done.stderr.count("\n") == 1

    def test_a_missing_study_is_exit_code_2(self, run):
        assert run(study="none.toml").exit_code == 2

    def test_a_study_for_a_refused_purpose_is_exit_code_3(self, run, tmp_path):
        refused = TEXT.replace("consumer_credit", "social_scoring")
        (tmp_path / "refused.toml").write_text(refused, encoding="utf-8")
        done = run(study="refused.toml")
        assert (done.exit_code, done.stdout) == (3, "")


class TestLabel:
    def test_the_label_states_the_promise_its_unit_and_what_it_does_not_cover(self):
        label = privacy_label(STUDY, rounds=4)
        assert (label["epsilon"], label["delta"], label["holders_per_person"]) == (2.0, 1e-6, 1)
        assert label["trust"] == "local"
        assert 2.0 * (1 - 1e-6) <= label["epsilon_per_holder"] <= 2.0
        assert len(label["not_covered"]) >= 4
        json.dumps(label, allow_nan=False)

    @pytest.mark.parametrize("rounds", [1, 4, 60, 1000])
    def test_its_releases_add_up_to_the_promise_by_an_independent_account(self, rounds):
        releases = privacy_label(STUDY, rounds=rounds)["releases"]
        mu2 = sum(each["times"] / each["noise_multiplier"] ** 2 for each in releases)
        assert sum(each["times"] for each in releases) == rounds + 1
        assert GaussianPrivacyLoss(1 / math.sqrt(mu2)).get_delta_for_epsilon(2.0) <= 1e-6

    def test_a_release_alone_costs_less_than_the_run(self):
        for release in privacy_label(STUDY, rounds=4)["releases"]:
            assert 0 < release["epsilon_alone"] < 2.0

    def test_a_person_known_to_four_holders_has_a_smaller_epsilon_at_each(self):
        label = privacy_label(parse_study(TEXT + "holders_per_person = 4\n"), rounds=4)
        assert label["epsilon"] == 2.0
        assert label["epsilon_per_holder"] < 1.0

    def test_the_target_is_the_studys(self):
        target = privacy_target(STUDY)
        assert (target.epsilon, target.delta, target.trust) == (2.0, 1e-6, "local")

    def test_the_words_say_the_same_as_the_numbers(self):
        words = label_in_words(privacy_label(STUDY, rounds=4))
        for part in ("epsilon 2, delta 1e-06", "4 time(s)", "at most 1 holder(s)", "Not covered"):
            assert part in words
