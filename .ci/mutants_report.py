"""A pytest plug-in for ``mutants.py``: which tests failed, and which ``assay`` code was not the copy's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

_failed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the name of every test that fails."""
    if report.failed and report.nodeid not in _failed:
        _failed.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was kept, and the modules that were not loaded from the tree under test."""
    root = Path(os.environ["MUTANTS_ROOT"])
    files = [
        (name, Path(module.__file__ or "").resolve())
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] == "assay" and getattr(module, "__file__", None)
    ]
    foreign = [name for name, path in files if not path.is_relative_to(root)]
    if not files:
        foreign = ["assay was not loaded at all"]
    Path(os.environ["MUTANTS_REPORT"]).write_text(json.dumps({"failed": _failed, "foreign": foreign}))
