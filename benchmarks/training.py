"""How fast Assay trains with privacy, against Opacus as in its tutorial and PyTorch without privacy.

Run: python benchmarks/training.py [--rows 300000] [--features 25] [--batch 1024 --batch 4096] [--json]

One process, one thread. Every variant trains the same additive model (hat functions on 12 knots per
feature) on the same rows with the same batch size, clip norm, noise multiplier and learning rate:

assay        PrivateTrainer: geometric-gap Poisson batches, closed-form clipped sum, Opacus' step with
             AES noise and the accountant hooked to the sampler's rate
tutorial     Opacus as in its tutorial: DataLoader over a TensorDataset, PrivacyEngine.make_private
             (Poisson sampling), once with per-sample gradients ("hooks") and once with ghost clipping;
             the faster of the two counts
plain        PyTorch without privacy: tensors in memory, shuffled batches, autograd, SGD; the model is
             written with index_select, which is faster than the module's own forward and EmbeddingBag

The variants take turns in short slices of processor time and the medians over the repetitions are
compared, so that a busy machine slows all of them alike. Rates depend on the machine; quote the ratios.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

from assay.models.additive import AdditiveModel, MinibatchClippedSum
from assay.models.encoding import Encoded
from assay.privacy.optimizer import ExactAccountant, PrivateTrainer

CELLS = 13  # 12 knots and one cell for "missing"
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 0.1
TUTORIAL = ("tutorial_hooks", "tutorial_ghost")


def make_data(rows: int, features: int) -> tuple[Encoded, np.ndarray]:
    """Return random encoded rows and labels that follow an additive model."""
    rng = np.random.default_rng(0)
    position = rng.random((rows, features)) * (CELLS - 2)
    cell = np.minimum(position.astype(np.int32), CELLS - 3)
    upper = (position - cell).astype(np.float32)
    slope = np.linspace(-1, 1, features)
    logit = (position / (CELLS - 2) - 0.5) @ slope * 4 - 1
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    low = cell + np.arange(features, dtype=np.int32) * CELLS
    return Encoded(low=low, upper=upper, pattern=np.ones(rows, dtype=np.int32)), labels


def assay(encoded: Encoded, labels: np.ndarray, size: int, batch: int, clip: float) -> Iterator[int]:
    """Train with Assay, yielding the rows of each step."""
    model = AdditiveModel(size)
    rows = len(labels)
    trainer = PrivateTrainer(
        [model.weight, model.bias],
        rows=rows,
        sample_rate=batch / rows,
        l2_clip_norm=clip,
        noise_multiplier=NOISE_MULTIPLIER,
        learning_rate=LEARNING_RATE,
        accountant=ExactAccountant(),
    )
    clipped_sum = MinibatchClippedSum(encoded, labels, size=size, l2_clip_norm=clip)
    yield from trainer.train(clipped_sum, steps=10**9)


def tutorial(
    encoded: Encoded, labels: np.ndarray, size: int, batch: int, clip: float, *, mode: str
) -> Iterator[int]:
    """Train as Opacus' tutorial does, yielding the rows of each step."""
    data = TensorDataset(*tensors(encoded, labels))
    model = AdditiveModel(size)
    criterion = torch.nn.BCEWithLogitsLoss()
    private = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        criterion=criterion,
        data_loader=DataLoader(data, batch_size=batch),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=clip,
        grad_sample_mode=mode,
    )
    if mode == "ghost":
        model, optimizer, criterion, loader = private
    else:
        model, optimizer, loader = private
    while True:
        for low, upper, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(low, upper), target)
            loss.backward()
            optimizer.step()
            yield len(target)


def plain(encoded: Encoded, labels: np.ndarray, size: int, batch: int) -> Iterator[int]:
    """Train without privacy on tensors in memory, yielding the rows of each step."""
    low, upper, targets = tensors(encoded, labels)
    weight, bias = torch.nn.Parameter(torch.zeros(size)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight, bias], lr=LEARNING_RATE)
    criterion = torch.nn.BCEWithLogitsLoss()
    while True:
        for chosen in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            cells = low.index_select(0, chosen).view(-1)
            steps = torch.diff(weight, append=weight[-1:]).index_select(0, cells)
            share = upper.index_select(0, chosen)
            inside = torch.addcmul(weight.index_select(0, cells), share.view(-1), steps)
            logits = inside.view_as(share).sum(dim=1) + bias
            loss = criterion(logits, targets.index_select(0, chosen))
            loss.backward()
            optimizer.step()
            yield len(chosen)


def tensors(encoded: Encoded, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return cells (int64: faster to index by than int32), weights and labels as PyTorch wants them."""
    return (
        torch.from_numpy(encoded.low.astype(np.int64)),
        torch.from_numpy(encoded.upper),
        torch.from_numpy(labels),
    )


def measure(variants: dict[str, Iterator[int]], *, repetitions: int, slice_s: float) -> dict[str, float]:
    """Return the median rows per second of processor time of each variant, taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(-1, repetitions):  # the first turn warms up and does not count
        for name, steps in variants.items():
            rows, start = 0, time.process_time()
            while (spent := time.process_time() - start) < slice_s:
                rows += next(steps)
            if repetition >= 0:
                rates[name].append(rows / spent)
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(rows: int, features: int, batch: int, *, repetitions: int, slice_s: float) -> dict[str, float]:
    """Return rates and ratios at one batch size."""
    encoded, labels = make_data(rows, features)
    size, clip = features * CELLS, math.sqrt(features + 1)
    variants = {
        "assay": assay(encoded, labels, size, batch, clip),
        "plain": plain(encoded, labels, size, batch),
        "tutorial_hooks": tutorial(encoded, labels, size, batch, clip, mode="hooks"),
        "tutorial_ghost": tutorial(encoded, labels, size, batch, clip, mode="ghost"),
    }
    rates = measure(variants, repetitions=repetitions, slice_s=slice_s)
    best = max(rates[name] for name in TUTORIAL)
    return {
        "rows": rows,
        "features": features,
        "batch": batch,
        **{f"{name}_rows_per_s": math.floor(rate) for name, rate in rates.items()},
        "times_tutorial": round(rates["assay"] / best, 1),
        "times_slower_than_plain": round(rates["plain"] / rates["assay"], 2),
    }


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=25)
    parser.add_argument("--batch", type=int, action="append", help="default: 1024 and 4096")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--slice-s", type=float, default=1.0, help="processor time of one turn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the non-private variant's shuffling; Assay's noise does not see it
    warnings.filterwarnings("ignore")  # Opacus warns that it is not in secure mode
    logging.disable(logging.WARNING)
    results = [
        compare(
            options.rows, options.features, batch, repetitions=options.repetitions, slice_s=options.slice_s
        )
        for batch in options.batch or [1024, 4096]
    ]
    if options.json:
        print(json.dumps({"results": results}))
        return
    for result in results:
        print(f"{result['rows']:,} rows x {result['features']} features, batches of {result['batch']:,}")
        for name in ("plain", "assay", *TUTORIAL):
            print(f"  {name:<15} {result[f'{name}_rows_per_s']:>12,} rows/s")
        print(f"  Assay is {result['times_tutorial']} times the faster tutorial variant")
        print(f"  and {result['times_slower_than_plain']} times slower than no privacy")


if __name__ == "__main__":
    main()
