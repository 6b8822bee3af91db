"""Where the bundled examples lie: inside the wheel, or beside the sources in a checkout."""

from __future__ import annotations

from pathlib import Path

from assay.privacy.errors import Unavailable

__all__ = ["example"]


def example(name: str) -> Path:
    """Return the directory of a bundled example, e.g. ``"taiwan"``.

    Raises:
        Unavailable: this installation has no examples.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "examples" / name, here.parents[3] / "examples" / name):
        if folder.is_dir():
            return folder
    raise Unavailable(f"the example {name!r} is not part of this installation; install assay again")
