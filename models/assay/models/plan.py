"""``assay privacy plan``: what a study would cost and give, from public numbers only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.models.schema import Study
from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit

__all__ = ["plan", "plan_run"]

MAX_HOLDERS = 10_000
# Noise of the mean gradient in one coordinate. Measured on the Taiwan records: below the first the loss
# against no noise stays under about .02 AUROC, above the second nothing useful is learned.
_COMFORTABLE, _HOPELESS = 0.01, 0.1


def plan_run(study: Study, *, holders: int, rows: int) -> dict[str, Any]:
    """Work out noise, rounds and cost of a run before anything is spent.

    Args:
        study: the study; its privacy target is taken as it is.
        holders: number of holders that take part.
        rows: persons at each holder, as publicly guessed.

    Returns:
        A JSON object; nothing in it depends on records.

    Raises:
        BadInput: ``holders`` or ``rows`` is out of range.
        Refused: too few holders for the study's trust (code ``"holders"``).
    """
    # Late, so that other commands do not wait for what only a plan needs.
    from assay.models.encoding import Grid
    from assay.models.fitting import default_rounds
    from assay.models.label import mechanism_of, privacy_label, privacy_target

    if not 1 <= holders <= MAX_HOLDERS:
        raise BadInput("--holders", value=holders, allowed=f"1 to {MAX_HOLDERS}")
    if not 1 <= rows <= 10**12:
        raise BadInput("--rows", value=rows, allowed="1 to 10^12 persons per holder")
    study.require_holders(holders)
    grid, target = Grid.of(study), privacy_target(study)
    persons, summed = holders * rows, target.trust == "distributed"
    contributors = holders - study.privacy.tolerated if summed else 1
    # One noise in the sum of all holders, or one noise from each of them.
    noises = 1 if summed else holders
    rounds = study.training.rounds or default_rounds(epsilon=target.epsilon, persons=persons, holders=noises)
    gradient = mechanism_of(study, grid, number=1, rounds=rounds, contributors=contributors)
    noise = gradient.std * math.sqrt(holders / contributors) / persons
    label = privacy_label(study, rounds=rounds, holders=holders)
    outlook = "good" if noise <= _COMFORTABLE else "weak" if noise <= _HOPELESS else "hopeless"
    return {
        "study": study.name,
        "epsilon": target.epsilon,
        "delta": target.delta,
        "trust": target.trust,
        "holders": holders,
        "rows": rows,
        "rounds": rounds,
        "cells": grid.width,
        "audited": sum(release["values"] for release in label["releases"][2:]),
        "sensitivity": gradient.l2_clip_norm,
        "noise_multiplier": gradient.noise_multiplier,
        "counts_noise_multiplier": label["releases"][0]["noise_multiplier"],
        "epsilon_per_holder": label["epsilon_per_holder"],
        "epsilon_if_aggregation_fails": label["epsilon_if_aggregation_fails"],
        "noise_of_mean_gradient": noise,
        "outlook": outlook,
    }


_OUTLOOK = {
    "good": "The noise is small against what there is to learn.",
    "weak": "The noise will cost accuracy: more persons, more holders or a larger epsilon would help.",
    "hopeless": "Too few persons for this epsilon: nothing useful can be learned. Do not spend the budget.",
}


@command
def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    holders: Annotated[int, typer.Option(help="Holders that would take part.")] = 3,
    rows: Annotated[int, typer.Option(help="Persons at each holder, roughly.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Show noise, rounds and cost of a run before anything is spent; reads no records.

    Example: assay privacy plan examples/taiwan/study.toml --holders 3 --rows 8000
    """
    from assay.models.study import read_study

    checked = read_study(study)
    result = plan_run(checked, holders=holders, rows=rows)
    emit(result, as_json=as_json, text=_words(result))


def _words(plan: dict[str, Any]) -> str:
    cells, rounds, fails = plan["cells"], plan["rounds"], plan["epsilon_if_aggregation_fails"]
    left = "" if fails is None else f"; epsilon {fails:.3g} if secure aggregation fails"
    seen = "by each holder" if fails is None else "as a sum over the holders"
    return (
        f"{plan['study']}: epsilon {plan['epsilon']:g} at delta {plan['delta']:g}, "
        f"{plan['holders']} holder(s) of about {plan['rows']:,} persons, trust {plan['trust']}\n"
        f"  rounds            {rounds}, plus noisy counts before and two audits of the result after\n"
        f"  released          {rounds + 1} x {cells} + {plan['audited']} noisy integers {seen}\n"
        f"  noise multiplier  {plan['noise_multiplier']:.4g} (counts {plan['counts_noise_multiplier']:.4g}),"
        f" sensitivity {plan['sensitivity']:.4g}\n"
        f"  cost              epsilon {plan['epsilon_per_holder']:.6g} in each holder's ledger{left}\n"
        f"  noise of the mean gradient {plan['noise_of_mean_gradient']:.2g}: {plan['outlook']}. "
        f"{_OUTLOOK[plan['outlook']]}"
    )
