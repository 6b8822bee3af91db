"""What a release guarantees: the promised noise, counted, bounded, unpredictable, and Opacus' own steps."""

import json
import math

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizerFastGradientClipping
from scipy import stats

from assay.privacy.accounting import Event, PrivacyTarget, RunCost, epsilon_of
from assay.privacy.errors import BadInput
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.optimizer import (
    ExactAccountant,
    PrivateStep,
    PrivateTrainer,
    SecureOptimizer,
    poisson_batches,
)

# Statistical tests here fail on healthy code once in 1,000,000 runs each; the planted fault beside each of
# them is noticed in all but one of 10,000.
FALSE_ALARM = 1e-6


class Constant:
    """A clipped sum that is the same everywhere."""

    def __init__(self, value, l2_clip_norm=2.0):
        self.value, self.l2_clip_norm = np.asarray(value, dtype=np.float64), l2_clip_norm

    def __call__(self, theta):
        return self.value


class Logistic(torch.nn.Module):
    """Logits [B] of a linear model."""

    def __init__(self, features):
        super().__init__()
        self.linear = torch.nn.Linear(features, 1)

    def forward(self, inputs):
        return self.linear(inputs).squeeze(-1)


class LogisticSum:
    """The closed form of the same: each row's gradient r * (x, 1), clipped, summed."""

    def __init__(self, inputs, labels, l2_clip_norm):
        self.inputs, self.labels, self.l2_clip_norm = inputs, labels, l2_clip_norm

    def __call__(self, rows, weight, bias):
        inputs = self.inputs[rows]
        residual = torch.sigmoid(inputs @ weight.squeeze(0) + bias) - self.labels[rows]
        norm = residual.abs() * (inputs.square().sum(1) + 1).sqrt()
        residual = residual * (self.l2_clip_norm / norm.clamp(min=self.l2_clip_norm))
        return (residual @ inputs).unsqueeze(0), residual.sum().unsqueeze(0)


def step(size=4, noise_multiplier=3.0, l2_clip_norm=2.0, accountant=None, contributors=1):
    mechanism = IntegerMechanism(
        size=size, l2_clip_norm=l2_clip_norm, noise_multiplier=noise_multiplier, contributors=contributors
    )
    return PrivateStep(mechanism, ExactAccountant() if accountant is None else accountant)


def variance_p_value(values, std):
    below = stats.chi2.cdf(np.square(values / std).sum(), df=values.size)
    return 2 * min(below, 1 - below)


def released_noise(fault=1.0, contributors=1):
    """Noise of 100 releases of 1,000 values whose clipped sum is zero, in units of the sum."""
    private = step(size=1000, noise_multiplier=3.0 * fault, contributors=contributors)
    zero = Constant(np.zeros(1000))
    values = [private.release(zero, zero.value) for _ in range(100)]
    return np.concatenate(values) * private.mechanism.unit


# --- releases ---------------------------------------------------------------------------------------

# What rounding 1,000 values adds to the noise of 6.0: 1,000 of these are counted in the sensitivity.
STD = step(size=1000).mechanism.std


def test_a_release_has_the_promised_noise():
    noise = released_noise()
    assert pytest.approx(6.0, rel=1e-3) == STD
    assert variance_p_value(noise, STD) > FALSE_ALARM
    assert stats.kstest(noise, stats.norm(scale=STD).cdf).pvalue > FALSE_ALARM
    correlation = float(noise[:-1] @ noise[1:]) / STD**2 / math.sqrt(noise.size)
    assert 2 * stats.norm.sf(abs(correlation)) > FALSE_ALARM


def test_a_share_has_its_part_of_the_variance():
    assert variance_p_value(released_noise(contributors=4), STD / 2) > FALSE_ALARM
    assert variance_p_value(released_noise(contributors=4), STD / 4) < FALSE_ALARM


@pytest.mark.parametrize("fault", [0.5, 0.97, 1.03])
def test_control_wrong_noise_is_noticed(fault):
    assert variance_p_value(released_noise(fault), STD) < FALSE_ALARM


def test_control_noise_repeated_every_round_is_noticed():
    once = released_noise()[:1000]
    values = np.tile(once, 100).reshape(100, 1000).mean(axis=0)
    assert variance_p_value(values, STD / 10) < FALSE_ALARM


def test_the_sum_itself_is_not_changed():
    """The mean of many releases is the sum: nothing is divided by a number of rows."""
    value = np.array([1e3, -5.0, 0.0, 0.25])
    private = step()
    unit, std = private.mechanism.unit, private.mechanism.std
    mean = np.mean([private.release(Constant(value), value) * unit for _ in range(2000)], axis=0)
    assert (2 * stats.norm.sf(np.abs(mean - value) / (std / math.sqrt(2000))) > FALSE_ALARM / 4).all()


def test_releases_are_whole_numbers_that_float64_and_torch_carry_exactly(monkeypatch):
    largest = np.array([2**43 - 1, 1 - 2**43, 0, 1])
    monkeypatch.setattr(IntegerMechanism, "noisy", lambda self, clipped_sum: largest)
    released = step().release(Constant(np.zeros(4)), np.zeros(4))
    assert released.dtype == np.int64
    assert np.array_equal(released, largest)


def test_a_share_is_counted_as_the_whole_noise():
    """The accountant prices what the coordinator sees: the sum of the shares."""
    accountant, zero = ExactAccountant(), Constant(np.zeros(4))
    step(accountant=accountant, contributors=5).release(zero, zero.value)
    assert accountant.history == [(3.0, 1.0, 1)]


def test_seeding_torch_and_numpy_does_not_repeat_a_release():
    zero = Constant(np.zeros(4))
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(step().release(zero, zero.value))
    assert not np.any(draws[0] == draws[1])


def test_every_release_is_counted_before_it_is_handed_out():
    accountant = ExactAccountant()
    private = step(accountant=accountant)
    zero = Constant(np.zeros(4))
    for count in range(1, 6):
        private.release(zero, zero.value)
        assert accountant.history == [(3.0, 1.0, count)]
    assert accountant.get_epsilon(1e-6) == epsilon_of([Event(noise_multiplier=3.0, steps=5)], 1e-6)


def test_a_whole_run_ends_at_its_target():
    cost, accountant = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)), ExactAccountant()
    zero = Constant(np.zeros(4))
    step(noise_multiplier=cost.counts.noise_multiplier, accountant=accountant).release(zero, zero.value)
    rounds = step(noise_multiplier=cost.gradient(30).noise_multiplier, accountant=accountant)
    for _ in range(30):
        rounds.release(zero, zero.value)
    assert accountant.get_epsilon(1e-6) < 0.99
    for tally in (cost.calibration, cost.audit):
        step(noise_multiplier=tally.noise_multiplier, accountant=accountant).release(zero, zero.value)
    assert 1 - 1e-9 <= accountant.get_epsilon(1e-6) <= 1


@pytest.mark.parametrize(
    ("clipped", "words"),
    [
        (Constant(np.zeros(4), l2_clip_norm=2.5), "l2_clip_norm is 2.5; allowed: 2"),
        (Constant(np.zeros(5)), "clipped sum"),
        (Constant(np.zeros((4, 1))), "clipped sum"),
        (Constant([0.0, np.nan, 0.0, 0.0]), "finite"),
        (Constant([0.0, np.inf, 0.0, 0.0]), "finite"),
    ],
)
def test_a_sum_that_is_not_as_agreed_is_refused_and_not_counted(clipped, words):
    accountant = ExactAccountant()
    private = step(accountant=accountant)
    with pytest.raises(BadInput, match=words):
        private.release(clipped, np.zeros(4))
    assert accountant.history == []
    assert private.release(Constant(np.zeros(4)), np.zeros(4)).shape == (4,)


def test_the_sum_of_the_caller_is_left_alone():
    value = np.ones(4)
    step().release(Constant(value), value)
    assert np.array_equal(value, np.ones(4))
    value.setflags(write=False)
    step().release(Constant(value), value)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_noise_and_bound_of_training_must_be_positive_and_finite(bad):
    for values in ({"noise_multiplier": bad}, {"l2_clip_norm": bad}):
        with pytest.raises(BadInput):
            trainer(Logistic(1), 10, **values)


# --- the accountant ---------------------------------------------------------------------------------


def test_the_accountant_survives_a_restart():
    accountant = ExactAccountant()
    for noise_multiplier in (5.0, 5.0, 7.0):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)
    restored = ExactAccountant()
    restored.load_state_dict(json.loads(json.dumps(accountant.state_dict())))
    assert restored.history == [(5.0, 1.0, 2), (7.0, 1.0, 1)]
    assert restored.get_epsilon(1e-6) == accountant.get_epsilon(1e-6)
    restored.step(noise_multiplier=7.0, sample_rate=1.0)
    assert (len(restored), len(accountant)) == (4, 3)
    assert restored.get_epsilon(1e-6) > accountant.get_epsilon(1e-6)


def test_a_broken_state_is_refused_and_changes_nothing():
    accountant = ExactAccountant()
    accountant.step(noise_multiplier=5.0, sample_rate=1.0)
    for history in ([(0.0, 1.0, 1)], [(5.0, 2.0, 1)], [(5.0, 1.0, -3)]):
        with pytest.raises(BadInput):
            accountant.load_state_dict({"history": history, "mechanism": "assay-exact"})
    with pytest.raises(ValueError, match="mechanism"):
        accountant.load_state_dict(PRVAccountant().state_dict())
    assert accountant.history == [(5.0, 1.0, 1)]


@pytest.mark.slow
def test_sampled_steps_cost_what_opacus_says():
    ours, theirs = ExactAccountant(), PRVAccountant()
    for accountant in (ours, theirs):
        for _ in range(50):
            accountant.step(noise_multiplier=1.0, sample_rate=0.01)
    assert ours.history == theirs.history
    assert ours.get_epsilon(1e-6) == pytest.approx(theirs.get_epsilon(1e-6), abs=1e-9)


# --- Poisson batches --------------------------------------------------------------------------------


def test_every_row_is_drawn_at_the_stated_rate():
    """Total, each row, and neighbours together; a claimed rate 5 % off is noticed."""
    rows, rate, steps = 200, 0.05, 4000
    drawn = np.zeros((steps, rows))
    for number, batch in enumerate(poisson_batches(rows, rate, steps)):
        drawn[number, batch] = 1

    def total_p_value(claimed):
        return stats.binomtest(int(drawn.sum()), rows * steps, claimed).pvalue

    assert total_p_value(rate) > FALSE_ALARM
    assert total_p_value(rate * 1.05) < FALSE_ALARM
    each = ((drawn.sum(axis=0) - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum()
    assert stats.chi2.sf(each, df=rows) > FALSE_ALARM
    pairs = (drawn[:, :-1] * drawn[:, 1:]).sum()
    z = (pairs - steps * (rows - 1) * rate**2) / math.sqrt(steps * (rows - 1) * rate**2)
    assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM


def test_batch_sizes_are_binomial_and_not_fixed():
    rows, rate, steps = 500, 0.02, 3000
    sizes = np.array([len(batch) for batch in poisson_batches(rows, rate, steps)])
    expected = stats.binom.pmf(np.arange(2, 20), rows, rate)
    counts = np.array([(sizes == size).sum() for size in range(2, 20)])
    rest, rest_expected = steps - counts.sum(), 1 - expected.sum()
    p = stats.chisquare([*counts, rest], np.array([*expected, rest_expected]) * steps).pvalue
    assert p > FALSE_ALARM


@pytest.mark.parametrize(("rows", "rate"), [(1, 0.5), (10, 1.0), (1000, 1e-4), (7, 0.999), (100_000, 0.3)])
def test_batches_are_ascending_distinct_rows(rows, rate):
    for batch in poisson_batches(rows, rate, 20):
        assert batch.dtype == np.int64
        assert (np.diff(batch) > 0).all()
        assert ((batch >= 0) & (batch < rows)).all()


def test_too_few_gaps_are_topped_up():
    """All-zero entropy gives the same short gaps for ever; the batch must still reach the last row."""
    (batch,) = poisson_batches(1000, 0.001, 1, lambda count: bytes(count))
    assert batch.size == 0 or batch[-1] < 1000


def test_the_number_of_steps_is_the_one_asked_for():
    """``int(1 / (1 / L))`` is L - 1 for some L, of which 93 is the first."""
    assert int(1 / (1 / 93)) == 92
    assert sum(1 for _ in poisson_batches(100, 1 / 93, 93)) == 93


@pytest.mark.parametrize("values", [(0, 0.5, 1), (10, 0.0, 1), (10, 1.1, 1), (10, math.nan, 1), (10, 0.5, 0)])
def test_a_sampler_outside_its_range_is_refused(values):
    with pytest.raises(BadInput):
        next(poisson_batches(*values))


# --- training on one machine ------------------------------------------------------------------------


def trainer(model, rows, *, rate=0.1, noise_multiplier=1.0, l2_clip_norm=1.0, accountant=None):
    return PrivateTrainer(
        list(model.parameters()),
        rows=rows,
        sample_rate=rate,
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=noise_multiplier,
        learning_rate=0.5,
        accountant=ExactAccountant() if accountant is None else accountant,
    )


def data(rows, features=3):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(rows, features, generator=generator)
    return inputs, (inputs.sum(1) > 0).float()


def test_the_accountant_is_told_the_samplers_rate_and_every_step_even_an_empty_one():
    accountant = ExactAccountant()
    model, (inputs, labels) = Logistic(3), data(50)
    private = trainer(model, 50, rate=0.01, accountant=accountant)
    sizes = list(private.train(LogisticSum(inputs, labels, 1.0), steps=30))
    assert 0 in sizes
    assert accountant.history == [(1.0, 0.01, 30)]


def test_an_empty_batch_still_moves_the_model_by_noise():
    model, (inputs, labels) = Logistic(3), data(50)
    before = model.linear.weight.detach().clone()
    sizes = trainer(model, 50, rate=1e-9).train(LogisticSum(inputs, labels, 1.0), steps=1)
    assert list(sizes) == [0]
    assert (model.linear.weight != before).all()


def test_the_model_itself_is_trained():
    torch.manual_seed(0)
    model, (inputs, labels) = Logistic(3), data(2000)
    list(trainer(model, 2000, noise_multiplier=0.5).train(LogisticSum(inputs, labels, 1.0), steps=200))
    accuracy = ((model(inputs) > 0) == (labels > 0)).float().mean()
    assert accuracy > 0.9


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_one_step_equals_opacus_without_the_noise():
    """Same rows, same clipping, same learning rate and divisor as Opacus' own per-sample machinery."""
    model, (inputs, labels) = Logistic(3), data(400)
    reference = GradSampleModule(Logistic(3), loss_reduction="sum")
    reference._module.load_state_dict(model.state_dict())
    criterion = torch.nn.BCEWithLogitsLoss(reduction="sum")
    criterion(reference(inputs), labels).backward()
    grads = [p.grad_sample for p in reference.parameters()]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    assert (norms > 0.5).any()
    factor = (0.5 / norms).clamp(max=1.0)
    expected = [
        p.detach() - 0.5 * torch.einsum("i,i...", factor, g) / 400
        for p, g in zip(reference.parameters(), grads, strict=True)
    ]
    private = trainer(model, 400, rate=1.0, noise_multiplier=1e-9, l2_clip_norm=0.5)
    list(private.train(LogisticSum(inputs, labels, 0.5), steps=1))
    for got, wanted in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


def test_the_divisor_is_the_public_expected_batch_size():
    """Adding one row to the data changes the sum, never what it is divided by; Opacus rounds it."""
    moved = []
    for rows in (10, 11):
        model = Logistic(1)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()

        class Ones:
            l2_clip_norm = 1.0

            def __call__(self, chosen, weight, bias):
                return torch.ones_like(weight), torch.zeros_like(bias)

        private = trainer(model, rows, rate=0.95, noise_multiplier=1e-9)
        list(private.train(Ones(), steps=1))
        moved.append(model.linear.weight.item())
    assert moved == pytest.approx([-0.5 / (10 * 0.95), -0.5 / (11 * 0.95)], rel=1e-5)


def test_training_noise_has_the_promised_size():
    class Zero:
        l2_clip_norm = 2.0

        def __call__(self, rows, weight, bias):
            return torch.zeros_like(weight), torch.zeros_like(bias)

    def moves(noise_multiplier):
        model = Logistic(20_000)
        before = model.linear.weight.detach().clone()
        private = trainer(model, 100, rate=0.1, noise_multiplier=noise_multiplier, l2_clip_norm=2.0)
        list(private.train(Zero(), steps=1))
        return (model.linear.weight.detach() - before).double().numpy().ravel()

    std = 0.5 / (100 * 0.1) * 3.0 * 2.0
    assert variance_p_value(moves(3.0), std) > FALSE_ALARM
    assert variance_p_value(moves(2.7), std) < FALSE_ALARM


def test_a_clipped_sum_of_another_bound_or_not_finite_is_not_counted():
    accountant = ExactAccountant()
    model, (inputs, labels) = Logistic(3), data(50)
    private = trainer(model, 50, rate=1.0, accountant=accountant)
    with pytest.raises(BadInput, match="l2_clip_norm"):
        next(private.train(LogisticSum(inputs, labels, 0.9), steps=1))
    inputs[7, 1] = math.nan
    with pytest.raises(BadInput, match="finite"):
        next(private.train(LogisticSum(inputs, labels, 1.0), steps=1))
    assert accountant.history == []


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_a_learning_rate_must_be_positive_and_finite(bad):
    with pytest.raises(BadInput, match="learning_rate"):
        PrivateTrainer(
            list(Logistic(1).parameters()),
            rows=10,
            sample_rate=0.5,
            l2_clip_norm=1.0,
            noise_multiplier=1.0,
            learning_rate=bad,
            accountant=ExactAccountant(),
        )


# --- Opacus' order of things ------------------------------------------------------------------------


def test_a_second_step_without_clearing_is_refused_by_opacus():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = SecureOptimizer(torch.optim.SGD([parameter], lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0)
    parameter.grad = torch.zeros(3)
    optimizer.step()
    with pytest.raises(ValueError, match="zero_grad"):
        optimizer.step()


def test_gradients_accumulated_over_several_batches_get_noise_once():
    accountant = ExactAccountant()
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SecureOptimizer(
        torch.optim.SGD([parameter], lr=1.0), noise_multiplier=1e-9, max_grad_norm=1.0
    )
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=1.0))
    for skip in (True, False):
        parameter.grad = torch.ones(3, dtype=torch.float64)
        optimizer.signal_skip_step(do_skip=skip)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(parameter.detach(), torch.full((3,), -2.0, dtype=torch.float64))
    assert len(accountant) == 1


def test_opacus_own_noise_repeats_after_seeding():
    """Why SecureOptimizer exists. Should this fail one day, Opacus has changed."""
    noise = []
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.zeros(3))
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD([parameter], lr=1.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        torch.manual_seed(0)
        parameter.grad = torch.zeros(3)
        optimizer.pre_step()
        noise.append(parameter.grad.clone())
    assert torch.equal(*noise)
