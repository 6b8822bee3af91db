"""The plan and the label: what a run costs, known before anything is spent, from public numbers only."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from toy_study import FEATURES, GRID, LAST, TEXT, sizes
from typer.testing import CliRunner

from assay.models.fitting import default_rounds
from assay.models.forecast import BASE_RATES, CONSTANTS, Forecast
from assay.models.label import (
    label_in_words,
    mechanism_of,
    privacy_label,
    privacy_target,
)
from assay.models.plan import EPSILONS, forecast_of, plan, plan_run
from assay.models.study import parse_study, read_study
from assay.privacy.errors import BadInput, Refused
from assay.simulations.engine import with_trust
from assay.simulations.examples import example
from assay.simulations.population_read import read_parameters
from assay.simulations.population_study import study_text


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

    def test_json_has_all_keys(self, run):
        found = json.loads(run("--rows", "1000", "--base-rate", "0.1", "--json").stdout)
        assert set(found) == KEYS
        assert found["base_rate"] == 0.1

    def test_too_few_persons_are_a_warning_on_standard_error_and_exit_code_0(self, run):
        done = run("--rows", "40", "--epsilon", "0.1", "--epsilon", "3")
        assert done.exit_code == 0
        assert done.stderr.startswith(
            "warning: 120 persons are too few for epsilon 0.1: the noise is expected"
        )
        assert "toy: epsilon 0.1" in done.stdout
        assert "warning" not in done.stdout
        as_json = run("--rows", "40", "--epsilon", "0.1", "--json")
        assert (as_json.exit_code, as_json.stderr) == (0, "")
        assert [f"warning: {each}" for each in json.loads(as_json.stdout)["warnings"]] == (
            run("--rows", "40", "--epsilon", "0.1").stderr.splitlines()
        )

    def test_text_says_what_is_expected_what_is_needed_and_compares(self, run):
        lines = run("--rows", "1000", "--base-rate", "0.2").stdout.splitlines()
        expected = plan_run(STUDY, holders=3, rows=1000, base_rate=0.2)
        low, high = expected["expected_auroc_loss_range"]
        assert f"  AUROC lost        {expected['expected_auroc_loss']:.3f} expected" in lines[5]
        assert f"{low:.3f} to {high:.3f} likely, against no privacy (base rate 0.2)" in lines[5]
        assert f"{expected['persons_for_loss_001']:,} persons at this epsilon" in lines[6]
        assert lines[8].split() == ["epsilon", "rounds", "expected", "likely"]
        assert [line.split()[0] for line in lines[9:15]] == [f"{epsilon:g}" for epsilon in EPSILONS]
        assert "nobody says" in run("--rows", "1000").stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--rows", "0"), "--rows is 0; allowed: 1 to 10^12"),
            (("--epsilon", "nan"), "--epsilon is nan; allowed"),
            (("--epsilon", "0"), "--epsilon is 0.0; allowed"),
            (("--epsilon", "5000"), "--epsilon is 5000.0; allowed: above 0, at most 1000"),
            (("--base-rate", "0"), "--base-rate is 0.0; allowed: 1e-06 to 0.999999. It is the share"),
            (("--base-rate", "1"), "--base-rate is 1.0; allowed"),
            (("--base-rate", "nan"), "--base-rate is nan; allowed"),
            (("--holders", "10001"), "--holders is 10001; allowed: 1 to 10000"),
        ],
    )
    def test_what_is_out_of_range_is_one_line_that_says_what_is_allowed(self, run, arguments, words):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"assay: {words}")
        assert done.stderr.count("\n") == 1

    def test_the_installed_command_plans_the_example(self):
        command = [sys.executable, "-m", "assay.simulations.main", "privacy", "plan", str(EXAMPLE)]
        done = subprocess.run(
            [*command, "--rows", "8000", "--base-rate", "0.22", "--json"], capture_output=True, check=True
        )
        found = json.loads(done.stdout)
        assert set(found) == KEYS
        assert 0.0005 < found["expected_auroc_loss"] < 0.01
        assert found["warnings"] == []

    def test_a_missing_study_is_exit_code_2(self, run):
        assert run(study="none.toml").exit_code == 2

    def test_a_study_for_a_refused_purpose_is_exit_code_3(self, run, tmp_path):
        refused = TEXT.replace("consumer_credit", "social_scoring")
        (tmp_path / "refused.toml").write_text(refused, encoding="utf-8")
        done = run(study="refused.toml")
        assert (done.exit_code, done.stdout) == (3, "")


EXAMPLE = example("taiwan") / "study.toml"
TEXTS = {"taiwan": read_study(EXAMPLE).text}
TEXTS |= {outcome: study_text(read_parameters(), outcome) for outcome in ("credit", "fraud")}
RATES = {"taiwan": 0.218, "credit": 0.092, "fraud": 0.026}
# AUROC lost, means of one to four runs of one holder by benchmarks/planner.py: persons, epsilon, loss.
MEASURED = {
    "taiwan": [
        (1_000, 0.25, 0.122),
        (1_000, 1, 0.007),
        (3_000, 0.25, 0.059),
        (3_000, 0.5, 0.029),
        (10_000, 0.25, 0.022),
        (10_000, 1, 0.009),
        (24_000, 0.25, 0.009),
        (24_000, 1, 0.004),
        (24_000, 8, 0.0),
    ],
    "credit": [
        (1_000, 0.25, 0.045),
        (3_000, 0.5, 0.036),
        (10_000, 0.25, 0.029),
        (10_000, 1, 0.008),
        (30_000, 0.25, 0.017),
        (100_000, 1, 0.001),
    ],
    "fraud": [
        (3_000, 0.25, 0.102),
        (10_000, 0.25, 0.106),
        (10_000, 1, 0.028),
        (30_000, 0.25, 0.063),
        (100_000, 0.25, 0.011),
    ],
}
CASES = [(data, *case) for data, cases in MEASURED.items() for case in cases]
KEYS = {
    *("study", "epsilon", "delta", "trust", "holders", "rows", "rounds", "cells", "audited", "sensitivity"),
    *("noise_multiplier", "counts_noise_multiplier", "epsilon_per_holder", "epsilon_if_aggregation_fails"),
    *("noise_of_mean_gradient", "outlook", "persons", "base_rate", "expected_auroc_loss"),
    *("expected_auroc_loss_range", "persons_for_loss_001", "persons_for_loss_002", "epsilon_for_loss_001"),
    *("epsilon_for_loss_002", "by_epsilon", "warnings"),
}


def planned(data, persons, epsilon, base_rate=None, **changed):
    """The plan of one holder that has all persons."""
    one = parse_study(with_trust(TEXTS[data], "local"))
    return plan_run(
        one, holders=1, rows=persons, base_rate=base_rate or RATES[data], epsilons=[epsilon], **changed
    )


class TestForecast:
    @pytest.mark.parametrize(("data", "persons", "epsilon", "loss"), CASES)
    def test_what_was_measured_is_in_the_range_and_near_what_is_expected(self, data, persons, epsilon, loss):
        result = planned(data, persons, epsilon)
        low, high = result["expected_auroc_loss_range"]
        assert low <= loss <= high
        assert abs(math.sqrt(result["expected_auroc_loss"]) - math.sqrt(loss)) < 0.2

    def test_the_range_can_tell_what_epsilon_it_was(self):
        """Control: losses at epsilon .25 lie beyond what is foretold for epsilon 8."""
        for data, persons, epsilon, loss in CASES:
            if epsilon == 0.25 and 3_000 <= persons < 100_000:
                assert loss > planned(data, persons, 8)["expected_auroc_loss_range"][1]

    def test_over_all_that_was_measured_it_is_right_to_a_hundredth_or_so(self):
        errors = [planned(d, n, e)["expected_auroc_loss"] - loss for d, n, e, loss in CASES]
        assert np.mean(np.abs(errors)) < 0.02
        many = [error for error, (_, persons, _, _) in zip(errors, CASES, strict=True) if persons >= 10_000]
        assert np.mean(np.abs(many)) < 0.01

    @pytest.mark.parametrize("base_rate", [None, 0.02])
    @pytest.mark.parametrize("one", [STUDY, LOCAL], ids=["distributed", "local"])
    def test_neither_more_persons_nor_a_larger_epsilon_loses_more(self, one, base_rate):
        ends, losses = [], []
        epsilons = (0.01, 0.1, *EPSILONS, 30.0, 300.0)
        for rows in np.unique(np.geomspace(1, 1e9, 13).astype(int)).tolist():
            found = plan_run(one, holders=4, rows=rows, base_rate=base_rate, epsilons=epsilons)["by_epsilon"]
            losses.append([row["expected_auroc_loss"] for row in found])
            ends.append([row["expected_auroc_loss_range"][1] for row in found])
        for numbers in (np.array(losses), np.array(ends)):
            assert (np.diff(numbers, axis=0) <= 0).all()
            assert (np.diff(numbers, axis=1) <= 0).all()
        assert losses[0][0] > 0.25 > 0.001 > losses[-1][-1]

    def test_the_range_contains_what_is_expected(self):
        for rows in (1, 100, 10_000, 10**9):
            for row in plan_run(LOCAL, holders=2, rows=rows)["by_epsilon"]:
                low, high = row["expected_auroc_loss_range"]
                assert 0 <= low <= row["expected_auroc_loss"] <= high < 0.5

    def test_the_number_of_rounds_does_not_change_what_is_expected(self):
        """They share the budget, and average again. The noise of one of them does change."""
        few, many = (replace(LOCAL, training=replace(LOCAL.training, rounds=rounds)) for rounds in (15, 600))
        ours, theirs = (plan_run(each, holders=1, rows=1000) for each in (few, many))
        assert ours["expected_auroc_loss"] == theirs["expected_auroc_loss"]
        assert theirs["noise_of_mean_gradient"] == pytest.approx(
            ours["noise_of_mean_gradient"] * math.sqrt(40), rel=1e-3
        )

    @pytest.mark.parametrize("one", [STUDY, LOCAL], ids=["distributed", "local"])
    def test_its_noise_is_that_of_a_round_over_the_root_of_their_number(self, one):
        result, persons = plan_run(one, holders=5, rows=2000), 5 * 2000
        expected = result["noise_of_mean_gradient"] * persons / math.sqrt(result["rounds"])
        assert forecast_of(one, holders=5).noise == pytest.approx(expected, rel=3e-3)

    def test_separate_noises_cost_more_than_one_that_is_shared(self):
        shared, separate = (
            plan_run(one, holders=9, rows=1000)["expected_auroc_loss"] for one in (STUDY, LOCAL)
        )
        assert separate > 2 * shared

    def test_a_declared_pair_adds_cells_and_costs_noise(self):
        pair = '\n[[interactions]]\nfeatures = ["status_1", "status_2"]\n'
        without, paired = (
            plan_run(parse_study(TEXTS["taiwan"] + more), holders=3, rows=1000) for more in ("", pair)
        )
        assert paired["cells"] > without["cells"]
        assert paired["expected_auroc_loss"] > without["expected_auroc_loss"]

    def test_rare_outcomes_cost_more_and_an_unknown_rate_covers_them(self):
        rare, likely, common = (planned("taiwan", 5000, 1, base_rate=rate) for rate in BASE_RATES)
        losses = [each["expected_auroc_loss"] for each in (rare, likely, common)]
        assert losses[0] > 2 * losses[2]
        one = parse_study(with_trust(TEXTS["taiwan"], "local"))
        unknown = plan_run(one, holders=1, rows=5000, epsilons=[1])
        assert unknown["expected_auroc_loss"] == losses[1]
        assert unknown["expected_auroc_loss_range"] == [
            common["expected_auroc_loss_range"][0],
            rare["expected_auroc_loss_range"][1],
        ]

    @pytest.mark.parametrize(("data", "persons", "epsilon"), [("taiwan", 2000, 0.5), ("fraud", 10_000, 0.5)])
    @pytest.mark.parametrize(("key", "loss"), [("001", 0.01), ("002", 0.02)])
    def test_what_it_says_is_needed_is_enough_and_hardly_more(self, data, persons, epsilon, key, loss):
        result = planned(data, persons, epsilon)
        assert result["expected_auroc_loss"] > loss
        more, larger = result[f"persons_for_loss_{key}"], result[f"epsilon_for_loss_{key}"]
        assert more > persons
        assert larger > epsilon
        for needed, much_less in (
            (planned(data, more, epsilon), planned(data, int(more * 0.85), epsilon)),
            (planned(data, persons, larger), planned(data, persons, larger * 0.85)),
        ):
            assert needed["expected_auroc_loss"] <= loss < much_less["expected_auroc_loss"]

    def test_no_epsilon_is_named_where_none_would_do(self):
        result = plan_run(LOCAL, holders=1, rows=1)
        assert result["epsilon_for_loss_001"] is None
        assert result["persons_for_loss_001"] > 1

    def test_a_forecast_refuses_what_is_out_of_range(self):
        good = {"noise": 1.0, "cells": 10, "base_rate": 0.1, "constants": CONSTANTS}
        assert 0 < Forecast(**good).loss(1000) < 0.3
        for bad in ({"noise": 0.0}, {"noise": math.nan}, {"noise": math.inf}, {"cells": 0}):
            with pytest.raises(BadInput):
                Forecast(**{**good, **bad})


class TestWarnings:
    def test_a_hundred_people_at_a_tenth_are_warned_about_and_not_refused(self):
        result = planned("taiwan", 100, 0.1)
        assert result["outlook"] == "hopeless"
        assert "100 persons are too few for epsilon 0.1" in result["warnings"][0]
        assert f"{result['persons_for_loss_002']:,} persons" in result["warnings"][0]
        assert "for want of persons a model without privacy would lose" in result["warnings"][1]

    @pytest.mark.parametrize("data", TEXTS)
    @pytest.mark.parametrize("known", [True, False])
    def test_a_hundred_thousand_people_at_one_are_not(self, data, known):
        one = parse_study(with_trust(TEXTS[data], "local"))
        result = plan_run(
            one, holders=1, rows=100_000, epsilons=[1], base_rate=RATES[data] if known else None
        )
        assert (result["outlook"], result["warnings"]) == ("good", [])

    @pytest.mark.parametrize(("rows", "warned"), [(10_000, True), (40_000, False)])
    def test_a_loss_above_two_hundredths_is_warned_about_even_where_the_outlook_is_better(self, rows, warned):
        result = planned("fraud", rows, 0.5)
        assert result["outlook"] != "hopeless"
        assert (result["expected_auroc_loss"] > 0.02) == warned
        assert [each for each in result["warnings"] if "are too few for epsilon 0.5" in each] == (
            result["warnings"][:1] if warned else []
        )

    def test_a_run_too_short_to_be_foretold_is_said(self):
        short = replace(LOCAL, training=replace(LOCAL.training, rounds=4))
        assert "training.rounds is 4" in plan_run(short, holders=1, rows=10**6)["warnings"][-1]
        assert plan_run(WITHOUT_ROUNDS[1], holders=1, rows=10**6)["warnings"] == []

    def test_a_network_is_planned_and_the_forecast_says_whose_it_is(self):
        network = replace(LOCAL, training=replace(LOCAL.training, model="neural", rounds=30))
        result = plan_run(network, holders=1, rows=10**6)
        assert "of the scorecard, not of the network" in result["warnings"][-1]
        additive = plan_run(
            replace(LOCAL, training=replace(LOCAL.training, rounds=30)), holders=1, rows=10**6
        )
        assert result["expected_auroc_loss"] == additive["expected_auroc_loss"]


class TestEpsilons:
    def test_the_first_takes_the_place_of_the_studys_and_all_are_compared(self):
        result = plan_run(STUDY, holders=3, rows=1000, epsilons=[3.0, 0.7])
        assert result["epsilon"] == 3.0
        assert 3.0 * (1 - 1e-6) <= result["epsilon_per_holder"] <= 3.0
        assert [row["epsilon"] for row in result["by_epsilon"]] == sorted({*EPSILONS, 3.0, 0.7})

    def test_each_line_is_what_a_plan_of_its_own_says(self):
        result = plan_run(WITHOUT_ROUNDS[0], holders=3, rows=1000)
        assert [row["epsilon"] for row in result["by_epsilon"]] == list(EPSILONS)
        for row in result["by_epsilon"]:
            alone = plan_run(WITHOUT_ROUNDS[0], holders=3, rows=1000, epsilons=[row["epsilon"]])
            assert row == {name: alone[name] for name in row}

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 1001.0])
    def test_one_that_is_no_promise_is_refused(self, epsilon):
        with pytest.raises(BadInput, match=r"--epsilon is .*allowed"):
            plan_run(STUDY, holders=3, rows=1000, epsilons=[1.0, epsilon])

    @pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.1, math.nan, math.inf])
    def test_a_base_rate_that_is_none_is_refused(self, rate):
        with pytest.raises(BadInput, match=r"--base-rate is .*allowed"):
            plan_run(STUDY, holders=3, rows=1000, base_rate=rate)


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
