"""The same noise in every process: what an engine adds then depends only on the sum it is added to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from assay.privacy.mechanism import IntegerMechanism
from assay.simulations.flower import HolderApp

_noisy = IntegerMechanism.noisy


def _same(self: IntegerMechanism, clipped_sum: np.ndarray, entropy: object = None) -> np.ndarray:
    """The exact sampler, under a key that is a digest of what the noise is added to."""
    key = hashlib.sha256(repr(self).encode() + clipped_sum.tobytes()).digest()
    return _noisy(self, clipped_sum, entropy=lambda size: key[:size])


@contextmanager
def same_noise() -> Iterator[None]:
    """Make every release's noise a function of its sum, in this process."""
    IntegerMechanism.noisy = _same
    try:
        yield
    finally:
        IntegerMechanism.noisy = _noisy


class SameNoise(HolderApp):
    """Answers under :func:`same_noise` in whatever process it is put, and writes down in which."""

    def __init__(self, root: Path, **settings: Any) -> None:
        super().__init__(root, **settings)
        self._seen = root / "processes"

    def __call__(self, message: Any, context: Any) -> Any:
        self._seen.mkdir(exist_ok=True)
        (self._seen / f"{os.getpid()}-{context.node_config['partition-id']}").touch()
        with same_noise():
            return super().__call__(message, context)
