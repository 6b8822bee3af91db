"""The noise has the promised distribution, and nobody can predict or repeat it."""

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import stats

from assay.privacy.errors import BadInput
from assay.privacy.noise import gaussian, grid_unit, to_grid, uniforms

# Statistical tests here fail on healthy noise once in 10,000 runs each, and on the planted fault beside
# them in all but one of 10,000.
FALSE_ALARM = 1e-4
SAMPLES = 1_000_000


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
        draws.append(gaussian(8, 1.0))
    assert not np.any(draws[0] == draws[1])


def test_two_processes_with_the_same_seeds_differ():
    code = (
        "import random, numpy, torch; random.seed(0); numpy.random.seed(0); torch.manual_seed(0); "
        "from assay.privacy.noise import gaussian; print(gaussian(4, 1.0).tolist())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)
    }
    assert len(outputs) == 2


def test_a_fork_does_not_repeat_its_parent():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, gaussian(4, 1.0).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reading, 32))
    os.close(reading)
    os.close(writing)
    assert not np.any(theirs == gaussian(4, 1.0))


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
    with pytest.raises(BadInput, match="std"):
        grid_unit(std)


def test_short_entropy_is_refused():
    with pytest.raises(BadInput, match="entropy"):
        gaussian(3, 1.0, lambda count: bytes(count - 1))


@pytest.mark.parametrize("std", [1e-6, 1.0, 5.099, 1e6])
def test_released_values_lie_on_the_grid(std):
    unit = grid_unit(std)
    values = gaussian(10_000, std)
    grid = to_grid(values, unit)
    assert grid.dtype == np.int64
    assert np.abs(grid * unit - values).max() <= unit / 2 * (1 + 1e-6)
    assert np.std(grid) == pytest.approx(2**20, rel=0.05)
    # A decoder that knows the unit gets the very integers back.
    assert np.array_equal(np.rint((grid * unit) / unit).astype(np.int64), grid)


def test_the_unit_is_an_exact_fraction_of_the_noise():
    assert grid_unit(5.099) * 2**20 == 5.099


@pytest.mark.parametrize("value", [float("nan"), math.inf, -math.inf, 2.0**53, -(2.0**53), 1e300])
def test_a_value_that_is_not_finite_or_too_large_is_refused(value):
    with pytest.raises(BadInput, match="noisy values") as caught:
        to_grid(np.array([0.0, value]), 1.0)
    assert repr(value) not in str(caught.value)


def test_the_largest_values_survive():
    assert to_grid(np.array([2.0**53 - 1, 1 - 2.0**53]), 1.0).tolist() == [2**53 - 1, 1 - 2**53]


def test_a_step_of_noise_is_affordable():
    """400 values take tens of microseconds; the limit leaves room for a busy machine."""
    gaussian(400, 1.0)
    fastest = math.inf
    for _ in range(50):
        start = time.perf_counter()
        gaussian(400, 1.0)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 500e-6
