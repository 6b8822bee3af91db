"""A scorecard for programs that do not have Assay: JSON, a CSV table of points, SQL or ONNX.

Each gives the score and the points of :meth:`Scorecard.score`. An export is written for the purpose of its
bundle only, and says in itself what it is for; see :mod:`assay.models.export_terms` for what that is worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.models.bundle import Bundle
from assay.models.export_sql import as_sql
from assay.models.export_tables import as_csv, as_json
from assay.models.export_terms import Source
from assay.privacy.errors import BadInput
from assay.privacy.files import write_durably
from assay.privacy.purpose import check_use

__all__ = ["FORMATS", "Exported", "export_model"]

FORMATS = ("json", "csv", "sql", "onnx")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        form: one of :data:`FORMATS`.
        output: the file.
        columns: the columns that it is made for, in study order.
        missing: feature columns that its table does not have, of components that are there.
        absent: components that are not there and count nothing.
    """

    form: str
    output: Path
    columns: tuple[str, ...]
    missing: tuple[str, ...]
    absent: tuple[str, ...]


def export_model(
    bundle: Bundle,
    target: Path,
    *,
    form: str,
    purpose: str,
    context: str | None = None,
    platform: str | None = None,
    columns: Sequence[str] | None = None,
    table: str | None = None,
    dialect: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Exported:
    """Write the scorecard of ``bundle`` to ``target``, whole or not at all.

    Args:
        bundle: a verified bundle.
        target: the file to write; replaced if it exists.
        form: one of :data:`FORMATS`.
        purpose: what the export is for.
        context: where it is used; None: it is not said.
        platform: sql, onnx: the platform whose compliance features count.
        columns: sql, onnx: the columns that the table has; None: those of all features, for sql the person's
            as well. For sql, columns that are no features go into the result as they are.
        table: sql: the table's name; None: ``records``.
        dialect: sql: ``"sqlite"`` (None) or ``"postgresql"``.
        clock: seconds since 1970.

    Raises:
        Refused: another purpose or context than the bundle's, an expired bundle, or one that is held back.
        BadInput: an argument that does not fit the format, or is not as documented.
        Unavailable: onnx without the package ``onnx``.
    """
    _require_use(bundle, purpose, context, clock())
    if form not in FORMATS:
        raise BadInput("format", value=form, allowed=f"one of {', '.join(FORMATS)}")
    fixed = {"columns": columns, "platform": platform} if form in ("json", "csv") else {}
    only_sql = {} if form == "sql" else {"table": table, "dialect": dialect}
    for setting, value in {**fixed, **only_sql}.items():
        if value is not None:
            raise BadInput(setting, value=value, allowed=f"nothing for format {form}", remedy="Leave it out")
    if not target.parent.is_dir():
        raise BadInput("output", value=str(target), allowed="a file in an existing directory")
    if columns is None and form == "sql" and bundle.study.person is not None:
        columns = [bundle.study.person, *(feature.column for feature in bundle.study.features)]
    source = Source.of(bundle.scorecard.grid, columns, platform)
    write_durably(target, _content(bundle, source, form, table or "records", dialect or "sqlite"))
    return _exported(form, target, source)


def _require_use(bundle: Bundle, purpose: str, context: str | None, now: float) -> None:
    """Refuse what the bundle may not be exported for; nothing of it is written before."""
    study = bundle.study
    check_use(purpose, study.purpose, study.rules, context=context, contexts=study.contexts)
    bundle.require_current(now)
    bundle.require_promoted()


def _content(bundle: Bundle, source: Source, form: str, table: str, dialect: str) -> bytes:
    if form == "json":
        return as_json(bundle).encode("utf-8")
    if form == "csv":
        return as_csv(bundle).encode("utf-8")
    if form == "sql":
        return as_sql(bundle, source, table=table, dialect=dialect).encode("utf-8")
    from assay.models.export_onnx import as_onnx

    return as_onnx(bundle, source)


def _exported(form: str, target: Path, source: Source) -> Exported:
    features = source.grid.features
    return Exported(
        form=form,
        output=target,
        columns=tuple(f.feature.column for f in features if source.has(f)),
        missing=tuple(f.feature.column for f in features if source.knows(f) and not source.has(f)),
        absent=tuple(
            name for name in source.grid.components if name not in source.grid.components_of(source.pattern)
        ),
    )
