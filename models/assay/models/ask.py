"""Asking holders for a person's points: the request, and the key that only its maker has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from assay.models.bundle import Bundle
from assay.privacy.errors import BadInput
from assay.privacy.files import write_durably
from assay.privacy.homes import new_home
from assay.privacy.noise import Entropy
from assay.privacy.pointsrequest import DAY_S, KEY_FILE, REQUEST_FILE, PointsRequest, save_recipient_key
from assay.privacy.purpose import check_use

__all__ = ["make_request"]


def make_request(
    bundle: Bundle,
    directory: Path,
    *,
    purpose: str,
    context: str | None = None,
    platform: str | None = None,
    valid_days: int = 7,
    clock: Callable[[], float] = time.time,
    entropy: Entropy = os.urandom,
) -> PointsRequest:
    """Make a request and the key that only its maker has.

    Args:
        bundle: the model to be scored with.
        directory: missing or empty; gets ``points-request.json`` and ``keys/recipient.key`` (mode 0600).
        purpose: what the score is for; must be the bundle's.
        context: where it is to be used; one that the bundle declares. None: it is not said.
        platform: the platform it is to be used on, if any.
        valid_days: how long holders may answer and the answers count; at most what the policy pack allows.
        clock: seconds since 1970.
        entropy: random bytes.

    Raises:
        Refused: purpose or context is another, or the bundle is held back or has expired.
        BadInput: ``valid_days`` is out of range or the directory is in use.
    """
    rules = bundle.study.rules
    check_use(purpose, bundle.study.purpose, rules, context=context, contexts=bundle.study.contexts)
    now = clock()
    bundle.require_current(now)
    bundle.require_promoted()
    longest = rules.retention["statements"].days
    if not isinstance(valid_days, int) or not 1 <= valid_days <= longest:
        raise BadInput("--valid-days", value=valid_days, allowed=f"1 to {longest}, as {rules.name} says")
    key = X25519PrivateKey.from_private_bytes(entropy(32))
    request = PointsRequest(
        id=entropy(16).hex(),
        bundle=bundle.digest,
        study=bundle.study.digest,
        study_name=bundle.study.name,
        purpose=purpose,
        context=context,
        platform=platform,
        recipient=key.public_key().public_bytes_raw(),
        issued=int(now),
        expires=min(int(now) + valid_days * DAY_S, int(bundle.expires)),
    )
    with new_home(directory, remedy="Choose another directory; every request has a key of its own"):
        save_recipient_key(key, directory / KEY_FILE)
        write_durably(directory / REQUEST_FILE, request.to_bytes())
    return request
