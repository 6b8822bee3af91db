"""A holder's records, checked against a study: what is used, what is missing, and what would leave.

Everything here stays at the holder. The numbers in :func:`describe` are computed from records and are
shown at the holder's own terminal only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.client.sources import Source
from assay.models.schema import Feature, Interaction, Study
from assay.privacy.errors import BadData, BadInput

__all__ = ["Records", "describe", "load_records"]


@dataclass(frozen=True, kw_only=True)
class Records:
    """Checked records of one source, in the source's order; N rows.

    Attributes:
        columns: column name -> values [N]: float64 with NaN = missing, or for a categorical feature
            object with None = missing. Only columns of features, and at least one.
        labels: float64 [N], 0 or 1.
        persons: int64 [N], codes 0..P-1 in order of first appearance; None where every row is a person.
        absent: names of the features whose column this source does not have.
        ignored: columns of the source that the study does not use.
        too_old: how many rows were left out because their outcome is older than records are kept.
        groups: fairness column -> group of each row as ``GroupColumn.codes`` gives it, int64 [N]; the columns
            with groups that this source has.
        patterns: int32 [N], which components each row has (``Grid.encode``); None: those with a column here.
    """

    columns: Mapping[str, NDArray[Any]] = field(repr=False)
    labels: NDArray[np.float64] = field(repr=False)
    persons: NDArray[np.int64] | None = field(default=None, repr=False)
    absent: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    too_old: int = 0
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    patterns: NDArray[np.int32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        lengths = {len(each) for each in (*self.columns.values(), self.labels, *self.groups.values())}
        lengths |= {len(each) for each in (self.persons, self.patterns) if each is not None}
        if not self.columns or len(lengths) != 1 or not self.rows:
            raise BadInput("records", allowed="at least one feature column, all of one length above 0")
        # The negation refuses NaN too.
        if not np.isin(self.labels, (0.0, 1.0)).all():
            raise BadInput("labels", allowed="0 or 1 in every row")
        if any(values.dtype == np.float64 and np.isinf(values).any() for values in self.columns.values()):
            raise BadInput("records", allowed="finite numbers")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def persons_count(self) -> int:
        """Number of persons; of rows where the study names no person column."""
        return self.rows if self.persons is None else int(self.persons.max()) + 1


def load_records(source: Source, study: Study, *, clock: Callable[[], float] = time.time) -> Records:
    """Read the columns that the study uses, and check them.

    A feature whose column is not there becomes missing; at least one must be there. The outcome and,
    if the study names one, the person column must be there and hold a value in every row. Of the
    fairness columns those are read that the study declares groups of, for the audit. If the study says which
    column holds the date of the outcome, rows older than its policy pack keeps records are left out.

    Args:
        source: where the records lie.
        study: names the columns.
        clock: seconds since 1970, for the age of a record.

    Raises:
        BadData: a column is missing or of the wrong type, a label is not 0 or 1, an identifier is
            missing, a number is not finite, a date is unreadable or in the future, or there are no rows.
    """
    source.require(study.outcome.column)
    present = [feature for feature in study.features if feature.column in source.columns]
    if not present:
        source.require(study.features[0].column)  # refuses, with the nearest column
    wanted = {feature.column: feature.column_kind for feature in present}
    wanted[study.outcome.column] = "label"
    if study.person is not None:
        wanted[study.person] = "text"
    if study.outcome.observed is not None:
        source.require(study.outcome.observed)
        wanted[study.outcome.observed] = "date"
    audited = [column for column in study.fairness.audited if column.column in source.columns]
    wanted |= {column.column: column.kind for column in audited}
    columns = source.read(wanted)
    groups = {column.column: column.codes(columns.pop(column.column)) for column in audited}
    labels = columns.pop(study.outcome.column)
    rows = len(labels)
    kept = np.arange(rows)
    if study.outcome.observed is not None:
        today = datetime.fromtimestamp(clock(), UTC).date()
        kept = _young_enough(columns.pop(study.outcome.observed), study, today, source.where)
        labels = labels[kept]
    persons = None
    if study.person is not None:
        persons = _person_codes(columns.pop(study.person), kept, study.person, source.where)
    return Records(
        columns=columns if len(kept) == rows else {name: values[kept] for name, values in columns.items()},
        groups={name: codes[kept] for name, codes in groups.items()},
        labels=labels,
        persons=persons,
        too_old=rows - len(kept),
        absent=tuple(feature.name for feature in study.features if feature.column not in columns),
        ignored=tuple(name for name in source.columns if name not in wanted),
    )


def _young_enough(dates: NDArray[Any], study: Study, today: date, where: str) -> NDArray[np.int64]:
    """Return which rows are kept, [M] in ascending order.

    A row is judged by its own date and by today's, never by another row. So without one person the other
    rows that are kept are the same, and the sums differ by what that person's rows add: the sensitivities,
    and with them the accounting, hold as they are. Another day is another data set, for which they hold too.
    """
    oldest = today - timedelta(days=study.rules.retention["records"].days)
    kept = []
    for row, cell in enumerate(dates):
        try:
            day = datetime.fromisoformat(cell.strip()).date()  # databases write a time after the date
        except (AttributeError, ValueError):  # AttributeError: an empty cell
            day = date.max
        if day > today + timedelta(days=1):  # east of Greenwich it may be tomorrow
            raise BadData(
                f"row {row + 1}, column {study.outcome.observed!r}",
                where=where,
                value="an empty cell" if cell is None else cell,
                allowed="the date of the outcome such as 2026-03-31, not in the future",
                remedy="Correct it or drop the row",
            )
        if day >= oldest:
            kept.append(row)
    if not kept:
        raise BadData(
            f"column {study.outcome.observed!r}",
            where=where,
            allowed=f"at least one date from {oldest.isoformat()} on; older records are not used",
        )
    return np.array(kept, dtype=np.int64)


def _person_codes(
    identifiers: NDArray[Any], kept: NDArray[np.int64], name: str, where: str
) -> NDArray[np.int64]:
    codes: dict[str, int] = {}
    out = np.empty(len(kept), dtype=np.int64)
    for place, row in enumerate(kept.tolist()):
        identifier = identifiers[row]
        if identifier is None:
            raise BadData(
                f"row {row + 1}, column {name!r}",
                where=where,
                value="an empty cell",
                allowed="the identifier of a person in every row",
                remedy="Fill it in or drop the row",
            )
        out[place] = codes.setdefault(identifier, len(codes))
    return out


def describe(records: Records, study: Study) -> tuple[dict[str, Any], list[str]]:
    """Say what would be used and exactly what would leave; for the holder's own terminal.

    Returns:
        A dictionary that JSON can hold, and the same as lines of text. Both hold numbers computed from
        records.
    """
    features = [_describe_feature(feature, records) for feature in study.features]
    leaves = _leaves(study)
    result: dict[str, Any] = {
        "study": study.name,
        "rows": records.rows,
        "persons": records.persons_count,
        "bad_share": float(records.labels.mean()),
        "features": features,
        "interactions": [_describe_pair(pair, records) for pair in study.interactions],
        "used_columns": [
            *records.columns,
            study.outcome.column,
            *filter(None, [study.person, study.outcome.observed]),
            *records.groups,
        ],
        "too_old_rows": records.too_old,
        "ignored_columns": list(records.ignored),
        "leaves": leaves,
        "warnings": _warnings(records, study),
    }
    return result, _lines(result, study)


def _describe_feature(feature: Feature, records: Records) -> dict[str, Any]:
    values = records.columns.get(feature.column)
    entry: dict[str, Any] = {"name": feature.name, "column": feature.column, "component": feature.component}
    if values is None:
        return {**entry, "absent": True, "missing_share": 1.0, "outside_domain": 0}
    if feature.domain is None:
        missing = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
        levels = set(feature.levels)
        outside = sum(value is not None and value not in levels for value in values)
    else:
        missing = np.isnan(values)
        low, high = feature.domain
        outside = int(((values < low) | (values > high)).sum())
    return {**entry, "absent": False, "missing_share": float(missing.mean()), "outside_domain": outside}


def _describe_pair(pair: Interaction, records: Records) -> dict[str, Any]:
    absent = [name for name in pair.features if name in records.absent]
    return {"name": pair.name, "features": list(pair.features), "absent": absent}


def _leaves(study: Study) -> list[dict[str, Any]]:
    """List the messages that depend on records; ``Release`` and ``Masked`` are their only types."""
    from assay.models.encoding import Grid
    from assay.models.tally import tally_of

    grid = Grid.of(study)
    calibration, audit = (tally_of(study, grid, number).size for number in (1, 2))
    return [
        {"round": "0", "what": "noisy counts of the public cells", "integers": grid.width},
        {
            "round": "1 to T",
            "what": "noisy sum of clipped gradients",
            "integers": grid.width,
            "rounds": study.training.rounds,
        },
        {
            "round": "T + 1",
            "what": "noisy histogram of outcomes by predicted log-odds",
            "integers": calibration,
        },
        {
            "round": "T + 2",
            "what": "noisy counts of scores, outcomes and groups for the audit of the scorecard",
            "integers": audit,
        },
    ]


def _warnings(records: Records, study: Study) -> list[str]:
    """Point out what is allowed and yet likely to be a mistake."""
    warnings = []
    persons = records.persons_count
    # Above 0.1/persons, a mechanism that publishes one whole record now and then would still comply.
    if study.privacy.delta > 0.1 / persons:
        warnings.append(
            f"privacy.delta {study.privacy.delta:g} is above 0.1 / persons = {0.1 / persons:.3g}: too large "
            "for this many persons; ask for a study with a smaller delta"
        )
    if records.labels.min() == records.labels.max():
        warnings.append(f"every label is {records.labels[0]:.0f}: look at the outcome column")
    return warnings


def _lines(result: dict[str, Any], study: Study) -> list[str]:
    lines = [
        f"study {study.name}: {result['rows']} rows, {result['persons']} persons, "
        f"{result['bad_share']:.1%} bad ({study.outcome.meaning})",
        *_age(result, study),
        "",
        "feature (column): missing, outside the public domain or levels",
    ]
    for entry in result["features"]:
        state = (
            "no such column here: missing in every row"
            if entry["absent"]
            else f"{entry['missing_share']:.1%} missing, {entry['outside_domain']} outside"
        )
        lines.append(f"  {entry['name']} ({entry['column']}): {state}")
    for pair in result["interactions"]:
        gone = f": missing in every row, as {' and '.join(pair['absent'])} is" if pair["absent"] else ""
        lines.append(f"  {' together with '.join(pair['features'])}{gone}")
    counts, gradients, *after = result["leaves"]
    rounds = gradients["rounds"] or "chosen by the coordinator from noisy numbers, at most 1000"
    lines += [
        "",
        f"not read: {', '.join(result['ignored_columns']) or 'no other column'}",
        "",
        "what would leave, and nothing else that depends on records:",
        f"  round 0: {counts['integers']} integers, {counts['what']}",
        f"  rounds 1 to T: {gradients['integers']} integers each, {gradients['what']}; T: {rounds}",
        *(f"  round {each['round']}: {each['integers']} integers, {each['what']}" for each in after),
        f"  privacy loss of one person over the whole run: epsilon {study.privacy.epsilon:g}, "
        f"delta {study.privacy.delta:g}",
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return lines


def _age(result: dict[str, Any], study: Study) -> list[str]:
    if study.outcome.observed is None:
        return []
    kept = study.rules.retention["records"]
    return [
        f"left out: {result['too_old_rows']} rows whose {study.outcome.observed} is more than {kept.days}"
        f" days ago [{kept.article}]"
    ]
