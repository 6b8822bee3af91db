"""From a finished run to a signed bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.models.bundle import write_bundle
from assay.models.encoding import Grid
from assay.models.label import privacy_label
from assay.models.schema import Study
from assay.privacy.keys import Identity
from assay.server.rounds import Trained

__all__ = ["VALID_S", "publish", "valid_s"]

# A scorecard is refused a year after its training: people and economies change.
VALID_S = 365 * 86400


def valid_s(study: Study) -> int:
    """Seconds that a bundle of a study is good for: a year, or less where its policy pack says less."""
    return min(VALID_S, study.rules.retention["bundles"].days * 86400)


def publish(
    path: Path,
    *,
    study: Study,
    trained: Trained,
    identity: Identity,
    created: float,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a fitted model into points and write the signed bundle.

    Args:
        path: where the bundle goes.
        study: what was trained.
        trained: what the run gave; all of it was released with its noise.
        identity: the coordinator's signing key.
        created: seconds since 1970.
        metrics: measured on held-out records, as in a simulation. None in a live run: a coordinator holds no
            records, and the audit that was paid for is all that it knows.

    Returns:
        The privacy label in the bundle, and under ``held`` why it must not be used, normally nothing.
    """
    # Where the noise is shared, a share is smallest in the round that most holders were asked in.
    holders = trained.most_asked if study.privacy.trust == "distributed" else len(trained.holders)
    label = privacy_label(study, rounds=trained.rounds, holders=holders)
    held = _held(trained.audit)
    write_bundle(
        path,
        study=study,
        theta=trained.theta,
        scorecard=trained.card,
        label=label,
        audit={
            **trained.audit,
            "calibration_step": trained.platt.to_json(),
            "patterns": _patterns(study, trained),
        },
        baseline=trained.baseline,
        metrics=metrics,
        held=held,
        identity=identity,
        created=created,
        expires=created + valid_s(study),
    )
    return {**label, "held": list(held)}


def _held(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """Say why the study's own gate holds the model back; nothing where it has none or the model passes."""
    fairness = audit["fairness"]
    if fairness["passed"] is not False:
        return ()
    return tuple(f"fairness: {words}" for words in (*fairness["failures"], *fairness["too_small"]))


def _patterns(study: Study, trained: Trained) -> list[dict[str, Any]]:
    """Say which components the holders had; public, because columns are."""
    grid, found = Grid.of(study), Counter(trained.patterns.values())
    return [
        {"components": list(grid.components_of(pattern)), "holders": number}
        for pattern, number in sorted(found.items())
    ]
