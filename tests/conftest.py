"""Shared settings of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread for numerics, in these and all processes they start: several run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # the support modules beside the tests
