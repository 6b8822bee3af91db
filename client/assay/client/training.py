"""A holder's training of one study: records on the public grid, integers with noise through Opacus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from assay.client.records import Records
from assay.models.additive import MAX_LOG_ODDS, AdditiveClippedSum, ClippedCounts
from assay.models.encoding import Grid
from assay.models.label import privacy_target
from assay.models.neural import NeuralClippedSum, NeuralLayout
from assay.models.schema import Study
from assay.models.scorecard import Scorecard
from assay.models.tally import ClippedTally, tally_of
from assay.privacy.accounting import TALLIES, Event
from assay.privacy.errors import AssayError, BadInput
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.optimizer import ClippedSum, ExactAccountant, PrivateStep

__all__ = ["LocalTraining", "Training"]

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]


class Training(ABC):
    """Noisy sums of records for one study.

    Every sum goes through Opacus' optimizer (:class:`assay.privacy.optimizer.PrivateStep`), whose
    accountant is one for the whole run and is restored from the ledger, so a restart forgets nothing.
    """

    #: None, or how many holders' sums are computed and released at once, one per row.
    holders: int | None = None

    def __init__(self, study: Study) -> None:
        self._study, self._grid, self._target = study, Grid.of(study), privacy_target(study)
        self._accountant = ExactAccountant()
        self._steps: dict[IntegerMechanism, PrivateStep] = {}

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of parameters."""

    @abstractmethod
    def summed(self, number: int, rounds: int) -> ClippedSum:
        """Return what is summed in a round: counts, gradients, or one of the tallies."""

    def require_model(self, theta: Vector, *, card: bool = False) -> None:
        """Refuse parameters that are no model of this study, before anything is charged for them.

        Args:
            theta: the parameters.
            card: they are to be a scorecard's, as in an audit.

        Raises:
            BadInput: ``theta`` does not have one value per parameter, or one is too large.
        """
        if theta.shape != (self.width,):
            raise BadInput("theta", value=theta.size, allowed=f"{self.width} values")
        if not np.abs(theta).max() <= MAX_LOG_ODDS:
            raise BadInput("theta", allowed=f"log-odds within ±{MAX_LOG_ODDS:g}")
        if card:
            Scorecard.from_theta(self._study, self._grid, theta)

    def noisy(
        self,
        *,
        number: int,
        rounds: int,
        theta: Vector,
        mechanism: IntegerMechanism,
        charged: Sequence[Event],
    ) -> Integers:
        """Compute one release in grid units: int64 ``[mechanism.size]``, or one such row for each holder.

        Args:
            number: the round.
            rounds: gradient rounds of the run.
            theta: where the sum is taken; not looked at in round 0.
            mechanism: grid and noise, of this holder's share.
            charged: everything the ledger has charged for this run, this release included.

        Raises:
            AssayError: the mechanism is of another sensitivity than the sum has; or what was charged and
                what Opacus counted together exceed the study's promise.
        """
        clipped, event = self.summed(number, rounds), Event(noise_multiplier=mechanism.noise_multiplier)
        if clipped.l2_clip_norm != mechanism.l2_clip_norm:
            raise AssayError("the noise is for another sensitivity than the sum has; nothing is released")
        before = list(charged)
        before.remove(event)
        history = [(earlier.noise_multiplier, earlier.sample_rate, earlier.steps) for earlier in before]
        self._accountant.load_state_dict({"history": history, "mechanism": self._accountant.mechanism()})
        where = np.zeros(mechanism.size) if number == 0 else theta
        noisy = self._step(mechanism).release(clipped, where)
        # Checked after the step and before anything leaves: the accountant has the last word.
        if not self._accountant.get_epsilon(self._target.delta) <= self._target.epsilon:
            raise AssayError("the accountant counts more than the study promises; nothing is released")
        return noisy

    def _step(self, mechanism: IntegerMechanism) -> PrivateStep:
        """Return the Opacus step of this mechanism, made once per run: its objects are slow to be freed."""
        if mechanism not in self._steps:
            self._steps[mechanism] = PrivateStep(mechanism, self._accountant, holders=self.holders)
        return self._steps[mechanism]


class LocalTraining(Training):
    """One holder's records.

    Attributes:
        pattern: the components that the holder has, as bits over ``Grid.components``.
    """

    def __init__(self, study: Study, records: Records) -> None:
        """Encode ``records`` on the study's grid."""
        super().__init__(study)
        grid = self._grid
        self.pattern = grid.pattern_of(records.columns)
        encoded = grid.encode(records.columns, records.patterns)
        additive = AdditiveClippedSum(
            encoded,
            records.labels,
            records.persons,
            size=grid.size,
            patterns=grid.patterns,
            l2_clip_norm=grid.gradient_clip_norm,
        )
        self._counts = ClippedCounts(additive, l2_clip_norm=grid.sensitivity)
        self._gradients: AdditiveClippedSum | NeuralClippedSum = additive
        if study.training.model == "neural":
            layout = NeuralLayout(grid=grid)
            self._gradients = NeuralClippedSum(layout, encoded, records.labels, records.persons)
        self._tallies = {
            number: ClippedTally(
                tally_of(study, grid, number), encoded, records.labels, records.persons, records.groups
            )
            for number in range(1, TALLIES + 1)
        }

    @property
    def width(self) -> int:
        """See :class:`Training`."""
        return self._gradients.width

    def summed(self, number: int, rounds: int) -> ClippedSum:
        """See :class:`Training`."""
        if number == 0:
            return self._counts
        return self._gradients if number <= rounds else self._tallies[number - rounds]
