"""``assay simulate``: what to simulate, checked before anything is read or written."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from assay.models.schema import Study
from assay.models.study import parse_study, read_study
from assay.privacy.errors import BadInput
from assay.privacy.mechanism import MAX_CONTRIBUTORS
from assay.simulations.canaries import MAX_CANARIES, MIN_CANARIES
from assay.simulations.cell import Cell, How
from assay.simulations.dataset import holder_names, source_of
from assay.simulations.engine import ENGINES, with_epsilon
from assay.simulations.faults import Faults
from assay.simulations.partition import MAX_HOLDERS, Partition

__all__ = ["MAX_CELLS", "Simulation", "require_new", "source_of"]

MAX_CELLS = 10_000
MAX_JOBS = 256
_FAST = "fast"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate: a cell for each number of holders, each epsilon and each seed.

    Attributes:
        study: path of the study file.
        data: records to spread over the holders: ``.csv``, ``.csv.gz`` or ``.parquet``.
        out: directory for everything that is written; new or empty unless ``resume``.
        test: held-out records, or None: a share of ``data``.
        test_fraction: that share, above 0, below 1.
        holders: numbers of holders, each once, 1..10,000.
        partition: who holds whom, see :class:`assay.simulations.partition.Partition`.
        skew: see there; None: its default.
        overlap: see there; None: nobody is known to several holders.
        epsilons: privacy targets, each once, positive; or empty: the study's own.
        seed: the first seed, 0 or more; decides hold-out and layout, never noise.
        seeds: how many seeds from there on, 1 or more.
        engine: ``"fast"``, ``"full"`` or ``"flower"``, see :func:`assay.simulations.engine.federate`.
        faults: what goes wrong, each ``KIND=VALUE``, see :data:`assay.simulations.faults.HELP`.
        canaries: made-up persons for an attack on a second run of each cell; 0: none.
        jobs: worker processes; None: as many as there are usable cores.
        resume: go on with the sweep that is in ``out``.
    """

    study: Path
    data: Path
    out: Path
    test: Path | None = None
    test_fraction: float = 0.2
    holders: tuple[int, ...] = (3,)
    partition: str = "iid"
    skew: float | None = None
    overlap: str | None = None
    epsilons: tuple[float, ...] = ()
    seed: int = 0
    seeds: int = 1
    engine: str = _FAST
    faults: tuple[str, ...] = ()
    canaries: int = 0
    jobs: int | None = None
    resume: bool = False

    def check(self) -> Study:
        """Refuse what cannot be simulated; nothing but the study file is read.

        Returns:
            The study, at its own epsilon.

        Raises:
            BadInput: an option or the study is not what it must be.
            Refused: the study's purpose is refused, or its trust needs more holders (code ``"holders"``).
        """
        self._check_numbers()
        study = read_study(self.study)
        plan = self.spread()
        faults = Faults.parse(self.faults) if self.faults else None
        for epsilon, holders in itertools.product(self.epsilons or (study.privacy.epsilon,), self.holders):
            at = parse_study(self.text_at(study, epsilon), where=str(self.study))
            plan.require(at, holders)
            # Masks are made for fewer holders than the fast engine can add up without them.
            at.require_holders(holders, most=MAX_CONTRIBUTORS if self.engine == _FAST else None)
            if faults is not None:
                faults.require(at, holder_names(holders), engine=self.engine)
        return study

    def cells(self, study: Study) -> tuple[Cell, ...]:
        """Return the cells: seed by seed, so that a sweep that is stopped has whole tables of the first."""
        epsilons = self.epsilons or (study.privacy.epsilon,)
        seeds = range(self.seed, self.seed + self.seeds)
        return tuple(
            Cell(holders=holders, epsilon=epsilon, seed=seed)
            for seed, holders, epsilon in itertools.product(seeds, self.holders, epsilons)
        )

    def text_at(self, study: Study, epsilon: float) -> str:
        """Return the study's text at an epsilon."""
        return with_epsilon(study.text, epsilon) if self.epsilons else study.text

    def spread(self) -> Partition:
        """Return who holds whom."""
        return Partition.parse(self.partition, skew=self.skew, overlap=self.overlap)

    def how(self, seed: int) -> How:
        """Return what is the same in all cells of a seed."""
        if self.test is not None:
            tested_on = self.test.name
        else:
            tested_on = f"a random {self.test_fraction:.0%} of {self.data.name}"
        return How(
            engine=self.engine,
            partition=self.partition,
            partition_words=self.spread().words,
            faults=Faults.parse(self.faults, seed=seed) if self.faults else None,
            canaries=self.canaries,
            tested_on=tested_on,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as :meth:`from_json` reads them; paths become absolute."""
        paths = {name: str(Path(path).absolute()) for name, path in asdict(self).items() if _is_path(path)}
        return {**asdict(self), **paths}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Simulation:
        """Read what :meth:`to_json` returned."""
        known = {each.name: value[each.name] for each in fields(cls)}
        for name in ("study", "data", "out", "test"):
            known[name] = None if known[name] is None else Path(known[name])
        lists = {name: tuple(known[name]) for name in ("holders", "epsilons", "faults")}
        return cls(**{**known, **lists})

    def _check_numbers(self) -> None:
        if not self.holders:
            raise BadInput("--holders", allowed="at least one number", remedy="Write for example 3,10,100")
        for holders in self.holders:
            if not 1 <= holders <= MAX_HOLDERS:
                raise BadInput(
                    "--holders", value=holders, allowed=f"1 to {MAX_HOLDERS}", remedy="Correct the number"
                )
        for epsilon in self.epsilons:
            if not 0 < epsilon < math.inf:
                raise BadInput(
                    "--epsilon",
                    value=epsilon,
                    allowed="a positive finite number",
                    remedy="Smaller is more private; 1 is a common choice",
                )
        _each_once("--holders", self.holders)
        _each_once("--epsilon", tuple(float(f"{epsilon:g}") for epsilon in self.epsilons))
        _whole("--seeds", self.seeds, 1, MAX_CELLS)
        _whole("--seed", self.seed, 0, 2**63 - self.seeds)
        _whole("--jobs", 1 if self.jobs is None else self.jobs, 1, MAX_JOBS)
        if self.canaries:
            _whole("--canaries", self.canaries, MIN_CANARIES, MAX_CANARIES, "or 0 for no attack")
        if self.engine not in ENGINES:
            raise BadInput("--engine", value=self.engine, allowed=", ".join(ENGINES), remedy="Choose one")
        cells = len(self.holders) * max(1, len(self.epsilons)) * self.seeds
        if not cells <= MAX_CELLS:
            raise BadInput(
                "--holders, --epsilon and --seeds",
                value=cells,
                allowed=f"at most {MAX_CELLS} cells in one sweep",
                remedy="Make several sweeps of it",
            )


def require_new(out: Path) -> None:
    """Refuse a directory that holds anything: results are never overwritten or mixed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(
            "--out", value=str(out), allowed="a new or empty directory", remedy="Choose another one"
        )


def _each_once(option: str, values: tuple[object, ...]) -> None:
    if len(set(values)) < len(values):
        raise BadInput(
            option, value=list(values), allowed="each value once", remedy="Leave the second one out"
        )


def _whole(option: str, value: int, low: int, high: int, other: str = "") -> None:
    if not low <= value <= high:
        allowed = f"a whole number from {low} to {high}{', ' if other else ''}{other}"
        raise BadInput(option, value=value, allowed=allowed, remedy="Correct it or leave the option out")


def _is_path(value: object) -> bool:
    return isinstance(value, Path)
