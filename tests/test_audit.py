"""What an audit says of a card: exact without noise, and with it inside intervals that hold what they say."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from toy_study import GRID, STUDY, TEXT, records

from assay.models import audit as audits
from assay.models import metrics
from assay.models.audit import Rate, audit_of, judged, near_means
from assay.models.fairness import Gate
from assay.models.scorecard import BANDS, Scorecard
from assay.models.study import parse_study
from assay.models.tally import AuditTally, ClippedTally
from assay.privacy.errors import BadInput

TALLY = AuditTally(study=STUDY, grid=GRID)
REPEATS = 300
# A statement of 95 % that holds in 93 % passes: normal approximations, and counts that are whole numbers.
FEWEST = int(stats.binom.ppf(1e-6, REPEATS, 0.93))


def true_card(study=STUDY):
    """A card near the risk that ``records`` are drawn with."""
    theta = np.zeros(GRID.width)
    income, delay, _, house = GRID.features
    theta[income.offset : income.offset + 8] = -0.4 * (np.linspace(0, 10, 8) - 5)
    theta[delay.offset : delay.offset + 5] = 0.8 * (np.arange(5) - 2)
    theta[house.offset + 1] = 0.7
    theta[GRID.size :] = -1.0
    return Scorecard.of(study, GRID, theta, np.ones(GRID.width))


CARD = true_card()


class World:
    """Persons, what the card makes of them, and the exact sum of their audit."""

    def __init__(self, rows, seed=0):
        self.data = records(rows, seed)
        encoded = GRID.encode(self.data.columns)
        self.scores, self.labels = CARD.score(encoded), self.data.labels
        self.exact = ClippedTally(TALLY, encoded, self.labels, None, self.data.groups)(CARD.theta)

    def of(self, group):
        return self.data.groups["SEX"] == group

    @property
    def approved(self):
        return self.scores.score >= STUDY.scale.threshold


@pytest.fixture(scope="module")
def large():
    return World(20_000)


@pytest.fixture(scope="module")
def small():
    return World(2_100)


@pytest.fixture(scope="module")
def found(large):
    """The audit of the large world, without noise."""
    return audit_of(TALLY, CARD, large.exact, 0.0)


@pytest.fixture(
    scope="module", params=[(2_100, 24.0), (2_100, 60.0), (20_000, 24.0), (20_000, 60.0)], ids=str
)
def drawn(request, small, large):
    """A world, and many audits of it with noise."""
    rows, noise = request.param
    world, rng = (small if rows == 2_100 else large), np.random.default_rng(7)
    noisy = (world.exact + rng.normal(0, noise, TALLY.size) for _ in range(REPEATS))
    return world, [audit_of(TALLY, CARD, each, noise) for each in noisy]


def groups_of(found):
    return {group["group"]: group for group in found["groups"][0]["groups"]}


class TestExact:
    """Without noise the figures are those of the persons."""

    def test_persons_and_bad_rate(self, large, found):
        assert found["persons"] == pytest.approx(20_000, rel=1e-5)
        assert found["bad_rate"]["value"] == pytest.approx(large.labels.mean(), abs=1e-5)
        assert found["cut_off"] == 600

    @pytest.mark.parametrize("rows", [2_100, 20_000, 100_000])
    def test_auroc_is_within_a_thousandth_though_scores_are_binned(self, rows):
        world = World(rows, seed=4)
        exact = metrics.auroc(world.labels, world.scores.probability)
        found = audit_of(TALLY, CARD, world.exact, 0.0)
        assert found["auroc"]["value"] == pytest.approx(exact, abs=0.0015)
        assert found["auroc"]["low"] < exact < found["auroc"]["high"]
        assert found["gini"]["value"] == pytest.approx(2 * found["auroc"]["value"] - 1)
        ks = metrics.ks(world.labels, world.scores.probability)
        assert found["ks"]["value"] == pytest.approx(ks, abs=0.02)
        assert found["ks"]["low"] < ks < found["ks"]["high"]

    def test_every_rate_of_a_group(self, large, found):
        for code, name in enumerate(("f", "m")):
            own, group = large.of(code), groups_of(found)[name]
            bad, approved = large.labels[own] == 1, large.approved[own]
            assert group["persons"] == pytest.approx(own.sum(), rel=1e-5)
            for rate, exact in {
                "approval_rate": approved.mean(),
                "tpr": approved[~bad].mean(),
                "fpr": approved[bad].mean(),
                "observed": bad.mean(),
                "predicted": large.scores.probability[own].mean(),
            }.items():
                assert group[rate]["value"] == pytest.approx(exact, abs=1e-4), rate

    def test_others_and_missing_are_shown_and_not_declared(self, found):
        declared = {name: group["declared"] for name, group in groups_of(found).items()}
        assert declared == {"f": True, "m": True, "other": False, "missing": False}

    def test_what_another_cut_off_would_mean(self, large, found):
        by_score = {row["score"]: row for row in found["cut_offs"]}
        assert by_score[350]["approval_rate"]["value"] == pytest.approx(1.0)
        for score in (600, 621, 501):
            approved = large.scores.score >= score
            row = by_score[score]
            assert row["approval_rate"]["value"] == pytest.approx(approved.mean(), abs=0.01)
            assert row["bad_rate"]["value"] == pytest.approx(large.labels[approved].mean(), abs=0.01)
        rates = [row["approval_rate"]["value"] for row in found["cut_offs"]]
        assert rates == sorted(rates, reverse=True)

    def test_bands_share_everybody_out(self, large, found):
        assert [band["band"] for band in found["bands"]] == [words for words, _ in BANDS]
        shares = [band["share"]["value"] for band in found["bands"]]
        assert sum(shares) == pytest.approx(1.0, abs=1e-6)
        exact = np.bincount(large.scores.band, minlength=5) / 20_000
        assert shares == pytest.approx(exact.tolist(), abs=0.012)

    def test_calibration_compares_what_is_said_with_what_came_true(self, large, found):
        assert found["calibration_error"] < 0.02
        for row in found["calibration"]:
            own = (large.scores.score >= row["from"]) & (large.scores.score <= row["to"])
            assert row["persons"] == pytest.approx(own.sum(), rel=1e-4)
            assert row["observed"]["value"] == pytest.approx(large.labels[own].mean(), abs=1e-3)
            assert row["predicted"] == pytest.approx(large.scores.probability[own].mean(), abs=0.05)

    def test_a_card_that_says_too_little_is_seen(self, large):
        """Outcomes that are all bad: nothing that was predicted came true."""
        worst = np.zeros(TALLY.size)
        worst[TALLY.scores][1::2] = large.exact[TALLY.scores][0::2] + large.exact[TALLY.scores][1::2]
        assert audit_of(TALLY, CARD, worst, 0.0)["calibration_error"] > 0.5

    def test_near_means_are_those_of_the_people_at_the_cut_off(self, large):
        near = (large.scores.score >= 600) & (large.scores.score < 640)
        found = near_means(TALLY, CARD, large.exact, 0.0)
        assert found == pytest.approx(large.scores.points[near].mean(axis=0), abs=0.05)


class TestCoverage:
    """Intervals of 95 % hold the exact figure of the same persons in 93 % of noisy sums at least.

    300 noisy sums each; an interval that holds in 93 % fails in one of a million runs (binomial). The exact
    figure is the persons', so that what an interval allows for who was sampled only adds.
    """

    @staticmethod
    def holds(rates, exact):
        return sum(rate["low"] <= exact <= rate["high"] for rate in rates)

    def test_auroc(self, drawn):
        world, audited = drawn
        exact = metrics.auroc(world.labels, world.scores.probability)
        assert self.holds([each["auroc"] for each in audited], exact) >= FEWEST

    def test_ks(self, drawn):
        world, audited = drawn
        exact = metrics.ks(world.labels, world.scores.probability)
        assert self.holds([each["ks"] for each in audited], exact) >= FEWEST

    def test_ks_of_those_who_are_sampled_holds_that_of_all(self):
        """300 samples of 2,100, little noise: 95 % intervals hold the distance of a quarter of a million."""
        all_, rng = World(250_000, seed=77), np.random.default_rng(7)
        exact = metrics.ks(all_.labels, all_.scores.probability)
        drawn = list(self.samples(all_, rng))
        audited = [audit_of(TALLY, CARD, one + rng.normal(0, 1.0, TALLY.size), 1.0)["ks"] for one in drawn]
        assert self.holds(audited, exact) >= FEWEST
        # Control: intervals that leave the sampling out of account hold it too seldom.
        narrow = [audit_of(TALLY, CARD, 50 * one, 0.0)["ks"] for one in drawn]
        assert self.holds(narrow, exact) < stats.binom.ppf(1e-6, REPEATS, 0.93)

    @staticmethod
    def samples(world, rng):
        """Sums of 2,100 persons drawn from a world: only the score bins are filled."""
        shares = world.exact[TALLY.scores] / world.exact[TALLY.scores].sum()
        for _ in range(REPEATS):
            drawn = np.zeros(TALLY.size)
            drawn[TALLY.scores] = rng.multinomial(2_100, shares)
            yield drawn

    def test_bad_rate(self, drawn):
        world, audited = drawn
        assert self.holds([each["bad_rate"] for each in audited], world.labels.mean()) >= FEWEST

    @pytest.mark.parametrize("rate", ["approval_rate", "tpr", "fpr", "predicted", "observed"])
    def test_rates_of_groups(self, drawn, rate):
        world, audited = drawn
        own = world.of(0)
        bad, approved = world.labels[own] == 1, world.approved[own]
        exact = {
            "approval_rate": approved.mean(),
            "tpr": approved[~bad].mean(),
            "fpr": approved[bad].mean(),
            "observed": bad.mean(),
            "predicted": world.scores.probability[own].mean(),
        }[rate]
        rates = [groups_of(each)["f"] for each in audited]
        known = [each[rate] for each in rates if not each["too_small"]]
        assert len(known) > 250
        assert self.holds(known, exact) >= FEWEST - (REPEATS - len(known))

    def test_cut_offs(self, drawn):
        world, audited = drawn
        approved = world.approved
        rows = [next(row for row in each["cut_offs"] if row["score"] == 600) for each in audited]
        assert self.holds([row["approval_rate"] for row in rows], approved.mean()) >= FEWEST
        assert self.holds([row["bad_rate"] for row in rows], world.labels[approved].mean()) >= FEWEST

    def test_control_intervals_that_leave_the_noise_out_hold_too_seldom(self, large):
        rng = np.random.default_rng(7)
        audited = [
            audit_of(TALLY, CARD, large.exact + rng.normal(0, 60.0, TALLY.size), 60.0 / 4) for _ in range(100)
        ]
        own = large.of(0)
        rates = [groups_of(each)["f"]["fpr"] for each in audited]
        exact = large.approved[own][large.labels[own] == 1].mean()
        assert self.holds(rates, exact) < stats.binom.ppf(1e-6, 100, 0.93)


class TestRate:
    def test_of_nobody_it_is_not_known(self):
        for whole in (0.0, -3.0, math.nan):
            rate = Rate.of(1.0, whole, cells=(1, 2), noise_std=1.0)
            assert rate.to_json() == {"value": None, "low": 0.0, "high": 1.0}

    @pytest.mark.parametrize(("part", "value"), [(-5.0, 0.0), (150.0, 1.0), (50.0, 0.5)])
    def test_it_is_a_share(self, part, value):
        rate = Rate.of(part, 100.0, cells=(1, 2), noise_std=3.0)
        assert rate.value == value
        assert 0 <= rate.low <= rate.value <= rate.high <= 1

    def test_more_noise_makes_it_wider_and_more_persons_narrower(self):
        def width(whole, noise):
            rate = Rate.of(whole / 4, whole, cells=(1, 2), noise_std=noise)
            return rate.high - rate.low

        assert width(1000, 0) < width(1000, 10) < width(1000, 50)
        assert width(100_000, 10) < width(10_000, 10) < width(1000, 10)

    def test_a_share_that_nobody_reached_is_not_certain(self):
        assert Rate.of(0.0, 100.0, cells=(1, 2), noise_std=0.0).high > 0.01


class TestSmallGroups:
    def test_a_group_below_the_limit_is_named_and_nothing_else_is_said_of_it(self, small):
        """About 105 others and as many missing; 200 are needed."""
        found = groups_of(audit_of(TALLY, CARD, small.exact, 0.0))
        assert not found["f"]["too_small"]
        assert set(found["other"]) == {"group", "declared", "persons", "too_small"}
        assert found["other"]["too_small"]

    def test_noise_can_make_a_group_too_small(self, small):
        """About 945 women: surely more than 200 with noise of 41, not with noise of 250."""
        for noise, small_ in ((41.0, False), (250.0, True)):
            assert groups_of(audit_of(TALLY, CARD, small.exact, noise))["f"]["too_small"] is small_

    def test_a_group_of_noise_alone_is_hardly_ever_large_enough(self):
        rng = np.random.default_rng(0)
        drawn = [
            groups_of(audit_of(TALLY, CARD, rng.normal(0, 300.0, TALLY.size), 300.0)) for _ in range(200)
        ]
        found = [group["too_small"] for each in drawn for group in each.values()]
        # A sum of four cells above its own 97.5 % point and 200 more: one in a hundred at most.
        assert sum(not small_ for small_ in found) <= stats.binom.isf(1e-6, len(found), 0.02)


def gated(**limits):
    """The toy study with a gate."""
    inner = ", ".join(f"{name} = {value}" for name, value in limits.items())
    groups = 'groups = { SEX = ["f", "m"] }\n'
    return parse_study(TEXT.replace(groups, groups + f"gate = {{ {inner} }}\n"))


def column(**groups):
    """What is known of groups: persons and rates; a group is (approval, tpr, fpr, predicted, observed)."""
    rows = [
        {
            "group": name,
            "declared": True,
            "persons": 1000.0,
            "too_small": False,
            **{
                key: {"value": value, "low": 0.0, "high": 1.0}
                for key, value in zip(
                    ("approval_rate", "tpr", "fpr", "predicted", "observed"), rates, strict=True
                )
            },
        }
        for name, rates in groups.items()
    ]
    return {"column": "SEX", "groups": rows}


FAIR = {"f": (0.5, 0.6, 0.2, 0.1, 0.1), "m": (0.5, 0.6, 0.2, 0.1, 0.1)}


class TestGates:
    @pytest.mark.parametrize(
        ("limits", "rates", "words"),
        [
            (
                {"min_approval_ratio": 0.8},
                (0.39, 0.6, 0.2, 0.1, 0.1),
                "SEX m: approval rate is 0.78 of the highest",
            ),
            ({"max_tpr_gap": 0.05}, (0.5, 0.54, 0.2, 0.1, 0.1), "SEX: TPR differs by 0.060 between groups"),
            ({"max_fpr_gap": 0.05}, (0.5, 0.6, 0.26, 0.1, 0.1), "SEX: FPR differs by 0.060 between groups"),
            (
                {"max_calibration_gap": 0.05},
                (0.5, 0.6, 0.2, 0.1, 0.16),
                "SEX m: predicted and observed bad rates",
            ),
        ],
        ids=["approval", "tpr", "fpr", "calibration"],
    )
    def test_each_limit_is_passed_at_it_and_failed_beyond_with_words(self, limits, rates, words):
        assert judged([column(**FAIR)], Gate(**limits)) == {"passed": True, "failures": [], "too_small": []}
        found = judged([column(f=FAIR["f"], m=rates)], Gate(**limits))
        assert found["passed"] is False
        assert len(found["failures"]) == 1
        assert found["failures"][0].startswith(words)
        assert "allowed: at " in found["failures"][0]
        assert judged([column(f=FAIR["f"], m=rates)], Gate())["passed"] is None

    @pytest.mark.parametrize(("limit", "place"), [("max_tpr_gap", 1), ("max_fpr_gap", 2)])
    def test_a_rate_of_nobody_is_not_passed(self, limit, place):
        rates = list(FAIR["m"])
        rates[place] = None
        found = judged([column(f=FAIR["f"], m=tuple(rates))], Gate(**{limit: 1.0}))
        assert found["passed"] is False
        assert found["failures"] == [f"SEX m: {limit[4:7].upper()} is not known: n too small"]

    def test_exactly_at_the_limit_is_inside(self):
        rates = (0.4, 0.5, 0.25, 0.1, 0.125)
        limits = {"min_approval_ratio": 0.8, "max_tpr_gap": 0.125, "max_fpr_gap": 0.0625}
        one = column(f=(0.5, 0.625, 0.3125, 0.1, 0.1), m=rates)
        assert judged([one], Gate(**limits))["passed"]

    def test_every_failure_of_every_column_is_told(self):
        unfair = column(f=FAIR["f"], m=(0.1, 0.1, 0.2, 0.1, 0.5))
        gate = Gate(min_approval_ratio=0.8, max_tpr_gap=0.1, max_calibration_gap=0.1)
        found = judged([unfair, {**unfair, "column": "AGE"}], gate)
        assert len(found["failures"]) == 6
        assert sum(words.startswith("AGE") for words in found["failures"]) == 3

    def test_a_declared_group_that_is_too_small_is_not_passed(self):
        one = column(**FAIR)
        one["groups"][1] = {"group": "m", "declared": True, "persons": 3.0, "too_small": True}
        found = judged([one], Gate(max_tpr_gap=0.5))
        assert found == {"passed": False, "failures": [], "too_small": ["SEX m: n too small"]}
        assert judged([one], Gate())["passed"] is None  # named all the same
        assert judged([one], Gate())["too_small"] == ["SEX m: n too small"]

    def test_others_and_missing_are_not_judged(self):
        one = column(**FAIR, other=(0.0, 0.0, 1.0, 0.0, 1.0))
        one["groups"][2]["declared"] = False
        one["groups"].append({"group": "missing", "declared": False, "persons": 3.0, "too_small": True})
        assert judged([one], Gate(min_approval_ratio=0.8))["passed"]

    def test_nobody_approved_is_no_reason_to_fail_and_no_error(self):
        nobody = (0.0, 0.0, 0.0, 0.1, 0.1)
        found = judged([column(f=nobody, m=nobody)], Gate(min_approval_ratio=0.8, max_tpr_gap=0.1))
        assert found["passed"] is False  # a ratio of nothing to nothing is not known to be enough

    def test_a_gate_of_the_study_is_held_against_its_own_audit(self, large):
        """Both groups are drawn alike: the widest limits hold and impossible ones do not."""
        fair = audit_of(AuditTally(study=gated(max_tpr_gap=0.1), grid=GRID), CARD, large.exact, 0.0)
        assert fair["fairness"]["passed"] is True
        strict = audit_of(AuditTally(study=gated(max_tpr_gap=0), grid=GRID), CARD, large.exact, 0.0)
        assert strict["fairness"]["passed"] is False


class TestNothingToSee:
    @pytest.mark.parametrize("noise", [0.0, 10.0])
    def test_an_empty_audit_knows_nothing_and_says_so(self, noise):
        found = audit_of(TALLY, CARD, np.zeros(TALLY.size), noise)
        assert found["auroc"] == {"value": None, "low": 0.0, "high": 1.0}
        assert (found["ks"]["value"], found["calibration_error"], found["calibration"]) == (None, None, [])
        assert found["persons"] == 0
        assert near_means(TALLY, CARD, np.zeros(TALLY.size), noise) is None

    def test_few_people_near_the_cut_off_are_no_baseline(self):
        noisy = np.zeros(TALLY.size)
        for count, noise, known in (
            (9.0, 0.0, False),
            (11.0, 0.0, True),
            (90.0, 30.0, False),
            (150.0, 30.0, True),
        ):
            noisy[TALLY.near] = count / 2
            noisy[TALLY.near.stop - 1] = count
            found = near_means(TALLY, CARD, noisy, noise)
            assert (found is not None) is known
        assert found == pytest.approx(TALLY.largest(CARD) / 2)

    def test_a_near_mean_is_within_the_points_that_there_are(self):
        noisy = np.zeros(TALLY.size)
        noisy[TALLY.near] = 1e6
        noisy[TALLY.near.stop - 1] = 100.0
        assert (near_means(TALLY, CARD, noisy, 1.0) == TALLY.largest(CARD)).all()

    @pytest.mark.parametrize(
        ("noisy", "noise"),
        [
            (np.zeros(TALLY.size - 1), 1.0),
            (np.full(TALLY.size, np.nan), 1.0),
            (np.full(TALLY.size, np.inf), 1.0),
            (np.zeros(TALLY.size), -1.0),
            (np.zeros(TALLY.size), np.nan),
        ],
    )
    def test_what_is_no_audit_is_refused(self, noisy, noise):
        with pytest.raises(BadInput, match="audit"):
            audit_of(TALLY, CARD, noisy, noise)

    def test_every_number_is_one_that_json_has(self, large):
        rng = np.random.default_rng(0)
        for noise in (0.0, 5.0, 500.0):
            found = audit_of(TALLY, CARD, large.exact + rng.normal(0, noise, TALLY.size), noise)
            assert all(math.isfinite(number) for number in numbers(found))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_scores_in_one_bin_are_ordered_as_the_scale_says():
    """A good person scores above a bad one of the same bin a little more often than half the time."""
    chance = audits._lower_of_two(TALLY)
    grown = 601 / 20 * math.log(2) / 40
    rng = np.random.default_rng(0)
    place = rng.random(400_000)
    bad = rng.random(400_000) < expit(-1.0 - grown * place)
    goods, bads = place[~bad], place[bad]
    pairs = min(len(goods), len(bads))
    assert 0.5 < chance < 0.56
    assert (goods[:pairs] > bads[:pairs]).mean() == pytest.approx(chance, abs=0.01)
