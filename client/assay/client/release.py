"""The one function that builds a message which depends on records.

Charge, compute, record, hand out: the ledger is written (and on disk) before the computation starts, and
the bytes that leave are written (and on disk) before they leave. Asked again for the same round, also
after a crash, it hands out the same bytes and charges nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from assay.privacy.accounting import Event
from assay.privacy.ledger import Ledger
from assay.privacy.noise import grid_unit, to_grid
from assay.privacy.wire import Release

__all__ = ["release"]


def release(
    ledger: Ledger,
    *,
    run: str,
    round: int,  # noqa: A002 (the field's name on the wire)
    mechanism: str,
    sensitivity: float,
    event: Event,
    noisy_sum: Callable[[], NDArray[np.float64]],
) -> Release:
    """Release one noisy sum.

    Guarantee: the returned integers are the output of a Gaussian mechanism with sensitivity
    ``sensitivity`` (one person zeroed out) and noise standard deviation
    ``event.noise_multiplier * sensitivity``; rounding to the grid is post-processing. ``(run, round)``
    is charged exactly once.

    Args:
        ledger: the holder's privacy account; holds a reservation for ``run``.
        run: identifier of the run.
        round: 0 for counts, 1.. for gradients.
        mechanism: words for the ledger.
        sensitivity: L2 bound on what one person can change, in units of the sum.
        event: what the release costs.
        noisy_sum: computes the sum with its noise; called at most once.

    Raises:
        Refused: the run is unknown or closed, or the round is not covered by its reservation. Nothing is
            computed then.
    """
    unit = grid_unit(event.noise_multiplier * sensitivity)
    payload = ledger.charge(run=run, round=round, mechanism=mechanism, sensitivity=sensitivity, event=event)
    if payload is None:
        values = to_grid(noisy_sum(), unit)
        payload = ledger.release(run=run, round=round, payload=values.astype("<i8").tobytes())
    return Release(run=run, round=round, unit=unit, values=np.frombuffer(payload, dtype="<i8"))
