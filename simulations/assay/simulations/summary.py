"""The report of a run on one machine, put together from its parts."""

from __future__ import annotations

from pathlib import Path

from assay.client.records import Records
from assay.models.bundle import read_bundle
from assay.models.label import label_in_words
from assay.models.schema import Study
from assay.simulations.comparison import Baselines, Evaluation, people_lines
from assay.simulations.report import HolderLine, Report, Trust, write_report
from assay.simulations.unprotected import group_lines

__all__ = ["summarise"]


def summarise(
    path: Path,
    *,
    title: str,
    study: Study,
    bundle: Path,
    holders: tuple[HolderLine, ...],
    federated: Evaluation,
    baselines: Baselines,
    test: Records,
    rounds: int,
    seconds: float,
    notes: tuple[str, ...],
) -> None:
    """Write the HTML report of one run.

    Args:
        path: where it goes.
        title: headline.
        study: what was trained.
        bundle: the signed result; its label and fingerprint are shown.
        holders: one line each; their local AUROC is filled in from ``baselines``.
        federated: the model on the held-out records.
        baselines: what it is compared with.
        test: the held-out records.
        rounds: gradient rounds.
        seconds: wall time of the training.
        notes: where the records come from and what the numbers do not say.
    """
    signed = read_bundle(bundle)
    best = max(baselines.local.values(), key=lambda own: own.metrics.auroc, default=None)
    write_report(
        path,
        Report(
            title=title,
            study_name=study.name,
            purpose=study.purpose,
            outcome_meaning=study.outcome.meaning,
            holders=holders,
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            trust=Trust.of(signed.label),
            rounds=rounds,
            seconds=seconds,
            label_words=label_in_words(dict(signed.label)),
            comparison=baselines.compared_with(federated),
            y_true=test.labels,
            probability=federated.scores.probability,
            score=federated.scores.score,
            scale=study.scale,
            pooled_probability=baselines.pooled.scores.probability,
            local_probability=None if best is None else best.scores.probability,
            people=people_lines(federated, test),
            cut_off=study.scale.threshold,
            groups=group_lines(federated.card, baselines.unprotected.card, test),
            bundle_name=bundle.name,
            fingerprint=signed.fingerprint,
            notes=notes,
        ),
    )
