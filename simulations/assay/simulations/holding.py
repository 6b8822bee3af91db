"""What each simulated holder has: its share of one file's records, and a description of all shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.client.records import Records
from assay.models.encoding import Grid
from assay.simulations.partition import MAX_KNOWN_TO, Part

__all__ = ["describe", "hold", "hold_all", "known_to"]

Rows = NDArray[np.int64]


def hold(records: Records, part: Part, grid: Grid) -> Records:
    """Return the records of one holder, see :func:`hold_all`."""
    return hold_all(records, [part], grid)[0]


def hold_all(records: Records, parts: Sequence[Part], grid: Grid) -> list[Records]:
    """Return the records of every holder, persons numbered anew at each.

    The columns of a component that a holder lacks are absent there, as if its source did not have them, so
    that its rows are of the pattern of the components it has.

    Args:
        records: of everybody.
        parts: which of them each holder gets.
        grid: of the study.

    Raises:
        BadInput: a holder would have no row or no column.
    """
    # One gather per column for all holders, then views: many small gathers would take most of the time.
    rows = np.concatenate([part.rows for part in parts])
    columns = {name: values[rows] for name, values in records.columns.items()}
    groups = {name: codes[rows] for name, codes in records.groups.items()}
    labels = records.labels[rows]
    patterns = None if records.patterns is None else records.patterns[rows]
    persons = None if records.persons is None else _numbered(records.persons[rows], parts)
    held, start = [], 0
    for part in parts:
        own = slice(start, start + len(part.rows))
        start = own.stop
        kept, absent, bits = _kept(records, part, grid)
        held.append(
            Records(
                columns={name: columns[name][own] for name in kept},
                labels=labels[own],
                persons=None if persons is None else persons[own],
                groups={name: codes[own] for name, codes in groups.items()},
                patterns=None if patterns is None else patterns[own] & bits,
                absent=absent,
                ignored=records.ignored,
            )
        )
    return held


def known_to(parts: Sequence[Part], persons: Rows | None, most: int = MAX_KNOWN_TO) -> list[float]:
    """Return the shares of all persons that exactly 1, 2, ..., ``most`` holders know; they sum to 1.

    Args:
        parts: of all holders.
        persons: codes 0..P-1 of all rows, shape ``[N]``, or None: every row is a person.
        most: the last number; more holders count as this many.
    """
    _, person = _pairs(parts, persons)
    number = np.bincount(person)
    number = number[number > 0]
    return [float(x) for x in np.bincount(np.minimum(number, most), minlength=most + 1)[1:] / len(number)]


def describe(
    parts: Sequence[Part],
    labels: NDArray[np.float64],
    persons: Rows | None = None,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Describe every holder, for the report of a simulation: exact numbers, which no live system shows.

    Args:
        parts: of all holders.
        labels: 0 or 1 of all rows, shape ``[N]``.
        persons: codes 0..P-1 of all rows, shape ``[N]``, or None: every row is a person.
        names: of the holders; None: ``"1"``, ``"2"``, ...

    Returns:
        For each holder ``name``, ``rows``, ``persons``, ``base_rate`` (share of its rows with outcome 1),
        ``components`` (list, or None: all) and ``known_to`` (shares of its persons that exactly 1, 2, ..., 5
        holders know).
    """
    holder, person = _pairs(parts, persons)
    number = np.minimum(np.bincount(person)[person], MAX_KNOWN_TO)
    width = MAX_KNOWN_TO + 1
    counts = np.bincount(holder * width + number, minlength=width * len(parts)).reshape(-1, width)[:, 1:]
    return [
        {
            "name": str(i + 1) if names is None else names[i],
            "rows": len(part.rows),
            "persons": int(counts[i].sum()),
            "base_rate": float(labels[part.rows].mean()),
            "components": None if part.components is None else list(part.components),
            "known_to": (counts[i] / counts[i].sum()).tolist(),
        }
        for i, part in enumerate(parts)
    ]


def _kept(records: Records, part: Part, grid: Grid) -> tuple[list[str], tuple[str, ...], int]:
    """Return a holder's columns, the names of its absent features, and the bits of its components."""
    names = grid.components if part.components is None else part.components
    bits = sum(1 << grid.components.index(name) for name in names)
    if part.components is None:
        return list(records.columns), records.absent, bits
    features = [own.feature for own in grid.features]
    gone = {feature.column for feature in features if feature.component not in names}
    kept = [name for name in records.columns if name not in gone]
    return kept, tuple(feature.name for feature in features if feature.column not in kept), bits


def _numbered(persons: Rows, parts: Sequence[Part]) -> Rows:
    """Number the persons of each holder 0, 1, ... in the order of their codes; rows holder by holder."""
    holder = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    pairs, number = np.unique(holder * (int(persons.max()) + 1) + persons, return_inverse=True)
    first = np.searchsorted(pairs, np.arange(len(parts)) * (int(persons.max()) + 1))
    codes: Rows = (number - first[holder]).astype(np.int64)
    return codes


def _pairs(parts: Sequence[Part], persons: Rows | None) -> tuple[Rows, Rows]:
    """Return holder and person of each acquaintance, each once."""
    rows = np.concatenate([part.rows for part in parts])
    holder = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    person = rows if persons is None else persons[rows]
    count = int(person.max()) + 1
    keys = np.sort(holder * count + person)
    keys = keys[np.diff(keys, prepend=-1) > 0]  # quicker than np.unique
    return keys // count, keys % count
