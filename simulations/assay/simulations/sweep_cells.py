"""The cells of a sweep: checked, put in order, and summarised over seeds.

A cell is one finished run: one number of holders, one epsilon, one seed. What a report says about a sweep
is computed here from the cells alone; charts and sentences only show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.privacy.errors import BadInput

__all__ = ["CURVES", "Band", "Cell", "Results", "band", "gain_of"]

Cell = dict[str, Any]
_NEAR_BEST = 0.01  # AUROC; two curves that close look alike to whoever decides


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean over seeds with its 95 % interval.

    Attributes:
        mean: over the seeds that have a value.
        low: end of the interval; None with a single seed, which says nothing about its own spread.
        high: the other end, or None.
        seeds: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the interval; the mean twice where there is none."""
        low, high = self.low, self.high
        return (self.mean, self.mean) if low is None or high is None else (low, high)

    @property
    def sign(self) -> int | None:
        """1 or -1 where the whole interval lies above or below zero, else 0; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def band(values: Iterable[float | None]) -> Band | None:
    """Return the mean and Student's t interval of what is there, or None where nothing is.

    The interval is ``mean +- t(n - 1, 0.975) * s / sqrt(n)`` (Student 1908). Seeds draw hold-out and layout
    anew and noise is never seeded, so it covers all three; it does not cover other data.
    """
    kept = np.array([value for value in values if value is not None], dtype=np.float64)
    if not kept.size:
        return None
    mean = float(kept.mean())
    if kept.size == 1:
        return Band(mean=mean, low=None, high=None, seeds=1)
    from scipy.special import stdtrit

    half = float(stdtrit(kept.size - 1, 0.975) * kept.std(ddof=1) / math.sqrt(kept.size))
    return Band(mean=mean, low=mean - half, high=mean + half, seeds=int(kept.size))


def _baseline(name: str) -> Callable[[Cell], float | None]:
    def read(cell: Cell) -> float | None:
        value: float | None = cell["baselines"][name]
        return value

    return read


def _federated(cell: Cell) -> float:
    value: float = cell["auroc"]
    return value


CURVES: Mapping[str, tuple[str, Callable[[Cell], float | None]]] = {
    "federated": ("together", _federated),
    "pooled": ("pooled", _baseline("pooled_auroc")),
    "local": ("alone", _baseline("local_only_auroc")),
    "open": ("no privacy", _baseline("non_private_auroc")),
    "limit": ("true risk", _baseline("bayes_auroc")),
}
"""What is compared by AUROC: the name in a chart and where a cell has it, by key."""


def gain_of(cell: Cell) -> float | None:
    """Return by how much the joint model beats the average of the holders' own, in AUROC."""
    alone = cell["baselines"]["local_only_auroc"]
    return None if alone is None else cell["auroc"] - alone


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """All cells of one sweep, in order of holders, epsilon and seed.

    Attributes:
        cells: at least one; all of one study.
        failed: runs that ended without a model: ``holders``, ``epsilon``, ``seed``, ``error`` and ``faults``.
    """

    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...] = ()

    @classmethod
    def of(cls, cells: Sequence[Cell], failed: Sequence[Cell] = ()) -> Results:
        """Check cells and put them in order.

        Raises:
            BadInput: there is none, a key is missing or has a value that cannot be, two cells are the same
                run, or they belong to several studies.
        """
        if not cells:
            raise BadInput("cells of a sweep", allowed="at least one", remedy="Run the sweep first")
        for number, cell in enumerate(cells, start=1):
            _check(cell, f"cell {number}")
        studies = sorted({cell["study"] for cell in cells})
        if len(studies) > 1:
            raise BadInput("study of the cells", value=studies, allowed="one and the same")
        keys = [(cell["holders"], cell["epsilon"], cell["seed"]) for cell in cells]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadInput("cell (holders, epsilon, seed)", value=twice, allowed="each once")
        for number, run in enumerate(failed, start=1):
            _check_failed(run, f"failed run {number}")
        return cls(cells=_ordered(cells), failed=_ordered(failed))

    @property
    def holders(self) -> list[int]:
        """Numbers of holders that were run, ascending."""
        return sorted({cell["holders"] for cell in self.cells})

    @property
    def epsilons(self) -> list[float]:
        """Epsilons that were run, ascending."""
        return sorted({cell["epsilon"] for cell in self.cells})

    @property
    def seeds(self) -> list[int]:
        """Seeds that were run, ascending."""
        return sorted({cell["seed"] for cell in self.cells})

    @property
    def settings(self) -> list[tuple[int, float]]:
        """Pairs of (holders, epsilon) that have a cell, in order."""
        return list(dict.fromkeys((cell["holders"], cell["epsilon"]) for cell in self.cells))

    def at(self, holders: int, epsilon: float) -> list[Cell]:
        """Return the cells of one number of holders and one epsilon, by seed; empty where none ran."""
        return [c for c in self.cells if c["holders"] == holders and c["epsilon"] == epsilon]

    def over(self, holders: int, epsilon: float, read: Callable[[Cell], float | None]) -> Band | None:
        """Summarise over seeds what ``read`` finds in a cell."""
        return band(read(cell) for cell in self.at(holders, epsilon))

    def joint(self, holders: int, epsilon: float) -> Band:
        """Return the joint model's AUROC in a setting that ran."""
        found = self.over(holders, epsilon, CURVES["federated"][1])
        if found is None:
            raise KeyError((holders, epsilon))
        return found

    def gain(self, holders: int, epsilon: float) -> Band | None:
        """Return what federating gains over the average holder alone; differences are taken within a seed."""
        return self.over(holders, epsilon, gain_of)

    def enough(self, holders: int) -> float:
        """Return the smallest epsilon whose joint AUROC is within 0.01 of the best with as many holders."""
        means = {epsilon: self.joint(h, epsilon).mean for h, epsilon in self.settings if h == holders}
        best = max(means.values())
        return min(epsilon for epsilon, mean in means.items() if mean >= best - _NEAR_BEST)

    @property
    def shown(self) -> tuple[int, float]:
        """The setting that is shown in detail: where the gain is surest, at the epsilon that is enough.

        Surest is the highest lower end of the interval, or the largest gain where no interval is.
        """

        def surest(setting: tuple[int, float]) -> float:
            gain = self.gain(*setting)
            return -math.inf if gain is None else gain.ends[0]

        return max(((holders, self.enough(holders)) for holders in self.holders), key=surest)


_WORDS = ("study", "outcome", "trust", "engine", "partition", "label")
_COUNTS = {"holders": 1, "seed": 0, "rounds": 0, "rows": 1, "test_rows": 1}
_ANY = (-math.inf, math.inf)
_SHARE = (0.0, 1.0)
_MORE = (0.0, math.inf)
_NUMBERS = {
    **dict.fromkeys(("epsilon", "delta", "seconds", "spent_epsilon", "label_epsilon", "log_loss"), _MORE),
    **dict.fromkeys(("auroc", "ks", "brier", "ece"), _SHARE),
    "gini": (-1.0, 1.0),
}
_BASELINES = ("local_only_auroc", "pooled_auroc", "non_private_auroc", "bayes_auroc")
_CANARIES = ("claimed_epsilon", "lower_bound", "confidence", "canaries", "guessed", "right")
_RATES = ("auroc", "approval_rate", "observed", "predicted")


def _check(cell: Cell, where: str) -> None:
    """Refuse a cell that the report could not show truthfully."""
    for key in _WORDS:
        _is(where, cell, key, str, "text")
    for key, least in _COUNTS.items():
        _is(where, cell, key, int, "a whole number")
        _number(where, cell, key, least, math.inf)
    for key, (low, high) in _NUMBERS.items():
        _number(where, cell, key, low, high)
    for key in ("epsilon", "delta"):
        if not cell[key] > 0:
            raise BadInput(key, where=where, value=cell[key], allowed="above 0")
    _is(where, cell, "baselines", dict, "an object")
    for key in _BASELINES:
        _number(f"{where}: baselines", cell["baselines"], key, *_SHARE, nullable=True)
    for own in _rows(where, cell, "local"):
        _number(f"{where}: local", own, "auroc", *_SHARE, nullable=True)
        _number(f"{where}: local", own, "rows", 0, math.inf)
        _is(f"{where}: local", own, "name", str, "text")
    for group in _rows(where, cell, "groups"):
        _check_group(group, f"{where}: groups")
    for row in _rows(where, cell, "calibration"):
        for key in ("predicted", "observed", "low", "high"):
            _number(f"{where}: calibration", row, key, *_SHARE)
        _number(f"{where}: calibration", row, "rows", 1, math.inf)
    if _get(where, cell, "canaries") is not None:
        for key in _CANARIES:
            _number(f"{where}: canaries", cell["canaries"], key, *_MORE)
        if not cell["canaries"]["claimed_epsilon"] > 0:
            raise BadInput("claimed_epsilon", where=f"{where}: canaries", value=0, allowed="above 0")
    _check_faults(cell, where)


def _check_failed(run: Cell, where: str) -> None:
    for key, least in (("holders", 1), ("epsilon", 0), ("seed", 0)):
        _number(where, run, key, least, math.inf)
    _is(where, run, "error", str, "text")
    _check_faults(run, where)


def _check_faults(run: Cell, where: str) -> None:
    if _get(where, run, "faults"):
        _is(where, run, "faults", dict, "an object or null")
        for key, kind in (("injected", dict), ("caught", dict), ("not_caught", list)):
            _is(f"{where}: faults", run["faults"], key, kind, "an object, or a list of what was not caught")


def _ordered(runs: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(sorted(runs, key=lambda run: (run["holders"], run["epsilon"], run["seed"])))


def _check_group(group: Cell, where: str) -> None:
    for key in ("column", "group"):
        _is(where, group, key, str, "text")
    _number(where, group, "persons", 0, math.inf)
    for key in _RATES:
        _number(where, group, key, *_SHARE, nullable=True)
    if _get(where, group, "non_private") is not None:
        for key in ("auroc", "approval_rate"):
            _number(f"{where}: non_private", group["non_private"], key, *_SHARE, nullable=True)


def _get(where: str, holder: Cell, key: str) -> Any:
    if key not in holder:
        remedy = "A cell of another version cannot be shown: run the sweep again in a new directory"
        raise BadInput(f"key {key!r}", where=where, value="missing", allowed="present", remedy=remedy)
    return holder[key]


def _is(where: str, holder: Cell, key: str, kind: type, words: str) -> None:
    value = _get(where, holder, key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadInput(key, where=where, value=value, allowed=words)


def _rows(where: str, cell: Cell, key: str) -> list[Cell]:
    _is(where, cell, key, list, "a list")
    rows: list[Cell] = cell[key]
    return rows


def _number(where: str, holder: Cell, key: str, low: float, high: float, *, nullable: bool = False) -> None:
    value = _get(where, holder, key)
    if value is None and nullable:
        return
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
        end = "" if high == math.inf else f" to {high:g}"
        also = " or null" if nullable else ""
        raise BadInput(key, where=where, value=value, allowed=f"a number from {low:g}{end}{also}")
