"""What a holder keeps of a session of secure aggregation: with whom it is summed, and under which seed.

One file of mode 0600 per session, replaced as a whole, gone when the run is closed. It holds the seed from
which all the holder's keys of the session come: who reads it can take the masks off this holder's sums, and
who lets it be forgotten can only end the run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import PRIVATE_FILE, make_private_dir, require_private, write_durably
from assay.privacy.keys import canonical_json

__all__ = ["Circle", "CircleStore"]

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Circle:
    """The holders of one session, as one of them knows them.

    Attributes:
        keys: Ed25519 key (32 bytes) by name of everybody who was asked; fixed when the session begins.
        seed: 32 bytes from the operating system; every key and share of this holder follows from it.
        adverts: signed session keys by name of those who take part; empty until they are known, then fixed.
    """

    keys: Mapping[str, bytes]
    seed: bytes = field(repr=False)
    adverts: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _need_bytes("seed", self.seed)
        for key in self.keys.values():
            _need_bytes("holders", key)
        if not set(self.adverts) <= set(self.keys):
            raise BadInput("adverts", value=sorted(self.adverts), allowed="of the session's holders")

    def to_bytes(self) -> bytes:
        """Return the file's content: canonical JSON, bytes in hexadecimal."""
        return canonical_json(
            {
                "adverts": {name: advert.hex() for name, advert in self.adverts.items()},
                "holders": {name: key.hex() for name, key in self.keys.items()},
                "seed": self.seed.hex(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, where: Path) -> Circle:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            Refused: code ``"aggregation"``: it is something else. The run cannot go on at this holder.
        """
        try:
            found = json.loads(data)
            return cls(
                keys={name: bytes.fromhex(key) for name, key in found["holders"].items()},
                seed=bytes.fromhex(found["seed"]),
                adverts={name: bytes.fromhex(advert) for name, advert in found["adverts"].items()},
            )
        except (AttributeError, BadInput, KeyError, RecursionError, TypeError, ValueError):
            raise Refused(
                f"{where}: damaged; this holder can no longer take part in the run. Start a new run",
                code="aggregation",
            ) from None


class CircleStore:
    """The session files of one holder: ``<run>-<session>.json`` in a directory of mode 0700.

    Each is read once: with a hundred holders it is large, and only this process writes it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = make_private_dir(directory)
        self._read: dict[Path, Circle] = {}

    def load(self, run: str, session: int) -> Circle | None:
        """Return what is kept of a session, or None where nothing is.

        Raises:
            BadInput: others on the machine could read the file.
            Refused: code ``"aggregation"``: it is damaged.
        """
        path = self._path(run, session)
        if path not in self._read:
            if not path.exists():
                return None
            require_private(self._directory)
            require_private(path)
            self._read[path] = Circle.from_bytes(path.read_bytes(), where=path)
        return self._read[path]

    def save(self, run: str, session: int, circle: Circle) -> None:
        """Keep ``circle``; durable when this returns."""
        path = self._path(run, session)
        write_durably(path, circle.to_bytes(), mode=PRIVATE_FILE)
        self._read[path] = circle

    def sessions(self, run: str) -> dict[int, Circle]:
        """Return all sessions of a run by number."""
        numbers = (int(path.stem.partition("-")[2]) for path in self._directory.glob(f"{run}-*.json"))
        return {number: circle for number in sorted(numbers) if (circle := self.load(run, number))}

    def forget(self, run: str) -> None:
        """Remove what is kept of a run."""
        for path in self._directory.glob(f"{run}-*.json"):
            path.unlink(missing_ok=True)
            self._read.pop(path, None)

    def keep_only(self, runs: Collection[str]) -> None:
        """Remove what is kept of any other run, and halves of files: what a crash left behind."""
        for path in self._directory.glob("*.json"):
            if path.stem.partition("-")[0] not in runs:
                path.unlink(missing_ok=True)
        for path in self._directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _path(self, run: str, session: int) -> Path:
        return self._directory / f"{run}-{session}.json"


def _need_bytes(setting: str, value: bytes) -> None:
    if len(value) != _DIGEST_BYTES:
        raise BadInput(setting, value=f"{len(value)} bytes", allowed=f"{_DIGEST_BYTES} bytes")
