"""The draws of a partition: which holder has which person, and which rows.

Nothing here is as slow as holders times rows: a million rows over 10,000 holders take about a second.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.privacy.errors import BadInput

__all__ = ["by_column", "by_dirichlet", "by_quantity", "further", "kinds_of", "rows_of"]

_BINS = 10
_MAX_VALUES = 1000
# Sizes fall like 1/rank: with ten holders the largest has a third of all persons.
_QUANTITY_EXPONENT = 1.0

Rows = NDArray[np.int64]


def by_quantity(count: int, holders: int, rng: np.random.Generator) -> Rows:
    """Draw the holder of each of ``count`` persons, sizes by a power law, the first holder's the largest."""
    weight = np.arange(1, holders + 1, dtype=np.float64) ** -_QUANTITY_EXPONENT
    ends = np.rint(np.cumsum(weight / weight.sum()) * (count - holders)).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + 1
    return rng.permutation(np.repeat(np.arange(holders), sizes))


def by_dirichlet(kinds: NDArray[Any], holders: int, skew: float, rng: np.random.Generator) -> Rows:
    """Spread the persons of each kind over the holders by shares of their own."""
    _, code, sizes = np.unique(kinds, return_inverse=True, return_counts=True)
    owner = np.empty(len(kinds), dtype=np.int64)
    for members in np.split(np.argsort(code, kind="stable"), np.cumsum(sizes)[:-1]):
        share = rng.dirichlet(np.full(holders, skew))
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        ends[-1] = len(members)
        owner[rng.permutation(members)] = np.repeat(np.arange(holders), np.diff(ends, prepend=0))
    return _without_empty(owner, holders, rng)


def _without_empty(owner: Rows, holders: int, rng: np.random.Generator) -> Rows:
    """Give each holder that the draw left out one random person of whoever is then the largest holder."""
    sizes = np.bincount(owner, minlength=holders)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return owner
    largest = [(-int(sizes[holder]), holder) for holder in np.flatnonzero(sizes).tolist()]
    heapq.heapify(largest)
    giving = np.zeros(holders, dtype=np.int64)
    for _ in empty:
        size, holder = largest[0]
        giving[holder] += 1
        heapq.heapreplace(largest, (size + 1, holder))
    mixed = rng.permutation(len(owner))
    mixed = mixed[np.argsort(owner[mixed], kind="stable")]  # by holder, at random within
    first = np.cumsum(sizes) - sizes
    moved = mixed[np.arange(len(owner)) - first[owner[mixed]] < giving[owner[mixed]]]
    owner[moved] = empty
    return owner


def kinds_of(values: NDArray[Any]) -> Rows:
    """Number the kinds of a column: tenths of its numbers, or its texts; a missing value is a kind.

    Raises:
        BadInput: too many different texts.
    """
    try:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    except ValueError:
        kinds, codes = _coded(values)
        if len(kinds) > _MAX_VALUES:
            raise BadInput(
                "--partition", allowed=f"a column of numbers, or of at most {_MAX_VALUES} different texts"
            ) from None
        return codes
    known = ~np.isnan(numbers)
    ends, sizes = np.unique(numbers[known], return_counts=True)
    # A number that more than a tenth have ends a tenth, and is a kind of its own, not to hide its neighbours.
    common = ends[sizes * _BINS > known.sum()]
    if len(ends) > _BINS:
        ends = np.quantile(numbers[known], np.arange(1, _BINS) / _BINS, method="inverted_cdf")
    return np.where(known, 2 * np.searchsorted(ends, numbers) + np.isin(numbers, common), -1).astype(np.int64)


def _coded(values: NDArray[Any]) -> tuple[list[str], Rows]:
    """Return the different values as texts in ascending order, and the place of each value among them."""
    seen: dict[str, int] = {}
    code = np.fromiter((seen.setdefault(str(v), len(seen)) for v in values), np.int64, len(values))
    kinds = sorted(seen)
    place = np.empty(len(kinds), dtype=np.int64)
    place[[seen[kind] for kind in kinds]] = np.arange(len(kinds))
    return kinds, place[code]


def by_column(values: NDArray[Any], holders: int) -> Rows:
    """Give each value to the holder that has the fewest persons so far, largest values first."""
    kinds, code = _coded(values)
    if len(kinds) < holders:
        raise BadInput("--holders", value=holders, allowed=f"at most {len(kinds)}, the values of the column")
    sizes, of_kind = np.bincount(code), np.empty(len(kinds), dtype=np.int64)
    load = [(0, holder) for holder in range(holders)]
    for kind in np.argsort(-sizes, kind="stable").tolist():
        persons, holder = load[0]
        of_kind[kind] = holder
        heapq.heapreplace(load, (persons + int(sizes[kind]), holder))
    return of_kind[code]


def further(
    owner: Rows, holders: int, *, shared: float, known_to: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Draw who is known to further holders.

    Args:
        owner: holder of each person, shape ``[P]``.
        holders: number of holders, each with a person, at least ``known_to``.
        shared: share of the persons that further holders know.
        known_to: the most holders of one person; 2, ..., ``known_to`` know equally many of the shared.
        rng: decides who.

    Returns:
        Persons and holders, one pair for each further holder of a person.
    """
    count = round(len(owner) * shared)
    if not count:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    persons = rng.permutation(len(owner))[:count]
    number = np.sort(2 + np.arange(count) % (known_to - 1))[::-1]  # holders of each, most first
    sizes, known = np.bincount(owner, minlength=holders), owner[persons][:, None]
    pairs = []
    for holder in range(2, known_to + 1):
        still = int((number >= holder).sum())
        another = _another(known[:still], sizes, rng)
        known = np.concatenate([known[:still], another[:, None]], axis=1)
        pairs.append((persons[:still], another))
    return np.concatenate([who for who, _ in pairs]), np.concatenate([where for _, where in pairs])


def _another(known: Rows, sizes: Rows, rng: np.random.Generator) -> Rows:
    """Draw one more holder for each person, in proportion to size, among those that do not know it.

    Args:
        known: holders of each person, shape ``[persons, at least 1]``.
        sizes: persons of each holder, all above 0.
        rng: decides who.
    """
    ends = np.cumsum(sizes)
    taken = np.sort(known, axis=1)
    # A place among the persons of the other holders; stepping over the known ones in order finds whose it is.
    place = rng.integers(0, ends[-1] - sizes[taken].sum(axis=1))
    for holder in taken.T:
        place += np.where(place >= ends[holder] - sizes[holder], sizes[holder], 0)
    another: Rows = np.searchsorted(ends, place, side="right").astype(np.int64)
    return another


def rows_of(owner: Rows, who: Rows, where: Rows, codes: Rows, holders: int) -> list[Rows]:
    """Return the rows of each holder in ascending order, given each person's own and further holders."""
    count = len(codes)
    keys = owner[codes] * count + np.arange(count)
    if len(who):
        sizes = np.bincount(codes, minlength=len(owner))
        by_person, first = np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes
        times = sizes[who]
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        rows = by_person[np.repeat(first[who], times) + within]
        keys = np.concatenate([keys, np.repeat(where, times) * count + rows])
    keys.sort()
    ends = np.searchsorted(keys, np.arange(1, holders) * count)
    return np.split(keys % count, ends)
