"""The neural challenger: the same bound on every person, the same rounds, and nobody is scored with it."""

import numpy as np
import pytest
import torch
from toy_study import STUDY, TEXT, records

from assay.models.encoding import Grid
from assay.models.metrics import auroc
from assay.models.neural import L2_CLIP_NORM, NeuralClippedSum, NeuralFit, NeuralLayout
from assay.models.study import parse_study
from assay.privacy.errors import BadInput, Refused
from assay.simulations.comparison import pool, train_baselines
from assay.simulations.engine import challenge, with_epsilon, with_model

GRID = Grid.of(STUDY)
LAYOUT = NeuralLayout(grid=GRID)
START = LAYOUT.start(STUDY)


def encoded(data):
    return GRID.encode(data.columns)


def per_row(data, theta):
    """Per-row gradients by torch alone, one row at a time; the oracle."""
    module, inputs = LAYOUT.module(), LAYOUT.features(encoded(data))
    module.load_state_dict(LAYOUT.parameters(module, theta))
    out = []
    for row, label in zip(inputs, torch.from_numpy(data.labels), strict=True):
        module.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            module(row[None]), label[None], reduction="sum"
        ).backward()
        out.append(np.concatenate([p.grad.numpy().ravel() for p in module.parameters()]))
    return np.stack(out)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_sum_is_that_of_clipped_rows(scale):
    data, theta = records(60), scale * START
    gradients = per_row(data, theta)
    norms = np.linalg.norm(gradients, axis=1)
    wanted = (gradients * np.minimum(1, L2_CLIP_NORM / np.maximum(norms, 1e-300))[:, None]).sum(axis=0)
    ours = NeuralClippedSum(LAYOUT, encoded(data), data.labels, None)(theta)
    assert (norms > L2_CLIP_NORM).any()
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 50])
def test_no_person_moves_the_sum_by_more_than_the_bound(rows):
    data = records(100)
    owners = np.concatenate([np.zeros(rows, dtype=int), 1 + np.arange(100 - rows)])
    rest = np.flatnonzero(owners != 0)
    cells = encoded(data)
    for theta in (START, 100 * START):
        whole = NeuralClippedSum(LAYOUT, cells, data.labels, owners)(theta)
        without = NeuralClippedSum(LAYOUT, cells.rows(rest), data.labels[rest], owners[rest])(theta)
        assert np.linalg.norm(whole - without) <= L2_CLIP_NORM


def test_rows_of_one_person_are_added_before_they_are_clipped():
    data, owners = records(80), np.random.default_rng(0).integers(0, 9, 80)
    gradients, wanted = per_row(data, START), np.zeros(LAYOUT.width)
    for owner in range(9):
        own = gradients[owners == owner].sum(axis=0)
        wanted += own * min(1, L2_CLIP_NORM / np.linalg.norm(own))
    ours = NeuralClippedSum(LAYOUT, encoded(data), data.labels, owners)(START)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_inputs_are_bounded_and_absent_components_are_zero():
    data = records(50)
    inputs = LAYOUT.features(encoded(data)).numpy()
    assert inputs.shape == (50, LAYOUT.inputs)
    assert np.abs(inputs).max() <= 1
    one = next(iter(data.columns))
    alone = LAYOUT.features(GRID.encode({one: data.columns[one]})).numpy()
    assert (np.abs(alone).sum(axis=0) == 0).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_parameters_that_are_not_finite_or_absurd_are_refused(value):
    data, theta = records(5), START.copy()
    theta[3] = value
    with pytest.raises(BadInput, match="theta"):
        NeuralClippedSum(LAYOUT, encoded(data), data.labels, None)(theta)


def test_the_start_is_public_and_the_same_for_everybody():
    assert (LAYOUT.start(STUDY) == START).all()
    other = parse_study(with_epsilon(TEXT, 3.5))
    assert (LAYOUT.start(other) != START).any()


def test_a_fit_goes_on_from_its_checkpoint():
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(6, LAYOUT.width)) * 20
    whole = NeuralFit(STUDY, LAYOUT, persons=500, rounds=6)
    for step in steps:
        whole.update(step)
    first = NeuralFit(STUDY, LAYOUT, persons=500, rounds=6)
    for step in steps[:4]:
        first.update(step)
    second = NeuralFit(STUDY, LAYOUT, persons=500, rounds=6)
    second.restore(first.state())
    for step in steps[4:]:
        second.update(step)
    assert (second.result(STUDY) == whole.result(STUDY)).all()
    with pytest.raises(BadInput, match="round"):
        second.update(steps[0])


def test_a_live_run_refuses_a_network():
    with pytest.raises(Refused, match="no points that could be explained"):
        parse_study(with_model(TEXT, "neural")).require_trainable()


def test_the_simulated_challenger_learns_through_rounds_noise_and_ledgers():
    holders = {name: records(900, seed=seed) for seed, name in enumerate("abc")}
    test = records(2000, seed=9)
    text = with_model(with_epsilon(TEXT, 8.0), "neural")
    theta = challenge(text, holders)
    assert auroc(test.labels, LAYOUT.log_odds(theta, encoded(test))) > 0.6
    # The noise is real: a second run ends elsewhere.
    assert (challenge(text, holders) != theta).any()


@pytest.mark.slow
def test_a_study_that_asks_for_a_network_gets_it_compared():
    holders = {name: records(600, seed=seed) for seed, name in enumerate("abc")}
    text = with_model(with_epsilon(TEXT, 8.0), "neural")
    found = train_baselines(text, holders, records(1500, seed=9)).to_json()
    assert 0.5 < found["neural_auroc"] < 1
    assert found["non_private_auroc"] > 0.6
    assert pool(list(holders.values()), GRID).rows == 1800
