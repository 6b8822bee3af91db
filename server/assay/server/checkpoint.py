"""What a run goes on from after a stop or a crash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

__all__ = ["RunState"]

Vector = NDArray[np.float64]


@dataclass
class RunState:
    """Everything of a run that changes from round to round.

    Attributes:
        accepted: names of the holders that accepted the study, sorted.
        active: those that are asked in the next round, sorted.
        holders: those whose values are in the last sum, sorted.
        patterns: which components each of them has, by name; see ``Accepted.pattern``.
        persons: estimate at round 0 by holder in its sum.
        most_asked: most holders that were asked in one round.
        counts: float64 ``[width]``, noisy; empty before round 0 is done.
        rounds: gradient rounds of the run; 0 before round 0 is done.
        fit: see :meth:`assay.models.fitting.Fit.state`; empty before round 0 is done.
        tallies: float64, noisy: calibration, then audit; as many as are done.
    """

    accepted: list[str] = field(default_factory=list)
    patterns: dict[str, int] = field(default_factory=dict)
    persons: dict[str, float] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)
    most_asked: int = 0
    counts: Vector = field(default_factory=lambda: np.zeros(0))
    rounds: int = 0
    fit: dict[str, Vector] = field(default_factory=dict)
    tallies: list[Vector] = field(default_factory=list)

    def pack(self) -> bytes:
        """Return the bytes of a checkpoint."""
        names, active, holders = self.accepted, set(self.active), set(self.holders)
        arrays: dict[str, NDArray[Any]] = {f"fit.{name}": value for name, value in self.fit.items()}
        arrays |= {f"tally.{number}": value for number, value in enumerate(self.tallies)}
        arrays |= {
            "counts": self.counts,
            "rounds": np.array([self.rounds]),
            "most_asked": np.array([self.most_asked]),
            "patterns": np.array([self.patterns[name] for name in names]),
            "persons": np.array([self.persons.get(name, np.nan) for name in names]),
            "names": np.frombuffer("\n".join(names).encode(), dtype=np.uint8).copy(),
            "active": np.array([name in active for name in names]),
            "holders": np.array([name in holders for name in names]),
        }
        return bytes(save_arrays(arrays))

    @classmethod
    def unpack(cls, data: bytes) -> RunState:
        """Read what :meth:`pack` gave."""
        arrays = load_arrays(data)
        names = arrays["names"].tobytes().decode().split("\n")
        return cls(
            accepted=names,
            patterns=dict(zip(names, arrays["patterns"].tolist(), strict=True)),
            persons={n: p for n, p in zip(names, arrays["persons"].tolist(), strict=True) if p == p},
            active=[name for name, on in zip(names, arrays["active"], strict=True) if on],
            holders=[name for name, on in zip(names, arrays["holders"], strict=True) if on],
            most_asked=int(arrays["most_asked"][0]),
            counts=arrays["counts"],
            rounds=int(arrays["rounds"][0]),
            fit={key[4:]: value for key, value in arrays.items() if key.startswith("fit.")},
            tallies=[arrays[f"tally.{number}"] for number in range(2) if f"tally.{number}" in arrays],
        )

    @property
    def next_round(self) -> int:
        """The round that is asked for next."""
        return int(self.fit["done"][0]) + len(self.tallies) + 1 if self.fit else 0
