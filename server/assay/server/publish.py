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
# Half-widths of a 95 % interval, four standard errors: a model that has learned nothing is not held for it.
_SURE = 2.0


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
    """Say why the model is held back: it ranks worse than guessing, or does not pass the study's own gate."""
    reasons, auroc, fairness = [], audit["auroc"], audit["fairness"]
    if auroc["value"] is not None and auroc["value"] + _SURE * (auroc["high"] - auroc["value"]) < 0.5:
        reasons.append(
            f"ranking: worse than guessing, AUROC {auroc['value']:.2f} in the run's own audit. A holder's"
            " made-up numbers can do that, or an outcome that is the wrong way round at some"
        )
    if fairness["passed"] is False:
        reasons += [f"fairness: {words}" for words in (*fairness["failures"], *fairness["too_small"])]
    return tuple(reasons)


def _patterns(study: Study, trained: Trained) -> list[dict[str, Any]]:
    """Say which components the holders had; public, because columns are."""
    grid, found = Grid.of(study), Counter(trained.patterns.values())
    return [
        {"components": list(grid.components_of(pattern)), "holders": number}
        for pattern, number in sorted(found.items())
    ]
