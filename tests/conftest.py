"""Shared settings of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread for numerics, in these and all processes they start: several run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # the support modules beside the tests


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the refusals that tests provoke out of the log of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_STATE", str(tmp_path_factory.mktemp("state")))
        yield
