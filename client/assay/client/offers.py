"""How many different studies a coordinator may try on a holder's records in a day.

Whether a study fits the records ("accepted", or declined with "data") depends on them, and no noise covers
that bit. A coordinator that may try any number of columns and schemas could ask questions with it, so the
number of tries is small, counted on disk, and only an operator at the holder raises it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from assay.privacy.errors import Refused
from assay.privacy.files import PRIVATE_FILE, write_durably

__all__ = ["OfferLog"]

DAY_S = 86400.0


class OfferLog:
    """The different studies that were tried on the records within the last 24 hours.

    Args:
        path: the file that keeps them over restarts.
        per_day: how many different ones are tried at most.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, per_day: int, clock: Callable[[], float] = time.time) -> None:
        self._path, self._per_day, self._clock = path, per_day, clock

    def count(self, digest: str) -> None:
        """Note that a study is about to be tried; the same text again is no new try.

        Args:
            digest: SHA-256 of the study's text, hexadecimal.

        Raises:
            Refused: code ``"later"``, the day's number is used up.
        """
        now = self._clock()
        # A clock that was set back must not free tries: what lies in the future counts too.
        tried = {name: when for name, when in self._load().items() if when > now - DAY_S}
        if digest in tried:
            return
        if len(tried) >= self._per_day:
            raise Refused(
                f"{len(tried)} different studies were tried on the records within a day; allowed:"
                f" {self._per_day} (policy.new_studies_per_day in client.toml). Raise it if you trust them",
                code="later",
            )
        tried[digest] = now
        write_durably(self._path, json.dumps(tried).encode("ascii"), mode=PRIVATE_FILE)

    def _load(self) -> dict[str, float]:
        if not self._path.exists():
            return {}
        found: dict[str, float] = json.loads(self._path.read_text(encoding="ascii"))
        return found
