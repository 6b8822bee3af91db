"""What a holder hands out about its present population: one signed file of noisy counts.

Canonical JSON, at most 8 MiB::

    {"report": {
        "format": "assay-drift-1",
        "holder": "bank-a",             name in the federation
        "key": "64 hex digits",         Ed25519 key of the holder
        "study": "card-default",
        "bundle": "64 hex digits",      SHA-256 of the bundle that it compares with
        "run": "32 hex digits",         under which the holder's ledger has charged it
        "created": 1767225600.0,        seconds since 1970
        "epsilon": 0.5, "delta": 1e-6,  for one person, over all holders of that person
        "noise_std": 30.1,              standard deviation of the noise in every number below
        "counts": [...],                noisy persons by public cell, then by pattern of components
        "scores": [...]                 noisy persons by score bin
     },
     "signature": "128 hex digits"}     Ed25519 over the canonical JSON of "report", context "drift-report"
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.models.bundle import Bundle
from assay.models.drift import Baseline, Population
from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import write_durably
from assay.privacy.keys import Identity, canonical_json, fingerprint, verify
from assay.privacy.names import check_holder_name, exact_keys

__all__ = ["DriftReport", "add_reports", "read_report", "write_report"]

FORMAT = "assay-drift-1"
MAX_REPORT_BYTES = 8 << 20
_CONTEXT = "drift-report"
_HEX = {"key": 64, "bundle": 64, "run": 32}
_LARGEST = 2.0**53  # more persons than there are; not NaN either
_POSITIVE = ("epsilon", "delta", "noise_std")


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """A report, checked; see the module for the fields.

    Raises:
        BadInput: a field is not what it must be.
    """

    holder: str
    key: str
    study: str
    bundle: str
    run: str
    created: float
    epsilon: float
    delta: float
    noise_std: float
    counts: tuple[float, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_holder_name(self.holder, where="report")
        if not isinstance(self.study, str):
            raise BadInput("study", where="report", allowed="text")
        for name, digits in _HEX.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
                raise BadInput(name, where="report", allowed=f"{digits} lower-case hexadecimal digits")
        for name in _POSITIVE:
            if not _number(getattr(self, name)) or not getattr(self, name) > 0:
                raise BadInput(name, where="report", allowed="a number above 0")
        if not all(map(_number, (self.created, *self.counts, *self.scores))):
            raise BadInput("counts", where="report", allowed="numbers within ±2^53")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the holder's key, to be compared with the one its operator reads out."""
        return fingerprint(bytes.fromhex(self.key))


def write_report(path: Path, report: DriftReport, identity: Identity) -> None:
    """Sign a report and write it, whole or not at all.

    Raises:
        BadInput: ``identity`` is not the key that the report names.
    """
    if identity.public.hex() != report.key:
        raise BadInput("key", where="report", allowed="the key of its holder")
    body = {"format": FORMAT, **asdict(report)}
    signature = identity.sign(_CONTEXT, canonical_json(body)).hex()
    write_durably(path, canonical_json({"report": body, "signature": signature}) + b"\n")


def read_report(path: Path) -> DriftReport:
    """Read and verify a report. Whose key signed it is for the caller to compare.

    Raises:
        BadInput: the file is missing, too large or no report.
        Tampered: the signature does not verify.
    """
    where = str(path)
    document = exact_keys(_parsed(path), ("report", "signature"), where=where)
    names = ("format", *DriftReport.__dataclass_fields__)
    body = exact_keys(document["report"], names, where=where, section="report")
    if body["format"] != FORMAT:
        raise BadInput("format", value=body["format"], where=where, allowed=FORMAT)
    if not isinstance(body["counts"], list) or not isinstance(body["scores"], list):
        raise BadInput("counts", where=where, allowed="a list of numbers")
    fields = {name: value for name, value in body.items() if name != "format"}
    lists = {name: tuple(body[name]) for name in ("counts", "scores")}
    report = DriftReport(**{**fields, **lists})
    signature = document["signature"]
    if not isinstance(signature, str) or not re.fullmatch("[0-9a-f]{128}", signature):
        raise BadInput("signature", where=where, allowed="128 lower-case hexadecimal digits")
    key = bytes.fromhex(report.key)
    verify(key, _CONTEXT, canonical_json(body), bytes.fromhex(signature), what=f"report {path}")
    return report


def add_reports(bundle: Bundle, reports: Sequence[DriftReport]) -> Population:
    """Add the reports of several holders.

    Raises:
        BadInput: there is none, or one does not have the bundle's cells.
        Refused: one is about another bundle, or one holder, by name or by key, has several.
    """
    grid, bins = bundle.scorecard.grid, len(Baseline.of(bundle).scores)
    if not reports:
        raise BadInput("reports", allowed="at least one")
    seen: set[str] = set()
    for report in reports:
        if report.bundle != bundle.digest:
            raise Refused(
                f"the report of {report.holder} is about another bundle ({report.bundle[:16]}...); allowed:"
                f" reports about this one ({bundle.digest[:16]}...)",
                code="bundle",
            )
        if report.holder in seen or report.key in seen:
            raise Refused(
                f"{report.holder} is in the sum already, by name or by key; allowed: one report per holder",
                code="holders",
            )
        seen |= {report.holder, report.key}
        if (len(report.counts), len(report.scores)) != (grid.width, bins):
            raise BadInput(
                "counts",
                where=f"report of {report.holder}",
                allowed=f"{grid.width} counts and {bins} score bins, as in the bundle",
            )
    noise_std = math.sqrt(math.fsum(report.noise_std**2 for report in reports))
    return Population(
        counts=np.sum([report.counts for report in reports], axis=0),
        scores=np.sum([report.scores for report in reports], axis=0),
        counts_noise_std=noise_std,
        scores_noise_std=noise_std,
    )


def _parsed(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REPORT_BYTES + 1)
        if len(data) > MAX_REPORT_BYTES:
            raise BadInput("report", value=str(path), allowed=f"a file of at most {MAX_REPORT_BYTES} bytes")
        return json.loads(data)
    except (OSError, RecursionError, ValueError):
        raise BadInput("report", value=str(path), allowed="a readable JSON file") from None


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
