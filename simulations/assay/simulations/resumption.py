"""By what a sweep is known again, so that it is gone on with and never mixed with another one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.models.schema import Study
from assay.privacy.errors import BadInput
from assay.simulations.simulate import Simulation
from assay.simulations.work import Files

__all__ = ["alone_in", "require_same", "settings_of"]

FORMAT = 1
_WORDS = {
    "format": "version of Assay",
    "study_digest": "study",
    "data_sha256": "content of the data file",
    "test_sha256": "content of the test file",
}


def settings_of(plan: Simulation, study: Study) -> dict[str, Any]:
    """Return what makes a sweep this one."""
    return {
        "format": FORMAT,
        "study": study.name,
        "study_digest": study.digest,
        "data": plan.data.name,
        "data_sha256": _digest(plan.data),
        "test": None if plan.test is None else plan.test.name,
        "test_sha256": None if plan.test is None else _digest(plan.test),
        "test_fraction": None if plan.test is not None else plan.test_fraction,
        "holders": sorted(plan.holders),
        "epsilon": sorted(plan.epsilons or (study.privacy.epsilon,)),
        "seed": plan.seed,
        "seeds": plan.seeds,
        "partition": plan.partition,
        "skew": plan.skew,
        "overlap": plan.overlap,
        "engine": plan.engine,
        "fault": list(plan.faults),
        "canaries": plan.canaries,
    }


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(
            "file",
            where=path,
            allowed=f"an existing file that can be read ({error.strerror})",
            remedy="Correct the path",
        ) from None


def require_same(files: Files, settings: dict[str, Any]) -> None:
    """Refuse to go on with another sweep, or with none.

    Raises:
        BadInput: says what differs.
    """
    try:
        there = json.loads(files.settings.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            "--resume",
            value=str(files.out),
            allowed="a directory with a sweep in it (there is no sweep.json)",
            remedy="Leave out --resume to begin one",
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(
            "--resume",
            where=files.settings,
            allowed=f"what a sweep wrote ({error})",
            remedy="Begin a new one",
        ) from None
    other = [key for key in settings if not isinstance(there, dict) or there.get(key) != settings[key]]
    # The content of a file says more than its name.
    other = [key for key in other if f"{key}_sha256" not in other and f"{key}_digest" not in other]
    if other:
        differs = "; ".join(_difference(there, settings, key) for key in other)
        raise BadInput(
            "--resume",
            value=str(files.out),
            allowed=f"the sweep that is in it; this one has another {differs}",
            remedy="Give the same options as before, or another --out",
        )


def _difference(there: object, settings: dict[str, Any], key: str) -> str:
    if key in _WORDS or not isinstance(there, dict):
        return _WORDS.get(key, key)
    return f"{key} ({json.dumps(settings[key])} and not {json.dumps(there.get(key))})"


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a directory for one sweep at a time; the system lets go of it when this process ends."""
    directory = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                "--out",
                value=str(out),
                allowed="a directory that no other simulation works in",
                remedy="Wait for it to end",
            ) from None
        except OSError:  # a file system without locks is no reason not to simulate
            pass
        yield
    finally:
        os.close(directory)
