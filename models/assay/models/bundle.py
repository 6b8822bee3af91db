"""The signed result of a run: one file that anybody can check and only its signer can have made.

A bundle is a zip without compression, so that its bytes are determined by its content and cannot grow
when unpacked::

    study.toml           the study's source text
    scorecard.json       points, bases, bands, baselines of the reasons
    weights.safetensors  "theta", float64: log-odds of bad per cell, then per pattern of components
    label.json           what the privacy guarantee says
    audit.json           what the last, noisy release says of the card: ranking, calibration, groups
    baseline.json        noisy counts of cells and scores at training, to tell later how the population moved
    metrics.json         measured on held-out records, in a simulation; {} otherwise
    provenance.json      created, expires (seconds since 1970), purpose, contexts, study digest, signer, and
                         why the model is held: reasons that it must not be used, normally none
    manifest.json        SHA-256 of every member above
    signature            64 bytes: Ed25519 over manifest.json, context "bundle"

A file that is not byte for byte what :func:`write_bundle` makes of its members is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from assay.models.schema import Study
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.errors import BadInput, Refused, Tampered
from assay.privacy.files import write_durably
from assay.privacy.keys import Identity, canonical_json, fingerprint, verify

__all__ = ["MAX_BUNDLE_BYTES", "Bundle", "read_bundle", "write_bundle"]

MAX_BUNDLE_BYTES = 64 << 20
_CONTENT = (
    "study.toml",
    "scorecard.json",
    "weights.safetensors",
    "label.json",
    "audit.json",
    "baseline.json",
    "metrics.json",
    "provenance.json",
)
_MEMBERS = (*_CONTENT, "manifest.json", "signature")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle.

    Attributes:
        study: what was trained.
        theta: float64 [width], the model.
        scorecard: the points.
        label: the privacy label.
        audit: see :func:`assay.models.audit.audit_of`; empty where there was none.
        baseline: ``counts`` (by cell and pattern), ``scores`` (by score bin) and the noise in each.
        metrics: measured quality, possibly empty.
        created: seconds since 1970.
        expires: seconds since 1970.
        held: why the model is not promoted, in words; empty where it is.
        signer: the Ed25519 public key, 32 bytes.
        digest: SHA-256 of the file, 64 hexadecimal digits.
    """

    study: Study
    theta: NDArray[np.float64] = field(repr=False)
    scorecard: Scorecard = field(repr=False)
    label: Mapping[str, Any] = field(repr=False)
    audit: Mapping[str, Any] = field(repr=False)
    baseline: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)
    created: float
    expires: float
    held: tuple[str, ...]
    signer: bytes
    digest: str

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the signer, to be compared with the one the federation gave out."""
        return fingerprint(self.signer)

    def require_current(self, now: float) -> None:
        """Refuse an expired bundle.

        Raises:
            Refused: code ``"expired"``.
        """
        if not now < self.expires:
            raise Refused("the bundle has expired; train the study again", code="expired")

    def require_promoted(self) -> None:
        """Refuse a model that a gate of its study holds back.

        Raises:
            Refused: code ``"held"``.
        """
        if self.held:
            raise Refused(
                f"the model is held back and must not be used: {'; '.join(self.held)}. Change the study or"
                " the records and train again",
                code="held",
            )


def write_bundle(
    path: Path,
    *,
    study: Study,
    theta: NDArray[np.float64],
    scorecard: Scorecard,
    label: Mapping[str, Any],
    identity: Identity,
    created: float,
    expires: float,
    audit: Mapping[str, Any] | None = None,
    baseline: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    held: tuple[str, ...] = (),
) -> None:
    """Sign and write a bundle, whole or not at all. Equal arguments give equal bytes.

    Raises:
        BadInput: ``theta`` does not fit the scorecard, ``expires`` is not after ``created``, or the bundle is
            larger than 64 MiB.
    """
    _check_model(study, theta, scorecard)
    if not created < expires:
        raise BadInput("expires", value=expires, allowed="after created")
    provenance = {
        "created": float(created),
        "expires": float(expires),
        "purpose": study.purpose,
        "contexts": list(study.contexts),
        "study": study.digest,
        "signer": identity.public.hex(),
        "fingerprint": identity.fingerprint,
        "held": list(held),
    }
    members = {
        "study.toml": study.text.encode("utf-8"),
        "scorecard.json": canonical_json(scorecard.to_json()),
        "weights.safetensors": save({"theta": np.ascontiguousarray(theta, dtype="<f8")}),
        "label.json": canonical_json(dict(label)),
        "audit.json": canonical_json(dict(audit or {})),
        "baseline.json": canonical_json(dict(baseline or {})),
        "metrics.json": canonical_json(dict(metrics or {})),
        "provenance.json": canonical_json(provenance),
    }
    members["manifest.json"] = _manifest(members)
    members["signature"] = identity.sign("bundle", members["manifest.json"])
    data = _zipped(members)
    if len(data) > MAX_BUNDLE_BYTES:
        raise BadInput("bundle size", value=len(data), allowed=f"at most {MAX_BUNDLE_BYTES} bytes")
    write_durably(path, data)


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle. Who signed it is for the caller to compare: :attr:`Bundle.fingerprint`.

    Raises:
        BadInput: there is no such file, or it is no bundle.
        Tampered: a member was changed, added, dropped or repeated; the message names it.
    """
    data = _bytes_of(path)
    members = _unzipped(data, str(path))
    _verify_manifest(members, str(path))
    study = parse_study(_text(members["study.toml"]), f"{path}:study.toml")
    provenance = _json(members, "provenance.json", path)
    signer = _signer(provenance, path)
    verify(signer, "bundle", members["manifest.json"], members["signature"], what=f"bundle {path}")
    scorecard = Scorecard.from_json(_json(members, "scorecard.json", path), study)
    theta = _theta(members["weights.safetensors"], path)
    _check_model(study, theta, scorecard)
    _check_provenance(provenance, study, signer, path)
    return Bundle(
        study=study,
        theta=theta,
        scorecard=scorecard,
        label=_json(members, "label.json", path),
        audit=_json(members, "audit.json", path),
        baseline=_json(members, "baseline.json", path),
        metrics=_json(members, "metrics.json", path),
        held=tuple(provenance["held"]),
        created=float(provenance["created"]),
        expires=float(provenance["expires"]),
        signer=signer,
        digest=hashlib.sha256(data).hexdigest(),
    )


def _check_model(study: Study, theta: NDArray[np.float64], scorecard: Scorecard) -> None:
    if scorecard.study.digest != study.digest:
        raise BadInput("scorecard", allowed="the scorecard of the study beside it")
    if theta.shape != (scorecard.grid.width,) or not np.isfinite(theta).all():
        raise BadInput("theta", allowed=f"{scorecard.grid.width} finite numbers")


def _manifest(members: Mapping[str, bytes]) -> bytes:
    digests = {name: hashlib.sha256(members[name]).hexdigest() for name in _CONTENT}
    return canonical_json({"format": "assay bundle", "members": digests, "version": 2})


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in _MEMBERS:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, members[name])
    return buffer.getvalue()


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise BadInput("bundle", value=str(path), allowed=f"a file of at most {MAX_BUNDLE_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput("bundle", value=str(path), allowed="an existing file") from None
    except OSError as error:
        raise BadInput("bundle", value=str(path), allowed=f"a readable file ({error.strerror})") from None


def _unzipped(data: bytes, where: str) -> dict[str, bytes]:
    """Return the members, exactly those documented. Nothing is decompressed and no name becomes a path."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise BadInput("bundle", value=where, allowed="a file written by assay") from None
    members: dict[str, bytes] = {}
    with archive:
        for info in archive.infolist():
            if info.filename not in _MEMBERS:
                raise Tampered(f"{where}: member {info.filename!r} does not belong in a bundle")
            if info.filename in members:
                raise Tampered(f"{where}: member {info.filename!r} occurs twice")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise Tampered(f"{where}: member {info.filename!r} is compressed or its size is wrong")
            try:
                members[info.filename] = archive.read(info)
            except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError):
                raise Tampered(f"{where}: member {info.filename!r} was changed") from None
    for name in _MEMBERS:
        if name not in members:
            raise Tampered(f"{where}: member {name!r} is missing")
    if _zipped(members) != data:
        raise Tampered(f"{where}: there is something between or around the members")
    return members


def _verify_manifest(members: Mapping[str, bytes], where: str) -> None:
    manifest = _json(members, "manifest.json", where)
    listed = manifest.get("members")
    if not isinstance(listed, dict) or set(listed) != set(_CONTENT):
        raise Tampered(f"{where}: member 'manifest.json' does not list the members")
    for name in _CONTENT:
        if hashlib.sha256(members[name]).hexdigest() != listed[name]:
            raise Tampered(f"{where}: member {name!r} was changed")
    if members["manifest.json"] != _manifest(members):
        raise Tampered(f"{where}: member 'manifest.json' was changed")


def _json(members: Mapping[str, bytes], name: str, where: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(members[name])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Tampered(f"{where}: member {name!r} is not a JSON object")
    return value


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Tampered("member 'study.toml' is not UTF-8") from None


def _theta(data: bytes, where: Path) -> NDArray[np.float64]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError):
        tensors = {}
    if set(tensors) != {"theta"} or tensors["theta"].dtype != np.float64:
        raise Tampered(f"{where}: member 'weights.safetensors' does not hold exactly theta, float64")
    return np.asarray(tensors["theta"], dtype=np.float64)


def _signer(provenance: Mapping[str, Any], where: Path) -> bytes:
    try:
        return bytes.fromhex(provenance["signer"])
    except (KeyError, TypeError, ValueError):
        raise Tampered(f"{where}: member 'provenance.json' names no signer") from None


def _check_provenance(provenance: Mapping[str, Any], study: Study, signer: bytes, where: Path) -> None:
    wanted = {
        "purpose": study.purpose,
        "contexts": list(study.contexts),
        "study": study.digest,
        "fingerprint": fingerprint(signer),
    }
    times = [provenance.get("created"), provenance.get("expires")]
    held = provenance.get("held")
    same = all(provenance.get(key) == value for key, value in wanted.items())
    same = same and isinstance(held, list) and all(isinstance(reason, str) for reason in held)
    if not same or not all(type(time) is float for time in times) or not times[0] < times[1]:  # type: ignore[operator]
        raise Tampered(f"{where}: member 'provenance.json' does not match the study and the signer")
