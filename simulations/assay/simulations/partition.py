"""Who holds whom: splitting one file of records over simulated holders.

The rows of one person always stay together. Randomness here decides a simulation's layout, never noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.privacy.errors import BadInput

__all__ = ["MAX_HOLDERS", "NAMED", "hold_out", "split"]

NAMED = ("iid", "quantity", "label")
MAX_HOLDERS = 10_000
# Sizes fall like 1/rank: with ten holders the largest has a third of all persons.
_QUANTITY_EXPONENT = 1.0
# Dirichlet concentration of the label split: at 0.5 holders' base rates differ several-fold.
_LABEL_CONCENTRATION = 0.5

Rows = NDArray[np.int64]


def split(
    partition: str,
    *,
    holders: int,
    labels: NDArray[np.float64],
    persons: Rows | None,
    column: NDArray[Any] | None,
    seed: int,
) -> list[Rows]:
    """Assign rows to holders.

    Args:
        partition: ``"iid"``, ``"quantity"`` (sizes by a power law), ``"label"`` (base rates by a Dirichlet
            draw), or the name of a column, whose values are then spread over the holders whole.
        holders: number of holders, 1..10,000, at most the number of persons.
        labels: 0 or 1, shape ``[N]``.
        persons: codes 0..P-1, shape ``[N]``, or None: every row is a person.
        column: values of the named column, shape ``[N]``, where ``partition`` names one.
        seed: decides the layout.

    Returns:
        For each holder the indices of its rows, none empty.

    Raises:
        BadInput: more holders than persons or than values of the column.
    """
    codes = np.arange(len(labels)) if persons is None else persons
    count = int(codes.max()) + 1
    if not 1 <= holders <= min(MAX_HOLDERS, count):
        raise BadInput(
            "--holders", value=holders, allowed=f"1 to {min(MAX_HOLDERS, count)}: no holder may be empty"
        )
    rng = np.random.default_rng(seed)
    if partition == "iid":
        owner = rng.permutation(np.arange(count) % holders)
    elif partition == "quantity":
        owner = _by_quantity(count, holders, rng)
    elif partition == "label":
        owner = _by_label(_person_values(labels, codes, count), holders, rng)
    elif column is not None:
        owner = _by_column(_person_values(column, codes, count), holders)
    else:
        raise BadInput("--partition", value=partition, allowed=f"{', '.join(NAMED)} or a column of the data")
    return [np.flatnonzero(owner[codes] == holder) for holder in range(holders)]


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


def _person_values(values: NDArray[Any], codes: Rows, count: int) -> NDArray[Any]:
    """Return one value for each person: that of the person's last row."""
    one = np.empty(count, dtype=values.dtype)
    one[codes] = values
    return one


def _by_quantity(count: int, holders: int, rng: np.random.Generator) -> Rows:
    weight = np.arange(1, holders + 1, dtype=np.float64) ** -_QUANTITY_EXPONENT
    ends = np.rint(np.cumsum(weight / weight.sum()) * (count - holders)).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + 1
    return rng.permutation(np.repeat(np.arange(holders), sizes))


def _by_label(labels: NDArray[np.float64], holders: int, rng: np.random.Generator) -> Rows:
    owner = np.empty(len(labels), dtype=np.int64)
    for value in np.unique(labels):
        share = rng.dirichlet(np.full(holders, _LABEL_CONCENTRATION))
        members = rng.permutation(np.flatnonzero(labels == value))
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        owner[members] = np.repeat(np.arange(holders), np.diff(ends, prepend=0))
    # A holder the draw left out gets one person of the largest holder.
    for empty in np.setdiff1d(np.arange(holders), owner):
        owner[np.flatnonzero(owner == np.bincount(owner, minlength=holders).argmax())[0]] = empty
    return owner


def _by_column(values: NDArray[Any], holders: int) -> Rows:
    """Give each value to the holder that has the fewest persons so far, largest values first."""
    texts = np.array([str(value) for value in values])
    kinds, code, sizes = np.unique(texts, return_inverse=True, return_counts=True)
    if len(kinds) < holders:
        raise BadInput("--holders", value=holders, allowed=f"at most {len(kinds)}, the values of the column")
    load, of_kind = np.zeros(holders), np.zeros(len(kinds), dtype=np.int64)
    for kind in np.argsort(-sizes, kind="stable"):
        of_kind[kind] = load.argmin()
        load[of_kind[kind]] += sizes[kind]
    return of_kind[code]
