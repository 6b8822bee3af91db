"""The neural challenger: a small network under the same privacy, to see what a scorecard gives away.

It is trained like the scorecard, one noisy clipped gradient sum over all persons per round, with per-sample
gradients from Opacus' hooks (``GradSampleModule``). Nobody is scored with it: it has no points to explain.
Its inputs are made of the scorecard's public cells, so both see the same records in the same way.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from opacus.grad_sample import GradSampleModule
from torch import nn
from torch.func import functional_call

from assay.models.additive import MARGIN, MAX_LOG_ODDS, checked_labels, grouped
from assay.models.encoding import Encoded, Grid
from assay.models.schema import Study
from assay.privacy.errors import BadInput

__all__ = ["L2_CLIP_NORM", "NeuralClippedSum", "NeuralFit", "NeuralLayout"]

Vector = NDArray[np.float64]

L2_CLIP_NORM = 1.0
HIDDEN = 16
LEARNING_RATE = 0.1
_ROWS = 2048  # per-sample gradients of so many rows at a time: some 20 MB
# Adam's usual constants (Kingma & Ba 2015, algorithm 1).
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class NeuralLayout:
    """The network of a study; public.

    Attributes:
        grid: the cells its inputs are made of.
    """

    grid: Grid

    @property
    def inputs(self) -> int:
        """Number of inputs: two per ordered feature, one per cell of the others, one per component."""
        own = (2 if feature.ordered else feature.cells for feature in self.grid.features)
        return sum(own) + len(self.grid.components)

    @property
    def width(self) -> int:
        """Number of parameters."""
        return self.inputs * HIDDEN + 2 * HIDDEN + 1

    def module(self) -> nn.Sequential:
        """Return the network, float64: its rounding then disappears in the margin of the clip norm."""
        first, last = nn.Linear(self.inputs, HIDDEN), nn.Linear(HIDDEN, 1)
        return nn.Sequential(first, nn.Tanh(), last, nn.Flatten(0)).double()

    def start(self, study: Study) -> Vector:
        """Return the public parameters that training starts from, float64 [width]."""
        seed = int.from_bytes(hashlib.sha256(study.digest.encode()).digest()[:8], "big")
        rng, theta = np.random.default_rng(seed), np.zeros(self.width)
        weights = self.inputs * HIDDEN
        theta[:weights] = rng.normal(scale=1 / math.sqrt(self.inputs), size=weights)
        theta[weights + HIDDEN : weights + 2 * HIDDEN] = rng.normal(scale=1 / math.sqrt(HIDDEN), size=HIDDEN)
        return theta

    def features(self, encoded: Encoded) -> torch.Tensor:
        """Return the inputs, float64 [N, inputs], all within -1 and 1; 0 for what is absent."""
        columns = []
        for j, feature in enumerate(self.grid.features):
            cell = encoded.low[:, j] - feature.offset
            there = encoded.low[:, j] >= 0
            if feature.ordered:
                missing = there & (cell == feature.cells - 1)
                place = 2 * (cell + encoded.upper[:, j]) / max(feature.ordered - 1, 1) - 1
                columns += [np.where(there & ~missing, place, 0.0), missing.astype(float)]
            else:
                columns += [(there & (cell == each)).astype(float) for each in range(feature.cells)]
        columns += [(encoded.pattern >> i & 1).astype(float) for i in range(len(self.grid.components))]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))

    def parameters(self, module: nn.Module, theta: Vector) -> dict[str, torch.Tensor]:
        """Return a flat parameter vector as the tensors of ``module``, by name."""
        parts, start = {}, 0
        for name, parameter in module.named_parameters():
            end = start + parameter.numel()
            parts[name] = torch.from_numpy(theta[start:end].copy()).view_as(parameter)
            start = end
        return parts

    def log_odds(self, theta: Vector, encoded: Encoded) -> Vector:
        """Return the log-odds of bad, float64 [N]."""
        module = self.module()
        with torch.no_grad():
            out = functional_call(module, self.parameters(module, theta), (self.features(encoded),))
        return np.asarray(out.numpy(), dtype=np.float64)


class NeuralClippedSum:
    """The sum over persons of the network's gradient, each person's part clipped to ``l2_clip_norm``.

    Guarantee and edge cases: as for :class:`assay.models.additive.AdditiveClippedSum`.

    Attributes:
        l2_clip_norm: the sensitivity.
        width: number of parameters.
    """

    def __init__(
        self, layout: NeuralLayout, encoded: Encoded, labels: ArrayLike, persons: ArrayLike | None
    ) -> None:
        """Keep the records as inputs of the network.

        Args:
            layout: the network.
            encoded: N rows.
            labels: [N] of 0 and 1.
            persons: integers [N], equal for rows of one person; None: every row is a person.

        Raises:
            BadInput: an argument is not as described.
        """
        self.l2_clip_norm, self.width = L2_CLIP_NORM, layout.width
        order, self._starts = grouped(persons, len(encoded))
        self._inputs = layout.features(encoded.rows(order))
        self._labels = torch.from_numpy(checked_labels(labels, len(encoded))[order])
        self._layout = layout
        self._module = GradSampleModule(layout.module(), batch_first=True, loss_reduction="sum")

    def __call__(self, theta: Vector) -> Vector:
        """Return the clipped gradient sum, float64 [width].

        Raises:
            BadInput: ``theta`` has another length, or a number that is not finite or absurd.
        """
        if theta.shape != (self.width,) or not (np.abs(theta) <= MAX_LOG_ODDS).all():
            raise BadInput("theta", allowed=f"{self.width} finite numbers within ±{MAX_LOG_ODDS:g}")
        inner = self._module._module
        inner.load_state_dict(self._layout.parameters(inner, theta))
        out, person, last = np.zeros(self.width), 0, len(self._starts) - 1
        while person < last:
            end = int(np.searchsorted(self._starts, self._starts[person] + _ROWS, side="right")) - 1
            end = min(max(end, person + 1), last)
            out += self._part(person, end)
            person = end
        return out

    def _part(self, first: int, last: int) -> Vector:
        """The clipped sum over some persons: per-sample gradients, added up by person, then scaled."""
        rows = slice(int(self._starts[first]), int(self._starts[last]))
        self._module.zero_grad()
        # Hooks on the first layer see its output's gradient only where its input asks for one.
        logits = self._module(self._inputs[rows].requires_grad_())
        if logits.dim() != 1:
            raise BadInput("logits", allowed="one dimension: clipping would do nothing")
        loss = nn.functional.binary_cross_entropy_with_logits(logits, self._labels[rows], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        samples = [p.grad_sample.reshape(len(logits), -1) for p in self._module.parameters()]
        gradients = torch.cat(samples, dim=1).numpy()
        owners = self._starts[first:last] - self._starts[first]
        own = np.add.reduceat(gradients, owners, axis=0)
        limit = self.l2_clip_norm * (1 - MARGIN)
        scales = limit / np.maximum(np.sqrt((own**2).sum(axis=1)), limit)
        return np.asarray(scales @ own, dtype=np.float64)


class NeuralFit:
    """Adam on released sums; post-processing, like :class:`assay.models.fitting.Fit`.

    Attributes:
        rounds: number of gradient rounds.
        done: rounds taken so far.
    """

    def __init__(self, study: Study, layout: NeuralLayout, *, persons: float, rounds: int) -> None:
        """Start from the study's public parameters.

        Args:
            study: the study.
            layout: its network.
            persons: how many persons are in a sum, at least 1.
            rounds: number of gradient rounds, at least 1.
        """
        self.rounds, self.done, self._persons = rounds, 0, persons
        self._theta = layout.start(study)
        self._first, self._second = np.zeros(layout.width), np.zeros(layout.width)
        self._sum = np.zeros(layout.width)

    @property
    def theta(self) -> Vector:
        """The current parameters, float64 [width]."""
        return self._theta.copy()

    def update(self, gradient_sum: Vector) -> None:
        """Take one step from the noisy gradient sum at :attr:`theta`.

        Raises:
            BadInput: wrong shape, a value that is not finite, or more rounds than announced.
        """
        if gradient_sum.shape != self._theta.shape or not np.isfinite(gradient_sum).all():
            raise BadInput("gradient", allowed=f"{self._theta.size} finite numbers")
        if self.done >= self.rounds:
            raise BadInput("round", value=self.done + 1, allowed=f"1..{self.rounds}")
        mean = gradient_sum / self._persons
        self.done += 1
        self._first = _BETA1 * self._first + (1 - _BETA1) * mean
        self._second = _BETA2 * self._second + (1 - _BETA2) * mean**2
        ahead, spread = self._first / (1 - _BETA1**self.done), self._second / (1 - _BETA2**self.done)
        self._theta = self._theta - LEARNING_RATE * ahead / (np.sqrt(spread) + _TINY)
        np.clip(self._theta, -MAX_LOG_ODDS, MAX_LOG_ODDS, out=self._theta)
        if self.done > self.rounds - self._averaged:
            self._sum += self._theta

    @property
    def _averaged(self) -> int:
        return max(1, self.rounds // 4)

    def result(self, study: Study) -> Vector:
        """Return the mean of the last quarter of the iterates, float64 [width].

        Raises:
            BadInput: rounds are missing.
        """
        if self.done != self.rounds:
            raise BadInput("rounds done", value=self.done, allowed=str(self.rounds))
        return self._sum / self._averaged

    def state(self) -> dict[str, Vector]:
        """Return everything that changes from round to round, for a checkpoint."""
        return {
            "done": np.array([float(self.done)]),
            "theta": self._theta.copy(),
            "first": self._first.copy(),
            "second": self._second.copy(),
            "sum": self._sum.copy(),
        }

    def restore(self, state: dict[str, Vector]) -> None:
        """Go on from a checkpoint made by :meth:`state` of a fit with the same arguments."""
        self.done, self._theta = int(state["done"][0]), state["theta"].copy()
        self._first, self._second = state["first"].copy(), state["second"].copy()
        self._sum = state["sum"].copy()
