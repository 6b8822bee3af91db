"""The additive model and its per-person clipped gradient sum.

The model is one table: the logit of a row is the sum of the cells it lies in, plus a bias. Its gradient
for one row is ``r * x`` with the residual ``r = sigmoid(logit) - label`` and the design row ``x`` (hat
weights and a 1 for the bias), so that the gradient's norm is ``|r| * |x|`` and ``|x|`` can be computed once.
:class:`AdditiveClippedSum` uses that; Opacus' per-sample gradients of :class:`AdditiveModel` are the oracle
it is tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from scipy import sparse
from scipy.special import expit
from torch import nn

from assay.models.encoding import Encoded
from assay.privacy.errors import BadInput

__all__ = [
    "MAX_LOG_ODDS",
    "AdditiveClippedSum",
    "AdditiveModel",
    "ClippedCounts",
    "MinibatchClippedSum",
]

MAX_LOG_ODDS = 1e6  # of one cell: far beyond any model, and a sum of them is still finite
_BLOCK = 8192  # rows worked on at a time: one block of the design matrix stays in the processor's cache
# Contributions are cut slightly below the bound, so that rounding in float64 (relative 1e-16 per addition,
# 1e-9 over ten million rows) or float32 (1e-7 per factor) cannot carry a person over it.
_MARGIN = 1e-6


class AdditiveModel(nn.Module):
    """A table of log-odds of bad and a bias.

    Attributes:
        weight: [size], one log-odds per cell.
        bias: [1].
    """

    def __init__(self, size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, low: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Return logits [B], one-dimensional: Opacus' ghost clipping silently clips nothing for [B, 1].

        Args:
            low: integers [B, F], see :class:`assay.models.encoding.Encoded`.
            upper: floats [B, F].
        """
        following = _following(low, self.weight.shape[0])
        inside = self.weight[low] * (1 - upper) + self.weight[following] * upper
        return inside.sum(dim=1) + self.bias

    def load_theta(self, theta: NDArray[np.float64]) -> None:
        """Copy a flat parameter vector, table then bias, into the module."""
        values = torch.as_tensor(theta, dtype=self.weight.dtype)
        with torch.no_grad():
            self.weight.copy_(values[:-1])
            self.bias.copy_(values[-1:])


def _following(low: torch.Tensor, size: int) -> torch.Tensor:
    """The cell after ``low``; the last cell of the table has none, and always weight 0 there."""
    return (low.long() + 1).clamp(max=size - 1)


@register_grad_sampler(AdditiveModel)  # type: ignore[untyped-decorator,unused-ignore]
def _grad_samples(
    layer: AdditiveModel, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-row gradients [B, size] and [B, 1] for Opacus' hooks."""
    low, upper = activations[0].long(), activations[1]
    size = layer.weight.shape[0]
    rows = torch.zeros(low.shape[0], size, dtype=backprops.dtype, device=backprops.device)
    rows.scatter_add_(1, low, (1 - upper).to(backprops.dtype))
    rows.scatter_add_(1, _following(low, size), upper.to(backprops.dtype))
    return {layer.weight: rows * backprops.unsqueeze(1), layer.bias: backprops.unsqueeze(1)}


@register_norm_sampler(AdditiveModel)  # type: ignore[untyped-decorator,unused-ignore]
def _norm_samples(
    layer: AdditiveModel, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-row gradient norms [B] for ghost clipping (Lee & Kifer 2021)."""
    upper = activations[1]
    table = ((1 - upper).square() + upper.square()).sum(dim=1).sqrt()
    return {layer.weight: backprops.abs() * table, layer.bias: backprops.abs()}


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Consecutive rows of whole persons.

    Attributes:
        design: sparse float64 [rows, size], the bias column left out.
        labels: float64 [rows].
        norms: float64 [rows], norm of each design row, bias included.
        starts: int64 [persons + 1], where each person's rows begin; None where every row is a person.
    """

    design: Any
    labels: NDArray[np.float64]
    norms: NDArray[np.float64]
    starts: NDArray[np.int64] | None


class AdditiveClippedSum:
    """The sum over persons of the cross-entropy gradient, each person's part clipped to ``l2_clip_norm``.

    Guarantee: leaving out one person (all of its rows, one more or less) changes the returned vector
    by at most ``l2_clip_norm`` in Euclidean norm, rounding included.

    Edge cases:
        non-finite theta        refused, nothing is computed
        weights outside [0, 1]  refused on construction
        labels other than 0, 1  refused on construction
        no rows                 refused on construction
        a person with many rows its gradients are summed first, then clipped once
    The result is the same bytes for the same theta.

    Attributes:
        l2_clip_norm: the sensitivity.
        size: number of table cells; theta has one entry more.
        persons: number of persons.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: ArrayLike,
        persons: ArrayLike | None = None,
        *,
        size: int,
        l2_clip_norm: float,
    ) -> None:
        """Prepare the design matrix; about 12 bytes per row and nonzero weight.

        Args:
            encoded: N rows.
            labels: [N] of 0 and 1.
            persons: integers [N], equal for rows of one person; None: every row is a person.
            size: number of cells of the table.
            l2_clip_norm: above 0 and finite.

        Raises:
            BadInput: an argument is not as described.
        """
        if not 0 < l2_clip_norm < np.inf:
            raise BadInput("l2_clip_norm", value=l2_clip_norm, allowed="a positive finite number")
        self.l2_clip_norm, self.size = float(l2_clip_norm), size
        targets = _checked_labels(labels, len(encoded))
        _check_encoded(encoded, size)
        order, starts = _grouped(persons, len(encoded))
        self.persons = len(starts) - 1
        self._blocks = [
            _block(encoded.rows(rows), targets[rows], own, size) for rows, own in _blocks(order, starts)
        ]

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the clipped gradient sum, float64 [size + 1], table then bias.

        Raises:
            BadInput: ``theta`` has another length, or a number that is not finite or beyond
                :data:`MAX_LOG_ODDS`.
        """
        if theta.shape != (self.size + 1,) or not (np.abs(theta) <= MAX_LOG_ODDS).all():
            raise BadInput("theta", allowed=f"{self.size + 1} finite numbers within ±{MAX_LOG_ODDS:g}")
        out = np.zeros(self.size + 1, dtype=np.float64)
        table, bias = np.asarray(theta[:-1], dtype=np.float64), float(theta[-1])
        for block in self._blocks:
            residuals = expit(block.design @ table + bias) - block.labels
            residuals *= self._scales(block, residuals)
            out[:-1] += block.design.T @ residuals
            out[-1] += residuals.sum()
        return out

    def _scales(self, block: _Block, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor [rows] that brings every person's gradient inside the bound."""
        if block.starts is None:
            norms = np.abs(residuals) * block.norms
        else:
            norms = _person_norms(block.design, block.starts, residuals)
        limit = self.l2_clip_norm * (1 - _MARGIN)
        scales = limit / np.maximum(norms, limit)
        if not (norms * scales <= self.l2_clip_norm).all():
            raise BadInput("gradient", allowed="a norm within the bound after clipping")
        return scales if block.starts is None else np.repeat(scales, np.diff(block.starts))


class ClippedCounts:
    """How many persons lie in each cell: a person's summed hat weights, clipped to ``l2_clip_norm``.

    Guarantee: as for :class:`AdditiveClippedSum`. A person of one row has norm at most ``sqrt(features)``,
    so with that bound only persons of several rows are scaled, and each person counts about once.

    Attributes:
        l2_clip_norm: the sensitivity.
        size: number of table cells.
    """

    def __init__(self, gradients: AdditiveClippedSum, *, l2_clip_norm: float) -> None:
        """Count over the same rows and persons as ``gradients``.

        Raises:
            BadInput: ``l2_clip_norm`` is not a positive finite number.
        """
        if not 0 < l2_clip_norm < np.inf:
            raise BadInput("l2_clip_norm", value=l2_clip_norm, allowed="a positive finite number")
        self.l2_clip_norm, self.size = float(l2_clip_norm), gradients.size
        self._blocks = gradients._blocks

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the counts, float64 [size]; they do not depend on ``theta``."""
        out = np.zeros(self.size, dtype=np.float64)
        limit = self.l2_clip_norm * (1 - _MARGIN)
        for block in self._blocks:
            ones = np.ones(len(block.labels))
            if block.starts is None:
                norms = np.sqrt(block.norms**2 - 1)  # without the bias
                out += block.design.T @ (limit / np.maximum(norms, limit))
            else:
                norms = _person_norms(block.design, block.starts, ones, bias=False)
                scales = limit / np.maximum(norms, limit)
                out += block.design.T @ np.repeat(scales, np.diff(block.starts))
        return out


class MinibatchClippedSum:
    """The same clipped sum for a batch of rows, each row a person; float32, for Poisson-sampled training.

    Attributes:
        l2_clip_norm: the sensitivity.
    """

    def __init__(self, encoded: Encoded, labels: ArrayLike, *, size: int, l2_clip_norm: float) -> None:
        """Keep the records as tensors; arguments as for :class:`AdditiveClippedSum`."""
        if not 0 < l2_clip_norm < np.inf:
            raise BadInput("l2_clip_norm", value=l2_clip_norm, allowed="a positive finite number")
        targets = _checked_labels(labels, len(encoded))
        _check_encoded(encoded, size)
        self.l2_clip_norm, self._size = float(l2_clip_norm), size
        self._low = torch.from_numpy(encoded.low.astype(np.int64))
        self._upper = torch.from_numpy(np.ascontiguousarray(encoded.upper))
        self._labels = torch.from_numpy(targets.astype(np.float32))
        self._norms = torch.from_numpy(_design_norms(encoded).astype(np.float32))

    def __call__(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clipped sums for ``weight`` [size] and ``bias`` [1].

        Args:
            rows: int64 [B], the sampled rows, each at most once.
            weight: float32 [size].
            bias: float32 [1].

        Raises:
            BadInput: a parameter is not finite.
        """
        features = self._low.shape[1]
        low = self._low.index_select(0, rows).view(-1)
        upper = self._upper.index_select(0, rows)
        steps = torch.diff(weight, append=weight[-1:])
        between = torch.addcmul(weight.index_select(0, low), upper.view(-1), steps.index_select(0, low))
        residuals = torch.sigmoid_(between.view(-1, features).sum(dim=1).add_(bias))
        residuals.sub_(self._labels.index_select(0, rows))
        norms = self._norms.index_select(0, rows).mul_(residuals.abs())
        limit = self.l2_clip_norm * (1 - _MARGIN)
        residuals.mul_(limit / norms.clamp(min=limit))
        if not bool(torch.isfinite(residuals).all()):
            raise BadInput("parameters", allowed="finite numbers")
        spread = residuals.unsqueeze(1).expand(-1, features)
        whole = torch.zeros(self._size).scatter_add_(0, low, spread.reshape(-1))
        moved = torch.zeros(self._size).scatter_add_(0, low, upper.mul_(spread).view(-1))
        # Of each residual, the upper share belongs to the next cell.
        whole.sub_(moved)[1:].add_(moved[:-1])
        return whole, residuals.sum().unsqueeze(0)


def _checked_labels(labels: ArrayLike, rows: int) -> NDArray[np.float64]:
    targets = np.asarray(labels, dtype=np.float64)
    if rows == 0 or targets.shape != (rows,) or not np.isin(targets, (0.0, 1.0)).all():
        raise BadInput("labels", allowed="one 0 or 1 per row, at least one row")
    return targets


def _check_encoded(encoded: Encoded, size: int) -> None:
    """Refuse rows that are not weights on the table: the norm bound rests on this."""
    low, upper = encoded.low, encoded.upper
    if not ((upper >= 0) & (upper <= 1)).all():
        raise BadInput("hat weights", allowed="numbers from 0 to 1")
    if not ((low >= 0) & (low + (upper > 0) < size)).all():
        raise BadInput("cells", allowed=f"0 to {size - 1}")
    if (np.diff(low, axis=1) <= (upper[:, :-1] > 0)).any():
        raise BadInput("cells", allowed="each feature's own cells, in study order")


def _grouped(persons: ArrayLike | None, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order of the rows in which a person's rows are neighbours, and where each person starts.

    Persons of one row come first: whole blocks of them take the closed form.
    """
    if persons is None:
        return np.arange(rows), np.arange(rows + 1)
    codes = np.asarray(persons)
    if codes.shape != (rows,) or not np.issubdtype(codes.dtype, np.integer):
        raise BadInput("persons", allowed="one whole number per row")
    _, dense, counts = np.unique(codes, return_inverse=True, return_counts=True)
    by_count = np.argsort(counts > 1, kind="stable")
    place = np.empty_like(by_count)
    place[by_count] = np.arange(len(by_count))
    order = np.argsort(place[dense], kind="stable")
    return order, np.concatenate([[0], np.cumsum(counts[by_count])])


def _blocks(
    order: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64] | None]]:
    """Cut the rows into blocks of about _BLOCK rows that never split a person."""
    person, last = 0, len(starts) - 1
    while person < last:
        end = int(np.searchsorted(starts, starts[person] + _BLOCK, side="right")) - 1
        end = min(max(end, person + 1), last)
        own = starts[person : end + 1] - starts[person]
        single = own[-1] == end - person
        yield order[starts[person] : starts[end]], None if single else own
        person = end


def _block(
    encoded: Encoded, labels: NDArray[np.float64], starts: NDArray[np.int64] | None, size: int
) -> _Block:
    rows = len(encoded)
    hats = np.flatnonzero((encoded.upper > 0).any(axis=0))  # other columns need one weight per row
    upper = encoded.upper.astype(np.float64)
    following = encoded.low[:, hats] + (upper[:, hats] > 0)
    cells = np.concatenate([encoded.low, following], axis=1).astype(np.int32)
    weights = np.concatenate([1 - upper, upper[:, hats]], axis=1)
    ends = np.arange(rows + 1, dtype=np.int32) * np.int32(cells.shape[1])
    design = sparse.csr_matrix((weights.ravel(), cells.ravel(), ends), shape=(rows, size))
    return _Block(design=design, labels=labels, norms=_design_norms(encoded), starts=starts)


def _design_norms(encoded: Encoded) -> NDArray[np.float64]:
    """Norm of each design row, the bias' 1 included; float64 [rows]."""
    upper = encoded.upper.astype(np.float64)
    return np.asarray(np.sqrt(((1 - upper) ** 2 + upper**2).sum(axis=1) + 1), dtype=np.float64)


def _person_norms(
    design: Any, starts: NDArray[np.int64], residuals: NDArray[np.float64], *, bias: bool = True
) -> NDArray[np.float64]:
    """Norm of each person's summed gradient, float64 [persons]; optionally without the bias."""
    rows = np.arange(len(residuals))
    mine = sparse.csr_matrix((residuals, rows, starts), shape=(len(starts) - 1, len(rows)))
    table = mine @ design
    table.data **= 2
    squares = table @ np.ones(table.shape[1])
    if bias:
        squares += (mine @ np.ones(len(rows))) ** 2
    return np.asarray(np.sqrt(squares), dtype=np.float64)
