"""A holder's training of one study: records on the public grid, integers with noise through Opacus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from assay.client.records import Records
from assay.models.additive import MAX_LOG_ODDS, AdditiveClippedSum, ClippedCounts
from assay.models.encoding import Grid
from assay.models.label import counts_mechanism_of, gradient_mechanism_of, privacy_target
from assay.models.schema import Study
from assay.privacy.accounting import Event
from assay.privacy.errors import AssayError, BadInput
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.optimizer import ClippedSum, ExactAccountant, PrivateStep

__all__ = ["LocalTraining"]

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]


class LocalTraining:
    """Noisy sums of one holder's records for one study.

    Every sum goes through Opacus' optimizer (:class:`assay.privacy.optimizer.PrivateStep`), whose
    accountant is one for the whole run and is restored from the ledger, so a restart forgets nothing.
    """

    def __init__(self, study: Study, records: Records) -> None:
        """Encode ``records`` on the study's grid."""
        grid = self._grid = Grid.of(study)
        self._target = privacy_target(study)
        self._gradients = AdditiveClippedSum(
            grid.encode(records.columns),
            records.labels,
            records.persons,
            size=grid.size,
            l2_clip_norm=grid.gradient_sensitivity,
        )
        self._accountant = ExactAccountant()
        self._steps: dict[IntegerMechanism, PrivateStep] = {}
        self._counts = ClippedCounts(self._gradients, l2_clip_norm=grid.counts_sensitivity)

    @property
    def counts_sensitivity(self) -> float:
        """Most that one person changes the cell counts by, in Euclidean norm."""
        return self._counts.l2_clip_norm

    @property
    def gradient_sensitivity(self) -> float:
        """Most that one person changes a gradient sum by, in Euclidean norm."""
        return self._gradients.l2_clip_norm

    def require_model(self, theta: Vector) -> None:
        """Refuse parameters that are no model of this study, before anything is charged for them.

        Raises:
            BadInput: ``theta`` does not have one value per cell and an intercept, or one is too large.
        """
        if theta.shape != (self._grid.size + 1,):
            raise BadInput("theta", value=theta.size, allowed=f"{self._grid.size + 1} values")
        if not np.abs(theta).max() <= MAX_LOG_ODDS:
            raise BadInput("theta", allowed=f"log-odds within ±{MAX_LOG_ODDS:g}")

    def counts_mechanism(self, event: Event, contributors: int) -> IntegerMechanism:
        """Return how :meth:`counts` releases; ``contributors`` holders add up to the whole noise."""
        return counts_mechanism_of(self._grid, event, contributors)

    def gradient_mechanism(self, event: Event, contributors: int) -> IntegerMechanism:
        """Return how :meth:`gradient` releases; ``contributors`` holders add up to the whole noise."""
        return gradient_mechanism_of(self._grid, event, contributors)

    def counts(self, event: Event, charged: Sequence[Event], contributors: int) -> Integers:
        """Return the noisy cell counts in grid units, int64 ``[cells]``; see :meth:`_noisy`."""
        mechanism = self.counts_mechanism(event, contributors)
        return self._noisy(self._counts, np.zeros(self._grid.size), mechanism, event, charged)

    def gradient(self, theta: Vector, event: Event, charged: Sequence[Event], contributors: int) -> Integers:
        """Return the noisy clipped gradient sum at ``theta``, int64 ``[cells + 1]``; see :meth:`_noisy`."""
        mechanism = self.gradient_mechanism(event, contributors)
        return self._noisy(self._gradients, theta, mechanism, event, charged)

    def _noisy(
        self,
        clipped: ClippedSum,
        theta: Vector,
        mechanism: IntegerMechanism,
        event: Event,
        charged: Sequence[Event],
    ) -> Integers:
        """Compute one release.

        Args:
            clipped: the sum, with its sensitivity.
            theta: where to take it.
            mechanism: grid and noise, for that sensitivity and the noise of ``event``.
            event: noise multiplier of this release, that of the sum over all holders.
            charged: everything the ledger has charged for this run, this release included.

        Raises:
            AssayError: what was charged and what Opacus counted together exceed the study's promise.
        """
        before = list(charged)
        before.remove(event)
        history = [(earlier.noise_multiplier, earlier.sample_rate, earlier.steps) for earlier in before]
        self._accountant.load_state_dict({"history": history, "mechanism": self._accountant.mechanism()})
        noisy = self._step(mechanism).release(clipped, theta)
        # Checked after the step and before anything leaves: the accountant has the last word.
        if not self._accountant.get_epsilon(self._target.delta) <= self._target.epsilon:
            raise AssayError("the accountant counts more than the study promises; nothing is released")
        return noisy

    def _step(self, mechanism: IntegerMechanism) -> PrivateStep:
        """Return the Opacus step of this mechanism, made once per run: its objects are slow to be freed."""
        if mechanism not in self._steps:
            self._steps[mechanism] = PrivateStep(mechanism, self._accountant)
        return self._steps[mechanism]
