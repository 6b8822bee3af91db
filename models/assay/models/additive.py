"""The additive model and its per-person clipped gradient sum.

The model is one table: the logit of a row is the sum of the cells it lies in, plus the intercept of its
pattern (the set of components that it has); a component that is absent adds nothing. Its gradient for one
row is ``r * x`` with the residual ``r = sigmoid(logit) - label`` and the design row ``x`` (hat weights and a
1 for the pattern), so that the gradient's norm is ``|r| * |x|`` and ``|x|`` can be computed once.
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

from assay.models.encoding import ABSENT, Encoded
from assay.privacy.errors import BadInput

__all__ = [
    "MARGIN",
    "MAX_LOG_ODDS",
    "AdditiveClippedSum",
    "AdditiveModel",
    "ClippedCounts",
    "MinibatchClippedSum",
    "checked_labels",
    "design_of",
    "grouped",
    "person_norms",
]

MAX_LOG_ODDS = 1e6  # of one cell: far beyond any model, and a sum of them is still finite
_BLOCK = 8192  # rows worked on at a time: one block of the design matrix stays in the processor's cache
# Contributions are cut slightly below the bound, so that rounding in float64 (relative 1e-16 per addition,
# 1e-9 over ten million rows) or float32 (1e-7 per factor) cannot carry a person over it.
MARGIN = 1e-6


class AdditiveModel(nn.Module):
    """A table of log-odds of bad, and an intercept per pattern.

    Attributes:
        weight: [size], one log-odds per cell.
        bias: [patterns].
    """

    def __init__(self, size: int, patterns: int = 1, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(patterns, dtype=dtype))

    def forward(
        self, low: torch.Tensor, upper: torch.Tensor, pattern: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits [B], one-dimensional: Opacus' ghost clipping silently clips nothing for [B, 1].

        Args:
            low: integers [B, F], see :class:`assay.models.encoding.Encoded`.
            upper: floats [B, F].
            pattern: integers [B]; None: every row has all components.
        """
        there = (low >= 0).to(upper.dtype)
        own = self.weight[low.clamp(min=0)] * ((1 - upper) * there)
        inside = own + self.weight[_following(low, self.weight.shape[0])] * upper
        return inside.sum(dim=1) + (self.bias[-1] if pattern is None else self.bias[pattern.long() - 1])

    def load_theta(self, theta: NDArray[np.float64]) -> None:
        """Copy a flat parameter vector, table then intercepts, into the module."""
        values, size = torch.as_tensor(theta, dtype=self.weight.dtype), self.weight.shape[0]
        with torch.no_grad():
            self.weight.copy_(values[:size])
            self.bias.copy_(values[size:])


def _following(low: torch.Tensor, size: int) -> torch.Tensor:
    """The cell after ``low``; the last cell of the table has none, and always weight 0 there."""
    return (low.long() + 1).clamp(max=size - 1)


@register_grad_sampler(AdditiveModel)  # type: ignore[untyped-decorator,unused-ignore]
def _grad_samples(
    layer: AdditiveModel, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-row gradients [B, size] and [B, patterns] for Opacus' hooks."""
    low, upper = activations[0].long(), activations[1]
    size, patterns = layer.weight.shape[0], layer.bias.shape[0]
    pattern = activations[2].long() if len(activations) > 2 else torch.full_like(low[:, 0], patterns)
    rows = torch.zeros(low.shape[0], size, dtype=backprops.dtype, device=backprops.device)
    rows.scatter_add_(1, low.clamp(min=0), ((1 - upper) * (low >= 0)).to(backprops.dtype))
    rows.scatter_add_(1, _following(low, size), upper.to(backprops.dtype))
    own = nn.functional.one_hot(pattern - 1, patterns).to(backprops.dtype)
    return {layer.weight: rows * backprops.unsqueeze(1), layer.bias: own * backprops.unsqueeze(1)}


@register_norm_sampler(AdditiveModel)  # type: ignore[untyped-decorator,unused-ignore]
def _norm_samples(
    layer: AdditiveModel, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-row gradient norms [B] for ghost clipping (Lee & Kifer 2021)."""
    low, upper = activations[0], activations[1]
    table = (((1 - upper).square() + upper.square()) * (low >= 0)).sum(dim=1).sqrt()
    return {layer.weight: backprops.abs() * table, layer.bias: backprops.abs()}


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Consecutive rows of whole persons.

    Attributes:
        design: sparse float64 [rows, size + patterns].
        labels: float64 [rows].
        norms: float64 [rows], norm of each design row.
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
        width: length of theta: table cells, then patterns.
        persons: number of persons.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: ArrayLike,
        persons: ArrayLike | None = None,
        *,
        size: int,
        patterns: int = 1,
        l2_clip_norm: float,
    ) -> None:
        """Prepare the design matrix; about 12 bytes per row and nonzero weight.

        Args:
            encoded: N rows.
            labels: [N] of 0 and 1.
            persons: integers [N], equal for rows of one person; None: every row is a person.
            size: number of cells of the table.
            patterns: number of patterns that there can be; 1 for a study of one component.
            l2_clip_norm: above 0 and finite.

        Raises:
            BadInput: an argument is not as described.
        """
        if not 0 < l2_clip_norm < np.inf:
            raise BadInput("l2_clip_norm", value=l2_clip_norm, allowed="a positive finite number")
        self.l2_clip_norm, self.width = float(l2_clip_norm), size + patterns
        targets = checked_labels(labels, len(encoded))
        _check_encoded(encoded, size, patterns)
        order, starts = grouped(persons, len(encoded))
        self.persons = len(starts) - 1
        self._blocks = [
            _block(encoded.rows(rows), targets[rows], own, size, patterns)
            for rows, own in _blocks(order, starts)
        ]

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the clipped gradient sum, float64 [width], table then intercepts.

        Raises:
            BadInput: ``theta`` has another length, or a number that is not finite or beyond
                :data:`MAX_LOG_ODDS`.
        """
        if theta.shape != (self.width,) or not (np.abs(theta) <= MAX_LOG_ODDS).all():
            raise BadInput("theta", allowed=f"{self.width} finite numbers within ±{MAX_LOG_ODDS:g}")
        out = np.zeros(self.width, dtype=np.float64)
        for block in self._blocks:
            residuals = expit(block.design @ np.asarray(theta, dtype=np.float64)) - block.labels
            residuals *= self._scales(block, residuals)
            out += block.design.T @ residuals
        return out

    def _scales(self, block: _Block, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor [rows] that brings every person's gradient inside the bound."""
        if block.starts is None:
            norms = np.abs(residuals) * block.norms
        else:
            norms = person_norms(block.design, block.starts, residuals)
        limit = self.l2_clip_norm * (1 - MARGIN)
        scales = limit / np.maximum(norms, limit)
        if not (norms * scales <= self.l2_clip_norm).all():
            raise BadInput("gradient", allowed="a norm within the bound after clipping")
        return scales if block.starts is None else np.repeat(scales, np.diff(block.starts))


class ClippedCounts:
    """How many persons lie in each cell and have each pattern: summed weights, clipped to ``l2_clip_norm``.

    Guarantee: as for :class:`AdditiveClippedSum`. A person of one row has norm at most
    ``sqrt(terms + 1)``, so with that bound only persons of several rows are scaled, and each person counts
    about once.

    Attributes:
        l2_clip_norm: the sensitivity.
        width: number of table cells and patterns.
    """

    def __init__(self, gradients: AdditiveClippedSum, *, l2_clip_norm: float) -> None:
        """Count over the same rows and persons as ``gradients``.

        Raises:
            BadInput: ``l2_clip_norm`` is not a positive finite number.
        """
        if not 0 < l2_clip_norm < np.inf:
            raise BadInput("l2_clip_norm", value=l2_clip_norm, allowed="a positive finite number")
        self.l2_clip_norm, self.width = float(l2_clip_norm), gradients.width
        self._blocks = gradients._blocks

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the counts, float64 [width]; they do not depend on ``theta``."""
        out = np.zeros(self.width, dtype=np.float64)
        limit = self.l2_clip_norm * (1 - MARGIN)
        for block in self._blocks:
            if block.starts is None:
                out += block.design.T @ (limit / np.maximum(block.norms, limit))
            else:
                norms = person_norms(block.design, block.starts, np.ones(len(block.labels)))
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
        targets = checked_labels(labels, len(encoded))
        _check_encoded(encoded, size, 1)
        if (encoded.low < 0).any():
            raise BadInput("cells", allowed="a cell of every feature: batches know no absent components")
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
        limit = self.l2_clip_norm * (1 - MARGIN)
        residuals.mul_(limit / norms.clamp(min=limit))
        if not bool(torch.isfinite(residuals).all()):
            raise BadInput("parameters", allowed="finite numbers")
        spread = residuals.unsqueeze(1).expand(-1, features)
        whole = torch.zeros(self._size).scatter_add_(0, low, spread.reshape(-1))
        moved = torch.zeros(self._size).scatter_add_(0, low, upper.mul_(spread).view(-1))
        # Of each residual, the upper share belongs to the next cell.
        whole.sub_(moved)[1:].add_(moved[:-1])
        return whole, residuals.sum().unsqueeze(0)


def checked_labels(labels: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Return the labels as float64 [rows].

    Raises:
        BadInput: they are not one 0 or 1 per row, or there is no row.
    """
    targets = np.asarray(labels, dtype=np.float64)
    if rows == 0 or targets.shape != (rows,) or not np.isin(targets, (0.0, 1.0)).all():
        raise BadInput("labels", allowed="one 0 or 1 per row, at least one row")
    return targets


def _check_encoded(encoded: Encoded, size: int, patterns: int) -> None:
    """Refuse rows that are not weights on the table: the norm bound rests on this."""
    low, upper = encoded.low, encoded.upper
    if not ((upper >= 0) & (upper <= 1)).all():
        raise BadInput("hat weights", allowed="numbers from 0 to 1")
    if not ((low >= ABSENT) & (low + (upper > 0) < size)).all() or (upper[low < 0] != 0).any():
        raise BadInput("cells", allowed=f"0 to {size - 1}, or -1 without weight")
    if not ((encoded.pattern >= 1) & (encoded.pattern <= patterns)).all():
        raise BadInput("patterns", allowed=f"1 to {patterns}")
    # A term that is absent takes up no cell: whatever came before it must still lie below what follows.
    last = np.maximum.accumulate(low + (upper > 0), axis=1)[:, :-1]
    if ((low[:, 1:] <= last) & (low[:, 1:] >= 0)).any():
        raise BadInput("cells", allowed="each term's own cells, in study order")


def grouped(persons: ArrayLike | None, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
    encoded: Encoded,
    labels: NDArray[np.float64],
    starts: NDArray[np.int64] | None,
    size: int,
    patterns: int,
) -> _Block:
    design = design_of(encoded, size, patterns)
    return _Block(design=design, labels=labels, norms=_design_norms(encoded), starts=starts)


def design_of(encoded: Encoded, size: int, patterns: int) -> Any:
    """Return the rows' weights on cells and patterns, sparse float64 [N, size + patterns].

    Args:
        encoded: N rows.
        size: number of cells of the table.
        patterns: number of patterns that there can be.
    """
    rows = len(encoded)
    there = encoded.low >= 0
    used = np.flatnonzero(there.any(axis=0))
    hats = np.flatnonzero((encoded.upper > 0).any(axis=0))  # other columns need one weight per row
    upper = encoded.upper.astype(np.float64)
    following = encoded.low[:, hats] + (upper[:, hats] > 0)
    own = (size - 1 + encoded.pattern)[:, None]
    cells = np.concatenate([encoded.low[:, used], following, own], axis=1).astype(np.int32)
    weights = np.concatenate(
        [(1 - upper[:, used]) * there[:, used], upper[:, hats], np.ones((rows, 1))], axis=1
    )
    np.maximum(cells, 0, out=cells)  # what is absent has weight 0, wherever it stands
    ends = np.arange(rows + 1, dtype=np.int32) * np.int32(cells.shape[1])
    return sparse.csr_matrix((weights.ravel(), cells.ravel(), ends), shape=(rows, size + patterns))


def _design_norms(encoded: Encoded) -> NDArray[np.float64]:
    """Norm of each design row, the pattern's 1 included; float64 [rows]."""
    upper = encoded.upper.astype(np.float64)
    squares = ((1 - upper) ** 2 + upper**2) * (encoded.low >= 0)
    return np.asarray(np.sqrt(squares.sum(axis=1) + 1), dtype=np.float64)


def person_norms(
    design: Any, starts: NDArray[np.int64], residuals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Norm of each person's summed gradient, float64 [persons]."""
    rows = np.arange(len(residuals))
    mine = sparse.csr_matrix((residuals, rows, starts), shape=(len(starts) - 1, len(rows)))
    table = mine @ design
    table.data **= 2
    return np.asarray(np.sqrt(table @ np.ones(table.shape[1])), dtype=np.float64)
