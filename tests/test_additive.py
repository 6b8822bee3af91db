"""The clipped sum is Opacus' clipped sum, and no person moves it by more than the bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer

from assay.models.additive import (
    AdditiveClippedSum,
    AdditiveModel,
    ClippedCounts,
    MinibatchClippedSum,
)
from assay.models.encoding import Encoded
from assay.privacy.errors import BadInput

# torch says so of every module whose inputs are data, which is what Opacus' hooks are for.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

CELLS = 6  # per feature, the last one "missing"
FEATURES = 5
SIZE = CELLS * FEATURES
NATURAL = math.sqrt(FEATURES + 1)


def encoded_of(low, upper):
    """Rows of the one pattern of a study of one component."""
    return Encoded(low=low, upper=upper, pattern=np.ones(len(low), dtype=np.int32))


def records(rows, seed=0, features=FEATURES):
    """Random rows with every special case: bins, hats, knots hit exactly, missing in the last feature."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, CELLS - 2, (rows, features))
    upper = rng.random((rows, features)).astype(np.float32)
    upper[rng.random((rows, features)) < 0.2] = 0.0
    upper[rng.random((rows, features)) < 0.1] = 1.0
    upper[:, 1] = 0.0
    missing = rng.random((rows, features)) < 0.2
    low[missing], upper[missing] = CELLS - 1, 0.0
    low = (low + np.arange(features) * CELLS).astype(np.int32)
    return encoded_of(low, upper), rng.integers(0, 2, rows).astype(float)


def random_theta(seed=1, scale=1.0):
    return np.random.default_rng(seed).normal(size=SIZE + 1) * scale


def per_row_gradients(encoded, labels, theta, wrapper=GradSampleModule):
    """Per-row gradients [N, size + 1] from Opacus' hooks, float64."""
    model = AdditiveModel(SIZE, dtype=torch.float64)
    model.load_theta(theta)
    hooked = wrapper(model, batch_first=True, loss_reduction="sum")
    logits = hooked(torch.from_numpy(encoded.low), torch.from_numpy(encoded.upper).double())
    assert logits.dim() == 1
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), reduction="sum"
    ).backward()
    return torch.cat([model.weight.grad_sample, model.bias.grad_sample], dim=1).numpy()


def clipped(gradients, persons, bound):
    """The oracle: add up each person's gradients, clip, add up the persons. One line per step."""
    total = np.zeros(gradients.shape[1])
    for person in np.unique(persons):
        own = gradients[persons == person].sum(axis=0)
        total += own * min(1.0, bound / max(np.linalg.norm(own), 1e-300))
    return total


@pytest.mark.parametrize("bound", [0.1, 0.5, 1.0, 2.0, NATURAL])
def test_the_sum_is_what_opacus_optimizer_clips(bound):
    encoded, labels = records(200)
    theta = random_theta()
    model = AdditiveModel(SIZE, dtype=torch.float64)
    model.load_theta(theta)
    hooked = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    logits = hooked(torch.from_numpy(encoded.low), torch.from_numpy(encoded.upper).double())
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), reduction="sum"
    ).backward()
    optimizer.clip_and_accumulate()
    theirs = np.concatenate([model.weight.summed_grad.numpy(), model.bias.summed_grad.numpy()])
    ours = AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=bound)(theta)
    # Opacus divides by norm + 1e-6, which weighs more where the bound is small.
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 5e-6 / min(1.0, bound)


PATTERNS = 3


def with_absent(rows, seed=0):
    """Rows of three patterns: the first two features are one component, the others another."""
    encoded, labels = records(rows, seed)
    pattern = np.random.default_rng(seed + 1).integers(1, PATTERNS + 1, rows).astype(np.int32)
    low, upper = encoded.low.copy(), encoded.upper.copy()
    for bit, features in ((1, slice(0, 2)), (2, slice(2, None))):
        low[(pattern & bit) == 0, features], upper[(pattern & bit) == 0, features] = -1, 0.0
    return Encoded(low=low, upper=upper, pattern=pattern), labels


@pytest.mark.parametrize("bound", [0.5, 1.0, NATURAL])
def test_absent_components_add_nothing_and_every_pattern_has_its_intercept(bound):
    encoded, labels = with_absent(200)
    theta = np.random.default_rng(3).normal(size=SIZE + PATTERNS)
    model = AdditiveModel(SIZE, PATTERNS, dtype=torch.float64)
    model.load_theta(theta)
    hooked = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    parts = (encoded.low, encoded.upper.astype(np.float64), encoded.pattern)
    logits = hooked(*(torch.from_numpy(part) for part in parts))
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), reduction="sum"
    ).backward()
    gradients = torch.cat([model.weight.grad_sample, model.bias.grad_sample], dim=1).numpy()
    assert (gradients[encoded.pattern == 1][:, 2 * CELLS : SIZE] == 0).all()
    assert (np.count_nonzero(gradients[:, SIZE:], axis=1) == 1).all()
    ours = AdditiveClippedSum(encoded, labels, size=SIZE, patterns=PATTERNS, l2_clip_norm=bound)
    np.testing.assert_allclose(ours(theta), clipped(gradients, np.arange(200), bound), atol=1e-4)
    counts = ClippedCounts(ours, l2_clip_norm=NATURAL)(theta)
    np.testing.assert_allclose(counts[SIZE:], np.bincount(encoded.pattern, minlength=4)[1:])
    assert counts[: 2 * CELLS].sum() == pytest.approx(2 * np.isin(encoded.pattern, (1, 3)).sum())


@pytest.mark.parametrize("pattern", [0, PATTERNS + 1])
def test_a_pattern_that_is_none_is_refused(pattern):
    encoded, labels = with_absent(20)
    encoded.pattern[3] = pattern
    with pytest.raises(BadInput, match="patterns"):
        AdditiveClippedSum(encoded, labels, size=SIZE, patterns=PATTERNS, l2_clip_norm=1.0)


def test_an_absent_feature_with_weight_is_refused():
    encoded, labels = with_absent(20)
    encoded.upper[encoded.low < 0] = 0.5
    with pytest.raises(BadInput, match="cells"):
        AdditiveClippedSum(encoded, labels, size=SIZE, patterns=PATTERNS, l2_clip_norm=1.0)


@pytest.mark.parametrize("bound", [0.3, 1.0, NATURAL, 7.0])
@pytest.mark.parametrize("people", [1, 20, 199])
def test_rows_of_one_person_are_added_before_they_are_clipped(bound, people):
    encoded, labels = records(300)
    persons = np.random.default_rng(2).integers(0, people, 300) * 10**15
    theta = random_theta()
    wanted = clipped(per_row_gradients(encoded, labels, theta), persons, bound)
    summed = AdditiveClippedSum(encoded, labels, persons, size=SIZE, l2_clip_norm=bound)
    assert summed.persons == len(np.unique(persons))
    np.testing.assert_allclose(summed(theta), wanted, atol=5e-6 * max(1, np.abs(wanted).max()))


def test_a_large_bound_gives_the_plain_gradient():
    encoded, labels = records(100)
    theta = random_theta()
    plain = per_row_gradients(encoded, labels, theta).sum(axis=0)
    ours = AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1e6)(theta)
    np.testing.assert_allclose(ours, plain, atol=1e-10)


def test_ghost_norms_are_the_norms_of_the_per_row_gradients():
    encoded, labels = records(64)
    theta = random_theta()
    exact = np.linalg.norm(per_row_gradients(encoded, labels, theta), axis=1)
    model = AdditiveModel(SIZE, dtype=torch.float64)
    model.load_theta(theta)
    ghost = GradSampleModuleFastGradientClipping(
        model, batch_first=True, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    logits = ghost(torch.from_numpy(encoded.low), torch.from_numpy(encoded.upper).double())
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), reduction="sum"
    ).backward()
    np.testing.assert_allclose(ghost.get_norm_sample().numpy(), exact, atol=1e-9)


def test_logits_have_one_dimension():
    encoded, _ = records(7)
    model = AdditiveModel(SIZE)
    assert model(torch.from_numpy(encoded.low), torch.from_numpy(encoded.upper)).shape == (7,)


ADVERSARIAL = {
    "sure and wrong": (lambda: (records(50)[0], np.ones(50)), -30.0),
    "one row fifty times": (lambda: (records(1)[0].rows(np.zeros(50, dtype=int)), np.ones(50)), -30.0),
    "knots hit exactly": (
        lambda: (
            encoded_of(
                np.tile((np.arange(FEATURES) * CELLS).astype(np.int32), (50, 1)),
                np.zeros((50, FEATURES), dtype=np.float32),
            ),
            np.ones(50),
        ),
        -30.0,
    ),
    "everything missing": (
        lambda: (
            encoded_of(
                np.tile((np.arange(FEATURES) * CELLS + CELLS - 1).astype(np.int32), (50, 1)),
                np.zeros((50, FEATURES), dtype=np.float32),
            ),
            np.zeros(50),
        ),
        30.0,
    ),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("bound", [0.01, 1.0, NATURAL])
@pytest.mark.parametrize("one_person", [True, False])
def test_no_person_moves_the_sum_by_more_than_the_bound(name, bound, one_person):
    make, bias = ADVERSARIAL[name]
    bad, bad_labels = make()
    good, good_labels = records(40, seed=9)
    encoded = encoded_of(np.concatenate([bad.low, good.low]), np.concatenate([bad.upper, good.upper]))
    labels = np.concatenate([bad_labels, good_labels])
    who = np.zeros(50, dtype=int) if one_person else np.arange(50)
    persons = np.concatenate([who, 100 + np.arange(40)])
    theta = np.zeros(SIZE + 1)
    theta[-1] = bias
    full = AdditiveClippedSum(encoded, labels, persons, size=SIZE, l2_clip_norm=bound)(theta)
    left = persons != 0
    rest = AdditiveClippedSum(encoded.rows(left), labels[left], persons[left], size=SIZE, l2_clip_norm=bound)
    change = np.linalg.norm(full - rest(theta))
    assert change <= bound
    if one_person or name != "everything missing":
        # The bound is used, so that a test without clipping could not pass by accident.
        assert change > 0.5 * min(bound, NATURAL) * (0.5 if name == "sure and wrong" else 1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(1e-3, 20),
    st.floats(0, 50),
    st.lists(st.integers(0, 4), min_size=2, max_size=30),
)
def test_the_bound_holds_for_any_rows_any_theta_and_any_grouping(seed, bound, scale, owners):
    encoded, labels = records(len(owners), seed=seed)
    persons = np.array(owners)
    theta = random_theta(seed, scale)
    full = AdditiveClippedSum(encoded, labels, persons, size=SIZE, l2_clip_norm=bound)(theta)
    left = persons != persons[0]
    rest = np.zeros(SIZE + 1)
    if left.any():
        rest = AdditiveClippedSum(
            encoded.rows(left), labels[left], persons[left], size=SIZE, l2_clip_norm=bound
        )(theta)
    assert np.linalg.norm(full - rest) <= bound


def test_no_single_row_needs_more_than_the_natural_bound():
    encoded, labels = records(2000)
    norms = np.linalg.norm(per_row_gradients(encoded, labels, random_theta(scale=20.0)), axis=1)
    assert norms.max() <= NATURAL
    assert norms.max() > 0.9 * NATURAL


def test_blocks_do_not_show_in_the_result():
    encoded, labels = records(20_000)
    theta = random_theta()
    persons = np.random.default_rng(3).integers(0, 6000, 20_000)
    whole = AdditiveClippedSum(encoded, labels, persons, size=SIZE, l2_clip_norm=1.0)(theta)
    parts = np.zeros(SIZE + 1)
    for half in (persons % 2 == 0, persons % 2 == 1):
        parts += AdditiveClippedSum(
            encoded.rows(half), labels[half], persons[half], size=SIZE, l2_clip_norm=1.0
        )(theta)
    np.testing.assert_allclose(whole, parts, atol=1e-9)


def test_a_person_larger_than_a_block_is_not_split():
    encoded, labels = records(20_000)
    one = AdditiveClippedSum(encoded, labels, np.zeros(20_000, dtype=int), size=SIZE, l2_clip_norm=1.0)
    assert np.linalg.norm(one(random_theta())) == pytest.approx(1.0, rel=1e-5)


def test_the_same_theta_gives_the_same_bytes():
    encoded, labels = records(10_000)
    theta = random_theta()
    first = AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)
    again = AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)
    assert first(theta).tobytes() == first(theta).tobytes() == again(theta).tobytes()


def design(encoded):
    rows = np.zeros((len(encoded), SIZE + 1))
    for row in range(len(encoded)):
        np.add.at(rows[row], encoded.low[row], 1 - encoded.upper[row].astype(float))
        np.add.at(rows[row], encoded.low[row] + 1, encoded.upper[row].astype(float))
        rows[row, SIZE] = (
            1.0  # the one pattern; nothing else lies there: the last cell has no weight above it
        )
    return rows


@pytest.mark.parametrize("bound", [0.5, NATURAL])
@pytest.mark.parametrize("people", [None, 40])
def test_counts_are_the_hat_weights_of_persons_clipped_like_gradients(bound, people):
    encoded, labels = records(100)
    persons = None if people is None else np.random.default_rng(5).integers(0, people, 100)
    gradients = AdditiveClippedSum(encoded, labels, persons, size=SIZE, l2_clip_norm=1.0)
    counts = ClippedCounts(gradients, l2_clip_norm=bound)(np.zeros(SIZE + 1))
    owners = np.arange(100) if persons is None else persons
    np.testing.assert_allclose(counts, clipped(design(encoded), owners, bound), rtol=1e-5)


def test_one_person_with_fifty_rows_counts_within_the_bound():
    encoded, labels = records(1)
    fifty = encoded.rows(np.zeros(50, dtype=int))
    gradients = AdditiveClippedSum(
        fifty, np.repeat(labels, 50), np.zeros(50, dtype=int), size=SIZE, l2_clip_norm=1.0
    )
    bound = NATURAL
    assert (
        0.99 * bound
        < np.linalg.norm(ClippedCounts(gradients, l2_clip_norm=bound)(np.zeros(SIZE + 1)))
        <= bound
    )


@pytest.mark.parametrize("bound", [0.3, 1.0, NATURAL])
def test_a_minibatch_gives_the_sum_over_its_rows(bound):
    encoded, labels = records(500)
    theta = random_theta()
    chosen = np.sort(np.random.default_rng(4).permutation(500)[:100])
    wanted = AdditiveClippedSum(encoded.rows(chosen), labels[chosen], size=SIZE, l2_clip_norm=bound)(theta)
    batch = MinibatchClippedSum(encoded, labels, size=SIZE, l2_clip_norm=bound)
    weight, bias = (torch.from_numpy(part).float() for part in (theta[:-1], theta[-1:]))
    table, intercept = batch(torch.from_numpy(chosen), weight, bias)
    assert (table.shape, intercept.shape) == ((SIZE,), (1,))
    np.testing.assert_allclose(np.concatenate([table.numpy(), intercept.numpy()]), wanted, atol=2e-4)


def test_an_empty_minibatch_gives_zero():
    encoded, labels = records(5)
    batch = MinibatchClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)
    table, intercept = batch(torch.zeros(0, dtype=torch.int64), torch.ones(SIZE), torch.ones(1))
    assert not table.any()
    assert not intercept.any()


def test_a_minibatch_refuses_parameters_that_are_not_finite():
    encoded, labels = records(5)
    batch = MinibatchClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)
    with pytest.raises(BadInput, match="finite"):
        batch(torch.arange(5), torch.full((SIZE,), float("nan")), torch.zeros(1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7])
def test_theta_that_is_not_finite_or_absurd_is_refused(value):
    encoded, labels = records(5)
    theta = random_theta()
    theta[3] = value
    with pytest.raises(BadInput, match="theta"):
        AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)(theta)


def test_theta_of_another_length_is_refused():
    encoded, labels = records(5)
    with pytest.raises(BadInput, match="theta"):
        AdditiveClippedSum(encoded, labels, size=SIZE, l2_clip_norm=1.0)(np.zeros(SIZE))


def broken(part, value):
    encoded, labels = records(5)
    upper, low = encoded.upper.copy(), encoded.low.copy()
    if part == "upper":
        upper[2, 0] = value
    else:
        low[2, 0] = value
    return encoded_of(low, upper), labels


@pytest.mark.parametrize("kind", [AdditiveClippedSum, MinibatchClippedSum])
@pytest.mark.parametrize(
    ("part", "value"),
    [("upper", np.nan), ("upper", 1.5), ("upper", -0.1), ("low", -2), ("low", SIZE), ("low", CELLS)],
)
def test_rows_that_are_no_weights_on_the_table_are_refused(kind, part, value):
    encoded, labels = broken(part, value)
    encoded.low[2, 1] = CELLS
    with pytest.raises(BadInput):
        kind(encoded, labels, size=SIZE, l2_clip_norm=1.0)


@pytest.mark.parametrize("kind", [AdditiveClippedSum, MinibatchClippedSum])
@pytest.mark.parametrize("bound", [0, -1, np.nan, np.inf])
def test_a_bound_that_is_none_is_refused(kind, bound):
    with pytest.raises(BadInput, match="l2_clip_norm"):
        kind(*records(5), size=SIZE, l2_clip_norm=bound)


@pytest.mark.parametrize("kind", [AdditiveClippedSum, MinibatchClippedSum])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], [0, 1], [0, 1, np.nan, 0, 1], [[0], [1], [0], [0], [1]]])
def test_labels_other_than_zero_and_one_are_refused(kind, labels):
    with pytest.raises(BadInput, match="labels"):
        kind(records(5)[0], labels, size=SIZE, l2_clip_norm=1.0)


@pytest.mark.parametrize("persons", [[1, 2], [1.5, 2, 3, 4, 5], ["a", "b", "c", "d", "e"]])
def test_persons_are_one_whole_number_per_row(persons):
    with pytest.raises(BadInput, match="persons"):
        AdditiveClippedSum(*records(5), persons, size=SIZE, l2_clip_norm=1.0)


def test_no_rows_are_refused():
    with pytest.raises(BadInput, match="row"):
        AdditiveClippedSum(records(0)[0], [], size=SIZE, l2_clip_norm=1.0)
