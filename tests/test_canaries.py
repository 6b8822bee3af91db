"""How much privacy is lost at least, found by attacks, and that broken mechanisms are found out.

Statistical tests name their false-alarm rate. Controls plant what the attacks must find.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from proof_support import study_text
from scipy import stats
from scipy.optimize import brentq, linprog
from toy_study import SUMMED, TEXT, records

from assay.client.records import Records
from assay.client.training import LocalTraining
from assay.models.additive import AdditiveClippedSum
from assay.models.label import mechanism_of
from assay.models.study import parse_study
from assay.models.tally import ClippedTally
from assay.privacy import mechanism
from assay.privacy.errors import BadInput
from assay.simulations import canaries
from assay.simulations.canaries import audit_by_canaries
from assay.simulations.engine import with_epsilon
from assay.simulations.leakage import Shown, fitted, mu_low

NAMES = ("east", "north", "south", "west")
RARE = 1e-8


def mu_at(epsilon, delta):
    """Balle & Wang 2018, theorem 8, written down once more and solved."""

    def left(mu):
        above, below = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return stats.norm.cdf(above) - math.exp(epsilon) * stats.norm.cdf(below) - delta

    return brentq(left, 1e-3, 40, xtol=1e-12)


def held(columns, labels, persons=None, groups=None):
    """Records of the studies made by ``study_text``."""
    named = {f"F{i}": np.asarray(values, dtype=np.float64) for i, values in enumerate(columns)}
    codes = None if persons is None else np.asarray(persons, dtype=np.int64)
    audited = {} if groups is None else {"GROUP": np.asarray(groups, dtype=np.int64)}
    labels = np.asarray(labels, dtype=np.float64)
    return Records(columns=named, labels=labels, persons=codes, groups=audited)


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))


def divide_noise(monkeypatch, divisor):
    drawn = mechanism.discrete_gaussian
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda *args: drawn(*args) // divisor)


class TestBound:
    """The lower bound on mu, against what can be worked out exactly."""

    @pytest.mark.parametrize("persons", [20, 200, 2000])
    @pytest.mark.parametrize("mu", [0.1, 0.5, 1.5, 4.0])
    @pytest.mark.parametrize("chance", [0.05, 1e-3, 1e-7])
    def test_it_refutes_no_mu_for_which_so_many_right_guesses_are_that_likely(self, persons, mu, chance):
        """Independent Gaussian scores are mu-GDP; right guesses are binomial then, so this is exact."""
        right = int(stats.binom.isf(chance, persons, stats.norm.cdf(mu / 2)))
        assert stats.binom.sf(right - 1, persons, stats.norm.cdf(mu / 2)) >= chance
        low = mu_low(persons=persons, guessed=persons, right=right, confidence=1 - chance)
        assert low <= mu

    @pytest.mark.parametrize(("persons", "guessed", "right"), [(12, 8, 7), (20, 10, 10), (12, 12, 10)])
    def test_it_is_the_largest_mu_that_the_inequalities_exclude(self, persons, guessed, right):
        """A linear program finds the likeliest tail that they leave; the recursion is to find the same."""
        chance = 0.05
        low = mu_low(persons=persons, guessed=guessed, right=right, confidence=1 - chance)
        assert low > 0.05
        assert likeliest_tail(low * 0.98, persons, guessed, right) < chance
        assert likeliest_tail(low * 1.02, persons, guessed, right) > chance

    def test_all_right_says_more_the_more_there_are_and_half_right_says_nothing(self):
        bounds = [mu_low(persons=m, guessed=m, right=m, confidence=0.95) for m in (10, 100, 1000)]
        assert 0 < bounds[0] < bounds[1] < bounds[2]
        assert mu_low(persons=1000, guessed=1000, right=500, confidence=0.95) == 0
        assert mu_low(persons=1000, guessed=100, right=0, confidence=0.95) == 0

    @pytest.mark.parametrize("numbers", [(10, 11, 5), (10, 5, 6), (10, 0, 0), (10, 5, -1)])
    def test_impossible_counts_are_refused(self, numbers):
        persons, guessed, right = numbers
        with pytest.raises(BadInput, match="guesses"):
            mu_low(persons=persons, guessed=guessed, right=right, confidence=0.95)

    @pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
    def test_a_confidence_that_is_none_is_refused(self, confidence):
        with pytest.raises(BadInput, match="confidence"):
            mu_low(persons=10, guessed=10, right=10, confidence=confidence)


def likeliest_tail(mu, persons, guessed, right):
    """Largest chance of ``right`` or more that H_(i-1) >= G(R_i) allows, G replaced by its tangents."""
    counts = np.arange(guessed + 1)
    rows, limits = [], []
    for i in range(1, guessed + 1):
        up, down = (counts >= i) * counts / persons, (counts >= i - 1) * (guessed - counts) / persons
        for at in np.geomspace(1e-5, 0.999, 150):
            z = stats.norm.ppf(at)
            value, slope = stats.norm.cdf(z - mu), math.exp(-((z - mu) ** 2) / 2 + z**2 / 2)
            rows.append(slope * up - down)
            limits.append(slope * at - value)
    found = linprog(
        -(counts >= right).astype(float), rows, limits, np.ones((1, guessed + 1)), [1.0], method="highs"
    )
    return -found.fun


class TestEstimate:
    """An interval for mu, from scores that are as they are said to be."""

    MU, RUNS, PERSONS, CELLS = 1.2, 300, 80, 100

    def shown(self, rng, noise):
        vectors = rng.normal(size=(self.PERSONS, self.CELLS))
        vectors *= self.MU / np.linalg.norm(vectors, axis=1)[:, None]
        inside = rng.random(self.PERSONS) < 0.5
        released = (inside - 0.5) @ vectors + noise * rng.normal(size=self.CELLS)
        return Shown(scores=vectors @ released, overlaps=vectors @ vectors.T, inside=inside)

    @pytest.mark.parametrize("noise", [1.0, 0.5, 2.0])
    def test_the_interval_holds_what_is_lost_whatever_the_noise_should_be(self, noise):
        """Of 300 intervals at 95 %, at least 258 hold it: false alarm below 1e-8 where they are right."""
        rng = np.random.default_rng(8)
        found = [fitted([self.shown(rng, noise)], confidence=0.95) for _ in range(self.RUNS)]
        hits = [each.low <= self.MU / noise <= each.high for each in found]
        assert sum(hits) >= 258
        # Control: intervals for another mu hold that one.
        assert sum(each.low <= 2.5 * self.MU / noise <= each.high for each in found) < 100

    def test_several_runs_say_more_than_one(self):
        rng = np.random.default_rng(9)
        runs = [self.shown(rng, 1.0) for _ in range(16)]
        one, all_ = (fitted(some, confidence=0.95) for some in (runs[:1], runs))
        assert (all_.high - all_.low) == pytest.approx((one.high - one.low) / 4, rel=0.3)


TOY_LIKE = {name: {"rows": 60, "seed": i} for i, name in enumerate(NAMES)}


def toy(**changes):
    return {name: replace(records(**about), **changes) for name, about in TOY_LIKE.items()}


def several_rows(text):
    """Let the study say that a person may have several rows; each holder's persons have two."""
    persons = np.arange(60) // 2
    return text.replace("[outcome]", '[person]\ncolumn = "PERSON"\n\n[outcome]', 1), toy(persons=persons)


def at_two_holders(text):
    return text.replace("trust =", "holders_per_person = 2\ntrust =", 1), toy()


def without_a_component(text):
    holders = toy()
    east = holders["east"]
    columns = {name: values for name, values in east.columns.items() if name != "HOUSE"}
    holders["east"] = replace(east, columns=columns, groups={})
    return text, holders


def with_a_pair(text):
    pair = '[[interactions]]\nfeatures = ["income", "balance"]\n\n[fairness]'
    return text.replace("[fairness]", pair, 1), toy()


class TestAttack:
    """What the attacker works out is what canaries add to the sums: noise off, nothing may be left over."""

    @pytest.mark.parametrize("text", [TEXT, SUMMED], ids=["local", "distributed"])
    @pytest.mark.parametrize(
        "changed",
        [lambda text: (text, toy()), several_rows, at_two_holders, without_a_component, with_a_pair],
        ids=["one row", "several rows", "two holders", "a component less", "a pair"],
    )
    def test_without_noise_the_scores_are_what_the_coins_say(self, monkeypatch, no_noise, text, changed):
        text, holders = changed(text)
        shown = self.attacked(monkeypatch, text, holders)
        expected = shown.overlaps @ (shown.inside - 0.5)
        scale = np.abs(expected).max()
        assert np.abs(shown.scores - expected).max() < 1e-4 * scale
        # Control: coins that are not the ones thrown leave much over.
        assert np.abs(shown.scores - shown.overlaps @ (~shown.inside - 0.5)).max() > 0.5 * scale

    def attacked(self, monkeypatch, text, holders, **changes):
        kept, attacked = [], canaries._attacked

        def keep(*args):
            kept.append(attacked(*args))
            return kept[-1]

        monkeypatch.setattr(canaries, "_attacked", keep)
        audit_by_canaries(text, holders, engine="fast", **{"canaries": 40, **changes})
        return kept[0]

    @pytest.mark.parametrize("trust", ["local", "distributed"])
    def test_a_canary_uses_up_what_the_study_promises_it_and_no_more(self, monkeypatch, trust):
        """A person of several rows who is at two holders: the root of what all rounds show is mu.

        A little is lost with the direction that all canaries share.
        """
        text = study_text(features=3, values=20, rounds=3, person=True, groups=2).replace(
            'trust = "distributed"', f'holders_per_person = 2\ntrust = "{trust}"'
        )
        own = held([np.arange(20)] * 3, np.arange(20) % 2, np.arange(20), np.zeros(20))
        shown = self.attacked(monkeypatch, text, dict.fromkeys(NAMES, own), canaries=600)
        used = np.sqrt(np.diag(shown.overlaps)) / mu_at(2.0, 1e-6)
        assert used.max() <= 1 + 1e-9
        assert np.median(used) >= 0.88

    def test_the_full_protocol_is_attacked_alike(self):
        found = audit_by_canaries(with_epsilon(SUMMED, 900.0), toy(), canaries=20, engine="full")
        assert found["right"] == found["guessed"] == 4

    def test_another_seed_throws_other_coins(self, monkeypatch, no_noise):
        coins = [self.attacked(monkeypatch, TEXT, toy(), seed=seed).inside for seed in (1, 1, 2)]
        assert np.array_equal(coins[0], coins[1])
        assert not np.array_equal(coins[0], coins[2])

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"canaries": 15}, "canaries"),
            ({"canaries": 5001}, "canaries"),
            ({"runs": 0}, "runs"),
            ({"confidence": 0.4}, "confidence"),
            ({"confidence": math.nan}, "confidence"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_a_number_out_of_range_is_refused(self, changes, match):
        with pytest.raises(BadInput, match=match):
            audit_by_canaries(TEXT, toy(), **changes)


class TestAudit:
    """A right system passes; one with a planted bug does not. 1,000 canaries on 2,057 cells."""

    ROUNDS, TRUE = 6, math.sqrt(3 / 4)  # where none of four is missing, there is a third more noise

    def audit(self, epsilon):
        text = study_text(features=8, values=256, epsilon=epsilon, rounds=self.ROUNDS, person=True)
        own = held([np.arange(40)] * 8, np.arange(40) % 2, np.arange(40))
        holders = dict.fromkeys(NAMES, own)
        return audit_by_canaries(text, holders, canaries=1000, confidence=1 - RARE, engine="fast")

    def test_a_right_system_passes_and_the_attack_is_not_blind(self):
        """False alarm: 3e-8, once for the bound and twice for the interval."""
        found = self.audit(8.0)
        assert found["claimed_mu"] == pytest.approx(mu_at(8.0, 1e-6), rel=1e-9)
        assert found["lower_bound"] <= found["claimed_epsilon"] == 8.0
        assert found["lower_bound_mu"] <= found["claimed_mu"]
        low, high = (mu_at(found[f"estimate_{end}"], 1e-6) for end in ("low", "high"))
        assert low <= self.TRUE * found["claimed_mu"] <= high
        assert high - low < found["claimed_mu"]

    def test_control_a_sixteenth_of_the_noise_breaks_the_bound(self, monkeypatch):
        divide_noise(monkeypatch, 16)
        found = self.audit(1.0)
        assert found["lower_bound"] > found["claimed_epsilon"]

    def test_control_half_the_noise_is_seen_by_the_estimate(self, monkeypatch):
        divide_noise(monkeypatch, 2)
        assert self.audit(8.0)["estimate_low"] > 8.0

    def test_control_persons_who_are_not_clipped_break_the_bound(self, monkeypatch):
        monkeypatch.setattr(canaries, "_REPEATS", 40)
        monkeypatch.setattr(AdditiveClippedSum, "_scales", lambda self, block, residuals: 1.0)
        found = self.audit(1.0)
        assert found["lower_bound"] > found["claimed_epsilon"]


@pytest.mark.parametrize("after", [1, 2], ids=["calibration", "audit"])
class TestOneTarget:
    """T4 for calibration and audit: the mechanism alone, with one person and without, many times.

    The bounds on mu hold with a probability of 1 - 1e-8 each; 20,000 releases on each side find 8 %.
    """

    EPSILON, ROUNDS, REPEATS = 50.0, 4, 20_000
    STUDY = parse_study(study_text(features=3, values=4, epsilon=50.0, rounds=4, person=True, groups=2))
    SHARES = (None, 0.03, 0.07)
    PERSONS = (
        pytest.param(1, False, id="one row"),
        pytest.param(50, True, id="copies"),
        pytest.param(50, False, id="many rows"),
    )

    def sums(self, after, rows, alike, theta):
        """Return the clipped sums of one holder without and with the person."""
        base = [[i % 4, i // 4 % 4, i % 3] for i in range(24)]
        numbers = np.zeros(rows, dtype=int) if alike else np.arange(rows)
        person = [[i % 4, i % 3, i // 2 % 4] for i in numbers]
        found = []
        for more, count in (([], 0), (person, rows)):
            data = held(
                np.array([*base, *more], dtype=np.float64).T,
                [i % 2 for i in range(24)] + [int(i % 2) for i in numbers[:count]],
                [*range(24), *[24] * count],
                [i % 4 for i in range(24)] + [int(i % 2) for i in numbers[:count]],
            )
            training = LocalTraining(self.STUDY, data)
            found.append(training.summed(self.ROUNDS + after, self.ROUNDS)(theta))
        return found

    def measured(self, after, rows, alike):
        """Return 1 - 1e-8 bounds on mu, as (low, high), and what this release may spend."""
        release = mechanism_of(
            self.STUDY, canaries.Grid.of(self.STUDY), number=self.ROUNDS + after, rounds=self.ROUNDS
        )
        width = LocalTraining(self.STUDY, held([[1.0], [1.0], [1.0]], [0.0], [0], [0])).width
        without, with_ = self.sums(after, rows, alike, np.zeros(width))
        moved = with_ - without
        scores = []
        for clipped in (without, with_):
            many = np.broadcast_to(clipped, (self.REPEATS, len(clipped)))
            scores.append((release.noisy(many) * release.unit - without) @ moved / np.linalg.norm(moved))
        claim = math.sqrt(self.SHARES[after]) * mu_at(self.EPSILON, 1e-6)
        return mu_between(*scores), claim

    @pytest.mark.parametrize(("rows", "alike"), PERSONS)
    def test_the_release_shows_no_more_of_a_person_than_is_charged(self, after, rows, alike):
        (low, high), claim = self.measured(after, rows, alike)
        assert low <= claim
        if rows > 1 or after == 1:  # a person who is clipped, or whose one cell is the bound, uses it up
            assert high >= claim
            assert high - low < 0.2 * claim

    def test_control_a_person_who_is_not_clipped_shows_more(self, after, monkeypatch):
        part = ClippedTally._part

        def unclipped(self, *args):
            self.l2_clip_norm, bound = 1e9, self.l2_clip_norm
            found = part(self, *args)
            self.l2_clip_norm = bound
            return found

        monkeypatch.setattr(ClippedTally, "_part", unclipped)
        (low, _), claim = self.measured(after, 50, alike=True)
        assert low > claim

    def test_control_a_sensitivity_that_is_understated_shows_more(self, after, monkeypatch):
        true = canaries.mechanism_of

        def understated(*args, **kwargs):
            found = true(*args, **kwargs)
            return replace(found, l2_clip_norm=0.8 * found.l2_clip_norm)

        monkeypatch.setitem(globals(), "mechanism_of", understated)
        (low, _), claim = self.measured(after, 50, alike=True)
        assert low > claim

    def test_control_noise_of_the_other_tally_is_not_the_one_that_is_charged(self, after, monkeypatch):
        """The audit's noise multiplier is smaller than the calibration's: swapped, one shows too much."""
        true = canaries.mechanism_of
        monkeypatch.setitem(
            globals(),
            "mechanism_of",
            lambda *args, number, **rest: replace(
                true(*args, number=number, **rest),
                noise_multiplier=true(*args, number=11 - number, **rest).noise_multiplier,
            ),
        )
        (low, high), claim = self.measured(after, 50, alike=True)
        assert not low <= claim <= high


def mu_between(without, with_):
    """Bounds at 1 - 1e-8 on mu between two Gaussian samples of one variance, as (low, high)."""
    spread = math.sqrt((without.var(ddof=1) + with_.var(ddof=1)) / 2)
    mu = (with_.mean() - without.mean()) / spread
    error = stats.norm.isf(RARE) * math.sqrt(2 / without.size + mu**2 / (4 * without.size))
    return mu - error, mu + error
