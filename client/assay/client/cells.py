"""How one cell is read: by itself, whatever the other records hold.

The privacy accounting bounds what the presence of one person changes. It assumes that this person's
records do not change how the records of all others are read, so a type is never guessed from a column: it
is declared by the source (Parquet, a boolean column of PostgreSQL), asked for by the study, or follows from
the one cell.

| cell of a CSV file, in a query     | SQL value                          | why                             |
|------------------------------------|------------------------------------|---------------------------------|
| empty                              | NULL                               |                                 |
| ``12``, ``-3``, within 64 bits     | that integer                       | for ``CLOSED = 0``              |
| ``12.50``, ``.5``, ``1e-05``       | that float64                       | for ``AMOUNT > 9.5``            |
| ``007``, ``+4612``, ``12e4``       | that text                          | a code, not a number            |
| a whole number beyond 64 bits      | that text                          | float64 would merge identifiers |
| ``none``, ``nan``, anything else   | that text: above every number      | SQLite's order of types         |
| ``1e+309``                         | refused                            | no float64                      |

A number that a query passes on to a text column is written as :func:`~assay.models.columns.number_text`
writes it: ``12.50`` becomes ``12.5``. Where ``1.10`` and ``1.1`` are two persons or two codes, read the file
without a query, or as Parquet with a text column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from assay.models.columns import number_text
from assay.privacy.errors import BadData

__all__ = ["Rows", "sql_values"]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
# Programs write an exponent with its sign or after a decimal point; "12e4" is rather a code.
_FRACTION = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)|\.[0-9]+)")
_INT64 = range(-(1 << 63), 1 << 63)
_NO_SINGLE_VALUE = (bytes, bytearray, memoryview, list, dict, tuple)


class Rows:
    """Rows of Python values, gathered into Arrow columns of text, null for None.

    Text holds every number exactly and :func:`~assay.models.columns.typed_column` parses it, so that the
    type of one cell says nothing about another one. ``booleans`` are columns that the database declares so.
    """

    def __init__(self, names: Sequence[str], where: str, *, booleans: Collection[str] = ()) -> None:
        self._names, self._where = names, where
        self._types = [pa.bool_() if name in booleans else pa.string() for name in names]
        self._batches: list[list[pa.Array]] = [[] for _ in names]
        self._rows = 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take a batch of rows, at least one.

        Raises:
            BadData: a cell holds no single value or no finite float64; names its row and column.
        """
        columns = zip(*rows, strict=True)
        for name, kind, batches, values in zip(self._names, self._types, self._batches, columns, strict=True):
            cells = values if kind == pa.bool_() else self._texts(name, values)
            batches.append(pa.array(cells, kind))
        self._rows += len(rows)

    def table(self) -> pa.Table:
        """Return all rows."""
        pairs = zip(self._batches, self._types, strict=True)
        columns = [pa.chunked_array(batches, kind) for batches, kind in pairs]
        return pa.table(columns, names=list(self._names))

    def _texts(self, name: str, values: Sequence[Any]) -> list[str | None]:
        first = self._rows + 1
        return [self._text(value, name, row) for row, value in enumerate(values, first)]

    def _text(self, value: Any, name: str, row: int) -> str | None:
        if value is None or isinstance(value, str):
            return value
        place = f"row {row}, column {name!r}"
        if isinstance(value, _NO_SINGLE_VALUE):
            raise BadData(
                place,
                where=self._where,
                allowed="plain numbers or text, not bytes, arrays or documents",
                remedy="Select one value per cell",
            )
        if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
            if not _finite(value):
                raise BadData(place, where=self._where, value=value, allowed="a finite number within float64")
            return number_text(value)
        return str(value)


def _finite(value: float | Decimal) -> bool:
    try:
        return math.isfinite(float(value))
    except (OverflowError, ValueError):  # too large an integer; a signalling NaN
        return False


def sql_values(cells: Sequence[str | None], name: str, where: str, *, first_row: int) -> list[Any]:
    """Return the SQL values of text cells, each by the table above.

    Raises:
        BadData: a number beyond float64; names its row and column.
    """
    return [_sql_value(cell, name, where, row) for row, cell in enumerate(cells, first_row)]


def _sql_value(cell: str | None, name: str, where: str, row: int) -> int | float | str | None:
    if cell is None:
        return None
    text = cell.strip()
    if _INTEGER.fullmatch(text):
        whole = int(text)
        return whole if whole in _INT64 else cell
    if not _FRACTION.fullmatch(text):
        return cell
    number = float(text)
    if math.isinf(number):
        raise BadData(
            f"row {row}, column {name!r}", where=where, value=cell, allowed="a number within float64"
        )
    return number
