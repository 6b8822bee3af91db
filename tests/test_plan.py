"""The plan and the label: what a run costs, known before anything is spent, from public numbers only."""

import json
import math

import pytest
import typer
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from toy_study import FEATURES, GRID, LAST, TEXT, sizes
from typer.testing import CliRunner

from assay.models.fitting import default_rounds
from assay.models.label import (
    label_in_words,
    mechanism_of,
    privacy_label,
    privacy_target,
)
from assay.models.plan import plan, plan_run
from assay.models.study import parse_study
from assay.privacy.errors import BadInput, Refused


def study(trust="distributed", **privacy):
    """The toy study with other settings of its last table, [privacy]."""
    lines = [f"{name} = {value}" for name, value in privacy.items()]
    kept = [line for line in TEXT.splitlines() if not line.startswith(("trust", *privacy))]
    return parse_study("\n".join([*kept, f'trust = "{trust}"', *lines]) + "\n")


STUDY, LOCAL = study(), study("local")
WITHOUT_ROUNDS = [parse_study(s.text.replace("[training]\nrounds = 4\n", "")) for s in (STUDY, LOCAL)]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.text, encoding="utf-8")
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
        mu2 /= 0.9  # a tenth is for what the plan does not show: calibration and audit
        delta = GaussianPrivacyLoss(1 / math.sqrt(mu2)).get_delta_for_epsilon(2.0)
        assert delta <= 1e-6
        assert delta == pytest.approx(1e-6, rel=1e-3)

    def test_it_shows_the_public_shape(self):
        result = plan_run(STUDY, holders=3, rows=1000)
        assert (result["rounds"], result["cells"]) == (4, GRID.width)
        assert result["audited"] == sum(sizes()[-2:])
        assert result["sensitivity"] == 0.75 * math.sqrt(FEATURES + 1)
        one_noise = result["noise_multiplier"] * result["sensitivity"]
        # Three shares, of which two are enough: half as much variance again.
        assert result["noise_of_mean_gradient"] == pytest.approx(
            one_noise * math.sqrt(3 / 2) / 3000, rel=1e-3
        )
        local = plan_run(LOCAL, holders=3, rows=1000)
        assert local["noise_of_mean_gradient"] == pytest.approx(one_noise * math.sqrt(3) / 3000, rel=1e-3)

    @pytest.mark.parametrize(("holders", "rows"), [(3, 100), (3, 5_000), (10, 100_000)])
    def test_rounds_the_study_leaves_open_are_those_the_coordinator_would_choose(self, holders, rows):
        """Only where every holder adds its own noise does their number weigh."""
        for each, noises in zip(WITHOUT_ROUNDS, (1, holders), strict=True):
            wanted = default_rounds(epsilon=2.0, persons=holders * rows, holders=noises)
            assert plan_run(each, holders=holders, rows=rows)["rounds"] == wanted

    def test_more_persons_brighten_the_outlook(self):
        outlooks = [plan_run(LOCAL, holders=1, rows=rows)["outlook"] for rows in (1, 300, 1_000_000)]
        assert outlooks == ["hopeless", "weak", "good"]

    def test_a_person_known_to_several_holders_costs_noise(self):
        for trust, more in (("distributed", 4), ("local", 2)):
            alone, several = (
                plan_run(study(trust, holders_per_person=k), holders=4, rows=1000)["noise_multiplier"]
                for k in (1, 4)
            )
            assert several == pytest.approx(more * alone)

    @pytest.mark.parametrize(("holders", "tolerated"), [(1, 1), (2, 1), (3, 2), (10, 9)])
    def test_too_few_holders_for_a_sum_are_refused_with_the_way_out(self, holders, tolerated):
        with pytest.raises(Refused, match='trust = "local"') as caught:
            plan_run(study(tolerated=tolerated), holders=holders, rows=1000)
        assert caught.value.code == "holders"
        plan_run(LOCAL, holders=holders, rows=1000)

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
            plan_run(LOCAL, holders=holders, rows=rows)


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
        assert "epsilon 2 in each holder's ledger; epsilon 2.93 if secure aggregation fails" in done.stdout
        assert "as a sum over the holders" in done.stdout
        assert "plus noisy counts before and two audits of the result after" in done.stdout

    def test_a_bad_number_is_exit_code_2_and_one_line(self, run):
        done = run("--holders", "0")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("assay: --holders is 0; allowed: 1 to 10000")
        assert done.stderr.count("\n") == 1

    def test_too_few_holders_are_exit_code_3_and_one_line(self, run):
        done = run("--holders", "2")
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.startswith("assay: holders is 2; allowed: 3 to 1000")

    def test_a_missing_study_is_exit_code_2(self, run):
        assert run(study="none.toml").exit_code == 2

    def test_a_study_for_a_refused_purpose_is_exit_code_3(self, run, tmp_path):
        refused = TEXT.replace("consumer_credit", "social_scoring")
        (tmp_path / "refused.toml").write_text(refused, encoding="utf-8")
        done = run(study="refused.toml")
        assert (done.exit_code, done.stdout) == (3, "")


class TestLabel:
    def test_the_label_states_the_promise_its_unit_and_what_it_does_not_cover(self):
        label = privacy_label(STUDY, rounds=4, holders=5)
        assert (label["epsilon"], label["delta"], label["holders_per_person"]) == (2.0, 1e-6, 1)
        assert (label["trust"], label["holders"], label["tolerated"]) == ("distributed", 5, 1)
        assert 2.0 * (1 - 1e-6) <= label["epsilon_per_holder"] <= 2.0
        assert len(label["not_covered"]) >= 4
        json.dumps(label, allow_nan=False)

    @pytest.mark.parametrize("rounds", [1, 4, 60, 1000])
    @pytest.mark.parametrize("one", [STUDY, LOCAL], ids=["distributed", "local"])
    def test_its_releases_add_up_to_the_promise_by_an_independent_account(self, one, rounds):
        releases = privacy_label(one, rounds=rounds, holders=3)["releases"]
        mu2 = sum(each["times"] / each["noise_multiplier"] ** 2 for each in releases)
        assert [each["times"] for each in releases] == [1, rounds, 1, 1]
        assert GaussianPrivacyLoss(1 / math.sqrt(mu2)).get_delta_for_epsilon(2.0) <= 1e-6
        # The noise in units of the sum is the same promise, with what rounding adds.
        mu2 = sum(each["times"] * (each["sensitivity"] / each["noise_std"]) ** 2 for each in releases)
        assert GaussianPrivacyLoss(1 / math.sqrt(mu2)).get_delta_for_epsilon(2.0) <= 1e-6

    def test_it_describes_the_mechanisms_of_the_run(self):
        releases = privacy_label(STUDY, rounds=4, holders=5)["releases"]
        for number, words in zip((0, 1, 5, LAST), releases, strict=True):
            mechanism = mechanism_of(STUDY, GRID, number=number, rounds=4, contributors=4)
            assert (words["values"], words["noise_std"]) == (mechanism.size, mechanism.std)
            assert words["values"] == sizes()[number]
            assert words["sensitivity"] == mechanism.l2_clip_norm

    def test_a_release_alone_costs_less_than_the_run(self):
        for release in privacy_label(STUDY, rounds=4, holders=3)["releases"]:
            assert 0 < release["epsilon_alone"] < 2.0

    @pytest.mark.parametrize(
        ("holders", "tolerated", "shared"), [(3, 1, 1), (10, 1, 1), (10, 4, 1), (10, 1, 3)]
    )
    def test_what_is_left_if_aggregation_fails_by_an_independent_account(self, holders, tolerated, shared):
        """Every share alone, at every holder that knows the person: separate noise each time."""
        label = privacy_label(
            study(tolerated=tolerated, holders_per_person=shared), rounds=4, holders=holders
        )
        share = 1 / math.sqrt(holders - tolerated)  # of the noise of a sum
        mu2 = sum(each["times"] / (each["noise_multiplier"] * share) ** 2 for each in label["releases"])
        for name, times in (
            ("epsilon_if_aggregation_fails", shared),
            ("epsilon_per_holder_if_aggregation_fails", 1),
        ):
            delta = GaussianPrivacyLoss(1 / math.sqrt(times * mu2)).get_delta_for_epsilon(label[name])
            assert delta <= 1e-6
            assert delta == pytest.approx(1e-6, rel=1e-3)
        assert label["epsilon_if_aggregation_fails"] > label["epsilon"]

    def test_full_noise_has_nothing_left_over_to_state(self):
        label = privacy_label(LOCAL, rounds=4, holders=1)
        assert label["tolerated"] is None
        assert label["epsilon_if_aggregation_fails"] is None
        words = label_in_words(label)
        assert "nobody outside a holder needs to be trusted" in words
        assert "aggregation" not in words

    def test_a_person_known_to_four_holders_has_a_smaller_epsilon_at_each(self):
        for trust, most in (("local", 1.0), ("distributed", 0.5)):
            label = privacy_label(study(trust, holders_per_person=4), rounds=4, holders=5)
            assert label["epsilon"] == 2.0
            assert label["epsilon_per_holder"] < most

    def test_the_target_is_the_studys(self):
        target = privacy_target(STUDY)
        assert (target.epsilon, target.delta, target.trust) == (2.0, 1e-6, "distributed")
        assert privacy_target(LOCAL).trust == "local"

    def test_the_words_say_the_same_as_the_numbers(self):
        label = privacy_label(study(tolerated=2, holders_per_person=3), rounds=4, holders=7)
        words = label_in_words(label)
        for part in (
            "epsilon 2, delta 1e-06 for one person",
            "by a factor of at most 7.39, and by at most 1e-06 beyond that",
            "at most 3 of the holders",
            "Each of 7 holders adds a share",
            "up to 2 of the holders",
            f"keeps epsilon {label['epsilon_if_aggregation_fails']:.3g} at the same delta",
            f"epsilon {label['epsilon_per_holder_if_aggregation_fails']:.3g} for one known to a single",
            "once, ",
            "4 times, ",
            *(f"{size} whole numbers" for size in sizes()),
            "discrete Gaussian",
            "Not covered:",
            "under several names",
        ):
            assert part in words, part
        for release in label["releases"]:
            assert f"costs epsilon {release['epsilon_alone']:.3g}" in words

    def test_a_promise_beyond_words_is_put_in_numbers_alone(self):
        words = label_in_words(privacy_label(study(epsilon=900), rounds=4, holders=3))
        assert "factor" not in words
