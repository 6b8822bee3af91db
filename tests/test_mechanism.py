"""A release is integers whose noise covers what one person can change, rounding included."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.privacy import mechanism as module
from assay.privacy import secagg
from assay.privacy.accounting import require_smooth
from assay.privacy.cohort import MAX_HOLDERS, VALUE_BOUND
from assay.privacy.errors import AssayError, BadInput
from assay.privacy.mechanism import MAX_CONTRIBUTORS, IntegerMechanism

# Statistical tests here fail on healthy noise once in 1,000,000 runs each; the planted fault beside each is
# noticed in all but one of 10,000.
FALSE_ALARM = 1e-6


def mechanism(**changes):
    return IntegerMechanism(
        **{"l2_clip_norm": 4.58, "noise_multiplier": 24.4, "size": 196, "contributors": 1, **changes}
    )


@pytest.fixture
def no_noise(monkeypatch):
    """Inside a test, and only there, releases carry no noise."""
    monkeypatch.setattr(
        module, "discrete_gaussian", lambda size, variance, entropy: np.zeros(size, dtype=np.int64)
    )


def variance_p_value(values, variance):
    below = stats.chi2.cdf(np.square(values / math.sqrt(variance)).sum(), df=values.size)
    return 2 * min(below, 1 - below)


mechanisms = st.builds(
    IntegerMechanism,
    l2_clip_norm=st.floats(1e-3, 1e6),
    noise_multiplier=st.floats(0.02, 1e4),
    size=st.integers(1, 100_000),
    contributors=st.integers(1, 1000),
)


class TestGrid:
    @given(mechanisms)
    @settings(max_examples=300, deadline=None)
    def test_every_promise_of_the_grid_holds_exactly(self, one):
        """In rational numbers: sensitivity with the rounding, shares that add up, a small price."""
        clip, unit = Fraction(one.l2_clip_norm), Fraction(one.unit)
        assert unit.denominator == 1 or unit.numerator == 1  # a power of two
        assert math.frexp(one.unit)[0] == 0.5
        with mpmath.workdps(60):
            needed = mpmath.mpf(one.l2_clip_norm) / mpmath.mpf(one.unit) + mpmath.sqrt(one.size)
            assert mpmath.mpf(one.sensitivity_units) >= needed
            assert mpmath.mpf(one.sensitivity_units) <= needed * (1 + mpmath.mpf(2) ** -50)
        whole = (Fraction(one.noise_multiplier) * Fraction(one.sensitivity_units)) ** 2
        assert 0 <= one.contributors * one.share_variance - whole < one.contributors
        assert clip / unit >= 1023 * Fraction(math.sqrt(one.size))
        # What whole numbers cost: under a thousandth of the noise.
        assert one.noise_multiplier * one.l2_clip_norm <= one.std * (1 + 1e-12)
        assert one.std < one.noise_multiplier * one.l2_clip_norm * 1.001

    @given(mechanisms)
    @settings(max_examples=100, deadline=None)
    def test_the_noise_is_wide_enough_to_be_priced_as_a_gaussian(self, one):
        assert one.contributors * one.share_variance >= 2**40 * (1 - 1e-12)
        require_smooth(size=one.size, contributors=one.contributors, share_variance=one.share_variance)

    def test_the_grid_does_not_depend_on_who_is_left(self):
        """A round that somebody leaves goes on with the same integers."""
        assert len({mechanism(contributors=n).unit for n in (1, 2, 3, 999)}) == 1
        assert mechanism(contributors=3).share_variance * 3 >= mechanism().share_variance

    def test_decoding_gives_the_grid_point_back(self, no_noise):
        one, values = mechanism(size=4), np.array([1.25, -3.0, 1e6, 0.0])
        units = one.noisy(values)
        assert np.abs(units * one.unit - values).max() <= one.unit / 2
        assert np.array_equal(one.noisy(units * one.unit), units)

    def test_the_bounds_are_those_of_secure_aggregation(self):
        assert VALUE_BOUND == secagg.VALUE_BOUND
        assert MAX_HOLDERS == secagg.MAX_HOLDERS
        assert VALUE_BOUND * MAX_HOLDERS < 2**53


class TestSensitivity:
    """T2: with the noise off, one person changes the integers by no more than the noise is made for."""

    @pytest.mark.parametrize("size", [1, 2, 196, 5000])
    def test_two_sums_within_the_bound_stay_within_it_after_rounding(self, no_noise, size):
        """Worst cases found: random directions, one coordinate, and all coordinates at a rounding edge."""
        one = mechanism(size=size, noise_multiplier=1e3)
        rng = np.random.default_rng(0)
        for kind in range(60):
            base = rng.normal(0, 1e3, size)
            shift = rng.normal(size=size) if kind % 3 else np.ones(size)
            if kind % 3 == 2:
                shift = np.eye(size)[kind % size] * rng.choice([-1, 1])
            shift *= one.l2_clip_norm / np.linalg.norm(shift)
            if kind % 2:  # just below an edge, so that the shift carries every coordinate over one more
                base = (np.floor(base / one.unit) + 0.5 - 1e-3) * one.unit
            changed = np.linalg.norm((one.noisy(base + shift) - one.noisy(base)).astype(np.float64))
            assert changed <= one.sensitivity_units

    def test_control_rounding_does_cost_something(self, no_noise):
        """Without sqrt(size) in the sensitivity, this neighbour would be further away than is paid for."""
        one = mechanism(size=10_000, noise_multiplier=1e3)
        step = np.floor(one.l2_clip_norm / 100 / one.unit) + 1e-3  # of each coordinate, in units
        base = np.full(one.size, 0.5 - 5e-4) * one.unit
        other = base + step * one.unit
        assert np.linalg.norm(other - base) <= one.l2_clip_norm
        changed = np.linalg.norm((one.noisy(other) - one.noisy(base)).astype(np.float64))
        assert one.sensitivity_units - 100 < changed <= one.sensitivity_units

    @pytest.mark.parametrize("value", [1e12, 1e300])
    def test_a_sum_beyond_the_grid_is_cut_before_the_noise_and_never_refused(self, value):
        """A refusal would be a bit about the records, and asking again a second draw for one charge."""
        one = mechanism(size=2)
        for _ in range(20):
            low, high = one.noisy(np.array([-value, value]))
            assert -VALUE_BOUND < low < 0.99 * -VALUE_BOUND
            assert 0.99 * VALUE_BOUND < high < VALUE_BOUND

    def test_the_noisiest_mechanism_still_leaves_room_for_a_sum(self):
        one = mechanism(size=2, noise_multiplier=1.6e8)
        assert np.abs(one.noisy(np.array([1e300, -1e300]))).max() < VALUE_BOUND

    def test_noise_that_never_happens_releases_nothing(self, monkeypatch):
        monkeypatch.setattr(module, "discrete_gaussian", lambda *_: np.array([VALUE_BOUND, 0]))
        with pytest.raises(AssayError, match="nothing is released"):
            mechanism(size=2).noisy(np.array([0.0, 0.0]))


class TestNoise:
    @pytest.mark.parametrize("contributors", [1, 2, 9])
    def test_shares_add_up_to_the_promised_noise(self, contributors):
        one = mechanism(contributors=contributors, size=20_000)
        shares = [one.noisy(np.zeros(one.size)) for _ in range(contributors)]
        total = np.sum(shares, axis=0) * one.unit
        assert variance_p_value(total, one.std**2) > FALSE_ALARM
        assert one.std == pytest.approx(one.noise_multiplier * one.l2_clip_norm, rel=1e-3)
        assert stats.kstest(total, stats.norm(scale=one.std).cdf).pvalue > FALSE_ALARM

    @pytest.mark.parametrize("contributors", [2, 9])
    def test_control_the_classic_mistake_in_shares_is_noticed(self, contributors):
        """std / n instead of std / sqrt(n): what a mechanism for n^2 contributors adds."""
        one = mechanism(contributors=contributors, size=20_000)
        mistaken = mechanism(contributors=contributors**2, size=20_000)
        total = np.sum([mistaken.noisy(np.zeros(one.size)) for _ in range(contributors)], axis=0)
        assert variance_p_value(total * one.unit, one.std**2) < FALSE_ALARM

    def test_two_calls_share_no_noise(self):
        one = mechanism(size=20_000)
        first, second = (one.noisy(np.zeros(one.size)) * one.unit / one.std for _ in range(2))
        z = float(first @ second) / math.sqrt(one.size)
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
        assert variance_p_value(first - second, 2.0) > FALSE_ALARM

    def test_the_sum_itself_is_not_changed(self):
        one, value = mechanism(size=2), np.array([1e4, -77.0])
        mean = np.mean([one.noisy(value) * one.unit for _ in range(2000)], axis=0)
        z = np.abs(mean - value) / (one.std / math.sqrt(2000))
        assert (2 * stats.norm.sf(z) > FALSE_ALARM / 2).all()

    def test_a_discrete_gaussian_is_a_rounded_gaussian_to_the_bound_the_accountant_states(self):
        """Total variation at most 1e-3 / V^2, with the continuous variance V - 1/12."""
        for variance in (1, 2, 4, 9, 25, 100):
            with mpmath.workdps(30):
                std, reach = mpmath.sqrt(variance - mpmath.mpf(1) / 12), 13 * math.isqrt(variance) + 13
                weight = [mpmath.exp(-mpmath.mpf(k * k) / (2 * variance)) for k in range(reach)]
                total = 2 * mpmath.fsum(weight) - 1
                half = mpmath.mpf(1) / 2
                apart = [
                    abs(weight[k] / total - mpmath.ncdf((k + half) / std) + mpmath.ncdf((k - half) / std))
                    for k in range(reach)
                ]
                assert mpmath.fsum(apart) - apart[0] / 2 <= mpmath.mpf("1e-3") / variance**2


class TestRefusals:
    @pytest.mark.parametrize("setting", ["l2_clip_norm", "noise_multiplier"])
    @pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
    def test_a_number_that_is_not_positive_and_finite(self, setting, bad):
        with pytest.raises(BadInput, match=setting):
            mechanism(**{setting: bad})

    @pytest.mark.parametrize("setting", ["size", "contributors"])
    @pytest.mark.parametrize("bad", [0, -1, 2.0, True, math.nan])
    def test_a_count_that_is_no_whole_number(self, setting, bad):
        with pytest.raises(BadInput, match=setting):
            mechanism(**{setting: bad})
        with pytest.raises(BadInput, match="contributors"):
            mechanism(contributors=MAX_CONTRIBUTORS + 1)

    @pytest.mark.parametrize("noise_multiplier", [1e-8, 1e9])
    def test_noise_that_does_not_fit_the_grid(self, noise_multiplier):
        with pytest.raises(BadInput, match="noise_multiplier"):
            mechanism(noise_multiplier=noise_multiplier)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_sum_that_is_not_finite(self, value):
        with pytest.raises(BadInput, match="finite"):
            mechanism(size=2).noisy(np.array([0.0, value]))

    @pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
    def test_a_sum_of_another_size(self, shape):
        with pytest.raises(BadInput, match="clipped sum"):
            mechanism(size=2).noisy(np.zeros(shape))

    @pytest.mark.parametrize("share_variance", [1, 9, 1 << 38])
    def test_a_share_too_small_to_be_priced_as_a_gaussian(self, share_variance):
        with pytest.raises(BadInput, match="share_variance"):
            require_smooth(size=200, contributors=1, share_variance=share_variance)

    def test_many_shares_must_each_be_smooth(self):
        """Their sum alone would be wide enough."""
        with pytest.raises(BadInput, match="share_variance"):
            require_smooth(size=200, contributors=1 << 40, share_variance=1)
        require_smooth(size=200, contributors=1 << 40, share_variance=16)
