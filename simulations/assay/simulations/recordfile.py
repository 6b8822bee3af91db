"""Records in a file that any process of this machine can map: one Arrow table, no pickle.

For simulations that spread holders over processes. A holder's own source is read by
:mod:`assay.client.sources`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from assay.client.records import Records

__all__ = ["read_records", "write_records"]

# Feature columns, fairness columns and the rest may have the same names.
_COLUMN, _GROUP = "column:", "group:"
_LABELS, _PERSONS, _PATTERNS = "labels", "persons", "patterns"
_NOTES = b"assay"


def write_records(path: Path, records: Records) -> None:
    """Write records, mode 0600; what is read back equals them bit for bit."""
    arrays: dict[str, pa.Array] = {_LABELS: pa.array(records.labels)}
    for name, values in records.columns.items():
        # NaN stays NaN; in a column of words None is missing.
        text = values.dtype == object
        arrays[_COLUMN + name] = pa.array(values, type=pa.string()) if text else pa.array(values)
    for name, codes in records.groups.items():
        arrays[_GROUP + name] = pa.array(codes)
    for name, extra in ((_PERSONS, records.persons), (_PATTERNS, records.patterns)):
        if extra is not None:
            arrays[name] = pa.array(extra)
    notes = {"absent": records.absent, "ignored": records.ignored, "too_old": records.too_old}
    table = pa.table(arrays).replace_schema_metadata({_NOTES: json.dumps(notes)})
    path.touch(mode=0o600)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        # One chunk: numbers can then be used where they lie.
        writer.write_table(table.combine_chunks())


def read_records(path: Path) -> Records:
    """Read what :func:`write_records` wrote; numbers are read-only views of the mapped file."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    notes = json.loads(table.schema.metadata[_NOTES])
    found = {name: _values(table.column(name)) for name in table.column_names}
    return Records(
        columns={
            name.removeprefix(_COLUMN): each for name, each in found.items() if name.startswith(_COLUMN)
        },
        groups={name.removeprefix(_GROUP): each for name, each in found.items() if name.startswith(_GROUP)},
        labels=found[_LABELS],
        persons=found.get(_PERSONS),
        patterns=found.get(_PATTERNS),
        absent=tuple(notes["absent"]),
        ignored=tuple(notes["ignored"]),
        too_old=notes["too_old"],
    )


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    values: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
    return values
