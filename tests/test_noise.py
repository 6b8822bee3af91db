"""The noise has the promised distribution, and nobody can predict or repeat it."""

import math
import os
import subprocess
import sys
import time
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import stats

from assay.privacy import noise
from assay.privacy.errors import BadInput
from assay.privacy.noise import discrete_gaussian, gaussian, uniforms

# Statistical tests here fail on healthy noise once in 1,000,000 runs each, and on the planted fault beside
# them in all but one of 10,000.
FALSE_ALARM = 1e-6
SAMPLES = 1_000_000
BIG = 1 << 60


def fixed(number: int):
    """Entropy for tests: the same bytes each time."""
    return lambda count: bytes([number]) * count


def shape_p_value(values: np.ndarray, std: float) -> float:
    """Chi-square of 1,000 cells that are equally likely under the normal law of ``std``."""
    counts = np.histogram(stats.norm.cdf(values, scale=std), bins=1000, range=(0, 1))[0]
    return stats.chisquare(counts).pvalue


def variance_p_value(values: np.ndarray, std: float) -> float:
    """Two-sided test of the sum of squares, chi-square with one degree of freedom per value."""
    below = stats.chi2.cdf(np.square(values / std).sum(), df=values.size)
    return 2 * min(below, 1 - below)


def test_a_million_samples_are_normal():
    assert shape_p_value(gaussian(SAMPLES, 3.0), 3.0) > FALSE_ALARM


def test_a_million_samples_have_the_promised_variance():
    assert variance_p_value(gaussian(SAMPLES, 3.0), 3.0) > FALSE_ALARM


@pytest.mark.parametrize("fault", [1.02, 0.98, 0.5])
def test_control_noise_off_by_two_percent_is_noticed(fault):
    values = gaussian(SAMPLES, 3.0 * fault)
    assert shape_p_value(values, 3.0) < FALSE_ALARM
    assert variance_p_value(values, 3.0) < FALSE_ALARM


def test_neighbouring_samples_are_not_correlated():
    values = gaussian(SAMPLES, 1.0)
    for lag in (1, 2, 4, SAMPLES // 4, SAMPLES // 2):
        z = float(values[:-lag] @ values[lag:]) / math.sqrt(SAMPLES - lag)
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM / 5, lag


def test_tails_reach_beyond_what_one_box_muller_draw_can():
    """Four draws added: no hard edge. The largest of a million lies where theory puts it."""
    largest = np.abs(gaussian(SAMPLES, 1.0)).max()
    assert stats.norm.isf(1 / (2 * SAMPLES) * 20) < largest < stats.norm.isf(FALSE_ALARM / (2 * SAMPLES))


def test_uniforms_are_uniform_and_never_zero():
    values = uniforms(SAMPLES)
    assert values.min() > 0
    assert values.max() <= 1
    counts = np.histogram(values, bins=1000, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("word", "uniform"), [(0, 2.0**-53), (2**64 - 1, 1.0)])
def test_the_smallest_and_largest_words_give_finite_noise(monkeypatch, word, uniform):
    """Keystreams of zeros and of ones are the ends of the range: the logarithm must stay finite."""
    monkeypatch.setattr(
        "assay.privacy.noise._words", lambda count, entropy: np.full(count, word, dtype=np.uint64)
    )
    assert set(uniforms(3)) == {uniform}
    assert np.abs(gaussian(3, 1.0)).max() < 17


def test_seeding_global_generators_does_not_repeat_the_noise():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append([*gaussian(8, 1.0), *discrete_gaussian(8, BIG)])
    assert not np.any(np.equal(*draws))


def test_two_processes_with_the_same_seeds_differ():
    code = (
        "import random, numpy, torch; random.seed(0); numpy.random.seed(0); torch.manual_seed(0); "
        "from assay.privacy.noise import discrete_gaussian; print(discrete_gaussian(4, 2**60).tolist())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)
    }
    assert len(outputs) == 2


def test_a_fork_does_not_repeat_its_parent():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, discrete_gaussian(4, BIG).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reading, 32), dtype=np.int64)
    os.close(reading)
    os.close(writing)
    assert not np.any(theirs == discrete_gaussian(4, BIG))


def test_no_draw_is_ever_seen_twice():
    words = np.concatenate([uniforms(100) for _ in range(1000)])
    assert np.unique(words).size == words.size


def test_the_key_decides_everything():
    assert np.array_equal(gaussian(5, 2.0, fixed(1)), gaussian(5, 2.0, fixed(1)))
    assert not np.array_equal(gaussian(5, 2.0, fixed(1)), gaussian(5, 2.0, fixed(2)))


def test_noise_is_proportional_to_std_and_keeps_the_shape():
    assert gaussian((2, 3), 4.0, fixed(7)).shape == (2, 3)
    assert np.array_equal(gaussian((2, 3), 4.0, fixed(7)), 4 * gaussian((2, 3), 1.0, fixed(7)))
    assert gaussian((), 1.0).shape == ()
    assert gaussian(0, 1.0).shape == (0,)


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, float("nan")])
def test_noise_of_no_or_unknown_size_is_refused(std):
    with pytest.raises(BadInput, match="std"):
        gaussian(3, std)


def test_short_entropy_is_refused():
    for draw in (gaussian, discrete_gaussian):
        with pytest.raises(BadInput, match="entropy"):
            draw(3, 1, lambda count: bytes(count - 1))


def test_a_step_of_noise_is_affordable():
    """400 values take tens of microseconds; the limit leaves room for a busy machine."""
    gaussian(400, 1.0)
    fastest = math.inf
    for _ in range(50):
        start = time.perf_counter()
        gaussian(400, 1.0)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 500e-6


# --- whole numbers ----------------------------------------------------------------------------------


def exact_cells(variance: int, reach: int) -> np.ndarray:
    """The law by its definition: probabilities of -reach..reach, the ends with everything beyond."""
    integers = np.arange(-40 * reach, 40 * reach + 1)
    weight = np.exp(-(integers**2.0) / (2 * variance))
    return np.bincount(np.clip(integers, -reach, reach) + reach, weight) / weight.sum()


def exact_p_value(values: np.ndarray, variance: int) -> float:
    """Chi-square of the samples against the exact probability of each integer up to 3 or 4 deviations out."""
    reach = math.isqrt((16 if values.size > 100_000 else 9) * variance)
    counts = np.bincount(np.clip(values, -reach, reach) + reach, minlength=2 * reach + 1)
    return stats.chisquare(counts, exact_cells(variance, reach) * values.size).pvalue


def parity_p_value(values: np.ndarray) -> float:
    """The last bit of wide noise is a fair coin."""
    return stats.binomtest(int((values & 1).sum()), values.size).pvalue


def rounded(size: int, variance: float) -> np.ndarray:
    """The control: continuous noise, rounded. Its variance is 1/12 more than what went in."""
    return np.rint(gaussian(size, math.sqrt(variance))).astype(np.int64)


@pytest.mark.parametrize("variance", [1, 2, 9, 10, 100])
def test_a_million_integers_have_the_exact_probabilities(variance):
    assert exact_p_value(discrete_gaussian(SAMPLES, variance), variance) > FALSE_ALARM


def test_control_half_the_variance_is_noticed():
    assert exact_p_value(discrete_gaussian(SAMPLES, 4), 9) < FALSE_ALARM
    assert exact_p_value(discrete_gaussian(SAMPLES, 9), 10) < FALSE_ALARM


def test_control_rounded_continuous_noise_is_noticed():
    """Rounding adds 1/12 to a variance of 4: 2 %, which a million samples show."""
    assert exact_p_value(rounded(SAMPLES, 4), 4) < FALSE_ALARM
    assert exact_p_value(discrete_gaussian(SAMPLES, 4), 4) > FALSE_ALARM


def test_control_a_repeated_value_is_noticed():
    values = discrete_gaussian(SAMPLES, 9)
    values[: SAMPLES // 200] = values[0]
    assert exact_p_value(values, 9) < FALSE_ALARM


@pytest.mark.parametrize(
    ("variance", "samples"),
    [(1 << 38, SAMPLES), ((1 << 41) + 12345, SAMPLES), (noise.MAX_VARIANCE, SAMPLES // 10)],
)
def test_a_million_wide_integers_have_the_right_shape_variance_and_last_bit(variance, samples):
    values = discrete_gaussian(samples, variance)
    std = math.sqrt(variance)
    assert shape_p_value(values, std) > FALSE_ALARM
    assert variance_p_value(values, std) > FALSE_ALARM
    assert parity_p_value(values) > FALSE_ALARM
    assert np.abs(values).max() < stats.norm.isf(FALSE_ALARM / (2 * SAMPLES)) * std


def test_control_wide_integers_of_half_the_variance_or_on_a_coarser_grid_are_noticed():
    std = math.sqrt(1 << 38)
    half = discrete_gaussian(SAMPLES, 1 << 37)
    assert shape_p_value(half, std) < FALSE_ALARM
    assert variance_p_value(half, std) < FALSE_ALARM
    assert parity_p_value(2 * discrete_gaussian(SAMPLES, 1 << 36)) < FALSE_ALARM
    assert shape_p_value(np.repeat(discrete_gaussian(SAMPLES // 100, 1 << 38), 100), std) < FALSE_ALARM


@pytest.mark.parametrize("variance", [9, 1 << 38])
def test_neighbouring_integers_are_not_correlated(variance):
    values = discrete_gaussian(SAMPLES, variance) / math.sqrt(variance)
    for lag in (1, 2, 3, SAMPLES // 2):
        z = float(values[:-lag] @ values[lag:]) / math.sqrt(SAMPLES - lag)
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM / 4, lag


def test_the_sum_of_shares_is_a_discrete_gaussian_of_the_promised_variance():
    """Seven shares of variance 10 are one of 70; shares of std / 7, the classic mistake, are a seventh."""
    shares = discrete_gaussian(7 * SAMPLES // 4, 10).reshape(7, -1).sum(axis=0)
    assert exact_p_value(shares, 70) > FALSE_ALARM
    mistaken = discrete_gaussian(7 * SAMPLES // 4, 2).reshape(7, -1).sum(axis=0)
    assert exact_p_value(mistaken, 70) < FALSE_ALARM


@pytest.fixture
def undecided(monkeypatch):
    """Widen the margins so that about half of all comparisons are decided exactly; count them."""
    monkeypatch.setattr(noise, "_LOG_ERROR", 0.1)
    decided = {"_exact_floor": 0, "_exact_passes": 0}
    for name in decided:
        original = getattr(noise, name)

        def counted(*args, name=name, original=original):
            decided[name] += 1
            return original(*args)

        monkeypatch.setattr(noise, name, counted)
    return decided


def test_comparisons_decided_exactly_have_the_same_distribution(undecided):
    values = discrete_gaussian(5_000, 9)
    assert undecided["_exact_floor"] > 1_000
    assert undecided["_exact_passes"] > 300
    assert exact_p_value(values, 9) > FALSE_ALARM
    assert exact_p_value(values, 4) < FALSE_ALARM


@pytest.mark.parametrize("variance", [9, 1 << 38])
def test_the_exact_path_agrees_with_the_fast_one(undecided, monkeypatch, variance):
    """Same keystream, except for the further bits that nearly no decision needs."""
    stream = noise._Keystream(fixed(3))
    first, second = (stream.words(2000) >> np.uint64(1) for _ in range(2))
    scale = math.isqrt(variance) + 1
    slow_floor = noise._laplace(first, scale, stream)
    slow_passes = noise._passes(second, slow_floor, scale, variance, stream)
    assert min(undecided.values()) > 100
    monkeypatch.undo()
    assert np.array_equal(slow_floor, noise._laplace(first, scale, stream))
    assert np.array_equal(slow_passes, noise._passes(second, slow_floor, scale, variance, stream))
    assert 0 < slow_passes.sum() < 2000


def test_a_fraction_at_an_edge_is_decided_by_further_bits():
    """The largest fraction below exp(-1/scale * k) lies across an edge: both answers must occur."""
    with localcontext(Context(prec=60)):
        edge = int((Decimal(-3) / 4).exp() * 2**63)
    seen = {int(noise._laplace(np.array([edge], dtype=np.uint64), 4, noise._Keystream(os.urandom))[0])
            for _ in range(64)}  # fmt: skip
    assert seen == {2, 3}
    assert [noise._laplace(np.array([edge + d], dtype=np.uint64), 4, None)[0] for d in (-4096, 4096)] == [
        3,
        2,
    ]


def test_a_fraction_of_zero_draws_further_bits():
    """One in 2^63: infinite in float64, finite with more bits."""
    zero = np.zeros(1, dtype=np.uint64)
    value = noise._laplace(zero, 1000, noise._Keystream(os.urandom))[0]
    assert 1000 * 63 * math.log(2) < value < 1000 * 127 * math.log(2)
    assert noise._passes(zero, np.array([5]), 4, 9, noise._Keystream(os.urandom))[0]


def test_a_centre_that_is_hit_exactly_always_passes():
    """(magnitude scale = variance): the exponent is zero, and exp(0) is certain."""
    words = noise._Keystream(os.urandom).words(1000) >> np.uint64(1)
    assert noise._passes(words, np.full(1000, 3), 4, 12, noise._Keystream(os.urandom)).all()


def test_the_error_bound_of_the_logarithm_holds_with_reserve():
    rng = np.random.default_rng(1)
    shifts = rng.integers(0, 60, 20_000).astype(np.uint64)
    fractions = (rng.integers(0, 2**63, 20_000, dtype=np.uint64) >> shifts) | np.uint64(1)
    value, _ = noise._exponential(fractions)
    with localcontext(Context(prec=40)):
        whole = 63 * Decimal(2).ln()
        worst = max(
            float(abs(whole - Decimal(f).ln() - Decimal(v))) / (1 + v)
            for f, v in zip(fractions.tolist(), value.tolist(), strict=True)
        )
    assert worst < noise._LOG_ERROR / 8


def test_the_key_decides_every_integer():
    assert np.array_equal(discrete_gaussian(5, BIG, fixed(1)), discrete_gaussian(5, BIG, fixed(1)))
    assert not np.array_equal(discrete_gaussian(5, BIG, fixed(1)), discrete_gaussian(5, BIG, fixed(2)))
    assert discrete_gaussian(0, 9).shape == (0,)
    assert discrete_gaussian(1, 1).dtype == np.int64


def test_wide_integers_repeat_by_chance_alone():
    """Of 100,000, a pair or two; sixteen happen once in 10^12 runs. A key used twice repeats a hundred."""
    values = np.concatenate([discrete_gaussian(100, BIG) for _ in range(1000)])
    assert np.unique(values).size > values.size - 16


@pytest.mark.parametrize("variance", [0, -1, 1.5, 9.0, True, math.nan, math.inf, noise.MAX_VARIANCE + 1])
def test_a_variance_that_is_no_whole_number_in_range_is_refused(variance):
    with pytest.raises(BadInput, match="variance"):
        discrete_gaussian(3, variance)


@pytest.mark.parametrize("size", [-1, 2.0, True])
def test_a_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(BadInput, match="size"):
        discrete_gaussian(size, 9)


def test_a_million_integers_are_affordable():
    """About 0.05 s; the limit leaves room for a busy machine."""
    start = time.process_time()
    discrete_gaussian(SAMPLES, 1 << 41)
    assert time.process_time() - start < 1.0
