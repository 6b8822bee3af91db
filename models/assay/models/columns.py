"""From a column of a file or database to a typed numpy column: one set of rules to train and to score.

| cell                                  | becomes                                            |
|---------------------------------------|----------------------------------------------------|
| empty, NULL                           | missing (refused for a label)                      |
| ``nan``, ``inf``, too large a number   | refused: a missing cell is written as an empty one |
| a fraction in an integer column       | refused                                            |
| text in a number column               | refused                                            |
| a number in a text column             | its text; ``3.0`` becomes ``3``, also from text    |

Each cell is read by itself, or one record would change how all others are read.

An error names file, row (1 is the first record) and column; the cell itself is in ``BadData.value`` and is
shown only at the terminal of whoever holds the file.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from assay.privacy.errors import BadData

__all__ = ["csv_options", "no_duplicates", "number_text", "typed_column"]

KINDS = {
    "number": "a finite number, or an empty cell if it is missing",
    "integer": "a whole number, or an empty cell if it is missing",
    "label": "0 or 1",
    "text": "text, or an empty cell if it is missing",
    "date": "an ISO date such as 2026-03-31",
}
# Whole numbers beyond 2^53 are not exact in float64.
_EXACT = float(1 << 53)
# A whole number as text, with or without a fraction of zeros; not 007, which is a code.
_WHOLE = r"^(?:-?(0)|(-?[1-9][0-9]*))(?:\.0+)?$"


def csv_options() -> tuple[Any, Any, Any]:
    """Return pyarrow's ``read_options, parse_options, convert_options`` that read every column as text.

    Only the empty cell is null: a file cannot turn ``NA`` into missing or ``1e5`` into a date.
    """
    read = pyarrow.csv.ReadOptions(block_size=1 << 22, use_threads=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=False)
    convert = pyarrow.csv.ConvertOptions(
        null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True, check_utf8=True
    )
    return read, parse, convert


def no_duplicates(names: list[str], where: str | Path) -> None:
    """Refuse a table in which two columns have one name.

    Raises:
        BadData: names the column.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadData(
                f"column {name!r}", where=where, allowed="each column once", remedy="Remove one of them"
            )
        seen.add(name)


def typed_column(
    column: pa.ChunkedArray | pa.Array, name: str, kind: str, *, where: str | Path, first_row: int = 1
) -> NDArray[Any]:
    """Turn an Arrow column into a numpy column.

    Args:
        column: any Arrow type; text is parsed.
        name: for messages.
        kind: ``"number"``, ``"integer"``, ``"label"``, ``"text"`` or ``"date"``.
        where: the file or table, for messages.
        first_row: 1-based number of the first record in ``column``.

    Returns:
        float64 with NaN = missing for numbers and integers, float64 of 0 and 1 for labels, object array of
        ``str`` or None for text and for dates. Dates are not parsed; a declared date or time becomes text.

    Raises:
        BadData: a cell breaks the rules above; the first one is named.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = _decoded(array, name, where)
    place = _Place(name, kind, where, first_row)
    if kind == "date" and (pa.types.is_date(array.type) or pa.types.is_timestamp(array.type)):
        array = pc.cast(pc.cast(array, pa.date32(), safe=False), pa.string())  # the day of a time, in UTC
    if kind in ("text", "date"):
        return _texts(array, place)
    values, absent = _floats(array, place)
    place.refuse(array, np.isinf(values) | (np.isnan(values) & ~absent))
    if kind == "integer":
        known = np.where(absent, 0.0, values)
        place.refuse(array, (known != np.rint(known)) | (np.abs(known) > _EXACT))
    elif kind == "label":
        place.refuse(array, absent | ((values != 0.0) & (values != 1.0)))
    return values


def _decoded(array: Any, name: str, where: str | Path) -> Any:
    """Write a dictionary column out; a damaged Parquet file can point beyond its dictionary."""
    try:
        return array.dictionary_decode()
    except pa.ArrowException:
        raise BadData(
            f"column {name!r}", where=where, allowed="an undamaged file", remedy="Write the file again"
        ) from None


class _Place:
    """Where a column stands, for messages."""

    def __init__(self, name: str, kind: str, where: str | Path, first_row: int) -> None:
        self.name, self.kind, self.where, self.first_row = name, kind, where, first_row

    def refuse(self, array: pa.Array, wrong: NDArray[np.bool_]) -> None:
        """Raise for the first row that is ``wrong``, if any."""
        if wrong.any():
            row = int(np.argmax(wrong))
            raise self.error(row, array[row].as_py())

    def error(self, row: int, cell: object) -> BadData:
        return BadData(
            f"row {self.first_row + row}, column {self.name!r}",
            value="an empty cell" if cell is None else cell,
            allowed=KINDS[self.kind],
            where=self.where,
            remedy="Correct the cell or leave it empty" if self.kind != "label" else "Correct the cell",
        )

    def wrong_type(self, found: Any) -> BadData:
        return BadData(f"column {self.name!r}", value=str(found), allowed=KINDS[self.kind], where=self.where)


def _floats(array: pa.Array, place: _Place) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return float64 values, NaN where the cell is null, and which cells are null."""
    found = array.type
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        array = _parsed(array, place)
    elif pa.types.is_decimal(found) or pa.types.is_integer(found) or pa.types.is_boolean(found):
        array = pc.cast(array, pa.float64(), safe=False)
    elif pa.types.is_null(found):
        array = pa.nulls(len(array), pa.float64())
    elif not pa.types.is_floating(found):
        raise place.wrong_type(found)
    absent = array.is_null().to_numpy(zero_copy_only=False)
    values = pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64), absent


def _parsed(array: pa.Array, place: _Place) -> pa.Array:
    """Parse decimal text; empty and blank cells are null."""
    text = pc.utf8_trim_whitespace(array)
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    numbers = _cast(text)
    if numbers is not None:
        return numbers
    first, end = 0, len(text)
    while end - first > 1:  # halve, to name the first cell that is no number
        middle = (first + end) // 2
        if _cast(text[first:middle]) is None:
            end = middle
        else:
            first = middle
    raise place.error(first, text[first].as_py())


def _cast(text: pa.Array) -> pa.Array | None:
    """Return ``text`` as float64, or None where a cell is no number."""
    try:
        return pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        return None


def _texts(array: pa.Array, place: _Place) -> NDArray[Any]:
    found = array.type
    if pa.types.is_null(found):
        return np.full(len(array), None, dtype=object)
    if pa.types.is_floating(found):
        values, absent = _floats(array, place)
        place.refuse(array, np.isinf(values) | (np.isnan(values) & ~absent))
        cells = [None if gone else number_text(x) for x, gone in zip(values.tolist(), absent, strict=True)]
    elif pa.types.is_decimal(found):
        cells = [None if x is None else number_text(x) for x in array.to_pylist()]
    elif pa.types.is_boolean(found) or pa.types.is_integer(found):
        cells = pc.cast(array, pa.string()).to_pylist()
    elif pa.types.is_string(found) or pa.types.is_large_string(found):
        text = pc.utf8_trim_whitespace(array)
        text = pc.replace_substring_regex(text, _WHOLE, r"\1\2")
        cells = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text).to_pylist()
    else:
        raise place.wrong_type(found)
    out = np.empty(len(array), dtype=object)
    out[:] = cells
    return out


def number_text(value: float | Decimal) -> str:
    """Return a finite number as text, the same for ``3``, ``3.0`` and ``Decimal("3.00")``: ``"3"``.

    A tool that saw a missing value writes a column of whole numbers as floats. Nothing is rounded, so that
    no two identifiers become one.
    """
    whole = int(value)
    if value == whole:
        return str(whole)
    return format(value, "f").rstrip("0") if isinstance(value, Decimal) else repr(value)
