"""The privacy promise, measured on the path that live releases take: holder, noise, masks, sum.

Nothing here asks the code what it believes. The holders are real, so is the coordinator's tally, and what is
measured is the unmasked integers. Statistical tests name their false-alarm rate.
"""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from proof_support import RUN, Coordinator, study_text
from scipy import stats
from scipy.optimize import brentq

from assay.client.records import Records
from assay.models.additive import MAX_LOG_ODDS
from assay.models.label import mechanism_of, privacy_label
from assay.models.tally import AuditTally
from assay.privacy import mechanism
from assay.privacy.errors import BadInput
from assay.privacy.ledger import Ledger, Limits
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.messages import (
    MaskRequest,
)

NAMES = ("east", "north", "south", "west")
TOLERATED = 1
LIMITS = Limits(epsilon_per_study=1000, epsilon_per_year=1000, delta=1e-6)


@pytest.fixture
def no_noise(monkeypatch):
    """Inside a test, and only there, no noise is added."""
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))


def held(columns, labels, persons=None, groups=None):
    """Records of the studies made by ``study_text``: one array of values per feature."""
    named = {f"F{i}": np.asarray(values, dtype=np.float64) for i, values in enumerate(columns)}
    codes = None if persons is None else np.asarray(persons, dtype=np.int64)
    audited = {} if groups is None else {"GROUP": np.asarray(groups, dtype=np.int64)}
    labels = np.asarray(labels, dtype=np.float64)
    return Records(columns=named, labels=labels, persons=codes, groups=audited)


class TestNullNoise:
    """T1: with a gradient of exactly zero, the unmasked sum is the noise and nothing else."""

    ROUNDS = 20
    TEXT = study_text(features=2, values=256, rounds=ROUNDS)

    def noise(self, folder, missing=()):
        """Return the sums of 20 rounds at a model for which every label is certain, ``[rounds, values]``."""
        sure = {name: held([[1.0], [2.0]], [1.0]) for name in NAMES}
        coordinator = Coordinator(folder, self.TEXT, sure).accept()
        theta = np.zeros(coordinator.grid.width)
        theta[-1] = MAX_LOG_ODDS  # certainly bad, as all of them are: residuals are exactly 0
        sums = [
            coordinator.sum(number, rounds=self.ROUNDS, theta=theta, missing=missing)
            for number in range(1, self.ROUNDS + 1)
        ]
        return coordinator, np.stack(sums)

    def promised(self, coordinator):
        """Return the variance in grid units that the label's noise multiplier stands for."""
        release = mechanism_of(coordinator.study, coordinator.grid, number=1, rounds=self.ROUNDS)
        return (release.noise_multiplier * release.sensitivity_units) ** 2

    @pytest.mark.parametrize("missing", [(), ("west",)])
    def test_the_sum_has_the_promised_variance_and_rounds_are_independent(self, tmp_path, missing):
        """False alarm: 1e-6 for the variance, 2e-7 for the correlation; 10,300 values, 7 % would be seen."""
        coordinator, noise = self.noise(tmp_path, missing)
        # Three shares make up the whole noise of four holders; where none is missing there is a third more.
        shares = (len(NAMES) - len(missing)) / (len(NAMES) - TOLERATED)
        assert_variance(noise, self.promised(coordinator) * shares)
        assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 5.2 / math.sqrt(noise[1:].size)

    def test_every_holder_adds_its_own_share(self, tmp_path, monkeypatch):
        """False alarm: 4e-6 for the variances, 1e-6 for the correlations."""
        kept = []

        def spy(ledger, *, run, round, payload):  # noqa: A002
            kept.append((round, ledger, np.frombuffer(payload, dtype="<i8")))
            return release(ledger, run=run, round=round, payload=payload)

        release = Ledger.release
        monkeypatch.setattr(Ledger, "release", spy)
        coordinator, total = self.noise(tmp_path)
        own = {
            name: np.stack([values for _, ledger, values in kept if ledger is coordinator.ledgers[name]])
            for name in NAMES
        }
        assert np.array_equal(sum(own.values()), total)
        for values in own.values():
            assert_variance(values, self.promised(coordinator) / (len(NAMES) - TOLERATED))
        between = np.corrcoef([values.ravel() for values in own.values()])
        assert np.abs(between - np.eye(len(NAMES))).max() < 5.4 / math.sqrt(total.size)

    def test_control_noise_that_is_halved_fails_it(self, tmp_path):
        coordinator, noise = self.noise(tmp_path)
        with pytest.raises(AssertionError):
            assert_variance(noise // 2, self.promised(coordinator) * len(NAMES) / (len(NAMES) - TOLERATED))


@pytest.fixture(scope="class")
def tallied(tmp_path_factory):
    """Calibrations and audits of pairs of runs on equal records, each less the other: twice the noise."""
    folder, found = tmp_path_factory.mktemp("tallies"), {1: [], 2: []}
    for pair in range(TestNoiseOfTallies.PAIRS):
        one, other = (TestNoiseOfTallies.sums(folder / f"{pair}{side}") for side in ("a", "b"))
        for after, differences in found.items():
            differences.append((one[after] - other[after]) / math.sqrt(2))
    return {after: np.stack(differences) for after, differences in found.items()}


@pytest.mark.parametrize("after", [1, 2], ids=["calibration", "audit"])
class TestNoiseOfTallies:
    """T1 for calibration and audit, which nobody can make zero: equal records twice, and what differs.

    False alarm: 1e-6 for the variance, 2e-7 for the correlation of neighbours. Of 640 values in calibrations
    and 2,416 in audits, 30 % and 15 % of the variance would be seen.
    """

    ROUNDS, PAIRS = 3, 8
    TEXT = study_text(features=100, values=2, rounds=ROUNDS, groups=30)

    @classmethod
    def sums(cls, folder):
        """Return calibration and audit of a run, in promised standard deviations."""
        rows, found = np.arange(40), {}
        data = {name: held([rows % 2] * 100, rows % 3 == 0, groups=rows % 32) for name in NAMES}
        coordinator = Coordinator(folder, cls.TEXT, data).accept()
        for after in (1, 2):
            number = cls.ROUNDS + after
            release = mechanism_of(coordinator.study, coordinator.grid, number=number, rounds=cls.ROUNDS)
            # Three shares make up the whole noise of four holders; as none is missing there is a third more.
            shares = math.sqrt(len(NAMES) / (len(NAMES) - TOLERATED))
            std = release.noise_multiplier * release.sensitivity_units * shares
            found[after] = coordinator.sum(number, rounds=cls.ROUNDS).astype(np.float64) / std
        return found

    def test_the_sum_has_the_promised_variance(self, tallied, after):
        noise = tallied[after]
        assert_variance(noise, 1.0)
        between = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
        assert abs(between) < 5.2 / math.sqrt(noise.size)

    @pytest.mark.parametrize("part", [0.5, 0.8])
    def test_control_less_of_it_fails_it(self, tallied, after, part):
        with pytest.raises(AssertionError):
            assert_variance(tallied[after] * part, 1.0)

    def test_control_without_noise_equal_records_give_equal_sums(self, tmp_path, no_noise, after):
        one, other = (self.sums(tmp_path / side) for side in ("a", "b"))
        assert np.array_equal(one[after], other[after])


def assert_variance(noise, variance):
    """Chi-square test of mean 0 and this variance; false alarm 1e-6."""
    statistic = float((noise.astype(np.float64) ** 2).sum() / variance)
    p = 2 * min(stats.chi2.cdf(statistic, noise.size), stats.chi2.sf(statistic, noise.size))
    assert p > 1e-6, f"variance is {statistic / noise.size:.4f} of the promised one"


class TestSensitivity:
    """T2: with the noise off, no person moves the unmasked integers by more than the noise is made for."""

    FEATURES, PAIRS, VALUES, ROUNDS = 3, 2, 8, 4
    TEXT = study_text(features=FEATURES, values=VALUES, person=True, groups=3, pairs=PAIRS)
    BASE = 12
    ALIKE, DIFFERENT = [[4, 4, 4]] * 50, [[i % 8, i // 8, (3 * i) % 8] for i in range(50)]
    # Rows, labels and groups of one person: 0 to 2 are declared, 3 is another, 4 is none.
    NEWCOMERS = (
        ([[1, 2, 3]], [0], [0]),
        ([[np.nan] * 3], [0], [4]),  # every cell missing
        ([[1e308, -1e308, 1e15]], [1], [3]),  # far outside the domain
        (ALIKE, [0] * 50, [1] * 50),
        (ALIKE, [1] * 50, [2] * 50),
        (ALIKE, [1] * 50, [i % 5 for i in range(50)]),  # in every group
        (DIFFERENT, [i % 2 for i in range(50)], [i % 5 for i in range(50)]),
        ([[0, 0, 0]] * 50, [1] * 50, [0] * 50),  # copies of another person's row
    )

    def sums(self, folder, extra=None, cards=2):
        """Return counts, two gradients, calibrations and audits, with one more person in the east or not."""
        rows = [[i % 8, i % 5, i % 3] for i in range(self.BASE)]
        labels, persons = [i % 2 for i in range(self.BASE)], list(range(self.BASE))
        groups, found = [i % 5 for i in range(self.BASE)], []
        # A run has one calibration and one audit; each of the cards is looked at in a run of its own.
        for card in range(cards):
            data = {}
            for name in NAMES[:3]:
                more = extra if extra is not None and name == "east" else ([], [], [])
                data[name] = held(
                    np.array([*rows, *more[0]], dtype=np.float64).T,
                    [*labels, *more[1]],
                    [*persons, *[self.BASE] * len(more[1])],
                    [*groups, *more[2]],
                )
            coordinator = Coordinator(folder / str(card), self.TEXT, data, person="PERSON").accept()
            near, sure = self.models(coordinator.grid)
            asked = [(0, None), (1, -sure), (2, sure)] if not card else []
            asked += [(number, (near, sure)[card]) for number in (self.ROUNDS + 1, self.ROUNDS + 2)]
            found += [(n, coordinator.sum(n, rounds=self.ROUNDS, theta=theta)) for n, theta in asked]
        return coordinator, found

    def models(self, grid):
        """Models that are hard on the bounds.

        For the near block: everybody at the cut-off with points of every feature and pair at their largest.
        And everybody certainly bad, or its opposite: residuals and chances of 1.
        """
        factor, near, sure = 40 / math.log(2), np.zeros(grid.width), np.zeros(grid.width)
        near[: grid.size] = -50 / factor
        near[-1] = math.log(1 / 30) + (650 - 600 + 50 * (self.FEATURES + self.PAIRS)) / factor
        sure[-1] = 100.0
        return near, sure

    def test_no_person_moves_a_sum_by_more_than_its_sensitivity(self, tmp_path, no_noise):
        coordinator, without = self.sums(tmp_path / "without")
        most = dict.fromkeys((0, 1, 2, 5, 6), 0.0)
        for number, newcomer in enumerate(self.NEWCOMERS):
            _, together = self.sums(tmp_path / str(number), newcomer)
            for (n, a), (_, b) in zip(without, together, strict=True):
                most[n] = max(most[n], math.sqrt(sum(int(x) ** 2 for x in b - a)))
        allowed = {
            n: mechanism_of(
                coordinator.study, coordinator.grid, number=n, rounds=self.ROUNDS
            ).sensitivity_units
            for n in most
        }
        assert all(most[n] <= allowed[n] for n in most), (most, allowed)
        # The newcomers are adversarial enough: some of them uses the bound up.
        assert all(most[n] >= 0.99 * allowed[n] for n in most), (most, allowed)

    def test_a_person_counts_in_its_own_group_alone(self, tmp_path, no_noise):
        coordinator, without = self.sums(tmp_path / "without", cards=1)
        layout = AuditTally(study=coordinator.study, grid=coordinator.grid)
        for group in range(5):
            _, together = self.sums(tmp_path / str(group), ([[4, 4, 4]], [1], [group]), cards=1)
            moved = (together[-1][1] - without[-1][1])[layout.groups(0)].reshape(5, 5)
            assert moved[group].any()
            assert not np.delete(moved, group, axis=0).any()

    def test_rounding_to_the_grid_is_inside_the_sensitivity(self, no_noise):
        """The worst case: in every coordinate the person is just enough to reach the next grid point."""
        size = 4096
        release = IntegerMechanism(l2_clip_norm=1.00005, noise_multiplier=1e6, size=size)
        in_units = release.l2_clip_norm / release.unit / math.sqrt(size)
        person = np.full(size, (math.floor(in_units - 0.02) + 0.02) * release.unit)
        before = np.full(size, 0.49 * release.unit)
        moved = np.linalg.norm(release.noisy(before + person) - release.noisy(before))
        assert np.linalg.norm(person) <= release.l2_clip_norm
        assert release.l2_clip_norm / release.unit < moved <= release.sensitivity_units

    @pytest.mark.parametrize("cell", [np.inf, -np.inf])
    def test_an_infinite_cell_never_reaches_a_sum(self, cell):
        with pytest.raises(BadInput):
            held([[cell], [0.0], [0.0]], [0.0])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_model_that_is_not_finite_is_no_question(self, bad):
        with pytest.raises(BadInput, match="theta"):
            MaskRequest(run=RUN, session=0, round=1, rounds=4, active=["east"], theta=np.array([0.0, bad]))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_sum_that_is_not_finite_is_refused_whole(self, bad):
        release = IntegerMechanism(l2_clip_norm=1.0, noise_multiplier=1.0, size=2)
        with pytest.raises(BadInput):
            release.noisy(np.array([0.0, bad]))


class TestParticipation:
    """T3: every person is in every sum exactly once. Each has its own cell, so that no two can cancel."""

    EACH = 60
    TEXT = study_text(features=1, values=4 * EACH, rounds=3, groups=4)

    def federation(self, folder):
        own = {name: np.arange(i * self.EACH, (i + 1) * self.EACH) for i, name in enumerate(NAMES)}
        data = {
            name: held([cells], np.zeros(self.EACH), groups=np.full(self.EACH, i))
            for i, (name, cells) in enumerate(own.items())
        }
        return Coordinator(folder, self.TEXT, data).accept(), own

    def test_everybody_is_in_every_sum_once_and_the_missing_not_at_all(self, tmp_path, no_noise):
        coordinator, own = self.federation(tmp_path)
        grid, study = coordinator.grid, coordinator.study
        counts, gradient = (mechanism_of(study, grid, number=number, rounds=3).unit for number in (0, 1))
        for number, missing, unit, each in (
            (0, (), counts, 1.0),
            (1, (), gradient, 0.5),  # at zero everybody's residual is one half
            (2, ("north",), gradient, 0.5),
            (3, ("west",), gradient, 0.5),
        ):
            total = coordinator.sum(number, rounds=3, missing=missing)[: grid.size] * unit
            expected = np.zeros(grid.size)
            for name in set(NAMES) - set(missing):
                expected[own[name]] = each
            assert np.abs(total - expected).max() < 1e-4, number

    @pytest.mark.parametrize("missing", [(), ("north",)])
    def test_everybody_is_in_calibration_and_audit_once(self, tmp_path, no_noise, missing):
        """Each holder's persons are a group of their own."""
        coordinator, _ = self.federation(tmp_path)
        there, layout = len(NAMES) - len(missing), AuditTally(study=coordinator.study, grid=coordinator.grid)
        calibration, audit = (
            coordinator.sum(number, rounds=3, missing=missing)
            * mechanism_of(coordinator.study, coordinator.grid, number=number, rounds=3).unit
            for number in (4, 5)
        )
        by_group = audit[layout.groups(0)].reshape(6, 5)
        expected = [0 if name in missing else self.EACH for name in NAMES] + [0, 0]
        assert by_group[:, :4].sum(axis=1) == pytest.approx(expected, abs=1e-3)
        assert by_group[:, 4] == pytest.approx(
            [each / 2 for each in expected], abs=0.5
        )  # chances of one half
        for total in (calibration, audit[layout.scores]):
            assert total.sum() == pytest.approx(there * self.EACH, abs=1e-2)
            assert total.max() == pytest.approx(there * self.EACH, abs=1e-2)  # all in one bin, all good


class TestCanaries:
    """T4: persons who use the clip norm up, each on two cells of its own, show how much really leaves."""

    CANARIES, ROUNDS, EPSILON = 1024, 20, 8.0
    TEXT = study_text(features=8, values=256, epsilon=EPSILON, rounds=ROUNDS, person=True)
    REPEATS = 16

    def measured(self, folder):
        """Return the estimate of mu and its 1 - 1e-6 confidence bounds, as (low, estimate, high).

        The fourth holder never answers: three shares are the least noise that a sum may have.
        """
        rng = np.random.default_rng(6)
        inside = rng.random(self.CANARIES) < 0.5
        data = {name: self.canaries(np.flatnonzero(inside)[i::3]) for i, name in enumerate(NAMES[:3])}
        data[NAMES[3]] = self.canaries(np.array([0]))
        coordinator = Coordinator(folder, self.TEXT, data, person="PERSON").accept()
        total = sum(
            coordinator.sum(number, rounds=self.ROUNDS, missing=NAMES[3:]).astype(np.float64)
            for number in range(1, self.ROUNDS + 1)
        )
        first, second = self.cells(coordinator.grid, np.arange(self.CANARIES))
        return mu_between((total[first] - total[second]) / math.sqrt(2), inside)

    def canaries(self, chosen):
        """Rows of label 0 in one cell and of label 1 in another: r * (e_a - e_b), far above the clip norm."""
        rows = np.full((len(chosen), 2, self.REPEATS, 8), np.nan)
        for i, canary in enumerate(chosen):
            rows[i, :, :, canary // 128] = np.array([[2 * (canary % 128)], [2 * (canary % 128) + 1]])
        labels = np.broadcast_to(np.array([[0.0], [1.0]]), rows.shape[:3])
        persons = np.repeat(np.arange(len(chosen)), 2 * self.REPEATS)
        return held(rows.reshape(-1, 8).T, labels.ravel(), persons)

    def cells(self, grid, canaries):
        first = grid.offsets[canaries // 128] + 2 * (canaries % 128)
        return first, first + 1

    def test_the_measured_mu_respects_the_claim_and_comes_close_to_it(self, tmp_path):
        """False alarm: 2e-6. An audit that sees much less than is spent has gone blind: that fails it too."""
        low, estimate, high = self.measured(tmp_path)
        claim = math.sqrt(0.85) * mu_at(self.EPSILON, 1e-6)  # 85 % of mu^2 are for the gradients
        assert low <= claim <= high, f"mu is {estimate:.3f}, {low:.3f} to {high:.3f}; claimed: {claim:.3f}"


def mu_between(scores, inside):
    """Estimate mu between two Gaussian samples of equal variance; bounds at 1 - 1e-6, one-sided each."""
    with_, without = scores[inside], scores[~inside]
    pooled = math.sqrt(
        (with_.var(ddof=1) * (with_.size - 1) + without.var(ddof=1) * (without.size - 1)) / (scores.size - 2)
    )
    mu = (with_.mean() - without.mean()) / pooled
    error = stats.norm.isf(1e-6) * math.sqrt(1 / with_.size + 1 / without.size + mu**2 / (2 * scores.size))
    return mu - error, mu, mu + error


def delta_at(mu, epsilon):
    """Balle & Wang 2018, theorem 8, written down a second time and without care for rounding."""
    above, below = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return stats.norm.cdf(above) - math.exp(epsilon) * stats.norm.cdf(below)


def epsilon_at(mu, delta):
    return brentq(lambda epsilon: delta_at(mu, epsilon) - delta, 0, 100, xtol=1e-12)


def mu_at(epsilon, delta):
    return brentq(lambda mu: delta_at(mu, epsilon) - delta, 1e-3, 20, xtol=1e-12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A coordinator after a run of five gradient rounds, and the label of what it trained."""
    data = {name: held([[1, 2], [3, 0]], [0, 1], groups=[0, 2]) for name in NAMES}
    text = study_text(features=2, values=4, epsilon=1.0, rounds=5, groups=2)
    coordinator = Coordinator(tmp_path_factory.mktemp("run"), text, data).accept()
    for number in range(8):
        coordinator.sum(number, rounds=5)
    return coordinator, privacy_label(coordinator.study, rounds=5, holders=len(NAMES))


class TestTranscript:
    """T5: what the ledgers say was released adds up to the label, by two accountants that are not ours."""

    def charges(self, coordinator, name):
        entries = coordinator.ledgers[name].summary(LIMITS).entries
        return [entry for entry in entries if entry["kind"] == "charge"]

    def test_every_release_is_charged_once_and_only_what_is_charged_is_released(self, finished):
        coordinator, _ = finished
        for name in NAMES:
            entries = coordinator.ledgers[name].summary(LIMITS).entries
            for kind in ("charge", "release", "open"):
                assert [entry["round"] for entry in entries if entry["kind"] == kind] == [*range(8)], kind
            for number in (3, 6, 7):
                order = [entry["kind"] for entry in entries if entry["round"] == number]
                assert order == ["charge", "release", "open"]

    def test_the_label_is_what_the_transcript_costs_and_never_less(self, finished):
        coordinator, label = finished
        for name in NAMES:
            charges = self.charges(coordinator, name)
            mu = math.sqrt(sum(entry["steps"] / entry["noise_multiplier"] ** 2 for entry in charges))
            epsilon = epsilon_at(mu, label["delta"])
            assert label["epsilon"] * (1 - 1e-3) <= epsilon <= label["epsilon"] * (1 + 1e-9)

    def test_an_accountant_of_another_house_agrees(self, finished):
        coordinator, label = finished
        accountant = PLDAccountant(value_discretization_interval=1e-4)
        for entry in self.charges(coordinator, "east"):
            accountant.compose(
                SelfComposedDpEvent(GaussianDpEvent(entry["noise_multiplier"]), entry["steps"])
            )
        # PLD rounds up, here by under 0.1 %.
        assert accountant.get_epsilon(label["delta"]) == pytest.approx(label["epsilon"], rel=2e-3)

    def test_each_kind_of_release_costs_its_share(self, finished):
        coordinator, label = finished
        whole = mu_at(label["epsilon"], label["delta"]) ** 2
        shares = [0.05, *[0.85 / 5] * 5, 0.03, 0.07]
        for entry, share in zip(self.charges(coordinator, "east"), shares, strict=True):
            assert entry["noise_multiplier"] ** -2 == pytest.approx(share * whole, rel=1e-6)

    def test_the_noise_is_a_multiple_of_what_one_person_can_do(self, finished):
        coordinator, label = finished
        # Two features and a pattern; one cell of a histogram; a cell, one column of groups, and 2^2 + 1.
        sensitivities = [math.sqrt(3), *[0.75 * math.sqrt(3)] * 5, 1.0, math.sqrt(1 + 2 + 5)]
        charges = self.charges(coordinator, "east")
        assert [entry["sensitivity"] for entry in charges] == pytest.approx(sensitivities, rel=1e-12)
        stated = [(each["times"], each["sensitivity"]) for each in label["releases"]]
        own = [charges[number]["sensitivity"] for number in (0, 1, 6, 7)]
        assert stated == [*zip((1, 5, 1, 1), own, strict=True)]

    def test_the_weaker_promise_is_what_the_shares_alone_cost(self, finished):
        coordinator, label = finished
        charges = self.charges(coordinator, "east")
        mu = math.sqrt(sum(1 / (entry["noise_share"] * entry["noise_multiplier"] ** 2) for entry in charges))
        alone = epsilon_at(mu, label["delta"])
        assert label["epsilon_per_holder_if_aggregation_fails"] == pytest.approx(alone, rel=1e-3)
        assert label["epsilon_per_holder_if_aggregation_fails"] >= alone * (1 - 1e-9)
