"""Opacus, with Assay's noise: the clipped sums that leave a holder and the training steps that stay.

Opacus owns the order of a private step (accumulate, add noise, tell the accountant, then update); this
module replaces two of its parts. Noise comes from :mod:`assay.privacy.noise`, because torch's generator
repeats after ``torch.manual_seed``; and clipping is a closed form that travels with its bound
(:class:`ClippedSum`), because a bound typed twice is a bound that differs.

What a step of noise multiplier z, bound C and sampling rate q guarantees: one (C, z, q) sampled Gaussian
mechanism, zeroing out one person, for the sum before any division. Sums are divided by public numbers
only; Opacus' own divisor ``int(len(data) * q)`` is never used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.accountants import IAccountant
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from assay.privacy.accounting import Event, epsilon_of
from assay.privacy.errors import BadInput
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.noise import Entropy, gaussian, uniforms

__all__ = [
    "BatchClippedSum",
    "ClippedSum",
    "ExactAccountant",
    "PrivateStep",
    "PrivateTrainer",
    "SecureOptimizer",
    "poisson_batches",
]


class ClippedSum(Protocol):
    """The sum over people of their gradients, each clipped to ``l2_clip_norm``, at given parameters."""

    l2_clip_norm: float

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum at ``theta``; both are flat float64 of the same size."""


class BatchClippedSum(Protocol):
    """The same over chosen rows, in torch, for training that stays on one machine."""

    l2_clip_norm: float

    def __call__(self, rows: torch.Tensor, *parameters: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return one sum per parameter, over ``rows`` (int64 row numbers, ascending, possibly none)."""


class ExactAccountant(IAccountant):  # type: ignore[misc]  # Opacus is untyped
    """An Opacus accountant that prices full-batch steps exactly and sampled ones by PRV.

    One per data set and run, never one per round: a fresh accountant forgets what was spent.

    Attributes:
        history: [(noise multiplier, sample rate, steps)], as Opacus keeps it.
    """

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one step; Opacus' optimizer calls this after it has added the noise."""
        event = Event(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
        if self.history and self.history[-1][:2] == (noise_multiplier, sample_rate):
            event = Event(
                noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=self.history.pop()[2] + 1
            )
        self.history.append((event.noise_multiplier, event.sample_rate, event.steps))

    @property
    def events(self) -> tuple[Event, ...]:
        """What has been counted."""
        return tuple(
            Event(noise_multiplier=noise, sample_rate=rate, steps=steps)
            for noise, rate, steps in self.history
        )

    def get_epsilon(self, delta: float, *args: Any, **kwargs: Any) -> float:
        """Return the epsilon spent so far; see :func:`assay.privacy.accounting.epsilon_of`."""
        return epsilon_of(self.events, delta)

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore what ``state_dict()`` gave, also after it has been through JSON.

        Raises:
            BadInput: a step in it is out of range.
            ValueError: it is of another kind of accountant, or empty.
        """
        restored = ExactAccountant()
        super(ExactAccountant, restored).load_state_dict(state_dict)
        restored.history = [(float(noise), float(rate), steps) for noise, rate, steps in restored.history]
        _ = restored.events  # raises for a step that no optimizer could have taken
        self.history = restored.history

    def __len__(self) -> int:
        return sum(steps for _, _, steps in self.history)

    @classmethod
    def mechanism(cls) -> str:
        """Return the name Opacus stores beside the history."""
        return "assay-exact"


class SecureOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer for already clipped sums, with noise nobody can predict and no hidden divisor.

    ``p.grad`` holds the clipped sum before ``step`` and the noisy sum after it. Every step must be
    preceded by ``zero_grad``, as Opacus checks.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, noise_multiplier: float, max_grad_norm: float
    ) -> None:
        """Wrap ``optimizer``.

        Raises:
            BadInput: a number is zero, negative, infinite or NaN.
        """
        for setting, value in (("noise_multiplier", noise_multiplier), ("l2_clip_norm", max_grad_norm)):
            if not 0 < value < math.inf:
                raise BadInput(setting, value=value, allowed="a finite number above 0")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def accumulate(self) -> None:
        """Add ``p.grad`` to ``p.summed_grad``, as Opacus does, without its slow deep copy."""
        for p in self.params:
            p.summed_grad = p.grad.clone() if p.summed_grad is None else p.summed_grad.add_(p.grad)

    def add_noise(self) -> None:
        """Put the clipped sum plus Gaussian noise of noise_multiplier * max_grad_norm in ``p.grad``."""
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(gaussian(sum(p.numel() for p in self.params), std))
        start = 0
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            part = noise[start : start + p.numel()].view_as(p)
            start += p.numel()
            # Added in float64: a float32 parameter rounds the noisy sum, never the noise alone.
            p.grad = (p.summed_grad + part).to(p.dtype)
            _mark_as_processed(p.summed_grad)


class _IntegerOptimizer(SecureOptimizer):
    """The same step, with integers on a public grid instead of floats: what may leave a holder.

    ``p.grad`` holds the clipped sum before the step and, after it, the whole numbers that are released;
    they are below 2^43 and therefore exact in float64.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mechanism: IntegerMechanism) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.l2_clip_norm,
        )
        self._mechanism = mechanism

    def add_noise(self) -> None:
        """Put the rounded clipped sum plus this holder's share of the noise in ``p.grad``."""
        (p,) = self.params
        _check_processed_flag(p.summed_grad)
        noisy = self._mechanism.noisy(p.summed_grad.numpy())
        p.grad = torch.from_numpy(noisy.astype(np.float64))
        _mark_as_processed(p.summed_grad)


class PrivateStep:
    """The one way a sum computed from records becomes something that may leave: integers, noisy and counted.

    Full batch: everyone takes part in every release. Make one per run and mechanism and reuse it; Opacus'
    objects sit in reference cycles and are slow to be freed.

    Attributes:
        mechanism: bound, grid and noise.
    """

    def __init__(
        self, mechanism: IntegerMechanism, accountant: IAccountant, *, holders: int | None = None
    ) -> None:
        """Prepare for sums of ``mechanism.size`` values.

        Args:
            mechanism: bound, grid and noise of every release.
            accountant: told of every release, before its value is handed out: the noise multiplier of the
                whole noise, also where this holder adds a share of it.
            holders: None, or in a simulation how many holders release at once: sums are then
                ``[holders, mechanism.size]``, with a noise of their own in every row.
        """
        self.mechanism = mechanism
        self._shape = (mechanism.size,) if holders is None else (holders, mechanism.size)
        self._sum = torch.nn.Parameter(torch.zeros(self._shape, dtype=torch.float64))
        # The inner optimizer is what Opacus wraps; a release takes the noisy sum before any update.
        self._optimizer = _IntegerOptimizer(torch.optim.SGD([self._sum], lr=1.0), mechanism)
        self._optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=1.0))

    def release(self, clipped_sum: ClippedSum, theta: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the clipped sum at ``theta`` in grid units plus noise, after telling the accountant.

        =======================================  ===================================================
        bound of the sum is not the mechanism's  refused, nothing counted
        sum of another size                      refused, nothing counted
        NaN or infinity in the sum               refused, nothing counted, nothing handed out
        too large for the grid                   refused, nothing counted, nothing handed out
        nobody in the data                       the noise alone, counted like any other
        =======================================  ===================================================

        Returns:
            int64, in the shape of the sum; see :meth:`IntegerMechanism.noisy`.

        Raises:
            BadInput: as in the table.
        """
        _require_bound(clipped_sum.l2_clip_norm, self.mechanism.l2_clip_norm)
        # A copy: Opacus adds up in place.
        self._sum.grad = torch.from_numpy(_copied(clipped_sum(theta), self._shape))
        try:
            self._optimizer.pre_step()
            integers: NDArray[np.int64] = self._sum.grad.numpy().astype(np.int64)
            return integers
        finally:
            self._optimizer.zero_grad(set_to_none=True)


def _copied(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a copy; torch refuses a gradient of another shape with words that show it."""
    if values.shape != shape:
        raise BadInput("clipped sum", value=values.shape, allowed=f"the shape {shape}")
    return np.array(values, dtype=np.float64)


def poisson_batches(
    rows: int, sample_rate: float, steps: int, entropy: Entropy = os.urandom
) -> Iterator[NDArray[np.int64]]:
    """Yield ``steps`` batches in which every row stands with probability ``sample_rate``, independently.

    The gap from one chosen row to the next is geometric, so a batch costs O(rows * sample_rate) rather
    than a coin per row, with the same distribution. Batches may be empty: those count too.

    Args:
        rows: at least 1.
        sample_rate: above 0, at most 1.
        steps: at least 1; given, because ``int(1 / sample_rate)`` loses a step for some rates.
        entropy: where the randomness comes from; anything but the default is for tests.

    Yields:
        int64, ascending row numbers.

    Raises:
        BadInput: an argument is outside its range.
    """
    _require_sampler(rows, sample_rate)
    if not steps >= 1:
        raise BadInput("steps", value=steps, allowed="at least 1")
    for _ in range(steps):
        yield _poisson(rows, sample_rate, entropy)


def _poisson(rows: int, sample_rate: float, entropy: Entropy) -> NDArray[np.int64]:
    if sample_rate == 1:
        return np.arange(rows)
    mean = rows * sample_rate
    guess = int(mean + 6 * math.sqrt(mean)) + 16  # rarely too few; more are drawn then
    chosen, last = [], -1.0
    while last < rows:
        # Inversion (Devroye 1986, X.2): floor(log U / log(1 - q)) failures before a success.
        gaps = np.floor(np.log(uniforms(guess, entropy)) / math.log1p(-sample_rate)) + 1.0
        positions = last + np.cumsum(gaps)
        chosen.append(positions)
        last = float(positions[-1])
    positions = np.concatenate(chosen)
    return positions[: int(np.searchsorted(positions, rows))].astype(np.int64)


class PrivateTrainer:
    """DP-SGD on one machine: Poisson batches, closed-form clipping, Opacus' step and accounting.

    Each step costs one sampled Gaussian mechanism at the very rate its batch is drawn with, empty batches
    included. The noisy sum is divided by ``rows * sample_rate``: a public number, because the number of
    people is public in training on one machine.

    Attributes:
        rows: how many rows (people) are sampled from.
        sample_rate: probability with which each takes part in a step.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        rows: int,
        sample_rate: float,
        l2_clip_norm: float,
        noise_multiplier: float,
        learning_rate: float,
        accountant: IAccountant,
    ) -> None:
        """Prepare to train ``parameters`` in place by gradient descent.

        Args:
            parameters: of the model, in the order the clipped sum takes them.
            rows: at least 1.
            sample_rate: above 0, at most 1.
            l2_clip_norm: above 0, finite.
            noise_multiplier: above 0, finite.
            learning_rate: step size for the mean gradient; above 0, finite.
            accountant: told of every step.

        Raises:
            BadInput: a number is outside its range.
        """
        _require_sampler(rows, sample_rate)
        if not 0 < learning_rate < math.inf:
            raise BadInput("learning_rate", value=learning_rate, allowed="a finite number above 0")
        self.rows, self.sample_rate = rows, sample_rate
        self._flat = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self._views = _bind(parameters, self._flat.detach())
        self._optimizer = SecureOptimizer(
            torch.optim.SGD([self._flat], lr=learning_rate / (rows * sample_rate)),
            noise_multiplier=noise_multiplier,
            max_grad_norm=l2_clip_norm,
        )
        self._optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=sample_rate))

    def train(
        self, clipped_sum: BatchClippedSum, *, steps: int, entropy: Entropy = os.urandom
    ) -> Iterator[int]:
        """Take ``steps`` private steps, one each time the result is advanced, yielding its batch size.

        The batch size is not private: it is for progress at the holder and must not leave it.

        Args:
            clipped_sum: its ``l2_clip_norm`` must be the trainer's.
            steps: at least 1.
            entropy: of the batches; anything but the default is for tests.

        Raises:
            BadInput: the bounds differ, or a sum is not finite (nothing is counted for that step).
        """
        _require_bound(clipped_sum.l2_clip_norm, self._optimizer.max_grad_norm)
        for batch in poisson_batches(self.rows, self.sample_rate, steps, entropy):
            sums = clipped_sum(torch.from_numpy(batch), *self._views)
            total = torch.cat([part.reshape(-1) for part in sums])
            if not math.isfinite(float(total.sum())):
                raise BadInput("clipped sum", allowed="finite numbers")
            self._flat.grad = total
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            yield len(batch)


def _bind(parameters: Sequence[torch.nn.Parameter], flat: torch.Tensor) -> list[torch.Tensor]:
    """Make every parameter a view of ``flat``: Opacus' work per parameter is then done once per step."""
    views, start = [], 0
    for parameter in parameters:
        views.append(flat[start : start + parameter.numel()].view_as(parameter))
        parameter.data = views[-1]
        start += parameter.numel()
    return views


def _require_bound(given: float, expected: float) -> None:
    """Refuse a clipped sum whose bound is not the one its noise was made for."""
    if given != expected:
        raise BadInput("l2_clip_norm", value=given, allowed=f"{expected:g}, which the noise was made for")


def _require_sampler(rows: int, sample_rate: float) -> None:
    if not rows >= 1:
        raise BadInput("rows", value=rows, allowed="at least 1")
    if not 0 < sample_rate <= 1:
        raise BadInput("sample_rate", value=sample_rate, allowed="above 0, at most 1")
