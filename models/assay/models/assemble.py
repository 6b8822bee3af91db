"""A person scored across holders: the total, put together from what each of them stated.

A holder that has some of a study's components states the points of those, encrypted to the recipient
(:mod:`assay.privacy.points`). The recipient adds them up here and gets the numbers that scoring the whole
record in one place would give: the points are integers, and the base is that of the components that are
there. Nothing here reads a record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from assay.models.bundle import Bundle
from assay.models.encoding import ABSENT
from assay.models.explain import NEAR, reason_words
from assay.models.scorecard import BANDS, REASONS, Scorecard, Scores
from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import require_private
from assay.privacy.points import Statement, commitment
from assay.privacy.pointsrequest import (
    KEY_FILE,
    REQUEST_FILE,
    SKEW_S,
    PointsRequest,
    load_recipient_key,
)
from assay.privacy.purpose import check_use

__all__ = ["assemble", "assembled_in_words"]

_ASKED = {
    "recipient": "recipient",
    "id": "request",
    "bundle": "bundle",
    "study": "study",
    "study_name": "study",
    "platform": "platform",
    "issued": "request",
    "expires": "request",
}


def assemble(
    bundle: Bundle,
    files: Sequence[Path],
    *,
    directory: Path,
    purpose: str,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Verify, decrypt and add up what holders stated for one request.

    Args:
        bundle: the model; who signed it is whom holders must be admitted by.
        files: statements; each component is stated by one holder.
        directory: of :func:`assay.models.ask.make_request`.
        purpose: what the score is used for; must be the bundle's and the request's.
        clock: seconds since 1970.

    Returns:
        A JSON object with the keys of ``explain`` that need no record (``score``, ``probability``, ``band``,
        ``base_points``, ``features`` without values, ``capped``, ``missing_components``, ``reasons``,
        ``cut_off``, ``reasons_near_cut_off``) and ``request``, ``signer`` and ``statements`` (who stated
        what, and the commitment that the holder's audit log has).

    Raises:
        Tampered: a signature does not verify, or a statement cannot be decrypted.
        Refused: another purpose (D03), recipient, request or model; something has expired; a holder that the
            bundle's signer did not admit (``"admission"``); a component stated twice (``"twice"``).
        BadInput: a file is not a statement, or states what the model cannot give.
    """
    now, study = clock(), bundle.study
    require_private(directory)
    request = PointsRequest.read(directory / REQUEST_FILE)
    private = load_recipient_key(directory / KEY_FILE)
    check_use(purpose, study.purpose, study.rules, context=request.context, contexts=study.contexts)
    check_use(purpose, request.purpose, study.rules)
    bundle.require_current(now)
    bundle.require_promoted()
    request.require_time(now, days=study.rules.retention["statements"].days)
    if private.public_key().public_bytes_raw() != request.recipient:
        raise BadInput("recipient", where=request.where, allowed=f"the key in {directory / KEY_FILE}")
    if request.bundle != bundle.digest:
        raise _refused(request.where, "the request is for another bundle", "Give the one it was made for")
    if not files:
        raise BadInput("statements", allowed="at least one")
    statements = [Statement.read(path) for path in files]
    for statement in statements:
        _require_answers(statement, request, bundle, now)
    card = bundle.scorecard
    by = _owners(statements, card)
    points, told = _opened(statements, private, card)
    pattern = sum(1 << place for place, name in enumerate(card.grid.components) if name in by)
    scores = card.add_up(points[None, :], np.array([pattern], dtype=np.int32))
    result = _result(card, scores, by)
    return {**result, "request": request.id, "signer": bundle.fingerprint, "statements": told}


def assembled_in_words(result: Mapping[str, Any]) -> str:
    """Lay :func:`assemble`'s result out for a person; the points add up line by line."""
    width = max(len("adjusted to the range"), *(len(f["label"]) for f in result["features"]))
    lines = [
        f"Score {result['score']}, {result['band']}"
        f" (chance of a bad outcome {100 * result['probability']:.1f} %)",
        "",
        f"  {'starting points':{width}}  {result['base_points']:+6d}",
    ]
    lines += [
        f"  {f['label']:{width}}  {f['points']:+6d}   {f['holder'] or 'not known'}"
        for f in result["features"]
    ]
    if result["capped"]:
        lines.append(f"  {'adjusted to the range':{width}}  {result['capped']:+6d}")
    lines += [f"  {'score':{width}}  {result['score']:6d}", "", "Main reasons, compared with the average:"]
    lines += [f"  {place}. {reason['words']}" for place, reason in enumerate(result["reasons"], start=1)]
    if result["missing_components"]:
        missing = ", ".join(name.replace("_", " ") for name in result["missing_components"])
        lines += ["", f"Not known, and counted neither for nor against: {missing}"]
    lines += ["", f"Model and holders vouched for by {result['signer']}: compare it with the federation's."]
    return "\n".join(lines)


def _refused(where: str, what: str, remedy: str, code: str = "request") -> Refused:
    return Refused(f"{where}: {what}. {remedy}", code=code)


def _require_answers(statement: Statement, request: PointsRequest, bundle: Bundle, now: float) -> None:
    """Refuse a statement that is not an answer to ``request`` by a holder of the bundle's federation."""
    asked, where, rules = statement.request, statement.where, bundle.study.rules
    if statement.admission.coordinator_public != bundle.signer:
        raise _refused(
            where,
            f"holder {statement.holder!r} was admitted by {statement.admission.fingerprint}, and the bundle"
            f" is signed by {bundle.fingerprint}",
            "Only holders of the federation that trained the model are believed",
            code="admission",
        )
    statement.require_member(now)
    for name in ("purpose", "context"):
        given, wanted = getattr(asked, name), getattr(request, name)
        if given != wanted:
            subject = f"a statement for {name} {given!r} where {wanted!r} was asked for"
            raise rules.refusal("D03").error(subject).at(where)
    for name, words in _ASKED.items():
        if getattr(asked, name) != getattr(request, name):
            raise _refused(
                where, f"it answers another {words}", "Ask the holder to answer this one", "request"
            )
    if not statement.issued - SKEW_S <= now < statement.expires:
        raise _refused(where, "it has expired, or is of the future", "Make a new request", code="expired")
    if not request.issued - SKEW_S <= statement.issued or not statement.expires <= request.expires:
        raise _refused(where, "it is dated outside the request", "Make a new request", code="expired")


def _owners(statements: Sequence[Statement], card: Scorecard) -> dict[str, Statement]:
    """Return who states each component; nobody states one that somebody else does."""
    by: dict[str, Statement] = {}
    for statement in statements:
        for component in statement.components:
            if component not in card.grid.components:
                allowed = ", ".join(card.grid.components)
                raise BadInput("components", where=statement.where, value=component, allowed=allowed)
            if component in by:
                other = by[component]
                raise _refused(
                    statement.where,
                    f"component {component!r} is stated by {statement.holder!r} and, in {other.where}, by"
                    f" {other.holder!r}",
                    "Give one of the two files",
                    code="twice",
                )
            by[component] = statement
    return by


def _opened(
    statements: Sequence[Statement], private: X25519PrivateKey, card: Scorecard
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Decrypt: points int32 [T] of all of them together, and who stated what."""
    points = np.zeros(len(card.grid.terms), dtype=np.int32)
    told = []
    for statement in statements:
        opened = statement.open(private)
        _take(statement, opened.points, card, points)
        told.append(
            {
                "file": statement.where,
                "holder": statement.holder,
                "fingerprint": statement.fingerprint,
                "components": list(statement.components),
                "expires": statement.expires,
                "commitment": commitment(opened.salt, statement.data),
            }
        )
    return points, told


def _take(
    statement: Statement, stated: tuple[int | None, ...], card: Scorecard, points: NDArray[np.int32]
) -> None:
    """Put what one holder states into ``points``: all terms of its components, within what cells give."""
    terms = card.grid.terms
    if len(stated) != len(terms):
        raise BadInput("points", where=statement.where, allowed=f"{len(terms)}, one per feature and pair")
    for place, term in enumerate(terms):
        number = stated[place]
        if (number is not None) != (term.component in statement.components):
            raise BadInput(
                f"points of {term.name}",
                where=statement.where,
                allowed="points of its components, and no others",
            )
        if number is None:
            continue
        own = card.points[term.offset : term.offset + term.cells]
        if not own.min() <= number <= own.max():
            raise BadInput(
                f"points of {term.name}",
                where=statement.where,
                allowed="what a cell of the scorecard gives",
            )
        points[place] = number


def _result(card: Scorecard, scores: Scores, by: Mapping[str, Statement]) -> dict[str, Any]:
    """Return what :func:`assay.models.explain.explain` says, without what only a record can tell."""
    grid, points = card.grid, [int(number) for number in scores.points[0]]
    features = [
        {
            "name": term.name,
            "label": term.label,
            "description": term.description,
            "component": term.component,
            "pair": term.pair,
            "holder": by[term.component].holder if term.component in by else None,
            "points": points[place],
            "average_points": round(float(card.means[place]), 1),
        }
        for place, term in enumerate(grid.terms)
    ]
    chosen = [int(place) for place in scores.reasons[0] if place != ABSENT]
    return {
        "score": int(scores.score[0]),
        "probability": float(scores.probability[0]),
        "band": BANDS[int(scores.band[0])][0],
        "base_points": int(scores.base[0]),
        "features": features,
        "capped": int(scores.capped[0]),
        "missing_components": [name for name in grid.components if name not in by],
        "reasons": [_reason(card, place, float(card.means[place]) - points[place]) for place in chosen],
        "cut_off": card.study.scale.threshold,
        "reasons_near_cut_off": _near(card, points, by),
    }


def _near(card: Scorecard, points: list[int], by: Mapping[str, Statement]) -> list[dict[str, Any]] | None:
    """Terms furthest below those who just pass the cut-off; None where the card has no such baseline."""
    if card.near is None:
        return None
    there = [place for place, term in enumerate(card.grid.terms) if term.component in by]
    lost = {place: float(card.near[place]) - points[place] for place in there}
    worst = sorted(lost, key=lambda place: (-lost[place], place))[:REASONS]
    return [_reason(card, place, lost[place], NEAR) for place in worst]


def _reason(card: Scorecard, place: int, lost: float, than: str = "average") -> dict[str, Any]:
    term, whole = card.grid.terms[place], int(np.floor(lost + 0.5))
    return {
        "feature": term.name,
        "words": reason_words(term.label, -whole, than),
        "points_lost": whole,
    }
