"""One person's points of what this holder has, stated for whoever the person chose.

What leaves is not noisy: it is the person's own data, encrypted to the recipient in the request. Nothing here
can know whether the person agreed; that is for the holder's operator to make sure of before it runs this.

================  =====================================================================================
logged first      the audit log's entry is on disk before the statement is; refusals are logged too
no personal data  the entry holds digests, words of the study and a salted commitment
one row           points are of exactly one row: which of several counts, nothing here can know
own records only  features of components that ``policy.components`` allows and whose columns are here
================  =====================================================================================
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from assay.client.config import HolderConfig
from assay.client.daemon import AUDIT_FILE, LEDGER_FILE
from assay.client.enrol import load_join, load_keys
from assay.client.policy import Policy, admit_use
from assay.client.sources import Source, open_source
from assay.models.bundle import Bundle, read_bundle
from assay.models.columns import typed_column
from assay.models.encoding import ABSENT
from assay.models.schema import Study
from assay.privacy.auditlog import AuditLog
from assay.privacy.enrolment import Join
from assay.privacy.errors import AssayError, BadData, BadInput, Refused, Tampered
from assay.privacy.files import PRIVATE_FILE, write_durably
from assay.privacy.keys import Identity, same_fingerprint
from assay.privacy.ledger import Ledger
from assay.privacy.noise import Entropy
from assay.privacy.points import state
from assay.privacy.pointsrequest import PointsRequest
from assay.privacy.purpose import check_use

__all__ = ["Stated", "state_points"]


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What was stated; nothing of it depends on the record.

    Attributes:
        output: the file.
        components: what it states.
        recipient: fingerprint of the key it is encrypted to.
        compared: whether that was compared with what the operator was told.
        expires: seconds since 1970.
        commitment: what the audit log keeps.
        missing: features of these components without a column here; they count as missing.
    """

    output: Path
    components: tuple[str, ...]
    recipient: str
    compared: bool
    expires: int
    commitment: str
    missing: tuple[str, ...]


def state_points(
    directory: Path,
    bundle_file: Path,
    request_file: Path,
    *,
    person: str,
    output: Path,
    expect: str | None = None,
    column: str | None = None,
    clock: Callable[[], float] = time.time,
    entropy: Entropy = os.urandom,
) -> Stated:
    """Write a statement of one person's points.

    Args:
        directory: a holder's directory that has joined a federation.
        bundle_file: the model.
        request_file: what the recipient sent.
        person: identifier of the person, as in the person column.
        output: a new file, mode 0600.
        expect: fingerprint of the recipient's key as the operator was told it, over another channel.
        column: the person column; None: ``data.person_column``.
        clock: seconds since 1970.
        entropy: random bytes.

    Raises:
        Refused: purpose, context, model, components or dates do not allow it, or the bundle is not of the
            federation that this holder joined (code ``"federation"``).
        BadInput: the request, a setting or the output is not what it must be; BadData: the records, or the
            person has no row or several.
        Tampered: bundle, join file or books were changed.
        Unavailable: the audit log is in use by the daemon, or cannot be written. Nothing was stated.
    """
    config, keys, joined = (
        HolderConfig.load(directory),
        load_keys(directory),
        load_join(directory, clock=clock),
    )
    if output.exists() or not output.parent.is_dir():
        raise BadInput("--output", value=str(output), allowed="a new file in an existing directory")
    with _log(directory, keys.identity, clock) as log:
        try:
            bundle, request = read_bundle(bundle_file), PointsRequest.read(request_file)
            _require_recipient(request, expect)
            _require_use(bundle, request, config.policy, joined, clock())
            with open_source(config.require_data()) as source:
                present = _present(bundle, request, config.policy, source)
                columns = _row(source, bundle.study, present, person, column or config.person, clock())
            points, components = _points(bundle, columns)
            issued = max(int(clock()), request.issued)
            data, commitment = state(
                request,
                points,
                components=components,
                admission=joined,
                identity=keys.identity,
                issued=issued,
                expires=min(request.expires, int(bundle.expires)),
                entropy=entropy,
            )
        except AssayError as error:
            _log_refusal(log, error)
            raise
        log.append(
            "points",
            bundle=bundle.digest,
            purpose=request.purpose,
            components=" ".join(components),
            statement=commitment,
        )
        write_durably(output, data, mode=PRIVATE_FILE)
    return Stated(
        output=output,
        components=components,
        recipient=request.fingerprint,
        compared=expect is not None,
        expires=min(request.expires, int(bundle.expires)),
        commitment=commitment,
        missing=tuple(
            feature.name
            for feature in bundle.study.features
            if feature.component in components and feature.column not in columns
        ),
    )


@contextmanager
def _log(directory: Path, identity: Identity, clock: Callable[[], float]) -> Iterator[AuditLog]:
    """Open the audit log for writing, in step with the ledger where there is one."""
    with AuditLog.open(directory / AUDIT_FILE, identity, clock) as log:
        if (directory / LEDGER_FILE).exists():
            with Ledger.open(directory / LEDGER_FILE, identity, read_only=True) as ledger:
                log.follow(ledger)  # nothing is added to books that are not of one age
        yield log


def _log_refusal(log: AuditLog, error: AssayError) -> None:
    """Log why nothing is stated, by a word; what is wrong with which record stays at the terminal."""
    if isinstance(error, Refused):
        article = {"article": error.article} if error.article else {}
        log.append("points_refused", code=error.code, **article)
    elif isinstance(error, BadData):
        log.append("points_refused", code="data")
    elif isinstance(error, (BadInput, Tampered)):
        log.append("points_refused", code="input" if isinstance(error, BadInput) else "tampered")


def _require_recipient(request: PointsRequest, expect: str | None) -> None:
    if expect is not None and not same_fingerprint(expect, request.fingerprint):
        raise BadInput(
            "fingerprint",
            where=request.where,
            value=expect,
            allowed=request.fingerprint,
            remedy="State nothing unless the person confirms whose key this is",
        )


def _require_use(bundle: Bundle, request: PointsRequest, policy: Policy, joined: Join, now: float) -> None:
    """Refuse a request that model, rules or this holder's own policy do not allow."""
    study = bundle.study
    if bundle.signer != joined.coordinator_public:
        raise Refused(
            f"the bundle is signed by {bundle.fingerprint}; allowed: {joined.fingerprint}, the"
            " federation that this holder joined",
            code="federation",
        )
    if (request.bundle, request.study) != (bundle.digest, study.digest):
        raise Refused(
            f"{request.where}: it asks for points of another bundle; ask its maker which one", code="bundle"
        )
    check_use(request.purpose, study.purpose, study.rules, context=request.context, contexts=study.contexts)
    admit_use(study, policy)
    bundle.require_current(now)
    bundle.require_promoted()
    request.require_time(now, days=study.rules.retention["statements"].days)


def _present(bundle: Bundle, request: PointsRequest, policy: Policy, source: Source) -> dict[str, str]:
    """Return the columns that are here, may be used and count on the request's platform, with their kinds."""
    present = {
        feature.column: feature.column_kind
        for feature in bundle.study.features
        if feature.component in policy.components
        and feature.platform in (None, request.platform)
        and feature.column in source.columns
    }
    if not present:
        raise Refused(
            "no component of the study is here and allowed by policy.components; there is nothing to state",
            code="components",
        )
    return present


def _row(
    source: Source, study: Study, present: Mapping[str, str], person: str, name: str | None, now: float
) -> dict[str, NDArray[Any]]:
    """Return the columns of the person's one row, each of length 1."""
    if name is None or name in present:
        raise BadInput(
            "data.person_column",
            allowed="the column that names the person, which is no feature",
            remedy="Write it into client.toml in place of one_row_per_person, or give --column",
        )
    observed = study.outcome.observed if study.outcome.observed in source.columns else None
    dated = {observed: "date"} if observed is not None else {}
    columns = source.read({**present, **dated, name: "text"})
    # The identifier is read as cells are: 7.0 is 7.
    wanted = typed_column(pa.array([person]), name, "text", where="--person")[0]
    rows = np.flatnonzero(columns.pop(name) == wanted) if wanted is not None else np.array([], dtype=np.intp)
    if observed is not None:
        rows = rows[[_kept(cell, study, now) for cell in columns.pop(observed)[rows]]]
    if len(rows) != 1:
        found = "no row" if not len(rows) else "several rows"
        raise BadData(
            "--person",
            where=source.where,
            allowed="a person with exactly one row that is young enough to be used",
            remedy=f"There is {found}; let data.query or a view select the row that is to count",
        )
    return {column: values[rows] for column, values in columns.items()}


def _kept(cell: object, study: Study, now: float) -> bool:
    """Say whether a row may still be used: its outcome is not known yet, or is young enough."""
    if not isinstance(cell, str):
        return True
    oldest = datetime.fromtimestamp(now, UTC).date() - timedelta(days=study.rules.retention["records"].days)
    try:
        return datetime.fromisoformat(cell.strip()).date() >= oldest
    except ValueError:
        return False


def _points(bundle: Bundle, columns: Mapping[str, NDArray[Any]]) -> tuple[list[int | None], tuple[str, ...]]:
    """Return the points of each feature and pair, None where the component is not here, and what is known."""
    card = bundle.scorecard
    encoded = card.grid.encode(columns)
    points = card.score(encoded).points[0].tolist()
    low = encoded.low[0].tolist()
    stated = [None if cell == ABSENT else int(own) for own, cell in zip(points, low, strict=True)]
    return stated, card.grid.components_of(int(encoded.pattern[0]))
