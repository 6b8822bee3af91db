"""Who holds whom: spreading one file of records over simulated holders.

    plan = Partition.parse("feature:income", skew=0.1, overlap="0.2:3")  # as on the command line
    plan.require(study, holders)                       # what is public, before anything is read
    column = plan.read(source, records.rows)           # text [N], or None where no column is named
    parts = split(plan, holders=holders, labels=..., persons=..., column=column, components=..., seed=0)

and then :func:`assay.simulations.holding.hold_all` for each holder's records and
:func:`assay.simulations.holding.describe` for a report. Randomness here decides a simulation's layout, never
noise. The rows of one person always stay together at a holder, and no holder is empty.

Flower Datasets' partitioners (flwr-datasets 0.6.1) are not used: they bring dozens of packages, put no
person at two holders, cut rows or columns but never both, and ``DirichletPartitioner``, which draws the
same shares, gives up where ten draws in a row leave a holder empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.client.sources import Source
from assay.models.schema import COMPONENTS, Study
from assay.privacy.errors import BadInput
from assay.simulations.layout import by_column, by_dirichlet, by_quantity, further, kinds_of, rows_of

__all__ = ["MAX_HOLDERS", "MAX_KNOWN_TO", "NAMED", "SKEW", "Part", "Partition", "hold_out", "split"]

NAMED = ("iid", "quantity", "label", "component")
MAX_HOLDERS = 10_000
MAX_KNOWN_TO = 5
SKEW = 0.5
"""Dirichlet concentration where none is given: holders' base rates differ several-fold."""
_LEAST_SKEW, _MOST_SKEW = 1e-3, 1e6  # between them a draw over 10,000 holders stays finite
_OVERLAP = f"a share from 0 to 1, or SHARE:HOLDERS with 2 to {MAX_KNOWN_TO} holders, such as 0.2:3"
_FORMS = f"{', '.join(NAMED)}, component:A+B,C, feature:COLUMN or a column of the data"

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one holder gets.

    Attributes:
        rows: int64, indices of its rows in ascending order; at least one.
        components: those of whose columns it has, in the study's order; None: all.
    """

    rows: Rows = field(repr=False)
    components: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How records are spread over holders.

    Attributes:
        kind: ``"iid"``; ``"quantity"`` (sizes by a power law); ``"label"`` or ``"feature"`` (each outcome, or
            each bin of a column, by a Dirichlet draw over the holders: Hsu, Qi, Brown, *Measuring the Effects
            of Non-Identical Data Distribution*, 2019; Li et al., *Federated Learning on Non-IID Data Silos*,
            2022, IV); ``"column"`` (its values stay whole); ``"component"`` (rows iid, columns of some
            components only).
        name: the column of ``"feature"`` and ``"column"``, else empty.
        bundles: components per holder, taken in turn, of ``"component"``; empty: every component, then each
            one alone.
        skew: Dirichlet concentration of ``"label"`` and ``"feature"``, 0.001 to 1,000,000; small is skewed.
        shared: share of the persons that further holders know too, 0 to 1.
        known_to: the most holders that know one person, 1 to 5.
    """

    kind: str = "iid"
    name: str = ""
    bundles: tuple[tuple[str, ...], ...] = ()
    skew: float = SKEW
    shared: float = 0.0
    known_to: int = 1

    def __post_init__(self) -> None:
        if not _LEAST_SKEW <= self.skew <= _MOST_SKEW:
            raise BadInput("--skew", value=self.skew, allowed=f"{_LEAST_SKEW:g} to {_MOST_SKEW:,.0f}")
        least = 2 if self.shared else 1
        if not 0 <= self.shared <= 1 or not least <= self.known_to <= MAX_KNOWN_TO:
            raise BadInput("--overlap", value=f"{self.shared}:{self.known_to}", allowed=_OVERLAP)

    @classmethod
    def parse(cls, partition: str, *, skew: float | None = None, overlap: str | None = None) -> Partition:
        """Read the options of ``assay simulate``.

        Args:
            partition: ``iid``, ``quantity``, ``label``, ``component``, ``component:A+B,C,all`` (entries are
                taken in turn, ``all`` is every component), ``feature:COLUMN`` or ``COLUMN``.
            skew: ``--skew``; None: :data:`SKEW`.
            overlap: ``--overlap SHARE`` or ``SHARE:HOLDERS``: this share of the persons is known to 2, ...,
                HOLDERS holders, as many persons to each number; without HOLDERS to 2. None: nobody.

        Raises:
            BadInput: an option is none of these.
        """
        kind, name, bundles = _form(partition)
        shared, known_to = (0.0, 1) if overlap is None else _overlap(overlap)
        if skew is None:
            skew = SKEW
        elif kind not in ("label", "feature"):
            raise BadInput(
                "--skew", value=skew, allowed="nothing unless --partition is label or feature:COLUMN"
            )
        return cls(kind=kind, name=name, bundles=bundles, skew=skew, shared=shared, known_to=known_to)

    @property
    def words(self) -> str:
        """The partition in a few words, for a report."""
        text = {
            "iid": "at random",
            "quantity": "at random, sizes by a power law",
            "label": f"by outcome, Dirichlet {self.skew:g}",
            "feature": f"by {self.name}, Dirichlet {self.skew:g}",
            "column": f"by {self.name}, each value whole",
            "component": "at random, with the columns of some components",
        }[self.kind]
        if not self.shared:
            return text
        several = "2" if self.known_to == 2 else f"2 to {self.known_to}"
        return f"{text}; {self.shared:.3g} of the people known to {several} holders"

    def require(self, study: Study, holders: int) -> None:
        """Check what is public, before anything is read.

        Raises:
            BadInput: fewer holders than know one person; the study's epsilon is for fewer holders per person;
                a component that the study does not use, or one that no holder would have.
        """
        if not 1 <= holders <= MAX_HOLDERS:
            raise BadInput("--holders", value=holders, allowed=f"1 to {MAX_HOLDERS}")
        self._require_known_to(holders)
        promised = study.privacy.holders_per_person
        if not self.known_to <= promised:
            raise BadInput(
                "privacy.holders_per_person",
                value=promised,
                allowed=f"at least {self.known_to}, the holders that --overlap lets know one person",
                remedy=f"Write holders_per_person = {self.known_to} under [privacy] of the study: the noise "
                "is then made for it",
            )
        used = {feature.component for feature in study.features}
        self.components_at(holders, tuple(name for name in COMPONENTS if name in used))

    def read(self, source: Source, rows: int) -> NDArray[Any] | None:
        """Return the named column as text, missing as None; None where the partition names no column.

        Args:
            source: of the records.
            rows: how many records were read from it.

        Raises:
            BadInput: the source has no such column, or has rows that are too old to be used.
        """
        if not self.name:
            return None
        if self.name not in source.columns:
            raise BadInput(
                "--partition",
                value=self.name,
                allowed=f"{_FORMS} of {source.where}: {', '.join(source.columns)}",
            )
        column = source.read({self.name: "text"})[self.name]
        if len(column) != rows:
            raise BadInput(
                "--partition",
                value=self.name,
                allowed="a column, where every row of the data is used",
                remedy=f"Remove the {len(column) - rows} rows whose outcome is older than records are kept",
            )
        return column

    def components_at(self, holders: int, components: tuple[str, ...]) -> list[tuple[str, ...] | None]:
        """Return which components each holder has; None: all.

        Args:
            holders: number of holders.
            components: those of the study that the data have, in the study's order.

        Raises:
            BadInput: an entry names another one, or one of them is at no holder.
        """
        if self.kind != "component":
            return [None] * holders
        if len(components) < 2:
            raise BadInput("--partition", value="component", allowed="data with at least 2 components")
        everything = (components, *((name,) for name in components))
        bundles = [components if own == ("all",) else own for own in self.bundles or everything]
        for name in (name for own in bundles for name in own if name not in components):
            raise BadInput("--partition", value=name, allowed=f"all, {', '.join(components)}")
        given = [bundles[i % len(bundles)] for i in range(holders)]
        for name in set(components).difference(*given):
            raise BadInput(
                "--partition",
                value=",".join("+".join(own) for own in given[: len(bundles)]),
                allowed=f"every component at one of the {holders} holders",
                remedy=f"Nobody has {name}: name it, or write all",
            )
        ordered = [tuple(name for name in components if name in own) for own in given]
        return [None if own == components else own for own in ordered]

    def _require_known_to(self, holders: int) -> None:
        if not self.known_to <= holders:
            raise BadInput(
                "--overlap",
                value=self.known_to,
                allowed=f"at most {holders} holders for one person, as there are holders",
                remedy="Give more holders, or --overlap SHARE:HOLDERS with fewer",
            )


def split(
    partition: Partition | str,
    *,
    holders: int,
    labels: NDArray[np.float64],
    persons: Rows | None,
    seed: int,
    column: NDArray[Any] | None = None,
    components: tuple[str, ...] = (),
) -> list[Part]:
    """Assign rows to holders.

    A person goes where the draw puts the person's last row. Further holders of a person that several know
    are drawn in proportion to their size.

    Args:
        partition: the plan, or a text for :meth:`Partition.parse`.
        holders: number of holders, 1..10,000, at most the number of persons.
        labels: 0 or 1, shape ``[N]``.
        persons: codes 0..P-1, shape ``[N]``, or None: every row is a person.
        seed: decides the layout.
        column: the text of the named column, shape ``[N]``, where the plan names one.
        components: those that the data have, where the plan is ``"component"``.

    Returns:
        For each holder what it gets.

    Raises:
        BadInput: more holders than persons or than values of the column; a person known to more holders than
            there are; too many texts to draw for; see :meth:`Partition.components_at`.
    """
    plan = partition if isinstance(partition, Partition) else Partition.parse(partition)
    codes = np.arange(len(labels)) if persons is None else persons
    count = int(codes.max()) + 1
    most = min(MAX_HOLDERS, count)
    if not 1 <= holders <= most:
        raise BadInput("--holders", value=holders, allowed=f"1 to {most}: no holder may be empty")
    plan._require_known_to(holders)
    given = plan.components_at(holders, components)
    rng = np.random.default_rng(seed)
    if plan.name:
        if column is None:
            raise BadInput("--partition", value=plan.name, allowed=_FORMS)
        values = _person_values(column, codes, count)
        if plan.kind == "column":
            owner = by_column(values, holders)
        else:
            owner = by_dirichlet(kinds_of(values), holders, plan.skew, rng)
    elif plan.kind == "quantity":
        owner = by_quantity(count, holders, rng)
    elif plan.kind == "label":
        owner = by_dirichlet(_person_values(labels, codes, count), holders, plan.skew, rng)
    else:
        owner = rng.permutation(np.arange(count) % holders)
    who, where = further(owner, holders, shared=plan.shared, known_to=plan.known_to, rng=rng)
    rows = rows_of(owner, who, where, codes, holders)
    return [Part(rows=own, components=names) for own, names in zip(rows, given, strict=True)]


def hold_out(*, rows: int, persons: Rows | None, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Set aside a share of the persons for testing.

    Args:
        rows: number of rows.
        persons: codes 0..P-1, shape ``[rows]``, or None: every row is a person.
        fraction: share of persons to set aside, above 0 and below 1.
        seed: decides who.

    Returns:
        Row indices for training and for testing, both in file order.

    Raises:
        BadInput: the fraction is out of range or leaves one side empty.
    """
    codes = np.arange(rows) if persons is None else persons
    count = int(codes.max()) + 1
    if not 0 < fraction < 1 or not 1 <= round(count * fraction) < count:
        raise BadInput("--test-fraction", value=fraction, allowed="above 0 and below 1, leaving both sides")
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(count * fraction)]] = True
    return np.flatnonzero(~chosen[codes]), np.flatnonzero(chosen[codes])


def _form(partition: str) -> tuple[str, str, tuple[tuple[str, ...], ...]]:
    """Return kind, column and bundles of ``--partition``."""
    word, colon, rest = partition.partition(":")
    if colon and word == "feature" and rest:
        return word, rest, ()
    if colon and word == "component":
        bundles = tuple(tuple(entry.strip() for entry in own.split("+")) for own in rest.split(","))
        for own in bundles:
            known = own == ("all",) or set(own) <= set(COMPONENTS)
            if not known or len(set(own)) < len(own):
                raise BadInput(
                    "--partition",
                    value="+".join(own),
                    allowed=f"all, or different ones of {', '.join(COMPONENTS)} joined by +",
                )
        return word, "", bundles
    if partition in NAMED:
        return partition, "", ()
    if not partition or partition in ("feature", "feature:"):
        raise BadInput("--partition", value=partition, allowed=_FORMS)
    return "column", partition, ()


def _overlap(overlap: str) -> tuple[float, int]:
    """Return share and most holders of ``--overlap``."""
    share, colon, holders = overlap.partition(":")
    try:
        shared, known_to = float(share), int(holders) if colon else 2
    except ValueError:
        shared, known_to = math.nan, 2
    if not 0 <= shared <= 1 or not 2 <= known_to <= MAX_KNOWN_TO:
        raise BadInput("--overlap", value=overlap, allowed=_OVERLAP)
    return shared, known_to if shared else 1


def _person_values(values: NDArray[Any], codes: Rows, count: int) -> NDArray[Any]:
    """Return one value for each person: that of the person's last row."""
    one = np.empty(count, dtype=values.dtype)
    one[codes] = values
    return one
